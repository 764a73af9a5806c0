"""How figures look, and the shapes that several of them share."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from tl_l2norm.show.tokens import visible_text

MODE_NAMES = {"think": "thinking", "direct": "direct"}

GREY, GRID = "#808080", "rgba(128,128,128,0.25)"  # legible on white and on black
STYLES = (
    # colour, band, dash, marker, pattern: told apart in grey, too
    ("#d55e00", "rgba(213,94,0,0.18)", "solid", "circle", ""),
    ("#2b8cce", "rgba(43,140,206,0.18)", "dash", "square-open", "/"),
    ("#009e73", "rgba(0,158,115,0.18)", "dot", "diamond", "x"),
    ("#a05fa0", "rgba(160,95,160,0.18)", "dashdot", "triangle-up-open", "."),
    ("#b58900", "rgba(181,137,0,0.18)", "longdash", "x", "\\"),
    ("#4d4d4d", "rgba(77,77,77,0.18)", "longdashdot", "pentagon-open", "+"),
)
TEMPLATE = go.layout.Template(
    layout={
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": GREY},
        "margin": {"l": 60, "r": 20, "t": 50, "b": 50},
        "height": 420,
        "xaxis": {"gridcolor": GRID, "linecolor": GREY, "zeroline": False, "ticks": "outside", "title": {"standoff": 8}},
        "yaxis": {"gridcolor": GRID, "linecolor": GREY, "zeroline": False, "title": {"standoff": 8}},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "title": {"text": ""}},
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": GREY, "activecolor": GREY},
        "hoverlabel": {"bgcolor": "#222", "font": {"color": "#fff"}},
    }
)
BAR_PATTERN = {"fillmode": "overlay", "fgcolor": "rgba(255,255,255,0.6)"}


def style_of(mode: str) -> tuple[str, str, str, str, str]:
    """Colour, band, dash, marker and pattern of a mode."""
    return STYLES[{"think": 0, "direct": 1}.get(mode, 2)]


def mode_name(mode: str) -> str:
    """What a mode is called in figures."""
    return MODE_NAMES.get(mode, mode)


def plain(text: str) -> str:
    """Text that Plotly shows as it is: it would take `<b>` for markup."""
    return html.escape(visible_text(text), quote=False)


def add_curve(
    figure: go.Figure,
    *,
    layers: Sequence[int],
    mean: NDArray[np.float64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    mode: str,
    name: str,
    showlegend: bool = True,
    **place: Any,
) -> None:
    """A mode's mean per layer, over its 95% band where it has one.

    Args:
        figure: it is added to.
        layers: [layer].
        mean: [layer], NaN where there is none.
        low: [layer] lower end of the band.
        high: [layer] upper end.
        mode: decides colour, dash and marker.
        name: in the legend.
        showlegend: whether the legend has it.
        **place: row and column of a panel.
    """
    colour, band, dash, marker, _ = style_of(mode)
    y = [*high, *reversed(low)]
    if not np.isnan(y).any():
        figure.add_scatter(
            x=[*layers, *reversed(layers)],
            y=y,
            fill="toself",
            fillcolor=band,
            line={"width": 0},
            mode="lines",
            legendgroup=name,
            showlegend=False,
            hoverinfo="skip",
            **place,
        )
    figure.add_scatter(
        x=layers,
        y=mean,
        customdata=np.stack([low, high], axis=-1),
        hovertemplate="%{y:.4g} [%{customdata[0]:.4g}, %{customdata[1]:.4g}]",
        name=plain(name),
        legendgroup=name,
        showlegend=showlegend,
        mode="lines+markers",
        line={"color": colour, "dash": dash, "width": 2},
        marker={"symbol": marker, "size": 6},
        **place,
    )


def shade_late(figure: go.Figure, late: Sequence[int], *, label: bool = True, **place: Any) -> None:
    """Mark the late layers, if there are any."""
    if late:
        figure.add_vrect(
            late[0] - 0.5,
            late[-1] + 0.5,
            fillcolor=GREY,
            opacity=0.1,
            line_width=0,
            layer="below",
            annotation={"text": "late layers" if label else "", "font": {"size": 11}},
            annotation_position="top left",
            **place,
        )
