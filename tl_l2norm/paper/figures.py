"""The tables of an `Analysis` as Plotly figures, one function per table. No statistic is made here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from tl_l2norm.analysis.correlation import METRIC_NAMES
from tl_l2norm.paper.panels import (
    INTERVAL,
    SHORT_NAMES,
    add_dots,
    add_paper,
    add_premise,
    add_rho_bars,
    add_sides,
    arm_hover,
    assumption_hover,
    assumption_label,
    bar_style,
    curve_panels,
    dress,
    error_bars,
    of_reasoning,
    pressure_hover,
    quantity_name,
    short_number,
    with_missing,
    wrapped,
)
from tl_l2norm.paper.tables import checked
from tl_l2norm.show.style import GREY, STYLES, mode_name, plain, style_of

if TYPE_CHECKING:
    from tl_l2norm.paper.result import Analysis

MAX_POINTS = 2_000
"""More drawn points make a page slow and a cloud no clearer."""

_SCOPES = {  # scope of a correlation: its layer, and its panel's title
    "tokens": ("late", "over tokens, late layers"),
    "partial": ("late", "over tokens, late layers, given position and token frequency"),
    "layers": ("all", "over layers, of means"),
}
_MARKS = {"holds": "✓", "does not hold": "✗", "undecided": "?", "not measured": "–"}
_FILLS = {"holds": "#d7ecdf", "not measured": "#e4e4e4", "undecided": "#e8c46a", "does not hold": "#9c3d12"}
TOKENS = {"read": "tokens of the response", "chosen": "tokens from which they were chosen"}
_ARM_STYLES = {"paired": 0, "random": 1, "low": 2, "swap": 3, "swap random": 4, "high": 5}
_REST = {"0.1": 0.9, "0.5": 0.5, "0.9": 0.1, "0.99": 1e-2, "0.999": 1e-3, "1 - 1e-4": 1e-4, "1 - 1e-6": 1e-6, "1 - 1e-8": 1e-8}
"""Ticks of a probability so close to 1 that float32 can't say it: what is missing to 1."""


def curves_by_layer(curves: pd.DataFrame) -> go.Figure:
    """Norm and summed activation of reasoning features beside each other; below, the features of each control."""
    sources = list(dict.fromkeys(curves["source"]))
    own = curves[curves["source"] == sources[0]]
    panels = [(own[own["quantity"] == "l2_norm"], "the norm"), (of_reasoning(own), f"reasoning features, {plain(sources[0])}")]
    controls = [(of_reasoning(curves[curves["source"] == s]), f"control: {plain(s)}") for s in sources[1:]]
    grid = [[(entries, title) for entries, title in line if len(entries)] for line in (panels, controls)]
    return curve_panels([line for line in grid if line], own, min_width=640)


def entropies_by_layer(curves: pd.DataFrame) -> go.Figure:
    """The norm's rivals: an entropy a panel."""
    own = curves[curves["quantity"].isin(METRIC_NAMES[1:])]
    panels = [(entries, SHORT_NAMES[str(name)]) for name, entries in own.groupby("quantity", sort=False)]
    return curve_panels([panels], own, min_width=640)


def correlation_bars(correlations: pd.DataFrame) -> go.Figure:
    """Spearman's rho of each metric with reasoning features, a bar per source of features; the paper's range beside it."""
    shown = [correlations[(correlations["scope"] == s) & (correlations["layer"] == at)] for s, (at, _) in _SCOPES.items()]
    titles = [with_missing(title, entries) for (_, title), entries in zip(_SCOPES.values(), shown, strict=True)]
    figure = make_subplots(rows=3, cols=1, shared_xaxes=True, vertical_spacing=0.08, subplot_titles=titles)
    names = [name for name in SHORT_NAMES if name in set(correlations["quantity"])]
    for at, frame in enumerate(shown, 1):
        for i, (source, entries) in enumerate(frame.groupby("source", sort=False)):
            bars = entries.set_index("quantity").reindex(names)
            add_rho_bars(figure, str(source), i, bars, showlegend=at == 1, row=at, col=1)
        add_paper(figure, names, row=at, col=1)
    ticks = [-1, -0.5, 0, 0.5, 1]
    figure.update_yaxes(range=[-1.05, 1.3], tickvals=ticks, ticktext=[f"{100 * t:.0f}" for t in ticks], title_text="rho x 100")
    figure.add_hline(0, line={"color": GREY, "width": 1})
    figure.update_xaxes(showgrid=False, range=[-0.5, len(names) - 0.5])
    figure.update_layout(barmode="group", bargap=0.25)
    return dress(figure, pd.concat(shown), height=820, below=45)


