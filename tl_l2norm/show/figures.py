"""Tables to pictures: Plotly figures for notebooks and reports, plain text for the terminal. No statistic is made here."""

from __future__ import annotations

import itertools
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from tl_l2norm.analysis.arms import ARM_COSTS, ARM_TABLE
from tl_l2norm.show.arm_figures import selection_curves, suppression_curves
from tl_l2norm.show.embedding import fragment, scripts, styles
from tl_l2norm.show.inline import inline
from tl_l2norm.show.norm_figures import accuracy_bars, curves_frame, curves_table, interval_text, norm_curves, token_heatmap
from tl_l2norm.show.response_figures import norm_by_correctness, norm_by_length, norm_by_position
from tl_l2norm.show.result_figures import draw_results
from tl_l2norm.show.saving import save
from tl_l2norm.show.style import GREY, STYLES, TEMPLATE, plain

__all__ = [
    "accuracy_bars",
    "arm_costs",
    "arm_differences",
    "curves_frame",
    "curves_table",
    "draw_results",
    "fragment",
    "inline",
    "interval_text",
    "norm_by_correctness",
    "norm_by_length",
    "norm_by_position",
    "norm_curves",
    "save",
    "scripts",
    "selection_curves",
    "styles",
    "suppression_curves",
    "token_heatmap",
]

_SYMBOLS = ("circle", "square", "diamond", "x", "triangle-up", "star", "cross")  # as many as go with any number of colours


def __dir__() -> list[str]:
    """What there is to draw and to print."""
    return __all__


def arm_differences(table: pd.DataFrame) -> go.Figure:
    """Paired differences of accuracy with their 95% intervals, from `arm_table`: one for each arm and what it is held against.

    Raises:
        ValueError: a table without the columns of `arm_table`.

    Examples:
        >>> arms = [l2.Arm("baseline"), l2.Arm("scaled", l2.Suppression({11: 500.0}))]
        >>> found = l2.evaluate(model, l2.make_mixture(2, families="compact"), arms, max_new_tokens=40, progress=False)
        >>> figure = l2.figures.arm_differences(found.to_frame())
        >>> [(line.name, list(line.y), line.x.tolist()) for line in figure.data]
        [('too few problems', ['scaled - baseline'], [0.0])]
    """
    ARM_TABLE.check(table, "arm", "against", "difference", "difference_low", "difference_high", "p_holm", "verdict")
    held = table[table["against"] != ""]
    height = 130 + 34 * len(held)
    figure = go.Figure(layout={"template": TEMPLATE, "height": height, "meta": {"min_width": 560}})
    for (verdict, own), style in zip(held.groupby("verdict", sort=False), itertools.cycle(STYLES)):
        figure.add_scatter(
            x=100 * own["difference"],
            y=[plain(f"{arm} - {against}") for arm, against in zip(own["arm"], own["against"], strict=True)],
            error_x=_ends(own),
            customdata=own[["p_holm"]],
            hovertemplate="%{x:+.1f} points, p by Holm %{customdata[0]:.3g}<extra>%{y}</extra>",
            name=plain(str(verdict)),
            mode="markers",
            marker={"color": style[0], "symbol": style[3], "size": 9},
        )
    figure.add_vline(0, line={"color": GREY, "width": 1})
    figure.update_xaxes(title_text="difference of accuracy, points")
    figure.update_yaxes(autorange="reversed", automargin=True, type="category")
    return figure


def arm_costs(table: pd.DataFrame, costs: pd.DataFrame) -> go.Figure:
    """What each arm gains over the baseline against what it spends, from `arm_table` and `cost_table`.

    Raises:
        ValueError: tables without their columns.

    Examples:
        >>> arms = [l2.Arm("baseline"), l2.Arm("scaled", l2.Suppression({11: 500.0}))]
        >>> found = l2.evaluate(model, l2.make_mixture(2, families="compact"), arms, max_new_tokens=40, progress=False)
        >>> figure = l2.figures.arm_costs(found.to_frame(), found.costs())
        >>> [(line.name, list(line.x)) for line in figure.data]
        [('scaled', [1.0])]
    """
    ARM_TABLE.check(table, "arm", "against", "difference", "difference_low", "difference_high")
    ARM_COSTS.check(costs, "arm", "times")
    baseline, times = costs["arm"].iloc[0], costs.set_index("arm")["times"]
    figure = go.Figure(layout={"template": TEMPLATE, "meta": {"min_width": 560}})
    own = table[table["against"] == baseline]
    colours, symbols = itertools.cycle(style[0] for style in STYLES), itertools.cycle(_SYMBOLS)
    for (arm, entry), colour, symbol in zip(own.groupby("arm", sort=False), colours, symbols, strict=False):
        figure.add_scatter(
            x=[times[arm]],
            y=100 * entry["difference"],
            error_y=_ends(entry),
            name=plain(str(arm)),
            hovertemplate="%{y:+.1f} points for %{x:.3g} times the baseline's layer passes",
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": 9},
        )
    figure.add_hline(0, line={"color": GREY, "width": 1})
    figure.update_xaxes(title_text="layer passes for an answer, times the baseline's", type="log", dtick="D2")
    figure.update_yaxes(title_text="gain of accuracy, points", automargin=True)
    return figure


def _ends(held: pd.DataFrame) -> dict[str, Any]:
    """Both ends of the intervals, as Plotly draws them from the middle."""
    middle = held["difference"]
    ends = {"array": 100 * (held["difference_high"] - middle), "arrayminus": 100 * (middle - held["difference_low"])}
    return {"type": "data", "symmetric": False, "color": GREY, "thickness": 1.5, **ends}
