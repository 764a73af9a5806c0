"""Write the model card of the tiny reasoner from its results: `python assets/tiny_reasoner/report.py [FOLDER]`.

results.json is there from train.py on, saes/results.json from train_saes.py on, norms.json from norms.py on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tl_l2norm.analysis.accuracy import wilson_interval
from tl_l2norm.tasks.problems import FAMILIES, TEST_SHARE, make_problems


class Cell(NamedTuple):
    """The result of one family, level and mode."""

    family: str
    level: int
    mode: str
    right: int
    n: int
    guess: float
    """The share of the most frequent answer."""

    def interval(self) -> tuple[float, float]:
        """Wilson's 95% interval of the share."""
        return wilson_interval(self.right, self.n)

    def __str__(self) -> str:
        low, high = self.interval()
        return f"{100 * self.right / self.n:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def write_results(folder: Path, config: dict[str, Any], size: int, cells: Sequence[Cell]) -> None:
    """results.json: the configuration, the number of parameters, and each family's cells by level, thinking before direct."""
    rows = [cell._asdict() | {"interval": cell.interval()} for cell in cells]
    (folder / "results.json").write_text(json.dumps({"config": config, "parameters": size, "cells": rows}, indent=1) + "\n")


def write_card(folder: Path) -> None:
    """README.md, from the results that are there."""
    results = json.loads((folder / "results.json").read_text())
    config, size = results["config"], results["parameters"]
    cells = [Cell(**{name: row[name] for name in Cell._fields}) for row in results["cells"]]
    template = (Path(__file__).parent / "card.md").read_text()
    card = template.format(
        **config["settling"]
        | {"band": "{} and {}".format(*config["settling"]["band"])}
        | {name: value for name, value in config.items() if not isinstance(value, dict)},
        parameters=f"{size / 1e6:.1f}",
        share=TEST_SHARE,
        tables="\n\n".join(_table(name, cells, config) for name in config["families"]),
        verdict="\n".join(_verdict(name, cells, config) for name in config["families"]),
        saes=_saes(folder / "saes" / "results.json"),
        norms=_norms(folder / "norms.json"),
    )
    (folder / "README.md").write_text(card)


def _saes(file: Path) -> str:
    if not file.is_file():
        return "Not trained yet."
    rows = json.loads(file.read_text())
    lines = [
        "| layer | explained variance | mean L0 | never active, of {d_sae} |".format(**rows[0]),
        "| --- | --- | --- | --- |",
    ]
    lines += [
        "| {layer} | {explained_variance:.3f} [{low:.3f}, {high:.3f}] | {l0:.1f} | {dead} |".format(**row) for row in rows
    ]
    short = [str(row["layer"]) for row in rows if row["explained_variance"] <= 0.95]
    missed = f"Explained variance is 0.95 or less at layers {', '.join(short)}." if short else "All are over 0.95."
    return "\n".join([*lines, "", f"On {rows[0]['n']} held-out sequences, {rows[0]['n_tokens']:,} tokens. {missed}"])


def _norms(file: Path) -> str:
    return (
        "\n".join(f"- {line}" for line in json.loads(file.read_text())["verdicts"]) if file.is_file() else "Not measured yet."
    )


def _table(name: str, cells: Sequence[Cell], config: dict[str, Any]) -> str:
    family = FAMILIES[name]
    example = make_problems(name, 1, level=3, split="test")[0]
    lines = [f"### {name}", "", (family.make.__doc__ or "").strip(), ""]
    lines += [f"`{example.question}` is answered `<think> {example.thinking} </think> {example.answer}`.", ""]
    lines += ["| level | thinking | direct | best guess | n |", "| --- | --- | --- | --- | --- |"]
    own = [cell for cell in cells if cell.family == name]
    for think, direct in zip(own[::2], own[1::2], strict=True):
        mark = " *" if think.level > config["common_levels"].get(name, family.levels) else ""
        lines.append(f"| {think.level}{mark} | {think} | {direct} | {100 * think.guess:.1f} | {think.n} |")
    return "\n".join(lines)


def _verdict(name: str, cells: Sequence[Cell], config: dict[str, Any]) -> str:
    """What the table says of a family, in words."""
    share = {(cell.level, cell.mode): 100 * cell.right / cell.n for cell in cells if cell.family == name}
    top, last = config["common_levels"].get(name, FAMILIES[name].levels), FAMILIES[name].levels
    lowest = min(share[level, "think"] for level in range(1, top + 1))
    gap = share[top, "think"] - share[top, "direct"]
    verdict = "separates" if gap >= 40 else "does not separate: a control"
    found = f"- {name}: thinking at least {lowest:.1f}% up to level {top}, there {gap:.1f} points above direct; it {verdict}."
    if last > top:
        found += f" Thinking at level {last}: {share[last, 'think']:.1f}%."
    direct = [cell for cell in cells if cell.family == name and cell.mode == "direct"]
    guessed = [cell.level for cell in direct if cell.interval()[0] <= cell.guess]
    if len(guessed) == len(direct):
        found += " Direct answers are guesses, at every level: none is reliably better than the most frequent answer."
    elif guessed:
        found += f" Direct answers are guesses at levels {', '.join(map(str, guessed))}."
    return found


if __name__ == "__main__":
    write_card(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