def bound_scatter(points: pd.DataFrame) -> go.Figure:
    """Both sides of the theorem for each prompt and layer; below, how many prompts its premise leaves out at each layer."""
    panels = ["prompts and layers for which the premise holds", "prompts for which it fails"]
    figure = make_subplots(rows=2, cols=1, row_heights=[0.68, 0.32], vertical_spacing=0.2, subplot_titles=panels)
    layers = sorted(set(points["layer"]))
    add_sides(figure, points[points["premise"].astype(bool)], row=1, col=1)
    add_premise(figure, points, layers, row=2, col=1)
    scale = {"colorscale": "Cividis", "cmin": layers[0], "cmax": layers[-1] + 1e-9}
    bar = {"title": {"text": "layer"}, "thickness": 12, "len": 0.6, "y": 1, "yanchor": "top", "outlinewidth": 0}
    figure.update_layout(coloraxis={**scale, "colorbar": bar}, barmode="stack")
    figure.update_xaxes(title_text="right: sqrt(||h think||² - ||h direct||²)", rangemode="tozero", row=1, col=1)
    figure.update_yaxes(title_text="left: activation difference", rangemode="tozero", row=1, col=1)
    figure.update_xaxes(title_text="layer", range=[layers[0] - 0.7, layers[-1] + 0.7], showgrid=False, row=2, col=1)
    n = points.groupby("layer")["prompt"].nunique()
    figure.update_yaxes(title_text="prompts", range=[0, 1.25 * n.max()], row=2, col=1)  # room for the counts
    return dress(figure, points.assign(n=points["layer"].map(n)), intervals=False, height=640)


def assumption_matrix(assumptions: pd.DataFrame) -> go.Figure:
    """Value of each assumption at each layer, with a mark for holds, does not hold or undecided."""
    names = list(dict.fromkeys(assumptions["assumption"]))
    layers = sorted(set(assumptions["layer"]))
    cells = {(entry["assumption"], entry["layer"]): entry for entry in assumptions.to_dict("records")}
    grid = [[cells.get((name, layer)) for layer in layers] for name in names]
    kinds = list(_FILLS)
    steps = [(place / len(kinds), _FILLS[kind]) for i, kind in enumerate(kinds) for place in (i, i + 1)]
    figure = go.Figure()
    figure.add_heatmap(
        z=[[kinds.index(cell["holds"]) if cell else None for cell in line] for line in grid],
        x=[str(layer) for layer in layers],
        y=[assumption_label(name, assumptions) for name in names],
        text=[[f"{_MARKS[cell['holds']]}<br>{short_number(cell['value'])}" if cell else "" for cell in line] for line in grid],
        texttemplate="%{text}",
        customdata=[[assumption_hover(cell) if cell else "" for cell in line] for line in grid],
        hovertemplate="layer %{x}: %{customdata}<extra></extra>",
        hoverongaps=False,
        zmin=-0.5,
        zmax=len(kinds) - 0.5,
        colorscale=steps,
        showscale=False,
        xgap=2,
        ygap=2,
    )
    figure.update_xaxes(title_text="layer", type="category", showgrid=False)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    key = ", ".join(f"{mark} {kind}" for kind, mark in _MARKS.items() if kind in set(assumptions["holds"]))
    width = 190 + 46 * len(layers)
    return dress(figure, assumptions, note=key, height=130 + 62 * len(names), min_width=width)


def spike_by_family(dynamics_by_family: pd.DataFrame) -> go.Figure:
    """Late norm of thinking minus direct, by family of problems."""
    frame = dynamics_by_family
    figure = go.Figure()
    labels = [f"{plain(str(entry['family']))} (n = {entry['n']})" for entry in frame.to_dict("records")]
    add_dots(figure, frame, "spike", y=labels)
    figure.add_vline(0, line={"color": GREY, "dash": "dot"})
    figure.update_xaxes(title_text=f"spike: mean {quantity_name(frame)} of the late layers, thinking minus direct")
    figure.update_yaxes(autorange="reversed", type="category")
    return dress(figure, frame, height=170 + 34 * len(frame), min_width=340)


