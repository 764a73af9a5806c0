"""The claims of an analysis as text for a terminal."""

from __future__ import annotations

import html
import textwrap
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from tl_l2norm.analysis.accuracy import cut_off_warnings
from tl_l2norm.core.tables import WIDTH, html_table
from tl_l2norm.paper.finding import DESCRIBED, NOT_SUPPORTED, SUPPORTED, UNINFORMATIVE, UNTESTED
from tl_l2norm.paper.tables import checked

MARKS = {SUPPORTED: "✓", NOT_SUPPORTED: "✗", UNINFORMATIVE: "≈", UNTESTED: "–", DESCRIBED: "·"}

_INDENT = 4


def summary(claims: pd.DataFrame, tables: Mapping[str, pd.DataFrame]) -> str:
    """Warnings, how many claims ended how, and each claim: its verdict with the reason, what was measured, the control.

    Args:
        claims: of `claims_table`.
        tables: that they were made of.

    Returns:
        Text of at most 100 columns.
    """
    above = [textwrap.fill(text, WIDTH) for text in (*warnings_of(tables), headline(claims))]
    return "\n\n".join([*above, *map(_claim, claims.to_dict("records"))])


def summary_html(claims: pd.DataFrame, tables: Mapping[str, pd.DataFrame]) -> str:
    """The same as HTML, each claim in a row.

    Args:
        claims: of `claims_table`.
        tables: that they were made of.
    """
    entries = claims.to_dict("records")
    shown = {
        "": [entry["number"] for entry in entries],
        "claim": [entry["claim"] for entry in entries],
        "verdict": [f"{MARKS[entry['verdict']]} {verdict_text(entry)}" for entry in entries],
        "measured": claims["measured"].tolist(),
        "95% interval": claims["interval"].tolist(),
        "control": claims["control"].tolist(),
        "n": [str(n) if n else "" for n in claims["n"]],
        "p (Holm)": [p_text(entry["p"], entry["p_adjusted"]) for entry in entries],
    }
    above = "".join(f"<p>{html.escape(text)}</p>" for text in (*warnings_of(tables), headline(claims)))
    return above + html_table(pd.DataFrame(shown))


def warnings_of(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """What stands above the claims, because it may be the reason for them."""
    return cut_off_warnings(checked("accuracy", tables["accuracy"])) if "accuracy" in tables else []


def headline(claims: pd.DataFrame) -> str:
    """How many claims ended with which verdict."""
    counts = Counter(claims["verdict"])
    tested = counts[SUPPORTED] + counts[NOT_SUPPORTED] + counts[UNINFORMATIVE]
    also = {UNINFORMATIVE: "of them uninformative", UNTESTED: "can't be tested here", DESCRIBED: "are described"}
    others = "".join(f"; {counts[verdict]} {words}" for verdict, words in also.items() if counts[verdict])
    ours = claims[claims["paper"] == ""]
    judged = ours[ours["verdict"].isin([SUPPORTED, NOT_SUPPORTED, UNINFORMATIVE])]
    own = int((judged["verdict"] == SUPPORTED).sum())
    of_paper = f"Of the paper's claims {counts[SUPPORTED] - own} of {tested - len(judged)} that could be tested are supported"
    return f"{of_paper} on this model, of our own {own} of {len(judged)}{others}."


def p_text(p: float, adjusted: float) -> str:
    """A p-value and, where it differs, what Holm makes of it."""
    if np.isnan(p):
        return ""
    return f"{p:.2g}" if p == adjusted else f"{p:.2g} ({adjusted:.2g})"


def verdict_text(entry: Mapping[str, Any]) -> str:
    """The verdict, with what it is a description of, why it can't be tested, or what is not met."""
    if entry["verdict"] in (UNTESTED, DESCRIBED):
        return f"{entry['verdict']}: {entry['why']}"
    return f"{entry['verdict']}; not met: {entry['unmet']}" if entry["unmet"] else str(entry["verdict"])


def _claim(entry: Mapping[str, Any]) -> str:
    p = p_text(entry["p"], entry["p_adjusted"])
    facts = {"measured": entry["measured"], "95% interval": entry["interval"], "control": entry["control"]}
    facts["n"] = str(entry["n"]) if entry["n"] else ""
    facts["rule"] = entry["why"] if entry["verdict"] == SUPPORTED else ""
    facts["p (Holm)" if "(" in p else "p"] = p
    lines = [f"{MARKS[entry['verdict']]} {verdict_text(entry)}"]
    lines += [f"{name}: {value}" for name, value in facts.items() if value]
    heading = _fill(f"{entry['number']:<{_INDENT}}{entry['claim']}", "", " " * _INDENT)
    return "\n".join([heading, *(_fill(line, " " * _INDENT, " " * (_INDENT + 2)) for line in lines)])


def _fill(text: str, first: str, rest: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)
