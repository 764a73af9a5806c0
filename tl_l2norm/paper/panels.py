"""Panels, marks and hover texts that the figures of an analysis are made of."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from tl_l2norm.analysis.correlation import METRIC_NAMES, PAPER_RHO
from tl_l2norm.analysis.quantities import QUANTITIES
from tl_l2norm.analysis.theory import AT_LEAST
from tl_l2norm.core.layers import late_layers
from tl_l2norm.show.style import BAR_PATTERN, GREY, STYLES, TEMPLATE, add_curve, mode_name, plain, shade_late

SHORT_NAMES = {"l2_norm": "norm"} | {name: name.replace("_", " ") for name in METRIC_NAMES[1:]}
"""Of metrics, on axes."""

INTERVAL = "[%{customdata[0]:.4g}, %{customdata[1]:.4g}], n = %{customdata[2]}<extra></extra>"
"""Template of a hover text whose custom data are low, high and n."""

_AXES = {"l2_norm": "mean L2 norm", "reasoning_sum": "mean summed activation"}
_ASSUMPTIONS = {
    "A1": "A1 decoder directions,<br>mean |cosine|",
    "A1 co-active": "A1 directions active<br>together, |cosine|",
    "A2 R2": "A2 variance<br>explained",
    "A2 residual": "A2 squared<br>error",
    "A2 gap": "A2 squared error<br>over modes' gap",
    "A3": "A3 reasoning part and<br>rest, |cosine|",
    "A4": "A4 top tokens<br>shared",
}


def dress(
    figure: go.Figure,
    frame: pd.DataFrame,
    *,
    height: int,
    what: str = "prompts",
    note: str = "",
    intervals: bool = True,
    min_width: int = 560,
    below: int = 60,
) -> go.Figure:
    """The common look: model and n over the figure, legend under it (`below`: pixels for the axis between them)."""
    n = sorted({int(n) for n in frame["n"] if n > 0})
    counts = f"n = {n[0]} to {n[-1]} {what}" if len(n) > 1 else f"n = {n[0]} {what}" if n else ""
    models = list(dict.fromkeys(frame["model"].astype(str))) if "model" in frame else []
    parts = [plain(models[0]) if models else "", counts, f"95% intervals over {what}" if intervals else "", note]
    lines = [", ".join(part for part in parts[:3] if part), *parts[3:]]
    title = "<br>".join(line for line in lines if line)
    top = 45 + 18 * (title.count("<br>") + any(a.yanchor == "bottom" for a in figure.layout.annotations))
    figure.update_layout(
        template=TEMPLATE,
        height=height,
        margin={"t": top, "b": below},
        title={
            "text": title,
            "font": {"size": 12},
            "x": 0.005,
            "xanchor": "left",
            "y": 1,
            "yanchor": "top",
            "pad": {"t": 8 + 14 * title.count("<br>")},
        },
        legend={"y": -below / (height - top - below), "yanchor": "top"},
        meta={"min_width": min_width},
    )
    figure.update_xaxes(title_font_size=13)
    figure.update_yaxes(title_font_size=13, automargin=True)
    return figure.update_annotations(font_size=12)


def curve_panels(grid: Sequence[Sequence[tuple[pd.DataFrame, str]]], frame: pd.DataFrame, *, min_width: int) -> go.Figure:
    """Rows of panels, each with a curve per mode, whose columns need not line up."""
    columns = int(np.lcm.reduce([len(line) for line in grid]))
    specs = [
        [{"colspan": columns // len(line)} if i % (columns // len(line)) == 0 else None for i in range(columns)]
        for line in grid
    ]
    figure = make_subplots(
        rows=len(grid),
        cols=columns,
        specs=specs,
        subplot_titles=[title for line in grid for _, title in line],
        row_heights=[0.58, 0.42][: len(grid)] if len(grid) > 1 else None,
        horizontal_spacing=0.085,
        vertical_spacing=0.18,
    )
    for i, line in enumerate(grid, 1):
        for j, (panel, _) in enumerate(line):
            place = {"row": i, "col": 1 + j * (columns // len(line))}
            _fill_panel(figure, panel, frame["layer"], first=i == 1 and j == 0, y_title=i == 1 or j == 0, place=place)
    figure.update_layout(hovermode="x unified")
    return dress(figure, frame, height=220 + 250 * len(grid), min_width=min_width)


def _fill_panel(
    figure: go.Figure, panel: pd.DataFrame, layers: pd.Series[int], *, first: bool, y_title: bool, place: Mapping[str, int]
) -> None:
    for mode, entries in panel.groupby("mode", sort=False):
        mean, low, high = (entries[name].to_numpy(dtype=np.float64) for name in ("mean", "low", "high"))
        name = f"{mode_name(str(mode))} (n = {entries['n'].iloc[0]})"
        curve = {"layers": entries["layer"].tolist(), "mean": mean, "low": low, "high": high, "mode": str(mode), "name": name}
        add_curve(figure, **curve, showlegend=first, **place)  # type: ignore[arg-type]
    shade_late(figure, [layer for layer in late_layers(int(layers.max()) + 1) if layer >= layers.min()], label=first, **place)
    figure.update_xaxes(title_text="layer", range=[layers.min() - 0.7, layers.max() + 0.7], **place)
    figure.update_yaxes(
        title_text=_AXES.get(str(panel["quantity"].iloc[0]), quantity_name(panel)) if y_title else None,
        rangemode="tozero",
        **place,
    )


def add_rho_bars(figure: go.Figure, source: str, i: int, entries: pd.DataFrame, *, showlegend: bool, **place: int) -> None:
    """A bar per metric for one source of features."""
    colour, _, _, _, pattern = STYLES[i % len(STYLES)]
    figure.add_bar(
        x=[SHORT_NAMES[str(name)].replace(" ", "<br>") for name in entries.index],
        y=entries["rho"],
        error_y=error_bars(entries, "rho", "low", "high", colour),
        name=plain(source),
        legendgroup=source,
        showlegend=showlegend,
        marker=bar_style(colour, pattern),
        customdata=entries[["low", "high", "n"]],
        hovertemplate=f"{plain(source)}: %{{y:.2f}} {INTERVAL}",
        **place,
    )


def add_paper(figure: go.Figure, names: Sequence[str], **place: int) -> None:
    """The paper's own ranges, behind the bars that they are about."""
    spans = {"norm": [i for i, name in enumerate(names) if name == "l2_norm"]}
    spans["best entropy"] = [i for i, name in enumerate(names) if name != "l2_norm"]
    for name, at in spans.items():
        if not at:
            continue
        low, high = PAPER_RHO[name]
        figure.add_shape(
            type="rect", x0=at[0] - 0.48, x1=at[-1] + 0.48, y0=low / 100, y1=high / 100,
            fillcolor=GREY, opacity=0.3, line={"width": 0}, layer="below", **place,
        )  # fmt: skip
        which = "" if name == "norm" else f", {name}"
        figure.add_annotation(
            x=at[-1] + 0.48, y=high / 100, text=f"paper: {low:.0f} to {high:.0f}{which}",
            xanchor="right", yanchor="bottom", showarrow=False, **place,
        )  # fmt: skip


