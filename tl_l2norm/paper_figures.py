"""The tables of an `Analysis` as Plotly figures, one function per table. No statistic is made here."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from tl_l2norm.analysis.correlation import METRIC_NAMES, PAPER_RHO
from tl_l2norm.analysis.quantities import QUANTITIES
from tl_l2norm.drawing import BAR_PATTERN, GREY, STYLES, TEMPLATE, add_curve, mode_name, plain, shade_late, style_of
from tl_l2norm.hook_names import late_layers

if TYPE_CHECKING:
    from tl_l2norm.paper_analysis import Analysis

MAX_POINTS = 3_000
"""More drawn points make a page slow and a cloud no clearer."""

_SHORT = {"l2_norm": "norm"} | {name: name.replace("_", " ") for name in METRIC_NAMES[1:]}
_AXES = {"l2_norm": "mean L2 norm", "reasoning_sum": "mean summed activation"}
_SCOPES = {  # scope of a correlation: its row for all late layers or for all, and its panel's title
    "tokens": ("late", "over tokens, late layers"),
    "partial": ("late", "over tokens, late layers, given position and token frequency"),
    "layers": ("all", "over layers, of means"),
}
_MARKS = {"holds": "✓", "does not hold": "✗", "undecided": "?", "not measured": "–"}
_FILLS = {"holds": "#d7ecdf", "not measured": "#e4e4e4", "undecided": "#e8c46a", "does not hold": "#9c3d12"}
_ASSUMPTIONS = {
    "A1": "A1 decoder directions,<br>mean |cosine|",
    "A2 R2": "A2 variance<br>explained",
    "A2 residual": "A2 squared<br>error",
    "A3": "A3 reasoning part and<br>rest, |cosine|",
    "A4": "A4 top tokens<br>shared",
}
TOKENS = {"read": "tokens of the response", "chosen": "tokens from which they were chosen"}
_INTERVAL = "[%{customdata[0]:.4g}, %{customdata[1]:.4g}], n = %{customdata[2]}<extra></extra>"
_ARM_STYLES = {"high": 0, "random": 1, "low": 2, "swap": 3, "swap random": 4}
_REST = {"0.1": 0.9, "0.5": 0.5, "0.9": 0.1, "0.99": 1e-2, "0.999": 1e-3, "1 - 1e-4": 1e-4, "1 - 1e-6": 1e-6, "1 - 1e-8": 1e-8}
"""Ticks of a probability so close to 1 that float32 can't say it: what is missing to 1."""


def curves_by_layer(curves: pd.DataFrame) -> go.Figure:
    """Norm and summed activation of reasoning features beside each other; below, the features of each control."""
    sources = list(dict.fromkeys(curves["source"]))
    own = curves[curves["source"] == sources[0]]
    panels = [(own[own["quantity"] == "l2_norm"], "the norm"), (_reasoning(own), f"reasoning features, {plain(sources[0])}")]
    controls = [(_reasoning(curves[curves["source"] == s]), f"control: {plain(s)}") for s in sources[1:]]
    rows = [[(rows, title) for rows, title in row if len(rows)] for row in (panels, controls)]
    return _curve_panels([row for row in rows if row], own, min_width=640)


def entropies_by_layer(curves: pd.DataFrame) -> go.Figure:
    """The norm's rivals: an entropy a panel."""
    own = curves[curves["quantity"].isin(METRIC_NAMES[1:])]
    panels = [(rows, _SHORT[str(name)]) for name, rows in own.groupby("quantity", sort=False)]
    return _curve_panels([panels], own, min_width=640)


