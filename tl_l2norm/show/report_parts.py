"""What every page with figures and tables is put together from."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go
from markupsafe import Markup

from tl_l2norm.show.embedding import csv_link, file_name, fragment, scripts, styles
from tl_l2norm.show.page import asset


def page_styles() -> list[Markup]:
    """Style sheets of a page with figures."""
    return [Markup(asset("show/report.css")), *styles()]


def figure_scripts() -> list[Markup]:
    """What figures need once on a page."""
    return scripts()


def figure_html(figure: go.Figure, name: str, *, data: pd.DataFrame | None = None, prefix: str = "") -> Markup:
    """A figure that is drawn on the page; `layout.meta["min_width"]` (pixels) scrolls where the page is narrower."""
    return fragment(figure, name, data=data, prefix=prefix)


def table_html(frame: pd.DataFrame, **options: Any) -> Markup:
    """A frame as a table; everything in it is text."""
    return Markup(frame.to_html(index=False, escape=True, border=0, justify="left", **options))


def csv_html(frame: pd.DataFrame, *name: str) -> Markup:
    """A link that keeps a table as CSV."""
    link = '<a class="csv" href="{}" download="{}.csv">CSV</a>'
    return Markup(link).format(csv_link(frame), file_name(*name))


def drawn_points(figure: go.Figure) -> pd.DataFrame:
    """What lines, bars and points of a figure show: line, x, y."""
    shown = [trace for trace in figure.data if trace.x is not None and trace.hoverinfo != "skip"]
    frames = [pd.DataFrame({"line": trace.name, "x": list(trace.x), "y": list(trace.y)}) for trace in shown]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame({"line": [], "x": [], "y": []})
