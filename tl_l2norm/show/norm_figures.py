"""Norms by layer and token, and accuracies, as Plotly figures, and as text for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray

from tl_l2norm.analysis.accuracy import ACCURACIES
from tl_l2norm.analysis.curves import LayerCurve
from tl_l2norm.analysis.quantities import QUANTITIES
from tl_l2norm.analysis.sinks import layer_medians, norms_without_sinks
from tl_l2norm.core.arguments import as_integer, check_choice, check_flag, one_or_several
from tl_l2norm.core.errors import InputError, InputTypeError
from tl_l2norm.core.tables import render_table
from tl_l2norm.core.trace import HasTrace, Trace, trace_of
from tl_l2norm.show.style import BAR_PATTERN, GREY, TEMPLATE, add_curve, mode_name, plain, shade_late, style_of
from tl_l2norm.show.tokens import norm_text


def norm_curves(curves: LayerCurve | Sequence[LayerCurve], *, log_y: bool = False) -> go.Figure:
    """Mean per layer with its 95% band, one line per mode; the late layers are shaded.

    Args:
        curves: what `l2.analysis.layer_curve` returns, all of one quantity.
        log_y: draw the means on a logarithmic axis.

    Raises:
        ValueError: no curves, or curves of different quantities.

    Examples:
        >>> curves = [l2.analysis.layer_curve(think, mode="think"), l2.analysis.layer_curve(direct, mode="direct")]
        >>> figure = l2.figures.norm_curves(curves)
        >>> [line.name for line in figure.data if line.name]
        ['thinking (n = 12 prompts)', 'direct (n = 12 prompts)']
    """
    curves = _curves(curves)
    if len({curve.quantity for curve in curves}) > 1:
        raise InputError("the curves are of different quantities: draw a figure of each")
    figure = go.Figure(layout={"template": TEMPLATE, "hovermode": "x unified"})
    for curve in curves:
        add_curve(
            figure,
            layers=curve.layers,
            mean=curve.mean,
            low=curve.low,
            high=curve.high,
            mode=curve.mode,
            name=f"{mode_name(curve.mode)} (n = {curve.n} prompts)",
        )
    layers = curves[0].layers
    shade_late(figure, curves[0].late)
    figure.update_xaxes(title_text="layer", range=[layers[0] - 0.7, layers[-1] + 0.7])
    figure.update_yaxes(
        title_text=f"mean {QUANTITIES.get(curves[0].quantity, curves[0].quantity)}<br>of response tokens", automargin=True
    )
    figure.update_yaxes({"type": "log", "dtick": "D2"} if log_y else {"rangemode": "tozero"})
    return figure


def token_heatmap(
    trace: Trace | HasTrace | Sequence[Trace | HasTrace],
    *,
    include_sinks: bool = False,
    relative_to: Literal["layer_median"] | None = "layer_median",
    max_tokens: int | None = None,
) -> go.Figure:
    """Norms of every layer and token.

    Norms grow 20-fold from the first layer to the last, so by default the colour is the ratio to the layer's median: which
    tokens stand out, at every depth. `relative_to=None` shows the norms themselves.

    Args:
        trace: what to draw: one, or a completion's.
        include_sinks: draw attention sinks too; by default they are blank, and never part of the median.
        relative_to: "layer_median" (over all tokens but sinks) or None.
        max_tokens: draw so many tokens from the start; default all.

    Examples:
        >>> figure = l2.figures.token_heatmap(think[0], max_tokens=20)
        >>> figure.data[0].z.shape  # [layer, pos]
        (12, 20)
    """
    check_choice("relative_to", relative_to, ("layer_median", None))
    check_flag("include_sinks", include_sinks)
    if max_tokens is not None:
        max_tokens = as_integer("max_tokens", max_tokens, least=1)
    trace = trace_of(trace)
    norms = trace.l2_norms.double().numpy()
    shown = norms if include_sinks else norms_without_sinks(trace)
    if relative_to:
        shown = shown / layer_medians(trace)[:, None]
    norms, shown = norms[:, :max_tokens], shown[:, :max_tokens]
    quantity = "norm / layer median" if relative_to else "norm"
    low, high = _colour_range(shown)
    figure = go.Figure(layout={"template": TEMPLATE, "height": 480})
    figure.add_heatmap(
        z=shown,
        x=np.arange(shown.shape[1]),
        y=trace.layers,
        zmin=low,
        zmax=high,
        colorscale="Cividis",
        colorbar={"title": {"text": quantity, "side": "right"}, "thickness": 14, "outlinewidth": 0},
        customdata=_hover(trace, norms),
        hovertemplate="layer %{y}, %{customdata}<extra></extra>",
        hoverongaps=False,
    )
    for segment, start, end in _runs(trace.segments[:max_tokens]):
        figure.add_vline(start - 0.5, line={"color": GREY, "width": 1})
        figure.add_annotation(
            x=start - 0.5,
            y=1,
            yref="paper",
            yanchor="bottom",
            xanchor="left",
            showarrow=False,
            text=f"{segment} ({end - start})",
            font={"size": 11},
        )
    title = "position" if include_sinks else "position (blank: attention sinks)"
    figure.update_xaxes(title_text=title, showgrid=False, range=[-0.5, shown.shape[1] - 0.5])
    figure.update_yaxes(title_text="layer", showgrid=False)
    return figure


def accuracy_bars(table: pd.DataFrame) -> go.Figure:
    """Accuracy with its 95% interval, from `accuracy_table`: a bar per mode within family and level, where it has them.

    Raises:
        ValueError: a table without the columns of `accuracy_table`.

    Examples:
        >>> figure = l2.figures.accuracy_bars(l2.analysis.accuracy_table(results, by="mode"))
        >>> {bar.name: round(float(bar.y[0]), 2) for bar in figure.data}
        {'direct': 0.67, 'thinking': 1.0}
    """
    ACCURACIES.check(table, "accuracy", "low", "high", "n")
    figure = go.Figure(layout={"template": TEMPLATE, "barmode": "group", "bargap": 0.4, "height": 360})
    for mode, bars in table.groupby("mode", sort=False) if "mode" in table else [("all", table)]:
        colour, _, _, _, pattern = style_of(str(mode))
        groups = [plain(_group_name(entry)) for _, entry in bars.iterrows()]
        figure.add_bar(
            x=groups,
            y=bars["accuracy"],
            error_y={
                "array": bars["high"] - bars["accuracy"],
                "arrayminus": bars["accuracy"] - bars["low"],
                "color": GREY,
                "thickness": 2,
            },
            name=plain(mode_name(str(mode))),
            customdata=bars[["low", "high", "n"]],
            hovertemplate="%{y:.1%} [%{customdata[0]:.1%}, %{customdata[1]:.1%}], n = %{customdata[2]}<extra></extra>",
            marker={"color": colour, "pattern": {"shape": pattern, **BAR_PATTERN}},
            opacity=0.75,
        )
    figure.update_yaxes(title_text="accuracy", range=[0, 1.02], tickformat=".0%")
    figure.update_xaxes(type="category", showgrid=False, automargin=True)
    return figure


def curves_table(curves: LayerCurve | Sequence[LayerCurve]) -> str:
    """Mean norm per layer as text: `mean [low, high]` per mode and, for two modes, the difference of the means.

    Examples:
        >>> curves = [l2.analysis.layer_curve(think, mode="think"), l2.analysis.layer_curve(direct, mode="direct")]
        >>> print(l2.figures.curves_table(curves))
        layer   thinking (n = 12)      direct (n = 12)        thinking - direct
        ...
            1   88.99 [79.38, 97.89]   67.64 [57.45, 78.03]   +21.35
        ...
    """
    return render_table(curves_frame(curves))


def curves_frame(curves: LayerCurve | Sequence[LayerCurve]) -> pd.DataFrame:
    """What `curves_table` prints, as a frame: one entry per layer, `mean [low, high]` as text."""
    curves = _curves(curves)
    if any(curve.layers != curves[0].layers for curve in curves):
        raise InputError("the curves have different layers: make them from traces with the same layers")
    frame = pd.DataFrame({"layer": curves[0].layers})
    for curve in curves:
        bounds = zip(curve.mean, curve.low, curve.high, strict=True)
        frame[f"{mode_name(curve.mode)} (n = {curve.n})"] = [interval_text(*interval) for interval in bounds]
    if len(curves) == 2:
        first, second = (mode_name(curve.mode) for curve in curves)
        frame[f"{first} - {second}"] = [f"{value:+.4g}" for value in curves[0].mean - curves[1].mean]
    return frame


def interval_text(mean: float, low: float, high: float) -> str:
    """`231.4 [210.2, 250]`; the interval is left out where there is none."""
    return f"{mean:.4g}" if np.isnan(low) else f"{mean:.4g} [{low:.4g}, {high:.4g}]"


def _curves(given: LayerCurve | Sequence[LayerCurve]) -> tuple[LayerCurve, ...]:
    curves = one_or_several(given, LayerCurve)
    if not curves:
        raise InputError("no curves to draw")
    if odd := [curve for curve in curves if not isinstance(curve, LayerCurve)]:
        raise InputTypeError(f"curves are what layer_curve(traces, mode=...) returns, got {odd[0]!r:.80}")
    return curves


def _group_name(entry: pd.Series[Any]) -> str:
    parts = [str(entry["family"])] if "family" in entry else []
    parts += [f"level {entry['level']}"] if "level" in entry else []
    return ", ".join(parts) or mode_name(str(entry.get("mode", "all")))


def _hover(trace: Trace, norms: NDArray[np.float64]) -> NDArray[np.object_]:
    """[layer, pos] what the pointer shows."""
    texts = [plain(text) or "(part of a character)" for text in trace.str_tokens[: norms.shape[1]]]
    tokens = [f"position {position}, {text}<br>norm " for position, text in enumerate(texts)]
    return np.array([[token + norm_text(norm) for token, norm in zip(tokens, layer, strict=True)] for layer in norms], object)


def _runs(segments: Sequence[str]) -> list[tuple[str, int, int]]:
    """Runs of equal segments: name, first position, position after the last."""
    runs = []
    for name, members in groupby(enumerate(segments), key=lambda member: member[1]):
        positions = [position for position, _ in members]
        runs.append((name, positions[0], positions[-1] + 1))
    return runs


def _colour_range(values: NDArray[np.float64]) -> tuple[float, float]:
    """Ends of the colour scale; a few outliers saturate rather than flatten all the rest."""
    present = values[~np.isnan(values)]
    if not len(present):
        return 0.0, 1.0
    low, high = np.quantile(present, [0.005, 0.995])
    return float(low), float(high)
