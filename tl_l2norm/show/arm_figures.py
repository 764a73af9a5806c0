"""Curves of an evaluation's arms."""

from __future__ import annotations

import itertools
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from tl_l2norm.analysis.arm_curves import ARM_CURVES, SUPPRESSED
from tl_l2norm.show.style import GREY, STYLES, TEMPLATE, plain


def selection_curves(curves: pd.DataFrame) -> go.Figure:
    """Accuracy of arms that select against the number of responses that they select from, from `Results.curves`.

    Raises:
        ValueError: a table of other columns.

    Examples:
        >>> hot = {"n": 4, "sampling": {"temperature": 2.0}}
        >>> arms = [l2.Arm("samples", **hot), l2.Arm("shortest", selection="shortest", **hot)]
        >>> found = l2.evaluate(model, l2.make_mixture(2, families="compact"), arms, max_new_tokens=40, progress=False)
        >>> figure = l2.figures.selection_curves(found.curves)
        >>> [(line.name, list(line.x)) for line in figure.data]
        [('shortest', [1, 2, 4])]
    """
    curves = ARM_CURVES.check(curves)
    figure = go.Figure(layout={"template": TEMPLATE, "meta": {"min_width": 560}})
    for (arm, own), style in zip(curves.groupby("arm", sort=False), itertools.cycle(STYLES)):
        figure.add_scatter(x=own["responses"].tolist(), **_accuracy(own, style), name=plain(str(arm)))
    at = sorted(set(curves["responses"]))
    figure.update_xaxes(title_text="responses that one is selected from", type="log", tickvals=at, ticktext=list(map(str, at)))
    figure.update_yaxes(title_text="accuracy", tickformat=".0%", automargin=True)
    return figure


def suppression_curves(suppressed: pd.DataFrame) -> go.Figure:
    """Accuracy against the share of tokens that were suppressed, from `Results.suppressed()`: a line for each kind, from the
    baseline on.

    Raises:
        ValueError: a table of other columns.

    Examples:
        >>> arms = [l2.Arm("baseline"), *(l2.Arm(f"{tau}", l2.Suppression({11: tau})) for tau in (300.0, 400.0))]
        >>> found = l2.evaluate(model, l2.make_mixture(2, families="compact"), arms, max_new_tokens=40, progress=False)
        >>> figure = l2.figures.suppression_curves(found.suppressed())
        >>> [(line.name, list(line.text)) for line in figure.data]
        [('high, scale', ['', '400.0', '300.0']), ('baseline', ['baseline'])]
    """
    suppressed = SUPPRESSED.check(suppressed)
    figure = go.Figure(layout={"template": TEMPLATE, "meta": {"min_width": 560}})
    baseline, others = suppressed[suppressed["kind"] == ""], suppressed[suppressed["kind"] != ""]
    for (kind, own), style in zip(others.groupby("kind", sort=False), itertools.cycle(STYLES)):
        line = pd.concat([baseline.assign(arm=""), own.sort_values("share", kind="stable")])
        figure.add_scatter(x=100 * line["share"], **_accuracy(line, style), name=plain(str(kind)), text=_names(line))
    figure.add_scatter(
        x=100 * baseline["share"],
        y=baseline["accuracy"],
        name="baseline",
        text=_names(baseline),
        mode="markers",
        marker={"color": GREY, "symbol": "star", "size": 11},
    )
    figure.update_xaxes(title_text="tokens suppressed, % of those judged at the layers of the arm", rangemode="tozero")
    figure.update_yaxes(title_text="accuracy", tickformat=".0%", automargin=True)
    return figure


def _names(entries: pd.DataFrame) -> list[str]:
    return [plain(str(arm)) for arm in entries["arm"]]


def _accuracy(own: pd.DataFrame, style: tuple[str, ...]) -> dict[str, Any]:
    """A line of accuracies with their intervals."""
    colour, _, dash, marker, _ = style
    ends = {"array": own["high"] - own["accuracy"], "arrayminus": own["accuracy"] - own["low"]}
    return {
        "y": own["accuracy"],
        "error_y": {"type": "data", "symmetric": False, "color": colour, "thickness": 1, "width": 3, **ends},
        "customdata": own[["low", "high"]],
        "hovertemplate": "%{y:.1%} [%{customdata[0]:.1%}, %{customdata[1]:.1%}] %{text}",
        "mode": "lines+markers",
        "line": {"color": colour, "dash": dash, "width": 2},
        "marker": {"symbol": marker, "size": 8},
    }