def correlation_bars(correlations: pd.DataFrame) -> go.Figure:
    """Spearman's rho of each metric with reasoning features, a bar per source of features; the paper's range beside it."""
    shown = [correlations[(correlations["scope"] == s) & (correlations["layer"] == at)] for s, (at, _) in _SCOPES.items()]
    titles = [_with_missing(title, rows) for (_, title), rows in zip(_SCOPES.values(), shown, strict=True)]
    figure = make_subplots(rows=3, cols=1, shared_xaxes=True, vertical_spacing=0.08, subplot_titles=titles)
    names = [name for name in _SHORT if name in set(correlations["quantity"])]
    for row, frame in enumerate(shown, 1):
        for i, (source, rows) in enumerate(frame.groupby("source", sort=False)):
            _add_rho_bars(
                figure, str(source), i, rows.set_index("quantity").reindex(names), showlegend=row == 1, row=row, col=1
            )
        _add_paper(figure, names, row=row, col=1)
    ticks = [-1, -0.5, 0, 0.5, 1]
    figure.update_yaxes(range=[-1.05, 1.3], tickvals=ticks, ticktext=[f"{100 * t:.0f}" for t in ticks], title_text="rho x 100")
    figure.add_hline(0, line={"color": GREY, "width": 1})
    figure.update_xaxes(showgrid=False, range=[-0.5, len(names) - 0.5])
    figure.update_layout(barmode="group", bargap=0.25)
    return _dress(figure, pd.concat(shown), height=820, below=45)


def bound_scatter(points: pd.DataFrame) -> go.Figure:
    """Both sides of the theorem for each prompt and layer; below, how many prompts its premise leaves out at each layer."""
    panels = ["prompts and layers for which the premise holds", "prompts for which it fails"]
    figure = make_subplots(rows=2, cols=1, row_heights=[0.68, 0.32], vertical_spacing=0.2, subplot_titles=panels)
    layers = sorted(set(points["layer"]))
    _add_sides(figure, points[points["premise"].astype(bool)], row=1, col=1)
    _add_premise(figure, points, layers, row=2, col=1)
    scale = {"colorscale": "Cividis", "cmin": layers[0], "cmax": layers[-1] + 1e-9}
    bar = {"title": {"text": "layer"}, "thickness": 12, "len": 0.6, "y": 1, "yanchor": "top", "outlinewidth": 0}
    figure.update_layout(coloraxis={**scale, "colorbar": bar}, barmode="stack")
    figure.update_xaxes(title_text="right: sqrt(||h think||² - ||h direct||²)", rangemode="tozero", row=1, col=1)
    figure.update_yaxes(title_text="left: activation difference", rangemode="tozero", row=1, col=1)
    figure.update_xaxes(title_text="layer", range=[layers[0] - 0.7, layers[-1] + 0.7], showgrid=False, row=2, col=1)
    n = points.groupby("layer")["prompt"].nunique()
    figure.update_yaxes(title_text="prompts", range=[0, 1.25 * n.max()], row=2, col=1)  # room for the counts
    return _dress(figure, points.assign(n=points["layer"].map(n)), intervals=False, height=640)