def with_missing(title: str, entries: pd.DataFrame) -> str:
    """A panel's title, with the sources that have no rho in it."""
    missing = [plain(str(source)) for source, own in entries.groupby("source", sort=False) if own["rho"].isna().all()]
    return f"{title} (no rho: {', '.join(missing)})" if missing else title


def add_sides(figure: go.Figure, held: pd.DataFrame, **place: int) -> None:
    """Left against right where there is a right side, and the line on which they are equal."""
    if held.empty:
        text = "the premise holds nowhere: there is no right side"
        figure.add_annotation(x=0.5, y=0.5, xref="x domain", yref="y domain", text=text, showarrow=False)
        return
    edge = {"color": GREY, "width": 0.7}  # the darkest points would be lost on black
    figure.add_scatter(
        x=held["right"],
        y=held["left"],
        mode="markers",
        showlegend=False,
        marker={"color": held["layer"], "coloraxis": "coloraxis", "size": 7, "line": edge},
        customdata=held[["layer", "prompt"]],
        hovertemplate="layer %{customdata[0]}, prompt %{customdata[1]}<br>left %{y:.4g}, right %{x:.4g}<extra></extra>",
        **place,
    )
    ends = [0.0, max(0.0, min(held["right"].max(), held["left"].max()))]
    line = {"color": GREY, "dash": "dot"}
    figure.add_scatter(x=ends, y=ends, mode="lines", name="left = right", line=line, hoverinfo="skip", **place)


