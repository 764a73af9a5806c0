"""An `Analysis` as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import plotly.graph_objects as go
from markupsafe import Markup

from tl_l2norm.paper.figures import DRAWN_FROM, TOKENS, draw_analysis
from tl_l2norm.paper.finding import DESCRIBED, NOT_SUPPORTED, SUPPORTED, UNINFORMATIVE, UNTESTED
from tl_l2norm.paper.summary import MARKS, headline, p_text, warnings_of
from tl_l2norm.show.page import asset, render, write_page
from tl_l2norm.show.report_parts import csv_html, drawn_points, figure_html, figure_scripts, page_styles, table_html
from tl_l2norm.show.tokens import visible_text

if TYPE_CHECKING:
    from tl_l2norm.paper.result import Analysis

_MAX_ROWS = 200  # of a table; a page with tens of thousands of cells is slow
_MAX_CSV = 2_000  # entries of a figure's table that a page holds as a file; the folder of an analysis has them all
_MAX_REST = 500  # of another table
_RULE = (
    "Each claim has a rule of its own, which stands under it and is the same for every model. It is supported if its figures "
    "lie on its side and p is at most 0.05: claim 0, the primary endpoint, alone, the others after Holm's correction for their "
    "number. p is two-sided, small for an effect against the claim too; what of a rule is not met stands under the verdict. "
    "Where a control meets the rule as well the claim is uninformative. Assumptions, and claim 3, are described, not judged."
)
_CLASSES = {
    SUPPORTED: "supported",
    NOT_SUPPORTED: "failed",
    UNINFORMATIVE: "uninformative",
    UNTESTED: "untested",
    DESCRIBED: "described",
}
"""CSS class of a verdict."""


@dataclass(frozen=True, slots=True)
class _Section:
    """What stands around a figure: a heading, what to look at and what the control is, the tables it comes from."""

    heading: str
    sentence: str
    tables: tuple[str, ...]


_MATCHED = (
    "The topmost bars are the difference as it is; those below compare only tokens or responses that are alike in one respect. "
    "Where a bar goes to 0 or changes sides, that respect accounts for the difference. The last is jointly given all of them: "
    "two of them together make differences that none makes alone."
)
_SECTIONS = {
    "curves": _Section(
        "Norm and reasoning features by layer",
        "Look for thinking above direct at every layer and a sharp rise in the late layers, in both upper panels; the controls "
        "stand below, each at its own scale: what they show, too, is no sign of reasoning.",
        ("curves", "differences", "dynamics", "feature_dynamics"),
    ),
    "entropies": _Section(
        "Entropies by layer",
        "The norm's rivals on the same tokens: look whether any of them tells the modes apart as clearly.",
        (),
    ),
    "correlations": _Section(
        "What goes with reasoning features",
        "The norm's bar for the trained SAE should be over every entropy's, and over the norm's own bars for the controls, "
        "whose features have nothing to do with reasoning. The grey ranges are the paper's own figures, from its models.",
        ("correlations",),
    ),
    "attribution": _Section("What the difference of the norms comes from", _MATCHED, ("attribution",)),
    "feature_attribution": _Section(
        "What the difference of the reasoning features comes from", _MATCHED, ("feature_attribution",)
    ),
    "bound": _Section(
        "The theorem: both sides",
        "Points between two lines through the origin are what the theorem says; where the thinking norm is not the larger one "
        "it has no right side, and the bars count such prompts. If the modes did not differ, that would be half of them. The "
        "control, random sets of other latents put through the same, has a table of its own; so has what token types leave.",
        ("bound", "bound_given_tokens", "bound_control", "bound_points"),
    ),
    "assumptions": _Section(
        "The theorem's assumptions",
        "Descriptions, no tests. Each cell is held against the bound in its row's label; the controls (random directions for "
        "A1, as many latents chosen with shuffled modes for A3 and A4) are in the table and under the pointer.",
        ("assumptions", "explained", "explained_random"),
    ),
    "pressure": _Section(
        "The pull of the loss",
        "The claim needs points that rise to the right in the left panel, which token types and position alone can make them "
        "do: the table of links has them taken out, beside the pull shifted round its response, the control. That the pull "
        "falls with the true token's probability, on the right, is nearly so by construction.",
        ("pull_links", "pressure", "pressure_tokens"),
    ),
    "causal": _Section(
        "What suppression does to accuracy",
        "The claim needs the line of high-norm tokens that have a partner (the same type, near by, of ordinary norm) under "
        "that of their partners, the control, at the same number of positions, and the partners' near what it is without any "
        "change; all high-norm tokens, low-norm ones and swaps of direction at equal norm show what else does harm.",
        ("causal", "causal_differences"),
    ),
    "spike_by_family": _Section(
        "The late difference by family of problems",
        "Families are told apart where intervals don't overlap, and thinking is higher right of the line at 0; the control, "
        "how well lengths and tokens tell the family, is in the table of families.",
        ("dynamics_by_family", "families"),
    ),
    "amplification_by_level": _Section(
        "The late ratio by level of difficulty",
        "The claim needs points that rise with the level, and thinking is higher above the line at 1; the control, the same "
        "trend given lengths, and given tokens besides, is in the table of the trend.",
        ("dynamics_by_level", "trend"),
    ),
}


def analysis_report(analysis: Analysis, *, path: str | Path, title: str = "The Tell-Tale Norm, claim by claim") -> Path:
    """Write one HTML file about an analysis; it fetches nothing and can be mailed.

    Args:
        analysis: from `analyse`.
        path: where to write; its folder is made, an older file is replaced in one step.
        title: heading of the page.

    Returns:
        The path.

    Examples:
        >>> tables = {"dynamics_by_level": l2.analysis.dynamics(think, direct, by="level")}
        >>> analysis = l2.paper.Analysis(tables=tables, notes={}, features={}, facts={"model": "tiny-reasoner"})
        >>> analysis_report(analysis, path="analysis.html").name
        'analysis.html'
    """
    claims, figures = analysis.claims(), draw_analysis(analysis)
    shown = {table for name in figures for table in _SECTIONS[name].tables}
    rest = [_labelled(name, frame, analysis) for name, frame in analysis.tables.items() if name not in shown]
    page = render(
        "paper/report.html.jinja",
        title=title,
        styles=[*page_styles(), Markup(asset("paper/report.css"))],
        scripts=figure_scripts(),
        contents=_contents(figures, rest=bool(rest)),
        lead=", ".join(analysis.facts[name] for name in ("model", "responses") if name in analysis.facts),
        warnings=warnings_of(analysis.tables),
        headline=headline(claims),
        rule=_RULE,
        facts=_facts(analysis),
        claims=[_claim(entry) for entry in claims.to_dict("records")],
        claims_csv=csv_html(claims, _model(analysis), "claims"),
        sections=[_section(name, figure, analysis) for name, figure in figures.items()],
        rest=rest,
        notes=analysis.notes,
    )
    return write_page(path, page)


def _contents(figures: Collection[str], *, rest: bool) -> dict[str, str]:
    """Headings of the sections there are, by anchor."""
    sections = {name: _SECTIONS[name].heading for name in figures}
    others = {"rest": "Other tables"} if rest else {}
    ends = {"missing": "What could not be measured", "reading": "How to read this"}
    return {"claims": "The claims, one by one", "run": "What was run"} | sections | others | ends


def _model(analysis: Analysis) -> str:
    return analysis.facts.get("model", "")


def _facts(analysis: Analysis) -> dict[str, str]:
    facts = {name[:1].upper() + name[1:]: text for name, text in analysis.facts.items()}
    return facts | {"Written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")}


def _claim(entry: Mapping[str, Any]) -> dict[str, Any]:
    verdict, p = entry["verdict"], p_text(entry["p"], entry["p_adjusted"])
    return {**entry, "mark": MARKS[verdict], "kind": _CLASSES[verdict], "p": p}


def _section(name: str, figure: go.Figure, analysis: Analysis) -> dict[str, Any]:
    section, tables = _SECTIONS[name], analysis.tables
    frame = tables[DRAWN_FROM[name]]
    data = frame if len(frame) <= _MAX_CSV else drawn_points(figure)
    return {
        "name": name,
        "sentence": section.sentence,
        "notes": _verdicts(tables[name]) if name.endswith("attribution") else [],
        "figure": figure_html(figure, name, data=data, prefix=_model(analysis)),
        "tables": [_labelled(table, tables[table], analysis) for table in section.tables if table in tables],
    }


def _verdicts(attribution: pd.DataFrame) -> list[str]:
    """What came of each choice of tokens, in words."""
    choices = attribution.drop_duplicates("tokens")
    return [f"With {TOKENS.get(t, t)}: {v}" for t, v in zip(choices["tokens"], choices["verdict"], strict=True)]


def _labelled(name: str, frame: pd.DataFrame, analysis: Analysis) -> tuple[str, Markup, Markup]:
    """What to call a table, the table, cut where it is long, and the whole as a file."""
    many = f"{len(frame):,} row{'s' if len(frame) != 1 else ''}"
    shown = many if len(frame) <= _MAX_ROWS else f"the first {_MAX_ROWS} of {many}"
    cut = frame.head(_MAX_ROWS).map(lambda value: visible_text(value) if isinstance(value, str) else value)
    short = len(frame) <= _MAX_REST and name not in DRAWN_FROM.values()  # a figure keeps its own
    file = csv_html(frame, _model(analysis), name) if short else Markup("")
    with pd.option_context("display.max_colwidth", None):
        return f"Table {name} ({shown})", table_html(cut, float_format="{:.4g}".format, na_rep="-"), file
