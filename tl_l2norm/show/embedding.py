"""Figures as parts of a page: a fragment each, and styles and scripts once."""

from __future__ import annotations

import base64
import json
import re
from functools import cache
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.basedatatypes import BaseFigure

from tl_l2norm.core.errors import InputTypeError
from tl_l2norm.core.tables import csv_text
from tl_l2norm.show.page import asset, inline_script, render

PNG_SCALE = 3
"""Pixels of a PNG to one of the page, 96 to the inch: about 300 to the inch."""


def fragment(figure: go.Figure, name: str = "figure", *, data: pd.DataFrame | None = None, prefix: str = "") -> Markup:
    """A figure as HTML for a page that carries `styles` and `scripts` once; it can be kept there as SVG and PNG.

    Args:
        figure: of `l2.figures`, or any other of bars, lines, points and heatmaps.
        name: what files that are kept of it are called, and, after `figure-`, the id of the drawing: another for each figure of
            a page.
        data: its numbers, which can be kept as CSV, without scripts too.
        prefix: before the name of files, such as the model's.

    Returns:
        A `<figure>` whose drawing is data, not code: it needs no script of its own.

    Raises:
        InputTypeError: no figure.

    Examples:
        >>> curve = l2.analysis.layer_curve(think, mode="think")
        >>> part = l2.figures.fragment(l2.figures.norm_curves(curve), "norms", data=curve.to_frame())
        >>> part.partition(" data")[0], "data:text/csv" in part
        (Markup('<figure class="l2-figure"'), True)
    """
    if not isinstance(figure, BaseFigure):
        raise InputTypeError(f"a figure is what l2.figures draws, or another of Plotly's: got {figure!r:.80}")
    return render(
        "show/figure.html.jinja",
        name=file_name(name),
        file=file_name(prefix, name),
        drawing=drawing(figure),
        csv=csv_link(data) if data is not None else None,
    )


def styles() -> list[Markup]:
    """Style sheets that fragments need, once per page.

    Examples:
        >>> len(l2.figures.styles())
        1
    """
    return [Markup(asset("show/figures.css"))]


def scripts() -> list[Markup]:
    """Script elements that fragments need, once per page: Plotly's cartesian bundle (1.5 MB) and what draws with it.

    Examples:
        >>> [len(script) > 1_000_000 for script in l2.figures.scripts()]
        [True, False]
    """
    return [inline_script(plotly_bundle()), inline_script(asset("show/figures.js"))]


def on_paper(figure: go.Figure) -> dict[str, Any]:
    """What of a figure's layout is another in print: dark on white, and as wide as a page of text or as the figure needs."""
    layout = figure.layout
    return {
        "width": max(640, int((layout.meta or {}).get("min_width", 0))),
        "height": int(layout.height or 420),
        "autosize": False,
        "paper_bgcolor": "#fff",
        "plot_bgcolor": "#fff",
        "font": {**layout.font.to_plotly_json(), "color": "#1c1c1c", "family": "Helvetica, Arial, sans-serif"},
    }


def drawing(figure: go.Figure) -> Markup:
    """A figure as JSON for `figures.js`; nothing in it can end the element that holds it."""
    text = f'{{"figure":{figure.to_json()},"paper":{json.dumps(on_paper(figure))},"scale":{PNG_SCALE}}}'
    return Markup(text.replace("<", "\\u003c"))


@cache
def plotly_bundle() -> str:
    """JavaScript of plotly.js with its flat kinds of figures; the one that plotly's wheel brings has maps and 3D, 4.8 MB."""
    return asset("show/vendor/plotly-cartesian.min.js")


def csv_link(frame: pd.DataFrame) -> Markup:
    """The address of a table as a CSV file that is in the page itself."""
    encoded = base64.b64encode(csv_text(frame, float_format="%.8g").encode("utf-8", errors="replace")).decode()
    return Markup("data:text/csv;charset=utf-8;base64,{}").format(encoded)


def file_name(*parts: str) -> str:
    """A name that every file system takes: `org/Model 1`, `curves` is org-model-1_curves."""
    words = (re.sub(r"[^a-z0-9._-]+", "-", part.lower()).strip("-.") for part in parts)
    return "_".join(word for word in words if word) or "figure"
