"""What a report says in words: the verdict, what stands above it, and what weakens it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from tl_l2norm.analysis.accuracy import MUCH_CUT_OFF, cut_off_warnings
from tl_l2norm.analysis.curves import compare_late
from tl_l2norm.analysis.pairing import Tokens
from tl_l2norm.core.errors import Unmeasurable
from tl_l2norm.core.trace import Trace
from tl_l2norm.show.style import MODE_NAMES
from tl_l2norm.tasks.results import Result

_NOTABLE_SHARE = 0.01  # of a mode's tokens left out as sinks, above which the report says so


def also(traces: Sequence[Trace], seed: int) -> list[str]:
    """The verdict once more, by norms one position earlier: where each response token was predicted, not where it was read.

    A direct answer is worked out at the prompt's last token, which the verdict itself doesn't see.
    """
    verdicts = [verdict(traces, seed, tokens) for tokens in ("read", "chosen")]  # type: ignore[arg-type]
    return [] if any(text.startswith("No comparison") for text in verdicts) else verdicts[1:]


def left_out(traces: Sequence[Trace]) -> list[str]:
    """A note for each mode of whose tokens in the late layers over 1% are left out of the means as attention sinks."""
    notes = []
    for mode, members in by_mode(traces).items():
        chosen = [trace.select("late").is_sink[:, trace.prompt_len - 1 :].any(0) for trace in members if trace.late_layers]
        n, all_tokens = int(sum(is_sink.sum() for is_sink in chosen)), sum(map(len, chosen))
        if n > _NOTABLE_SHARE * all_tokens:
            notes.append(
                f"{n} of the {all_tokens:,} tokens from which {MODE_NAMES[mode]} responses were chosen are over the bound of "
                "attention sinks in the late layers and left out: are they sinks, or where the work is done? A higher sink "
                "ratio keeps them."
            )
    return notes


def verdict(traces: Sequence[Trace], seed: int, tokens: Tokens = "read") -> str:
    """Whether thinking norms are higher in the late layers, whichever way it falls, or why that can't be said."""
    modes = by_mode(traces)
    if missing := [name for mode, name in MODE_NAMES.items() if mode not in modes]:
        return f"No comparison of the modes: there are no {missing[0]} responses."
    prompts = [{trace.labels["prompt"] for trace in members} for members in modes.values()]
    both, either = set.intersection(*prompts), set.union(*prompts)
    if not both:
        return "No comparison of the modes: no prompt was asked in both."
    if not traces[0].late_layers:
        return "No comparison of the modes: no late layer was recorded."
    think, direct = ([trace for trace in modes[mode] if trace.labels["prompt"] in both] for mode in MODE_NAMES)
    try:
        comparison = compare_late(think, direct, tokens=tokens, seed=seed)
    except Unmeasurable:
        return "No comparison of the modes: no prompt has response tokens in both."
    left_out = f" {count(len(either - both), 'prompt')} asked in one mode only are left out." if either - both else ""
    return comparison.verdict + left_out


def warnings_of(traces: Sequence[Trace], accuracy: pd.DataFrame) -> list[str]:
    """What stands above everything else, because it may be the reason for it."""
    hooked = max(trace.provenance.foreign_hooks for trace in traces)
    were = "was" if hooked == 1 else "were"
    hooks = [f"WARNING: {count(hooked, 'hook')} that the run didn't put there {were} on the model."] if hooked else []
    return [*cut_off_warnings(accuracy), *hooks]


def caveats(accuracy: pd.DataFrame) -> list[str]:
    """What weakens a comparison of the modes, in words."""
    caveats = []
    for entry in accuracy.to_dict("records"):
        name = MODE_NAMES[entry["mode"]]
        if entry["not_direct"] > 0:  # NaN in thinking mode
            caveats.append(
                f"{share(entry['not_direct'])} of the direct responses were not direct: they hold more than an answer."
            )
        if 0 < entry["cut_off"] <= MUCH_CUT_OFF:
            caveats.append(f"{share(entry['cut_off'])} of the {name} responses were cut off at the token limit.")
        if not entry["n"]:
            caveats.append(f"No answer is known for the {name} responses, so there is no accuracy.")
    return caveats


def missing(traces: Sequence[Trace], results: Sequence[Result]) -> list[str]:
    """How many responses a figure leaves out, and why: no tokens, thinking without a thought, an answer that isn't known."""
    notes = []
    for mode, members in by_mode(traces).items():
        empty = [not trace.is_response.any() for trace in members]
        if any(empty):
            notes.append(
                f"{share(float(np.mean(empty)))} of the {MODE_NAMES[mode]} responses are empty or hold one token: no norm."
            )
        thoughtless = ["think" not in trace.segments for trace in members]
        if mode == "think" and any(thoughtless):
            notes.append(f"{share(float(np.mean(thoughtless)))} of the thinking responses hold no thought between tags.")
        known = [result.correct is not None for result in results if result.mode == mode]
        if any(known) and not all(known):
            notes.append(
                f"Accuracy of {MODE_NAMES[mode]} responses is of the {sum(known)} of {len(known)} whose answers are known; "
                "norms are of all."
            )
    return notes


def share(value: float, unknown: str = "-") -> str:
    """As a percentage."""
    return unknown if np.isnan(value) else f"{value:.0%}"


def count(n: int, what: str) -> str:
    """A number of things."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def by_mode(traces: Iterable[Trace]) -> Mapping[str, list[Trace]]:
    """Traces by their mode, thinking first; modes without any are left out."""
    groups: dict[str, list[Trace]] = {mode: [] for mode in MODE_NAMES}
    for trace in traces:
        groups[str(trace.labels["mode"])].append(trace)
    return {mode: members for mode, members in groups.items() if members}