def amplification_by_level(dynamics_by_level: pd.DataFrame) -> go.Figure:
    """Late norm of thinking divided by direct, by level of difficulty."""
    frame = dynamics_by_level
    figure = go.Figure()
    labels = [f"level {entry['level']}<br>n = {entry['n']}" for entry in frame.to_dict("records")]
    add_dots(figure, frame, "amplification", x=labels)
    figure.add_hline(1, line={"color": GREY, "dash": "dot"})
    figure.update_yaxes(title_text="thinking / direct, late layers")
    figure.update_xaxes(type="category", showgrid=False)
    return dress(figure, frame, height=380, min_width=340)


def pressure_against_norm(pressure_tokens: pd.DataFrame, *, seed: int = 0) -> go.Figure:
    """The pull of the loss at the last layer, against the norm and against the true token's probability; a point a token."""
    kept = pressure_tokens[~pressure_tokens["is_sink"].astype(bool)]
    drawn = kept[(kept["pull"] > 0) & (kept["loss"] > 0)]
    if len(drawn) > MAX_POINTS:
        drawn = drawn.iloc[np.sort(np.random.default_rng(seed).choice(len(drawn), MAX_POINTS, replace=False))]
    figure = make_subplots(rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.04)
    for mode, entries in drawn.groupby("mode", sort=False):
        colour, _, _, marker, _ = style_of(str(mode))
        for col, name in enumerate(("l2_norm", "loss"), 1):
            figure.add_scatter(
                x=entries[name],
                y=entries["pull"],
                mode="markers",
                name=plain(mode_name(str(mode))),
                legendgroup=str(mode),
                showlegend=col == 1,
                marker={"color": colour, "symbol": marker, "size": 5, "opacity": 0.75},
                customdata=[pressure_hover(entry) for entry in entries.to_dict("records")],
                hovertemplate="%{customdata}<extra></extra>",
                row=1,
                col=col,
            )
    figure.update_yaxes(type="log", exponentformat="power", dtick=2)
    figure.update_yaxes(title_text="||dL/dy|| (nats per unit of y = norm(h))", col=1)
    figure.update_xaxes(title_text="||h||, last layer", col=1)
    ticks = {"tickvals": [-np.log1p(-rest) for rest in _REST.values()], "ticktext": [*_REST], "tickangle": -45}
    figure.update_xaxes(title_text="probability of the true token", type="log", autorange="reversed", **ticks, col=2)
    n = drawn["prompt"].nunique()
    note = f"{len(drawn):,} of {len(kept):,} tokens drawn, sinks left out"
    return dress(figure, drawn.assign(n=n), note=note, intervals=False, height=480, min_width=640, below=95)


def suppression_curve(causal: pd.DataFrame) -> go.Figure:
    """Accuracy against how many positions of a response were suppressed, a line per arm."""
    figure = go.Figure()
    for arm, entries in causal.groupby("arm", sort=False):
        entries = entries.sort_values("positions")
        colour, _, dash, marker, _ = STYLES[_ARM_STYLES.get(str(arm), 0)]
        plainly = arm == "none"
        figure.add_scatter(
            x=entries["positions"],
            y=entries["accuracy"],
            error_y=error_bars(entries, "accuracy", "low", "high", GREY if plainly else colour),
            mode="markers" if plainly else "lines+markers",
            name=plain(str(entries["what"].iloc[0])),
            line={"color": GREY if plainly else colour, "dash": dash, "width": 2},
            marker={"symbol": "star" if plainly else marker, "size": 11 if plainly else 9},
            customdata=[arm_hover(entry) for entry in entries.to_dict("records")],
            hovertemplate="%{customdata}<extra></extra>",
        )
    end = float(causal["positions"].max()) or 1.0
    figure.update_xaxes(title_text="suppressed positions per response (mean)", range=[-0.03 * end, 1.05 * end])
    figure.update_yaxes(title_text="accuracy", range=[-0.02, 1.04], tickformat=".0%")
    return dress(figure, causal, what="problems", height=520)


