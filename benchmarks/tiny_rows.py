"""What was measured of methods on the tiny reasoner, as docs/claims.md shows it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd

from benchmarks.analysis_rows import own_questions
from benchmarks.arm_rows import arms_region
from benchmarks.kept import RESULTS, keep_evaluation
from benchmarks.regions import markdown_table

NAME, EVALUATIONS = "tiny_reasoner", ("selection", "cool", "arms", "doses")
SAMPLED, SETTINGS = "correctness.csv", "settings.csv"


def keep_tiny(folder: Path) -> None:
    """Take in the tables of what was run: `folder` is that of `python -m benchmarks.tiny_reasoner ... --out`."""
    for name in EVALUATIONS:
        if (folder / name / "results.json").is_file():
            keep_evaluation(folder / name, NAME, name)
    for name in (SAMPLED, SETTINGS):
        if (folder / name).is_file():
            shutil.copy(folder / name, RESULTS / NAME)


def tiny_regions() -> dict[str, str]:
    """Of docs/claims.md: how the temperature was chosen, selections, arms, and what norms tell of samples."""
    regions = {f"tiny {name}": arms_region(NAME, name) for name in EVALUATIONS}
    settings, sampled = (RESULTS / NAME / name for name in (SETTINGS, SAMPLED))
    regions["tiny settings"] = _settings(pd.read_csv(settings)) if settings.is_file() else "Not run yet."
    tables = {"correctness": pd.read_csv(sampled)} if sampled.is_file() else {}
    return regions | {"tiny samples": own_questions(tables, short=True) if tables else "Not run yet."}


def _settings(table: pd.DataFrame) -> str:
    """Shares that are right, by temperature and family."""
    rows = []
    for temperature, own in table.groupby("temperature"):
        right = {entry["family"]: f"{100 * entry['right']:.0f}" for entry in own.to_dict("records")}
        rows.append({"temperature": temperature, **right, "cut off": f"{100 * own['cut off'].mean():.1f}"})
    return markdown_table(rows)
