"""What every page with figures and tables is put together from."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from tl_l2norm.show.page import inline_script


def figure_scripts() -> list[Markup]:
    """What figures need once on a page."""
    return [inline_script("document.documentElement.classList.add('scripted')"), inline_script(get_plotlyjs())]


def figure_html(figure: go.Figure, name: str) -> Markup:
    """A figure that is drawn on the page; `layout.meta["min_width"]` (pixels) scrolls where the page is narrower."""
    # Plotly's own set of buttons has one that uploads the figure.
    buttons = [["toImage", "resetScale2d"]]
    config = {
        "displaylogo": False,
        "responsive": True,
        "showSendToCloud": False,
        "plotlyServerURL": "",
        "modeBarButtons": buttons,
    }
    drawn = Markup(figure.to_html(full_html=False, include_plotlyjs=False, div_id=f"figure-{name}", config=config))
    least = int((figure.layout.meta or {}).get("min_width", 0))
    if least:
        drawn = Markup('<div style="min-width:{}px">{}</div>').format(least, drawn)
    return Markup("<figure>{}</figure>").format(drawn)


def table_html(frame: pd.DataFrame, **options: Any) -> Markup:
    """A frame as a table; everything in it is text."""
    return Markup(frame.to_html(index=False, escape=True, border=0, justify="left", **options))
