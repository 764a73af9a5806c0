"""What was measured on Qwen2.5-Coder, as docs/claims.md shows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.analysis_rows import claims, own_questions
from benchmarks.kept import RESULTS, analysis_of, evaluation_of, keep, keep_evaluation
from benchmarks.regions import markdown_table
from tl_l2norm.analysis.arms import as_read

SAMPLED = "correctness.csv"
NAME, EVALUATIONS = "qwen", ("selection", "arms", "doses")


def keep_qwen(folder: Path) -> None:
    """Take in the tables of what was run: `folder` is that of `python -m benchmarks.qwen ... --out`."""
    place = RESULTS / NAME / "analysis"
    sampled = next((file for file in (folder / SAMPLED, place / SAMPLED) if file.is_file()), None)
    content = sampled.read_bytes() if sampled else None  # of another part than the analysis, which takes the whole folder
    if (folder / "analysis").is_dir():
        keep(folder / "analysis", NAME)
    for name in EVALUATIONS:
        if (folder / name / "results.json").is_file():
            keep_evaluation(folder / name, NAME, name)
    if content is not None:
        place.mkdir(parents=True, exist_ok=True)
        (place / SAMPLED).write_bytes(content)


def qwen_regions() -> dict[str, str]:
    """Of docs/claims.md: claims, selection and arms; what was not run yet says so."""
    tables, notes = analysis_of(NAME)
    regions = {"qwen claims": claims(tables, notes) if set(tables) - {"correctness"} else "Not run yet."}
    regions["qwen own questions"] = own_questions(tables, short=True) if tables else "Not run yet."
    return regions | {f"qwen {name}": _arms(name) for name in EVALUATIONS}


def _arms(name: str) -> str:
    found = evaluation_of(NAME, name)
    if found is None:
        return "Not run yet."
    costs = pd.read_csv(RESULTS / NAME / f"{name}_costs.csv").set_index("arm")
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