def assumption_matrix(assumptions: pd.DataFrame) -> go.Figure:
    """Value of each assumption at each layer, with a mark for holds, does not hold or undecided."""
    names = list(dict.fromkeys(assumptions["assumption"]))
    layers = sorted(set(assumptions["layer"]))
    cells = {(row["assumption"], row["layer"]): row for row in assumptions.to_dict("records")}
    grid = [[cells.get((name, layer)) for layer in layers] for name in names]
    kinds = list(_FILLS)
    steps = [(place / len(kinds), _FILLS[kind]) for i, kind in enumerate(kinds) for place in (i, i + 1)]
    figure = go.Figure()
    figure.add_heatmap(
        z=[[kinds.index(cell["holds"]) if cell else None for cell in row] for row in grid],
        x=[str(layer) for layer in layers],
        y=[_assumption_label(name, assumptions) for name in names],
        text=[[f"{_MARKS[cell['holds']]}<br>{_short_number(cell['value'])}" if cell else "" for cell in row] for row in grid],
        texttemplate="%{text}",
        customdata=[[_assumption_hover(cell) if cell else "" for cell in row] for row in grid],
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
    return _dress(figure, assumptions, note=key, height=130 + 62 * len(names), min_width=width)


def spike_by_family(dynamics_by_family: pd.DataFrame) -> go.Figure:
    """Late norm of thinking minus direct, by family of problems."""
    frame = dynamics_by_family
    figure = go.Figure()
    labels = [f"{plain(str(row['family']))} (n = {row['n']})" for row in frame.to_dict("records")]
    _add_dots(figure, frame, "spike", y=labels)
    figure.add_vline(0, line={"color": GREY, "dash": "dot"})
    figure.update_xaxes(title_text=f"spike: mean {_quantity(frame)} of the late layers, thinking minus direct")
    figure.update_yaxes(autorange="reversed", type="category")
    return _dress(figure, frame, height=170 + 34 * len(frame), min_width=340)


def amplification_by_level(dynamics_by_level: pd.DataFrame) -> go.Figure:
    """Late norm of thinking divided by direct, by level of difficulty."""
    frame = dynamics_by_level
    figure = go.Figure()
    labels = [f"level {row['level']}<br>n = {row['n']}" for row in frame.to_dict("records")]
    _add_dots(figure, frame, "amplification", x=labels)
    figure.add_hline(1, line={"color": GREY, "dash": "dot"})
    figure.update_yaxes(title_text="thinking / direct, late layers")
    figure.update_xaxes(type="category", showgrid=False)
    return _dress(figure, frame, height=380, min_width=340)


def pressure_against_norm(pressure_tokens: pd.DataFrame, *, seed: int = 0) -> go.Figure:
    """The pull of the loss at the last layer, against the norm and against the true token's probability; a point a token."""
    kept = pressure_tokens[~pressure_tokens["is_sink"].astype(bool)]
    drawn = kept[(kept["pressure"] > 0) & (kept["loss"] > 0)]
    if len(drawn) > MAX_POINTS:
        drawn = drawn.iloc[np.sort(np.random.default_rng(seed).choice(len(drawn), MAX_POINTS, replace=False))]
    figure = make_subplots(rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.04)
    for mode, rows in drawn.groupby("mode", sort=False):
        colour, _, _, marker, _ = style_of(str(mode))
        for col, name in enumerate(("l2_norm", "loss"), 1):
            figure.add_scatter(
                x=rows[name],
                y=rows["pressure"],
                mode="markers",
                name=plain(mode_name(str(mode))),
                legendgroup=str(mode),
                showlegend=col == 1,
                marker={"color": colour, "symbol": marker, "size": 5, "opacity": 0.75},
                customdata=[_pressure_hover(row) for row in rows.to_dict("records")],
                hovertemplate="%{customdata}<extra></extra>",
                row=1,
                col=col,
            )
    figure.update_yaxes(type="log", exponentformat="power", dtick=2)
    figure.update_yaxes(title_text="||dL/dh|| (nats per unit of h)", col=1)
    figure.update_xaxes(title_text="||h||, last layer", col=1)
    ticks = {"tickvals": [-np.log1p(-rest) for rest in _REST.values()], "ticktext": [*_REST], "tickangle": -45}
    figure.update_xaxes(title_text="probability of the true token", type="log", autorange="reversed", **ticks, col=2)
    n = drawn["prompt"].nunique()
    note = f"{len(drawn):,} of {len(kept):,} tokens drawn, sinks left out"
    return _dress(figure, drawn.assign(n=n), note=note, intervals=False, height=480, min_width=640, below=95)


def suppression_curve(causal: pd.DataFrame) -> go.Figure:
    """Accuracy against how many positions of a response were suppressed, a line per arm."""
    figure = go.Figure()
    for arm, rows in causal.groupby("arm", sort=False):
        rows = rows.sort_values("positions")
        colour, _, dash, marker, _ = STYLES[_ARM_STYLES.get(str(arm), 0)]
        plainly = arm == "none"
        figure.add_scatter(
            x=rows["positions"],
            y=rows["accuracy"],
            error_y=_error(rows, "accuracy", "low", "high", GREY if plainly else colour),
            mode="markers" if plainly else "lines+markers",
            name=plain(str(rows["what"].iloc[0])),
            line={"color": GREY if plainly else colour, "dash": dash, "width": 2},
            marker={"symbol": "star" if plainly else marker, "size": 11 if plainly else 9},
            customdata=[_arm_hover(row) for row in rows.to_dict("records")],
            hovertemplate="%{customdata}<extra></extra>",
        )
    end = float(causal["positions"].max()) or 1.0
    figure.update_xaxes(title_text="suppressed positions per response (mean)", range=[-0.03 * end, 1.05 * end])
    figure.update_yaxes(title_text="accuracy", range=[-0.02, 1.04], tickformat=".0%")
    return _dress(figure, causal, what="problems", height=520)


def attribution_bars(attribution: pd.DataFrame) -> go.Figure:
    """Thinking minus direct in the late layers, as it is and for each way of matching the modes."""
    figure = go.Figure()
    frame = attribution.assign(label=[_wrapped(text, 24) for text in attribution["compared"]])
    for i, (tokens, rows) in enumerate(frame.groupby("tokens", sort=False)):
        colour, _, _, _, pattern = STYLES[i % len(STYLES)]
        figure.add_bar(
            orientation="h",
            y=rows["label"],
            x=rows["difference"],
            error_x=_error(rows, "difference", "low", "high", colour),
            name=TOKENS.get(str(tokens), plain(str(tokens))),
            marker=_bar(colour, pattern),
            customdata=rows[["low", "high", "n"]],
            hovertemplate=f"%{{x:.4g}} {_INTERVAL}",
        )
        for label in rows["label"][rows["difference"].isna()]:
            figure.add_annotation(x=0, y=label, text="too few such tokens", showarrow=False, xanchor="left", font={"size": 11})
    figure.add_vline(0, line={"color": GREY})
    figure.update_xaxes(title_text=f"{_quantity(attribution)}, thinking minus direct, layers {attribution['layers'].iloc[0]}")
    figure.update_yaxes(autorange="reversed", type="category", showgrid=False, automargin=True)
    figure.update_layout(barmode="group", bargap=0.3)
    return _dress(figure, attribution, height=170 + 62 * frame["label"].nunique())


@dataclass(frozen=True, slots=True)
class _Picture:
    """A figure, the table it is drawn from and the column without which there is nothing to draw."""

    table: str
    column: str
    make: Callable[[pd.DataFrame], go.Figure]
    rows: Callable[[pd.DataFrame], pd.Series[Any]] | None = None

    def allowed(self, tables: Mapping[str, pd.DataFrame]) -> bool:
        """Whether the tables have a value to draw."""
        frame = tables.get(self.table)
        if frame is None or self.column not in frame:
            return False
        return bool(frame[self.column][self.rows(frame) if self.rows else slice(None)].notna().any())


_PICTURES = {
    "curves": _Picture("curves", "mean", curves_by_layer, lambda f: f["quantity"].isin(["l2_norm", "reasoning_sum"])),
    "entropies": _Picture("curves", "mean", entropies_by_layer, lambda f: f["quantity"].isin(METRIC_NAMES[1:])),
    "correlations": _Picture("correlations", "rho", correlation_bars),
    "attribution": _Picture("attribution", "difference", attribution_bars),
    "feature_attribution": _Picture("feature_attribution", "difference", attribution_bars),
    "bound": _Picture("bound_points", "left", bound_scatter),
    "assumptions": _Picture("assumptions", "value", assumption_matrix),
    "pressure": _Picture("pressure_tokens", "pressure", pressure_against_norm),
    "causal": _Picture("causal", "accuracy", suppression_curve),
    "spike_by_family": _Picture("dynamics_by_family", "spike", spike_by_family),
    "amplification_by_level": _Picture("dynamics_by_level", "amplification", amplification_by_level),
}


def draw_analysis(analysis: Analysis) -> dict[str, go.Figure]:
    """All figures that the tables of an analysis allow, by name."""
    return {name: p.make(analysis.tables[p.table]) for name, p in _PICTURES.items() if p.allowed(analysis.tables)}


# Parts of figures


def _dress(
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


def _curve_panels(rows: Sequence[Sequence[tuple[pd.DataFrame, str]]], frame: pd.DataFrame, *, min_width: int) -> go.Figure:
    """Rows of panels, each with a curve per mode, whose columns need not line up."""
    columns = int(np.lcm.reduce([len(row) for row in rows]))
    specs = [
        [{"colspan": columns // len(row)} if i % (columns // len(row)) == 0 else None for i in range(columns)] for row in rows
    ]
    figure = make_subplots(
        rows=len(rows),
        cols=columns,
        specs=specs,
        subplot_titles=[title for row in rows for _, title in row],
        row_heights=[0.58, 0.42][: len(rows)] if len(rows) > 1 else None,
        horizontal_spacing=0.085,
        vertical_spacing=0.18,
    )
    for i, row in enumerate(rows, 1):
        for j, (panel, _) in enumerate(row):
            place = {"row": i, "col": 1 + j * (columns // len(row))}
            _fill_panel(figure, panel, frame["layer"], first=i == 1 and j == 0, y_title=i == 1 or j == 0, place=place)
    figure.update_layout(hovermode="x unified")
    return _dress(figure, frame, height=220 + 250 * len(rows), min_width=min_width)


def _fill_panel(
    figure: go.Figure, panel: pd.DataFrame, layers: pd.Series[int], *, first: bool, y_title: bool, place: Mapping[str, int]
) -> None:
    for mode, rows in panel.groupby("mode", sort=False):
        mean, low, high = (rows[name].to_numpy(dtype=np.float64) for name in ("mean", "low", "high"))
        name = f"{mode_name(str(mode))} (n = {rows['n'].iloc[0]})"
        curve = {"layers": rows["layer"].tolist(), "mean": mean, "low": low, "high": high, "mode": str(mode), "name": name}
        add_curve(figure, **curve, showlegend=first, **place)  # type: ignore[arg-type]
    shade_late(figure, [layer for layer in late_layers(int(layers.max()) + 1) if layer >= layers.min()], label=first, **place)
    figure.update_xaxes(title_text="layer", range=[layers.min() - 0.7, layers.max() + 0.7], **place)
    figure.update_yaxes(
        title_text=_AXES.get(str(panel["quantity"].iloc[0]), _quantity(panel)) if y_title else None, rangemode="tozero", **place
    )


def _add_rho_bars(figure: go.Figure, source: str, i: int, rows: pd.DataFrame, *, showlegend: bool, **place: int) -> None:
    colour, _, _, _, pattern = STYLES[i % len(STYLES)]
    figure.add_bar(
        x=[_SHORT[str(name)].replace(" ", "<br>") for name in rows.index],
        y=rows["rho"],
        error_y=_error(rows, "rho", "low", "high", colour),
        name=plain(source),
        legendgroup=source,
        showlegend=showlegend,
        marker=_bar(colour, pattern),
        customdata=rows[["low", "high", "n"]],
        hovertemplate=f"{plain(source)}: %{{y:.2f}} {_INTERVAL}",
        **place,
    )


def _add_paper(figure: go.Figure, names: Sequence[str], **place: int) -> None:
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


def _with_missing(title: str, rows: pd.DataFrame) -> str:
    """A panel's title, with the sources that have no rho in it."""
    missing = [plain(str(source)) for source, own in rows.groupby("source", sort=False) if own["rho"].isna().all()]
    return f"{title} (no rho: {', '.join(missing)})" if missing else title


def _add_sides(figure: go.Figure, held: pd.DataFrame, **place: int) -> None:
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


def _add_premise(figure: go.Figure, points: pd.DataFrame, layers: Sequence[int], **place: int) -> None:
    """How many prompts the premise holds and fails for, layer by layer."""
    for holds, name, style in ((True, "premise holds", STYLES[2]), (False, "premise fails", STYLES[0])):
        rows = points[points["premise"] == holds]
        counts = [int((rows["layer"] == layer).sum()) for layer in layers]
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


def _add_dots(figure: go.Figure, frame: pd.DataFrame, name: str, **labels: Sequence[str]) -> None:
    """A point with its interval per row, along the axis that has no labels."""
    value = "x" if "y" in labels else "y"
    colour, _, _, marker, _ = STYLES[0]
    figure.add_scatter(
        **labels,
        **{value: frame[name], f"error_{value}": _error(frame, name, f"{name}_low", f"{name}_high", colour)},
        mode="markers",
        showlegend=False,
        marker={"color": colour, "symbol": marker, "size": 10},
        customdata=frame[[f"{name}_low", f"{name}_high", "n"]],
        hovertemplate=f"%{{{value}:.4g}} {_INTERVAL}",
    )


def _error(frame: pd.DataFrame, value: str, low: str, high: str, colour: str) -> dict[str, Any]:
    return {
        "array": frame[high] - frame[value],
        "arrayminus": frame[value] - frame[low],
        "color": colour,
        "thickness": 2,
        "width": 4,
    }


def _bar(colour: str, pattern: str) -> dict[str, Any]:
    """Pale enough for the interval of the same colour to be seen on it."""
    return {
        "color": colour,
        "opacity": 0.5,
        "line": {"color": colour, "width": 1},
        "pattern": {"shape": pattern, **BAR_PATTERN},
    }


def _reasoning(curves: pd.DataFrame) -> pd.DataFrame:
    return curves[curves["quantity"] == "reasoning_sum"]


def _quantity(frame: pd.DataFrame) -> str:
    name = str(frame["quantity"].iloc[0])
    return QUANTITIES.get(name, name)


def _wrapped(text: str, width: int) -> str:
    return "<br>".join(map(plain, textwrap.wrap(text, width)))


def _short_number(value: float) -> str:
    """Few digits: a cell is small. NaN is nothing."""
    return "" if np.isnan(value) else f"{value:.2g}" if value < 0.1 else f"{value:.2f}"


def _assumption_label(name: str, frame: pd.DataFrame) -> str:
    bound = frame.loc[frame["assumption"] == name, "bound"].iloc[0]
    return f"{_ASSUMPTIONS.get(name, plain(name))} {'>' if bound > 0.5 else '<'} {bound:g}"


def _assumption_hover(cell: Mapping[str, Any]) -> str:
    interval = f" [{cell['low']:.4g}, {cell['high']:.4g}], n = {cell['n']}" if cell["n"] else ", exact"
    control = "" if pd.isna(cell["control"]) else f"<br>control ({plain(str(cell['control_name']))}) {cell['control']:.4g}"
    return f"{cell['value']:.4g}{interval}<br>{plain(str(cell['statement']))}: {cell['holds']}{control}"


def _pressure_hover(row: Mapping[str, Any]) -> str:
    token = plain(str(row["token"])) or "(part of a character)"
    return (
        f"{token}, position {row['position']}<br>pressure {row['pressure']:.3g}, norm {row['l2_norm']:.4g}, "
        f"probability {row['p_true']:.7g}"
    )


def _arm_hover(row: Mapping[str, Any]) -> str:
    quantile = "" if pd.isna(row["quantile"]) else f", quantile {row['quantile']:g}"
    return (
        f"{plain(str(row['what']))}{quantile}<br>accuracy {row['accuracy']:.1%} [{row['low']:.1%}, {row['high']:.1%}], "
        f"n = {row['n']}<br>{row['positions']:.1f} positions, {row['events']:.1f} positions and layers, "
        f"{row['tokens']:.1f} tokens, {row['cut_off']:.0%} cut off"
    )