def add_premise(figure: go.Figure, points: pd.DataFrame, layers: Sequence[int], **place: int) -> None:
    """How many prompts the premise holds and fails for, layer by layer."""
    for holds, name, style in ((True, "premise holds", STYLES[2]), (False, "premise fails", STYLES[0])):
        entries = points[points["premise"] == holds]
        counts = [int((entries["layer"] == layer).sum()) for layer in layers]
        figure.add_bar(
            x=layers,
            y=counts,
            name=name,
            marker={"color": style[0], "pattern": {"shape": "" if holds else "x", **BAR_PATTERN}, "line": {"width": 0}},
            opacity=0.35 if holds else 0.85,
            hovertemplate=f"layer %{{x}}: {name} for %{{y}} prompts<extra></extra>",
            **place,
        )
    figure.add_scatter(  # `counts` are those it fails for
        x=layers,
        y=[int((points["layer"] == layer).sum()) for layer in layers],
        text=[str(count) if count else "" for count in counts],
        mode="text",
        textposition="top center",
        textfont={"size": 11},
        cliponaxis=False,
        showlegend=False,
        hoverinfo="skip",
        **place,
    )


def add_dots(figure: go.Figure, frame: pd.DataFrame, name: str, **labels: Sequence[str]) -> None:
    """A point with its interval per entry, along the axis that has no labels."""
    value = "x" if "y" in labels else "y"
    colour, _, _, marker, _ = STYLES[0]
    figure.add_scatter(
        **labels,
        **{value: frame[name], f"error_{value}": error_bars(frame, name, f"{name}_low", f"{name}_high", colour)},
        mode="markers",
        showlegend=False,
        marker={"color": colour, "symbol": marker, "size": 10},
        customdata=frame[[f"{name}_low", f"{name}_high", "n"]],
        hovertemplate=f"%{{{value}:.4g}} {INTERVAL}",
    )


def error_bars(frame: pd.DataFrame, value: str, low: str, high: str, colour: str) -> dict[str, Any]:
    """Intervals as Plotly's error bars take them."""
    return {
        "array": frame[high] - frame[value],
        "arrayminus": frame[value] - frame[low],
        "color": colour,
        "thickness": 2,
        "width": 4,
    }


def bar_style(colour: str, pattern: str) -> dict[str, Any]:
    """Pale enough for the interval of the same colour to be seen on it."""
    return {
        "color": colour,
        "opacity": 0.5,
        "line": {"color": colour, "width": 1},
        "pattern": {"shape": pattern, **BAR_PATTERN},
    }


def of_reasoning(curves: pd.DataFrame) -> pd.DataFrame:
    """Rows on the summed activation of reasoning features."""
    return curves[curves["quantity"] == "reasoning_sum"]


def quantity_name(frame: pd.DataFrame) -> str:
    """What the table is about, in words."""
    name = str(frame["quantity"].iloc[0])
    return QUANTITIES.get(name, name)


def wrapped(text: str, width: int) -> str:
    """Text in lines of at most `width`, safe to show."""
    return "<br>".join(map(plain, textwrap.wrap(text, width)))


def short_number(value: float) -> str:
    """Few digits: a cell is small. NaN is nothing."""
    return "" if np.isnan(value) else f"{value:.2g}" if value < 0.1 else f"{value:.2f}"


def assumption_label(name: str, frame: pd.DataFrame) -> str:
    """An assumption with its bound."""
    bound = frame.loc[frame["assumption"] == name, "bound"].iloc[0]
    return f"{_ASSUMPTIONS.get(name, plain(name))} {'>' if name in AT_LEAST else '<'} {bound:g}"


def assumption_hover(cell: Mapping[str, Any]) -> str:
    """What hovering over a cell shows."""
    interval = f" [{cell['low']:.4g}, {cell['high']:.4g}], n = {cell['n']}" if cell["n"] else ", exact"
    control = "" if pd.isna(cell["control"]) else f"<br>control ({plain(str(cell['control_name']))}) {cell['control']:.4g}"
    return f"{cell['value']:.4g}{interval}<br>{plain(str(cell['statement']))}: {cell['holds']}{control}"


def pressure_hover(entry: Mapping[str, Any]) -> str:
    """What hovering over a token shows."""
    token = plain(str(entry["token"])) or "(part of a character)"
    return (
        f"{token}, position {entry['position']}<br>pull {entry['pull']:.3g}, norm {entry['l2_norm']:.4g}, "
        f"probability {entry['p_true']:.7g}"
    )


def arm_hover(entry: Mapping[str, Any]) -> str:
    """What hovering over a point of the causal curve shows."""
    quantile = "" if pd.isna(entry["quantile"]) else f", quantile {entry['quantile']:g}"
    return (
        f"{plain(str(entry['what']))}{quantile}<br>accuracy {entry['accuracy']:.1%} [{entry['low']:.1%}, {entry['high']:.1%}], "
        f"n = {entry['n']}<br>{entry['positions']:.1f} positions, {entry['events']:.1f} positions and layers, "
        f"{entry['tokens']:.1f} tokens, {entry['cut_off']:.0%} cut off"
    )
