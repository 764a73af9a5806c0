"""What was measured on Qwen2.5-Coder, as docs/claims.md shows it."""

from __future__ import annotations

from pathlib import Path

from benchmarks.analysis_rows import claims, own_questions
from benchmarks.arm_rows import arms_region
from benchmarks.kept import RESULTS, analysis_of, keep, keep_evaluation

SAMPLED = "correctness.csv"
NAME, EVALUATIONS = "qwen", ("selection", "signals", "arms", "doses")


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
    return regions | {f"qwen {name}": arms_region(NAME, name) for name in EVALUATIONS}
