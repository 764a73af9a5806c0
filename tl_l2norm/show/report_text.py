"""Tables and facts of a report, for people."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from tl_l2norm.analysis.accuracy import ACCURACIES
from tl_l2norm.analysis.responses import TOKEN_TYPES
from tl_l2norm.analysis.sinks import SINKS
from tl_l2norm.core.layers import layer_ranges
from tl_l2norm.core.trace import Trace
from tl_l2norm.show.norm_figures import interval_text
from tl_l2norm.show.report_words import share
from tl_l2norm.show.result_figures import MAX_TOKENS
from tl_l2norm.show.style import MODE_NAMES, mode_name
from tl_l2norm.show.tokens import norm_text, visible_text
from tl_l2norm.tasks.results import Result


def accuracy_text(table: pd.DataFrame) -> pd.DataFrame:
    """What `accuracy_table` returns, for people."""
    ACCURACIES.check(table, "mode", *ACCURACIES.names)
    columns = {name: table[name] for name in ("family", "level") if name in table}
    return pd.DataFrame(
        {
            **columns,
            "mode": [MODE_NAMES[mode] for mode in table["mode"]],
            "accuracy": [share(value, "not known") for value in table["accuracy"]],
            "95% interval": [
                f"{share(low)} to {share(high)}" if n else "-"
                for low, high, n in zip(table["low"], table["high"], table["n"], strict=True)
            ],
            "n": table["n"],
            "not direct": [share(value) for value in table["not_direct"]],
            "cut off": [share(value) for value in table["cut_off"]],
        }
    )


def sinks_text(table: pd.DataFrame) -> pd.DataFrame:
    """What `sink_table` returns, for people."""
    SINKS.check(table)
    return pd.DataFrame(
        {
            "position": table["position"],
            "token": [visible_text(token) or "(part of a character)" for token in table["token"]],
            "over the bound at layers": [layer_ranges(layers) or "none" for layers in table["layers"]],
            "greatest norm": [norm_text(norm) for norm in table["max_norm"]],
            "sequences": [f"{k} of {n}" for k, n in zip(table["sequences"], table["n"], strict=True)],
        }
    )


def types_text(table: pd.DataFrame) -> pd.DataFrame:
    """What `highest_norm_tokens` returns, for people."""
    TOKEN_TYPES.check(table)
    return pd.DataFrame(
        {
            "token": [visible_text(token) or "(part of a character)" for token in table["token"]],
            "in": table["part"],
            "mean norm": [norm_text(norm) for norm in table["mean"]],
            "of the median": [f"{ratio:.2f} times" for ratio in table["ratio"]],
            "greatest": [norm_text(norm) for norm in table["max"]],
            "times": table["times"],
            "prompts": table["prompts"],
        }
    )


def curves_text(table: pd.DataFrame) -> pd.DataFrame:
    """Curves of one quantity by layer, a column per mode: `mean [low, high]`, and for two modes their difference."""
    shown = _beside(table, "layer")
    modes = {mode_name(str(mode)): own.set_index("layer")["mean"] for mode, own in table.groupby("mode", sort=False)}
    if len(modes) == 2:
        first, second = modes.values()
        shown[" - ".join(modes)] = [f"{value:+.4g}" for value in first - second]
    return shown


def places_text(table: pd.DataFrame) -> pd.DataFrame:
    """What `norms_by_position` and `norms_by_correctness` return, a column per mode."""
    if "position" in table:
        return _beside(table, "position")
    named = table.assign(response=["right" if correct else "wrong" for correct in table["correct"]])
    return _beside(named, "response")


def _beside(table: pd.DataFrame, by: str) -> pd.DataFrame:
    """`mean [low, high]` of each mode beside each other."""
    values = [interval_text(*entry) for entry in zip(table["mean"], table["low"], table["high"], strict=True)]
    text = pd.Series(values, index=pd.MultiIndex.from_frame(table[["mode", by]]))
    columns = {}
    for mode, own in table.groupby("mode", sort=False):
        n = sorted(set(own["n"]))
        counts = f"n = {n[0]}" if len(n) == 1 else f"n = {n[0]} to {n[-1]}"
        columns[f"{mode_name(str(mode))} ({counts})"] = text[str(mode)]
    shown = pd.DataFrame(columns)
    shown = shown.reindex(list(dict.fromkeys(table[by]))) if by == "response" else shown.sort_index()
    return shown.fillna("").rename_axis(by).reset_index()


def norms_text(trace: Trace) -> pd.DataFrame:
    """Tokens down, layers across; a sink in brackets."""
    norms, sinks = trace.l2_norms[:, :MAX_TOKENS].tolist(), trace.is_sink[:, :MAX_TOKENS].tolist()
    texts = [visible_text(text) for text in trace.str_tokens[:MAX_TOKENS]]
    columns: dict[str, Any] = {"position": range(len(texts)), "token": texts}
    for layer, of_layer, marks in zip(trace.layers, norms, sinks, strict=True):
        values = zip(of_layer, marks, strict=True)
        columns[str(layer)] = [f"({norm:,.0f})" if sink else norm_text(norm) for norm, sink in values]
    return pd.DataFrame(columns)


def example_title(result: Result) -> str:
    """Mode of a response, whether it is right, and what else is to be known of it."""
    judged = {True: "right", False: "wrong", None: "answer not known"}[result.correct]
    notes = [judged if result.problem.answer is None or result.correct else f"{judged}, expected {result.problem.answer}"]
    notes += ["not a direct answer"] * (result.direct is False) + ["cut off"] * (result.finish_reason == "length")
    return f"{MODE_NAMES[result.mode]}: {', '.join(notes)}"


def facts_of(results: Sequence[Result], seed: int) -> dict[str, str]:
    """What was run, as label and text."""
    sources = [result.trace.provenance for result in results]
    first, modes = sources[0], [result.mode for result in results]
    done = sorted({", ".join(source.interventions) for source in sources if source.interventions})
    sampled = sorted({source.temperature for source in sources if source.temperature})
    return {
        "Model": first.model,
        "Backend": ", ".join(sorted({source.backend for source in sources})),
        "Data type": first.dtype,
        "Weights": "centred" if first.centred else "as loaded",
        "Prompts": str(len({result.problem.id for result in results})),
        "Families": ", ".join(sorted({result.problem.family for result in results})),
        "Levels": ", ".join(map(str, sorted({result.problem.level for result in results}))),
        "Responses": ", ".join(f"{modes.count(mode)} {name}" for mode, name in MODE_NAMES.items() if mode in modes),
        **{f"{name} by".capitalize(): _controls(results, mode) for mode, name in MODE_NAMES.items() if mode in modes},
        "Layers recorded": layer_ranges(results[0].trace.layers),
        **({"Interventions": "; ".join(done)} if done else {}),
        "Decoding": f"sampled at temperature {', '.join(f'{value:g}' for value in sampled)}" if sampled else "greedy",
        "Seed of the intervals": str(seed),
        "Versions": ", ".join(f"{name} {version}" for name, version in sorted(first.versions.items())),
        "Written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _controls(results: Sequence[Result], mode: str) -> str:
    """What put the model into a mode."""
    return ", ".join(sorted({result.control.replace("=", " = ") for result in results if result.mode == mode}))
