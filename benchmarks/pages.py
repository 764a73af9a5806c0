"""Write the figures of docs/ from what was measured; the words around them are written by hand.

python -m benchmarks.pages                      the tiny reasoner's accuracy and norms, from its files, and the map of the rooms
python -m benchmarks.pages --analysis FOLDER    and the paper's claims on it, from a folder of `tl-l2norm analyse --out FOLDER`
python -m benchmarks.pages --report FILE        and SmolLM2's norms, from what `tl-l2norm report --model smollm2 > FILE` printed
python -m benchmarks.run PART ... --write       a table of each part that was run
"""

from __future__ import annotations

import argparse
import ast
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

ROOT = Path(__file__).parents[1]
CLAIMS, BENCHMARKS, ARCHITECTURE = (ROOT / "docs" / name for name in ("claims.md", "benchmarks.md", "architecture.md"))
REASONER = ROOT / "assets" / "tiny_reasoner"
ROOMS = ["core", "text", "tasks", "models", "interventions", "saes", "recording", "analysis", "experiments", "show", "paper"]
"""From the lowest to the highest."""

_USUAL_N = 500  # problems of a cell, unless there are fewer
_SEPARATES = 0.4  # of accuracy, between the modes


def replace_region(page: str, name: str, body: str) -> str:
    """The page with what stands between `<!-- begin name -->` and `<!-- end name -->` replaced."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    if page.count(begin) != 1 or page.count(end) != 1:
        raise ValueError(f"the page needs one region {name!r}: {begin} ... {end}")
    return re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: f"{begin}\n{body.strip()}\n{end}", page, flags=re.DOTALL)


def write_regions(path: Path, regions: Mapping[str, str]) -> None:
    """Replace regions of a page by name."""
    page = path.read_text()
    for name, body in regions.items():
        page = replace_region(page, name, body)
    path.write_text(page)


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of the same keys as a table."""
    head = list(rows[0])
    lines = [head, ["---"] * len(head), *([str(row[name]).replace("|", "\\|") for name in head] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def reasoner_regions() -> dict[str, str]:
    """Of docs/claims.md: what was measured when the tiny reasoner was trained."""
    results = json.loads((REASONER / "results.json").read_text())
    verdicts = json.loads((REASONER / "norms.json").read_text())["verdicts"]
    return {
        "accuracy": markdown_table([_family(results, name) for name in results["config"]["families"]]),
        "held-out levels": markdown_table(_held_out_levels(results)),
        "norms": "\n".join(f"- {verdict}" for verdict in verdicts),
    }


def _family(results: Mapping[str, Any], name: str) -> dict[str, Any]:
    cells = {(row["level"], row["mode"]): row for row in results["cells"] if row["family"] == name}
    hardest = results["config"]["think_levels"].get(name, max(level for level, _ in cells))
    trained = [cells[level, "think"] for level in range(1, hardest + 1)]
    lowest = min(trained, key=lambda cell: (cell["right"] / cell["n"], cell["interval"][0]))
    think, direct, easiest = cells[hardest, "think"], cells[hardest, "direct"], cells[1, "direct"]
    control = "" if (think["right"] - direct["right"]) / think["n"] >= _SEPARATES else " (control)"
    return {
        "family": f"{name}{control}",
        "thinking, at its lowest trained level": f"{_percent(lowest)} ({_level(lowest)})",
        "hardest trained level: thinking": f"{_percent(think)} ({_level(think)})",
        "direct": _percent(direct),
        "most frequent answer": f"{100 * direct['guess']:.1f}",
        "n": direct["n"],
        "level 1: direct": _percent(easiest),
    }


def _held_out_levels(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Levels at which a family was trained with direct answers alone."""
    last = results["config"]["think_levels"]
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


def claims_regions(folder: Path) -> dict[str, str]:
    """Of docs/claims.md: the claims and what stands behind them, from the tables of an analysis."""
    tables = {file.stem: pd.read_csv(file) for file in sorted((folder / "tables").glob("*.csv"))}
    if not tables:
        raise FileNotFoundError(f"no tables/*.csv in {folder}: is it a folder of `tl-l2norm analyse --out`?")
    notes = folder / "tables" / "notes.json"
    return {
        "claims": _claims(tables, json.loads(notes.read_text()) if notes.is_file() else {}),
        "own questions": own_questions(tables),
        "links": markdown_table(link_rows(tables["links"])) if "links" in tables else "No reasoning features were found.",
        "correlations": markdown_table(correlation_rows(tables["correlations"])),
        "assumptions": markdown_table(assumption_rows(tables["assumptions"])),
        "bound": markdown_table(bound_rows(tables["bound"])),
        "features": markdown_table(feature_rows(tables["features"])),
        "high-norm tokens": markdown_table(high_norm_rows(tables["high_norm_tokens"])),
        "causal": markdown_table(causal_rows(tables["causal"])),
    }


def _claims(tables: Mapping[str, pd.DataFrame], notes: Mapping[str, str]) -> str:
    from tl_l2norm.paper.claims import claims_table
    from tl_l2norm.paper.report import headline, p_text

    claims = claims_table(tables, notes)
    rows = [
        {
            "#": row["number"],
            "claim": row["claim"],
            "paper": row["paper"],
            "measured": row["measured"],
            "interval": row["interval"],
            "control": row["control"],
            "n": row["n"] or "",
            "p (Holm)": p_text(row["p"], row["p_adjusted"]),
            "verdict": row["verdict"] + (f": {row['why']}" if row["verdict"] == "can't be tested here" else ""),
        }
        for row in claims.to_dict("records")
    ]
    return f"{headline(claims)}\n\n{markdown_table(rows)}"


def own_questions(tables: Mapping[str, pd.DataFrame]) -> str:
    """What is asked of thinking itself: right and wrong samples, single tokens, other text in a thought's place."""
    parts = []
    if "correctness" in tables:
        own = tables["correctness"].query("responses == 'all'")
        parts.append(markdown_table([_correctness(row) for row in own.to_dict("records")]))
    if "importance" in tables:
        own = tables["importance"].query("given == 'the rest'")
        parts.append(
            markdown_table(
                [
                    {
                        "importance of a token and": row["quantity"],
                        "rho, given the rest": _with_interval(row, "rho", ".3f"),
                        "p": f"{row['p']:.2g}",
                        "over all": f"{row['p_max']:.2g}",
                        "n": row["n"],
                    }
                    for row in own.to_dict("records")
                ]
            )
        )
    if "thought_texts" in tables:
        texts = tables["thought_texts"]
        own = texts[texts["layer"].isin(["late", "late but the last", "says answer"])]
        parts.append(
            markdown_table(
                [
                    {
                        "in place of the thought": row["text"],
                        "of": f"{row['scope']}, {row['layer']}",
                        "own": f"{row['own']:.4g}",
                        "own minus that": _with_interval(row, "difference", ".4g"),
                        "p": f"{row['p']:.2g}",
                        "n": row["n"],
                    }
                    for row in own.to_dict("records")
                ]
            )
        )
    return "\n\n".join(parts)


_GAIN = ("gain", "gain_low", "gain_high")


def _correctness(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "norm of": row["layer"],
        "log-odds per standard deviation": _with_interval(row, "beta", ".2f"),
        "p": f"{row['p']:.2g}",
        "over layers": _number(row["p_max"], ".2g"),
        "pairs ranked right without the norm": f"{row['auc_without']:.1%}",
        "gain with it, points": _with_interval({name: 100 * row[name] for name in _GAIN}, "gain", ".1f"),
        "n": row["n"],
    }


def link_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Of the late layers: the quantity and the share of activation that is reasoning, beside random sets of latents."""
    return [
        {
            "features of": row["source"],
            "quantity": row["quantity"],
            "rho": _with_interval(row, "rho", ".2f"),
            "random sets of latents": f"{row['subsets_mean']:.2f} [{row['subsets_low']:.2f}, {row['subsets_high']:.2f}]",
            "p": f"{row['p_subsets']:.2g}",
            "n": row["n"],
        }
        for row in table[table["layer"] == "late"].to_dict("records")
    ]


def correlation_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rho of each quantity with the features of each source, over tokens in the late layers."""
    late = table[(table["scope"] == "tokens") & (table["layer"] == "late")]
    return [
        {"features of": source, "quantity": quantity, "rho": _with_interval(row, "rho", ".2f"), "n": row["n"]}
        for (source, quantity), found in late.groupby(["source", "quantity"], sort=False)
        for row in found.to_dict("records")
    ]


def assumption_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Each assumption over the layers, beside its control."""
    return [
        {
            "": name,
            "needs": rows["statement"].iloc[0],
            "over layers": f"{rows['value'].min():.4g} to {rows['value'].max():.4g}",
            "widest interval": f"{(rows['high'] - rows['low']).max():.2g}",
            "control, over layers": _control(rows),
            "holds at": f"{(rows['holds'] == 'holds').sum()} of {len(rows)} layers",
            "n": rows["n"].max() or "",
        }
        for name, rows in table.groupby("assumption")
    ]


def _control(rows: pd.DataFrame) -> str:
    values = rows["control"].dropna()
    return f"{rows['control_name'].iloc[0]}: {values.min():.3g} to {values.max():.3g}" if len(values) else ""


def bound_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The theorem layer by layer."""
    return [
        {
            "layer": row["layer"],
            "premise holds": _with_interval(row, "premise", ".1%"),
            "c1": _number(row["c1"], ".2f"),
            "c2": _number(row["c2"], ".2f"),
            "slope in logs": _with_interval(row, "slope", ".2f"),
            "R2": _with_interval(row, "r2", ".2f"),
            "n": row["n"],
        }
        for row in table.to_dict("records")
    ]


def feature_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Latents tested, found and found again, summed over layers, by how the modes were matched; and those between two parts of
    the same thinking responses, which the number of tokens alone makes.
    """
    names = ["tested", "found", "replicated", "split_found", "split_replicated"]
    sums = table[table["tokens"] == "read"].groupby("match", sort=False)[names].sum(min_count=1)
    shown = {name: name.replace("split_", "between parts of thinking: ") for name in names}
    return [
        {"modes matched by": match, **{shown[k]: _number(v, ",.0f") for k, v in row.items()}} for match, row in sums.iterrows()
    ]


def high_norm_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Who is among the top tenth of the norms."""
    points = table.assign(**{name: 100 * table[name] for name in ("excess", "low", "high")}).to_dict("records")
    return [
        {
            "tokens": row["kind"],
            "of the top tenth": f"{row['among_top']:.0%}",
            "of all": f"{row['overall']:.0%}",
            "excess, points": _with_interval(row, "excess", ".1f"),
            "n": row["n"],
        }
        for row in points
    ]


def causal_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Accuracy by what was changed."""
    return [
        {
            "changed": row["what"],
            "quantile": _number(row["quantile"], "g"),
            "positions a response": f"{row['positions']:.1f}",
            "accuracy": _with_interval(row, "accuracy", ".1%"),
            "n": row["n"],
        }
        for row in table.to_dict("records")
    ]


def _with_interval(row: Mapping[str, Any], name: str, form: str) -> str:
    """`value [low, high]`, in columns called after the value or plainly; nothing where it is not defined."""
    low, high = (row.get(f"{name}_{end}", row.get(end)) for end in ("low", "high"))
    if pd.isna(row[name]):
        return "-"
    value, low, high = (f"{number:{form}}" for number in (row[name], low, high))
    return f"{value} [{low.rstrip('%')}, {high.rstrip('%')}]"


def _number(value: float, form: str) -> str:
    return "-" if pd.isna(value) else f"{value:{form}}"


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
    options = parser.parse_args()
    analysis = claims_regions(options.analysis) if options.analysis else {}
    report = {"smollm2": report_region(options.report.read_text())} if options.report else {}
    write_regions(CLAIMS, reasoner_regions() | analysis | report)
    write_regions(ARCHITECTURE, rooms_region())


if __name__ == "__main__":
    main()
