"""Write the figures of docs/ from what was measured; the words around them are written by hand.

python -m benchmarks.pages                      from benchmarks/results/ and the tiny reasoner's files: claims, architecture
python -m benchmarks.pages --analysis FOLDER    the same, once the tables of `tl-l2norm analyse --out FOLDER` are taken in there
python -m benchmarks.pages --tiny FOLDER        and those of `python -m benchmarks.tiny_reasoner ... --out FOLDER`
python -m benchmarks.pages --smollm2 FOLDER     and those of `python -m benchmarks.smollm2 --out FOLDER`
python -m benchmarks.pages --qwen FOLDER        and those of `python -m benchmarks.qwen ... --out FOLDER`, as far as it was run
python -m benchmarks.pages --report FILE        and SmolLM2's norms, from what `tl-l2norm report --model smollm2 > FILE` printed
python -m benchmarks.run PART ... --write       a table of each part that was run
"""

from __future__ import annotations

import argparse
import ast
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.analysis_rows import (
    assumption_rows,
    attribution_rows,
    bound_rows,
    causal_rows,
    claims,
    correlation_rows,
    feature_rows,
    high_norm_rows,
    link_rows,
    own_questions,
)
from benchmarks.kept import analysis_of, keep
from benchmarks.model_table import models_region
from benchmarks.qwen_rows import keep_qwen, qwen_regions
from benchmarks.regions import ARCHITECTURE, CLAIMS, ROOT, markdown_table, write_regions
from benchmarks.tiny_rows import keep_tiny, tiny_regions

REASONER = ROOT / "assets" / "tiny_reasoner"
ROOMS = [
    "core",
    "text",
    "tasks",
    "models",
    "interventions",
    "saes",
    "recording",
    "engines",
    "analysis",
    "experiments",
    "show",
    "paper",
]
"""From the lowest to the highest."""

_USUAL_N = 500  # problems of a cell, unless there are fewer
_SEPARATES = 0.4  # of accuracy, between the modes


def reasoner_regions() -> dict[str, str]:
    """Of docs/claims.md: what was measured when the tiny reasoner was trained."""
    results = json.loads((REASONER / "results.json").read_text())
    verdicts = json.loads((REASONER / "norms.json").read_text())["verdicts"]
    return {
        "accuracy": markdown_table([_family(results, name) for name in results["config"]["families"]]),
        "seldom seen levels": markdown_table(_seldom_levels(results)),
        "norms": "\n".join(f"- {verdict}" for verdict in verdicts),
    }


def _family(results: Mapping[str, Any], name: str) -> dict[str, Any]:
    cells = {(row["level"], row["mode"]): row for row in results["cells"] if row["family"] == name}
    hardest = results["config"]["common_levels"].get(name, max(level for level, _ in cells))
    trained = [cells[level, "think"] for level in range(1, hardest + 1)]
    lowest = min(trained, key=lambda cell: (cell["right"] / cell["n"], cell["interval"][0]))
    think, direct, easiest = cells[hardest, "think"], cells[hardest, "direct"], cells[1, "direct"]
    control = "" if (think["right"] - direct["right"]) / think["n"] >= _SEPARATES else " (control)"
    return {
        "family": f"{name}{control}",
        "thinking, at its lowest common level": f"{_percent(lowest)} ({_level(lowest)})",
        "hardest common level: thinking": f"{_percent(think)} ({_level(think)})",
        "direct": _percent(direct),
        "most frequent answer": f"{100 * direct['guess']:.1f}",
        "n": direct["n"],
        "level 1: direct": _percent(easiest),
    }


