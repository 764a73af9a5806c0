"""Arms of an evaluation, as docs/claims.md shows them."""

from __future__ import annotations

from typing import Any

import pandas as pd

from benchmarks.kept import RESULTS, evaluation_of
from benchmarks.regions import markdown_table
from tl_l2norm.analysis.arms import as_read


def arms_region(model: str, name: str) -> str:
    """Each arm beside what it is held against, and what it cost."""
    found = evaluation_of(model, name)
    if found is None:
        return "Not run yet."
    costs = pd.read_csv(RESULTS / model / f"{name}_costs.csv").set_index("arm")
    rows = [_row(entry, costs) for entry in as_read(found).to_dict("records")]
    return markdown_table(rows)


def _row(entry: dict[Any, Any], costs: pd.DataFrame) -> dict[str, Any]:
    alone = pd.isna(entry["against"])
    gain, low, high = (100 * entry[name] for name in ("difference", "difference_low", "difference_high"))
    return {
        "arm": entry["arm"],
        "right, %": f"{100 * entry['accuracy']:.1f} [{100 * entry['low']:.1f}, {100 * entry['high']:.1f}]",
        "against": "" if alone else entry["against"],
        "difference, points": "" if alone else f"{gain:+.1f} [{low:+.1f}, {high:+.1f}]",
        "better / worse": "" if alone else f"{entry['better']:.0f} / {entry['worse']:.0f}",
        "p": "" if alone else f"{entry['p']:.2g}",
        "p (Holm)": "" if alone or pd.isna(entry["p_holm"]) else f"{entry['p_holm']:.2g}",
        "verdict": entry["verdict"],
        "layer passes": f"{costs.loc[entry['arm'], 'times']:.3g} x",
        "n": entry["n"],
    }
