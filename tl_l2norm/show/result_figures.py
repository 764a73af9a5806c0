"""The figures of a report on results, each with the numbers that it is drawn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from tl_l2norm.analysis.accuracy import accuracy_table
from tl_l2norm.analysis.curves import LayerCurve, layer_curve
from tl_l2norm.analysis.responses import norms_by_correctness, norms_by_position, response_table
from tl_l2norm.core.arguments import as_seed
from tl_l2norm.core.errors import InputError
from tl_l2norm.core.trace import Trace, require_comparable
from tl_l2norm.show.norm_figures import accuracy_bars, norm_curves, token_heatmap
from tl_l2norm.show.report_words import by_mode
from tl_l2norm.show.response_figures import norm_by_correctness, norm_by_length, norm_by_position
from tl_l2norm.show.style import MODE_NAMES
from tl_l2norm.tasks.results import Result, results_of

MAX_TOKENS = 600
"""Of one sequence; a page with tens of thousands of drawn tokens is slow."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure and the numbers that it is drawn from."""

    figure: go.Figure
    data: pd.DataFrame


def draw_results(results: Result | Sequence[Result], *, seed: int = 0) -> dict[str, go.Figure]:
    """All figures that results in one or both modes allow, by name: those of `l2.report`.

    They are "accuracy", "curves" (norms by layer), "features" (of SAEs), one for each recorded metric, "length", "position" and
    "correctness" (late norms against these), and "heatmap", of the first response.

    Args:
        results: of one model, from `run_modes`.
        seed: of the resampling.

    Raises:
        ValueError: no results, one that is given twice, or norms that are not comparable.

    Examples:
        >>> list(l2.figures.draw_results(results))
        ['accuracy', 'curves', 'length', 'position', 'correctness', 'heatmap']
    """
    results, seed = results_of(results), as_seed(seed)
    traces = traces_to_show(results)
    return {name: picture.figure for name, picture in pictures(results, traces, results[0], seed).items()}


def pictures(results: Sequence[Result], traces: Sequence[Trace], example: Result, seed: int) -> dict[str, Picture]:
    """Figures by name, those left out for which there is nothing to draw."""
    drawn = {"accuracy": accuracy_picture(results)} if any(result.correct is not None for result in results) else {}
    quantities = {"curves": "l2_norm"} | ({"features": "feature_sum"} if all(trace.features for trace in traces) else {})
    quantities |= {name: name for name in traces[0].metrics if all(name in trace.metrics for trace in traces)}
    for name, quantity in quantities.items():
        if curves := curves_of(traces, quantity, seed):
            frame = pd.concat([curve.to_frame() for curve in curves], ignore_index=True)
            drawn[name] = Picture(norm_curves(curves), frame)
    if traces[0].late_layers and any(trace.is_response.any() for trace in traces):
        drawn |= _late_pictures(results, seed)
    drawn["heatmap"] = Picture(token_heatmap(example.trace, max_tokens=MAX_TOKENS), norms_frame(example.trace))
    return drawn


def _late_pictures(results: Sequence[Result], seed: int) -> dict[str, Picture]:
    """Late norms against length, position and correctness."""
    responses, places = response_table(results), norms_by_position(results, seed=seed)
    judged = norms_by_correctness(results, seed=seed)
    drawn = {"length": Picture(norm_by_length(responses, seed=seed), responses)}
    if len(places):
        drawn["position"] = Picture(norm_by_position(places), places)
    if len(judged):
        drawn["correctness"] = Picture(norm_by_correctness(judged), judged)
    return drawn


def accuracy_picture(results: Sequence[Result]) -> Picture:
    """Accuracy by mode, and by family or level where there are several."""
    groups = groups_of(results)
    table = accuracy_by(results, *groups[:1])
    return Picture(accuracy_bars(table), table)


def groups_of(results: Sequence[Result]) -> list[str]:
    """What of the problems there is several of."""
    return [by for by in ("family", "level") if len({getattr(r.problem, by) for r in results}) > 1]


def norms_frame(trace: Trace) -> pd.DataFrame:
    """One entry per token: position, token, segment, and the norm at each layer, NaN at a sink."""
    shown = min(len(trace), MAX_TOKENS)
    norms = np.where(trace.is_sink.numpy(), np.nan, trace.l2_norms.double().numpy())[:, :shown].round(4)
    tokens = {"position": range(shown), "token": trace.str_tokens[:shown], "segment": trace.segments[:shown]}
    return pd.DataFrame(tokens | {f"layer {layer}": own for layer, own in zip(trace.layers, norms, strict=True)})


def traces_to_show(results: Sequence[Result]) -> list[Trace]:
    """Their traces, labelled by mode and prompt, each once and all comparable."""
    if not results:
        raise InputError("no results to report")
    _require_distinct(results)
    traces = [_labelled(result) for result in results]
    require_comparable(traces)
    return traces


def _require_distinct(results: Sequence[Result]) -> None:
    """Refuse a response that is given twice."""
    seen = set()
    for result in results:
        if (key := _identity(result)) in seen:
            raise InputError(
                f"the {MODE_NAMES[result.mode]} response to {result.problem.question!r:.60} is given twice: each counts once"
            )
        seen.add(key)


def _identity(result: Result) -> tuple[object, ...]:
    """What a response is the same by: several samples of a problem have seeds of their own, greedy ones are all the same."""
    source = result.trace.provenance
    sampled = source.seed if source.temperature else result.response
    drawn = id(result.trace) if source.temperature is None else sampled
    return result.problem.id, result.mode, source.interventions, drawn


def _labelled(result: Result) -> Trace:
    return result.trace.with_labels(mode=result.mode, prompt=result.problem.id)


def accuracy_by(results: Sequence[Result], *by: str) -> pd.DataFrame:
    """Grouped by these and mode, thinking first."""
    table = accuracy_table(results, by=(*by, "mode"))
    order = table["mode"].map([*MODE_NAMES].index)
    return table.assign(order=order).sort_values([*by, "order"], ignore_index=True).drop(columns="order")


def curves_of(traces: Sequence[Trace], quantity: str, seed: int) -> list[LayerCurve]:
    """Of each mode that has response tokens."""
    return [
        layer_curve(members, mode=mode, quantity=quantity, seed=seed)
        for mode, members in by_mode(traces).items()
        if any(trace.is_response.any() for trace in members)
    ]
