"""An evaluation as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tl_l2norm.analysis.arms import BASELINE, cut_off_notes
from tl_l2norm.experiments.evaluation_results import Results, idle_notes
from tl_l2norm.show.arm_figures import selection_curves, suppression_curves
from tl_l2norm.show.figures import arm_costs, arm_differences
from tl_l2norm.show.page import render, write_page
from tl_l2norm.show.report_parts import figure_html, figure_scripts, page_styles, table_html


def evaluation_page(results: Results, *, path: str | Path, title: str = "Does it help?") -> Path:
    """Write one HTML file about an evaluation; it fetches nothing and can be mailed.

    Args:
        results: from `evaluate`.
        path: where to write; its folder is made, an older file is replaced in one step.
        title: heading of the page.

    Returns:
        The path.
    """
    table, costs, suppressed = results.to_frame(), results.costs(), results.suppressed()
    several = [name for name in ("family", "level") if results.outcomes[name].nunique() > 1]
    shown = ["arm", "against", "n", "accuracy", "low", "high", "difference", "difference_low", "difference_high"]
    shown += ["better", "worse", "p", "test", "p_holm", "verdict", "cut_off"]
    page = render(
        "show/evaluation.html.jinja",
        title=title,
        styles=page_styles(),
        scripts=figure_scripts(),
        lead=f"{results.outcomes['model'].iloc[0]}, {table['n'].iloc[0]} problems, {table['arm'].nunique()} arms",
        headline=_headline(results),
        warnings=[*cut_off_notes(table), *idle_notes(results.decisions)],
        notes=[note[0].upper() + note[1:] + "." for note in results.notes],
        facts=_facts(results.settings, results.seed),
        differences=figure_html(arm_differences(table), "differences", data=table),
        arms=table_html(table[shown], float_format="%.4g", na_rep=""),
        detailed={
            name: table_html(results.to_frame(by=name)[[name, *shown]], float_format="%.4g", na_rep="") for name in several
        },
        curves_figure=figure_html(selection_curves(results.curves), "selection") if len(results.curves) else None,
        curves=table_html(results.curve_frame(), float_format="%.4g"),
        suppressed_figure=figure_html(suppression_curves(suppressed), "suppression") if len(suppressed) else None,
        suppressed=table_html(suppressed, float_format="%.4g"),
        costs_figure=figure_html(arm_costs(table, costs), "costs"),
        costs=table_html(costs, float_format="%.4g"),
        decisions=table_html(results.decisions) if len(results.decisions) else None,
    )
    return write_page(path, page)


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