def attribution_bars(attribution: pd.DataFrame) -> go.Figure:
    """Thinking minus direct in the late layers, as it is and for each way of matching the modes."""
    figure = go.Figure()
    frame = attribution.assign(label=[wrapped(text, 34) for text in attribution["compared"]])
    for i, (tokens, entries) in enumerate(frame.groupby("tokens", sort=False)):
        colour, _, _, _, pattern = STYLES[i % len(STYLES)]
        figure.add_bar(
            orientation="h",
            y=entries["label"],
            x=entries["difference"],
            error_x=error_bars(entries, "difference", "low", "high", colour),
            name=TOKENS.get(str(tokens), plain(str(tokens))),
            marker=bar_style(colour, pattern),
            customdata=entries[["low", "high", "n"]],
            hovertemplate=f"%{{x:.4g}} {INTERVAL}",
        )
        for label in entries["label"][entries["difference"].isna()]:
            figure.add_annotation(x=0, y=label, text="too few such tokens", showarrow=False, xanchor="left", font={"size": 11})
    figure.add_vline(0, line={"color": GREY})
    figure.update_xaxes(
        title_text=f"{quantity_name(attribution)}, thinking minus direct, layers {attribution['layers'].iloc[0]}"
    )
    figure.update_yaxes(autorange="reversed", type="category", showgrid=False, automargin=True)
    figure.update_layout(barmode="group", bargap=0.3)
    lines = 1 + max(label.count("<br>") for label in frame["label"])
    return dress(figure, attribution, height=170 + max(62, 17 * lines) * frame["label"].nunique())


@dataclass(frozen=True, slots=True)
class _Picture:
    """A figure, the table that it is drawn from, and the column that must have a value, in the entries that are drawn."""

    table: str
    column: str
    make: Callable[[pd.DataFrame], go.Figure]
    drawn: Callable[[pd.DataFrame], pd.Series[Any]] | None = None

    def allowed(self, tables: Mapping[str, pd.DataFrame]) -> bool:
        """Whether the tables have a value to draw."""
        frame = tables.get(self.table)
        return frame is not None and bool(frame[self.column][self.drawn(frame) if self.drawn else slice(None)].notna().any())


_PICTURES = {
    "curves": _Picture("curves", "mean", curves_by_layer, lambda f: f["quantity"].isin(["l2_norm", "reasoning_sum"])),
    "entropies": _Picture("curves", "mean", entropies_by_layer, lambda f: f["quantity"].isin(METRIC_NAMES[1:])),
    "correlations": _Picture("correlations", "rho", correlation_bars),
    "attribution": _Picture("attribution", "difference", attribution_bars),
    "feature_attribution": _Picture("feature_attribution", "difference", attribution_bars),
    "bound": _Picture("bound_points", "left", bound_scatter),
    "assumptions": _Picture("assumptions", "value", assumption_matrix),
    "pressure": _Picture("pressure_tokens", "pull", pressure_against_norm),
    "causal": _Picture("causal", "accuracy", suppression_curve),
    "spike_by_family": _Picture("dynamics_by_family", "spike", spike_by_family),
    "amplification_by_level": _Picture("dynamics_by_level", "amplification", amplification_by_level),
}


DRAWN_FROM = {name: picture.table for name, picture in _PICTURES.items()}
"""The table of each figure."""


def draw_analysis(analysis: Analysis) -> dict[str, go.Figure]:
    """All figures that the tables of an analysis allow, by name.

    Raises:
        InputError: a table without the columns of its schema (`tl_l2norm.paper.tables`).

    Examples:
        >>> tables = {"dynamics_by_level": l2.analysis.dynamics(think, direct, by="level")}
        >>> list(draw_analysis(l2.paper.Analysis(tables=tables, notes={}, features={}, facts={})))
        ['amplification_by_level']
    """
    drawn = {picture.table for picture in _PICTURES.values()} & set(analysis.tables)
    tables = {name: checked(name, analysis.tables[name]) for name in drawn}
    return {name: p.make(tables[p.table]) for name, p in _PICTURES.items() if p.allowed(tables)}
