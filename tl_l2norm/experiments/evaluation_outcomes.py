"""What came of the responses that an evaluation drew: outcomes of its arms, curves of those that select, decisions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from tl_l2norm.analysis.arm_curves import ARM_CURVES
from tl_l2norm.core.errors import InputError
from tl_l2norm.core.layers import layer_ranges, resolve_layers
from tl_l2norm.core.thresholds import Thresholds, iqr_thresholds
from tl_l2norm.experiments.arms import Arm
from tl_l2norm.experiments.candidates import Unscorable
from tl_l2norm.experiments.curve import arm_curve
from tl_l2norm.experiments.evaluation_run import Asked, Run, Source
from tl_l2norm.experiments.others_scores import CHANGES, SHORT_THOUGHTS
from tl_l2norm.experiments.scores import NORM_SCORES
from tl_l2norm.experiments.selection import select
from tl_l2norm.models.described import Described
from tl_l2norm.models.provenance import provenance
from tl_l2norm.recording.completions import Completion
from tl_l2norm.tasks.verifiers import is_correct

_SEGMENTS = 8  # of a thought in the middle: two have one change, which is its own mean


def all_outcomes(
    run: Run, arms: Sequence[Arm], sources: Mapping[str, Source], *, tests: bool
) -> tuple[list[dict[str, Any]], Mapping[str, str]]:
    """Outcomes of all arms that can be scored, and why the others can't: of each by its name.

    Args:
        run: which has their responses.
        arms: the baseline first.
        sources: by the names of arms.
        tests: whether they are held against the baseline and their controls, and left out where that can't be.

    Raises:
        Unscorable: the baseline can't be scored, or where nothing is tested none can.
    """
    entries: dict[str, list[dict[str, Any]]] = {}
    left_out: dict[str, str] = {}
    for arm in arms:
        try:
            entries[arm.name] = list(outcomes_of(run, arm, sources[arm.name]))
        except Unscorable as reason:
            left_out[arm.name] = str(reason)
            if (tests and arm is arms[0]) or len(left_out) == len(arms):
                raise Unscorable(f"arm {arm.name!r}: {reason}") from reason
    while tests and (unheld := [arm for arm in arms if arm.name not in left_out and set(arm.control) & set(left_out)]):
        left_out |= {arm.name: f"{min(set(arm.control) & set(left_out))!r}, its control, is" for arm in unheld}
    return [entry for name, own in entries.items() if name not in left_out for entry in own], left_out


def outcomes_of(run: Run, arm: Arm, source: Source) -> Iterator[dict[str, Any]]:
    """One entry for each answer of an arm, problem by problem."""
    asked, n = run.asked, arm.n or run.asked.n
    completions = run.completions(source, arm)
    answers = completions if arm.selection is None else _chosen(asked, arm, completions)
    for answer in answers:
        problem, i = asked.problems[answer.prompt_index], answer.prompt_index
        behind = [(i, answer.sample)] if arm.selection is None else [(i, sample) for sample in range(n)]
        entries = [run.journal.entries[run.key(source, owner)] for owner in behind]
        tokens, reruns = sum(len(e["tokens"]) for e in entries), sum(e["reruns"] for e in entries)
        yield {
            "arm": arm.name,
            "prompt": problem.id,
            "family": problem.family,
            "level": problem.level,
            "sample": answer.sample,
            "correct": answer.finish_reason == "stop" and bool(is_correct(problem, answer.answer)),
            "responses": len(entries),
            "cut_off": sum(e["finish_reason"] == "length" for e in entries) / len(entries),
            "tokens": tokens,
            "reruns": reruns,
            "layer_passes": asked.backend.n_layers * tokens + reruns,
            "seconds": sum(e["seconds"] for e in entries),
        }


def _chosen(asked: Asked, arm: Arm, completions: Sequence[Completion]) -> Sequence[Completion]:
    """One response to each problem."""
    assert arm.selection is not None
    thresholds = _thresholds(asked, arm)
    completions = _alike(completions)
    return select(
        completions, by=arm.selection, thresholds=thresholds, layers=arm.layers, problems=asked.problems, seed=asked.seed
    )


def _alike(completions: Sequence[Completion]) -> list[Completion]:
    """Those of the same tokens have the same scores, whatever stood beside them in a batch."""
    first: dict[tuple[int, tuple[int, ...]], Completion] = {}
    for own in completions:
        first.setdefault((own.prompt_index, own.tokens), own)
    return [dataclasses.replace(first[own.prompt_index, own.tokens], sample=own.sample) for own in completions]


def _thresholds(asked: Asked, arm: Arm) -> Any:
    """Of a selection: its own, else those of the calibration, else None."""
    return iqr_thresholds(asked.traces) if arm.thresholds is None and asked.traces else arm.thresholds


def require_thresholds(arm: Arm, backend: Described) -> None:
    """Refuse a selection whose layers have no threshold, or one of another model, before responses are drawn for it.

    Raises:
        InputError: with the layers, or the models.
    """
    if arm.selection not in NORM_SCORES or arm.thresholds is None:
        return
    assert not callable(arm.thresholds)
    if missing := sorted(set(resolve_layers(arm.layers, backend.n_layers)) - set(arm.thresholds)):
        raise InputError(f"arm {arm.name!r}: its selection has no threshold for layers {layer_ranges(missing)}")
    source = arm.thresholds.provenance if isinstance(arm.thresholds, Thresholds) else None
    if source is None:
        return
    here = provenance(backend, backend.identity(), sink_ratio=source.sink_ratio)
    if not source.same_model(here):
        raise InputError(
            f"arm {arm.name!r}: the thresholds of its selection are of {source.describe()} but the model is {here.describe()}: "
            "take them from traces of this model"
        )


def require_segments(arm: Arm, asked: Asked) -> None:
    """Refuse, before responses are drawn, changes between segments of which the calibration's thoughts have no two.

    Raises:
        InputError: with a length that they have two of.
    """
    if arm.selection not in CHANGES or not asked.traces:
        return
    lengths = sorted(trace.segments.count("think") or int(trace.is_response.sum()) for trace in asked.traces)
    if np.mean(np.array(lengths) <= asked.segment_tokens) > SHORT_THOUGHTS:
        raise InputError(
            f"arm {arm.name!r}: {arm.selection!r} goes from segment to segment of {asked.segment_tokens} tokens, and half of "
            f"the calibration's thoughts (or responses without one) have {lengths[len(lengths) // 2]} tokens or fewer: give "
            f"shorter ones, such as segment_tokens={max(1, lengths[len(lengths) // 2] // _SEGMENTS)}"
        )


def curves_table(run: Run, arms: Sequence[Arm], sources: Mapping[str, Source]) -> pd.DataFrame:
    """`ARM_CURVES` of the arms that select."""
    asked, curves = run.asked, []
    for arm in arms:
        if arm.selection is not None:
            curve = arm_curve(
                _alike(run.completions(sources[arm.name], arm)),
                problems=asked.problems,
                by=arm.selection,
                thresholds=_thresholds(asked, arm),
                layers=arm.layers,
                seed=asked.seed,
            )
            curves.append(curve.drop(columns="score").rename(columns={"n": "responses", "problems": "n"}).assign(arm=arm.name))
    return ARM_CURVES.frame(pd.concat(curves) if curves else [])


def decisions_table(run: Run, arms: Sequence[Arm], sources: Mapping[str, Source]) -> pd.DataFrame:
    """How often the interventions of each arm decided what."""
    entries = [
        {"arm": arm.name, "intervention": name, "decision": decision, "fired": fired, "n": n}
        for arm in arms
        for i in range(len(run.asked.problems))
        for sample in range(arm.n or run.asked.n)
        for name, decision, fired, n in run.journal.entries[run.key(sources[arm.name], (i, sample))]["decisions"]
    ]
    names = ["arm", "intervention", "decision", "fired"]
    frame = pd.DataFrame(entries, columns=[*names, "n"])
    return frame.groupby(names, sort=False, as_index=False)["n"].sum()