def _seldom_levels(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Levels that were seldom seen in training."""
    last = results["config"]["common_levels"]
    rows = [row for row in results["cells"] if row["mode"] == "think" and row["level"] > last.get(row["family"], row["level"])]
    return [{"family": r["family"], "level": r["level"], "thinking": _percent(r), "n": r["n"]} for r in rows]


def _percent(cell: Mapping[str, Any]) -> str:
    low, high = cell["interval"]
    return f"{100 * cell['right'] / cell['n']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _level(cell: Mapping[str, Any]) -> str:
    few = f", n = {cell['n']}" if cell["n"] != _USUAL_N else ""
    return f"level {cell['level']}{few}"


def rooms_region() -> dict[str, str]:
    """Of docs/architecture.md: what each folder of the package says of itself."""
    rows = []
    for room in ROOMS:
        told = ast.get_docstring(ast.parse((ROOT / "tl_l2norm" / room / "__init__.py").read_text())) or ""
        what, _, below = " ".join(told.split()).partition(" Imports from: ")
        rows.append({"room": f"`{room}/`", "what": what, "imports from": below.rstrip(".")})
    return {"rooms": markdown_table(rows)}


def kept_regions() -> dict[str, str]:
    """Of docs/claims.md: all that is made of what is kept in the repository."""
    return models_region() | reasoner_regions() | claims_regions() | tiny_regions() | smollm2_regions() | qwen_regions()


def smollm2_regions() -> dict[str, str]:
    """Of docs/claims.md: the same of SmolLM2, in short."""
    tables, notes = analysis_of("smollm2")
    return {"smollm2 claims": claims(tables, notes), "smollm2 own questions": own_questions(tables, short=True)}


def claims_regions() -> dict[str, str]:
    """Of docs/claims.md: the claims on the tiny reasoner, and what stands behind them."""
    tables, notes = analysis_of("tiny_reasoner")
    return {
        "claims": claims(tables, notes),
        "attribution": markdown_table(attribution_rows(tables["attribution"])),
        "own questions": own_questions(tables),
        "links": markdown_table(link_rows(tables["links"])) if "links" in tables else "No reasoning features were found.",
        "correlations": markdown_table(correlation_rows(tables["correlations"])),
        "assumptions": markdown_table(assumption_rows(tables["assumptions"])),
        "bound": markdown_table(bound_rows(tables["bound"])),
        "features": markdown_table(feature_rows(tables["features"])),
        "high-norm tokens": markdown_table(high_norm_rows(tables["high_norm_tokens"])),
        "causal": markdown_table(causal_rows(tables["causal"])),
    }


def report_region(printed: str) -> str:
    """Of docs/claims.md: what a report says, without where it lies."""
    return f"```text\n{printed.partition('report: ')[0].strip()}\n```"


def benchmark_region(rows: Sequence[Mapping[str, Any]], run: str) -> str:
    """A part of docs/benchmarks.md: what was run, and its table."""
    names = {"seconds": "ours"}
    shown = [{names.get(k, k): f"{v:.3g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows]
    return f"{run}\n\n{markdown_table(shown)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--analysis", type=Path, metavar="FOLDER", help="of `tl-l2norm analyse --out FOLDER`")
    parser.add_argument("--report", type=Path, metavar="FILE", help="what `tl-l2norm report --model smollm2` printed")
    parser.add_argument("--tiny", type=Path, metavar="FOLDER", help="of `python -m benchmarks.tiny_reasoner ... --out FOLDER`")
    parser.add_argument("--smollm2", type=Path, metavar="FOLDER", help="of `python -m benchmarks.smollm2 --out FOLDER`")
    parser.add_argument("--qwen", type=Path, metavar="FOLDER", help="of `python -m benchmarks.qwen ... --out FOLDER`")
    options = parser.parse_args()
    if options.analysis:
        keep(options.analysis, "tiny_reasoner")
    if options.tiny:
        keep_tiny(options.tiny)
    if options.smollm2:
        keep(options.smollm2 / "analysis", "smollm2")
    if options.qwen:
        keep_qwen(options.qwen)
    report = {"smollm2": report_region(options.report.read_text())} if options.report else {}
    write_regions(CLAIMS, kept_regions() | report)
    write_regions(ARCHITECTURE, rooms_region())


if __name__ == "__main__":
    main()
