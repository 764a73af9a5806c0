"""An evaluation as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from tl_l2norm.analysis.arms import BASELINE, as_read
from tl_l2norm.experiments.evaluation_results import Results, warning_notes
from tl_l2norm.show.arm_figures import selection_curves, suppression_curves
from tl_l2norm.show.figures import arm_costs, arm_differences
from tl_l2norm.show.page import render, write_page
from tl_l2norm.show.report_parts import figure_html, figure_scripts, page_styles, table_html
from tl_l2norm.show.result_figures import Picture

_HEADINGS = {
    "run": "What was run",
    "differences": "Differences of accuracy",
    "selection": "Selecting among more responses",
    "suppression": "Suppressing more tokens",
    "costs": "Cost against gain",
    "decisions": "What interventions decided",
}
"""Of sections, by their anchors, in their order."""


def evaluation_page(results: Results, *, path: str | Path, title: str = "Does it help?") -> Path:
    """Write one HTML file about an evaluation; it fetches nothing and can be mailed.

    Args:
        results: from `evaluate`.
        path: where to write; its folder is made, an older file is replaced in one step.
        title: heading of the page.

    Returns:
        The path.
    """
    table, costs, model = results.to_frame(), results.costs(), str(results.outcomes["model"].iloc[0])
    drawn = _pictures(results)
    several = [name for name in ("family", "level") if results.outcomes[name].nunique() > 1]
    shown = ["arm", "against", "n", "accuracy", "low", "high", "difference", "difference_low", "difference_high"]
    shown += ["better", "worse", "p", "test", "p_holm", "verdict", "cut_off"]
    page = render(
        "show/evaluation.html.jinja",
        title=title,
        styles=page_styles(),
        scripts=figure_scripts(),
        lead=f"{model}, {table['n'].iloc[0]} problems, {table['arm'].nunique()} arms",
        headline=_headline(results),
        warnings=warning_notes(results, table),
        notes=[note[0].upper() + note[1:] + "." for note in results.notes],
        contents=_contents(drawn, results.decisions),
        figures={name: figure_html(own.figure, name, data=own.data, prefix=model) for name, own in drawn.items()},
        facts=_facts(results.settings, results.seed),
        arms=table_html(as_read(table)[shown], float_format="%.4g", na_rep=""),
        detailed={
            name: table_html(as_read(results.to_frame(by=name))[[name, *shown]], float_format="%.4g", na_rep="")
            for name in several
        },
        curves=table_html(results.curve_frame(), float_format="%.4g"),
        suppressed=table_html(results.suppressed(), float_format="%.4g"),
        costs=table_html(costs, float_format="%.4g"),
        decisions=table_html(results.decisions) if len(results.decisions) else None,
    )
    return write_page(path, page)


def _pictures(results: Results) -> dict[str, Picture]:
    """What there is to draw, by the anchor of its section, each with its numbers."""
    table, costs, suppressed = results.to_frame(), results.costs(), results.suppressed()
    drawn = {"differences": Picture(arm_differences(table), table)}
    if len(results.curves):
        drawn["selection"] = Picture(selection_curves(results.curves), results.curves)
    if len(suppressed):
        drawn["suppression"] = Picture(suppression_curves(suppressed), suppressed)
    gains = table[table["against"] == costs["arm"].iloc[0]]
    drawn["costs"] = Picture(arm_costs(table, costs), gains.merge(costs[["arm", "times"]], on="arm"))
    return drawn


def _contents(drawn: Collection[str], decisions: pd.DataFrame) -> dict[str, str]:
    """Headings of the sections there are, by anchor."""
    there = {"run", *drawn} | ({"decisions"} if len(decisions) else set())
    return {name: heading for name, heading in _HEADINGS.items() if name in there}


def _headline(results: Results) -> str:
    """Which arms ended with which verdict."""
    table = results.to_frame().drop_duplicates("arm")
    verdicts = table[table["verdict"] != BASELINE].groupby("verdict", sort=False)["arm"].apply(list)
    return "; ".join(f"{verdict}: {', '.join(arms)}" for verdict, arms in verdicts.items())


def _facts(settings: Mapping[str, Any], seed: int) -> dict[str, str]:
    """What was run, as label and text."""
    return {
        "Mode": settings["mode"],
        "Responses to a problem": f"{settings['n']}, unless an arm says otherwise",
        "Temperature": f"{settings['temperature']:g}, unless an arm says otherwise",
        "Limit": f"{settings['max_new_tokens']} tokens",
        "Calibration": f"{len(settings['calibration'])} other problems",
        "Backend": f"{settings['backend']}, {settings['dtype']}, {settings['device']}",
        "Seed": str(seed),
        "Versions": ", ".join(f"{name} {version}" for name, version in sorted(settings["versions"].items())),
    }
