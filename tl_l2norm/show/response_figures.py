"""Norms of responses against length, position and correctness, from tables of `l2.analysis`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from tl_l2norm.analysis.responses import BY_CORRECTNESS, PLACES, RESPONSES
from tl_l2norm.show.style import GREY, TEMPLATE, add_curve, mode_name, plain, style_of

_JUDGED = {True: "right", False: "wrong", None: "answer not known"}
_MAX_POINTS = 4_000
"""More drawn points make a page slow and a cloud no clearer."""


def norm_by_length(table: pd.DataFrame, *, seed: int = 0) -> go.Figure:
    """A point per response: its mean norm against its length; wrong ones are crosses. From `response_table`.

    Args:
        table: of `l2.analysis.response_table`.
        seed: of the choice of points, where there are more than 4,000.

    Raises:
        ValueError: a table without these columns.

    Examples:
        >>> figure = l2.figures.norm_by_length(l2.analysis.response_table(results))
        >>> sorted({points.name.partition(",")[0] for points in figure.data})
        ['direct', 'thinking']
    """
    RESPONSES.check(table, "mode", "correct", "length", "l2_norm")
    drawn = table[table["l2_norm"].notna()]
    if len(drawn) > _MAX_POINTS:
        drawn = drawn.iloc[np.sort(np.random.default_rng(seed).choice(len(drawn), _MAX_POINTS, replace=False))]
    figure = go.Figure(layout={"template": TEMPLATE, "height": 380})
    judged = drawn["correct"].map(lambda value: None if pd.isna(value) else bool(value)).astype(object)
    for mode in dict.fromkeys(drawn["mode"]):
        colour, _, _, marker, _ = style_of(str(mode))
        for value, name in _JUDGED.items():
            own = drawn[(drawn["mode"] == mode) & judged.map(lambda held, value=value: held is value)]
            if len(own):
                figure.add_scatter(
                    x=own["length"],
                    y=own["l2_norm"],
                    mode="markers",
                    name=plain(f"{mode_name(str(mode))}, {name}"),
                    marker={"color": colour, "symbol": "x-thin-open" if value is False else marker, "size": 7, "opacity": 0.7},
                    hovertemplate="%{x} tokens: %{y:.4g}",
                )
    figure.update_xaxes(_ticks(drawn["length"]), title_text="tokens of the response")
    figure.update_yaxes(title_text="mean L2 norm, late layers", rangemode="tozero")
    return figure


def norm_by_position(table: pd.DataFrame) -> go.Figure:
    """The norm along the response with its 95% band, a line per mode. From `norms_by_position`.

    Raises:
        ValueError: a table without these columns.

    Examples:
        >>> figure = l2.figures.norm_by_position(l2.analysis.norms_by_position(results))
        >>> [line.name for line in figure.data if line.name]
        ['thinking (n = 12 prompts)', 'direct (n = 12 prompts)']
    """
    PLACES.check(table, "mode", "position", "mean", "low", "high", "n")
    figure = go.Figure(layout={"template": TEMPLATE, "hovermode": "x unified", "height": 380})
    for mode, own in table.groupby("mode", sort=False):
        mean, low, high = (own[name].to_numpy(dtype=np.float64) for name in ("mean", "low", "high"))
        name = f"{mode_name(str(mode))} (n = {own['n'].max()} prompts)"
        add_curve(figure, layers=own["position"].tolist(), mean=mean, low=low, high=high, mode=str(mode), name=name)
    figure.update_xaxes(title_text="position in the response")
    figure.update_yaxes(title_text="mean L2 norm, late layers", rangemode="tozero")
    return figure


def norm_by_correctness(table: pd.DataFrame) -> go.Figure:
    """Mean norm of right and of wrong responses with 95% intervals, a colour per mode. From `norms_by_correctness`.

    Raises:
        ValueError: a table without these columns.

    Examples:
        >>> figure = l2.figures.norm_by_correctness(l2.analysis.norms_by_correctness(results))
        >>> figure.data[0].x[0].partition("<br>")[0]
        'thinking'
    """
    BY_CORRECTNESS.check(table, "mode", "correct", "mean", "low", "high", "n")
    figure = go.Figure(layout={"template": TEMPLATE, "height": 340, "showlegend": False})
    for mode, own in table.groupby("mode", sort=False):
        colour, _, _, marker, _ = style_of(str(mode))
        figure.add_scatter(
            x=[f"{plain(mode_name(str(mode)))}<br>{_JUDGED[bool(e.correct)]}, n = {e.n}" for e in own.itertuples()],
            y=own["mean"],
            error_y={"array": own["high"] - own["mean"], "arrayminus": own["mean"] - own["low"], "color": GREY, "thickness": 2},
            mode="markers",
            marker={"color": colour, "symbol": marker, "size": 10},
            customdata=own[["low", "high"]],
            hovertemplate="%{y:.4g} [%{customdata[0]:.4g}, %{customdata[1]:.4g}]<extra></extra>",
        )
    figure.update_xaxes(type="category", showgrid=False, range=[-0.5, len(table) - 0.5])
    figure.update_yaxes(title_text="mean L2 norm, late layers", rangemode="tozero")
    return figure


def _ticks(lengths: pd.Series[int]) -> dict[str, Any]:
    """A logarithmic axis where lengths differ so much that only it shows the short ones."""
    if not len(lengths) or lengths.max() <= 30 * lengths.min():
        return {"rangemode": "tozero"}
    values = [step * 10**power for power in range(9) for step in (1, 2, 5)]
    return {"type": "log", "tickvals": values, "ticktext": [f"{value:,}" for value in values]}
