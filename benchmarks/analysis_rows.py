"""Tables of an analysis as docs/claims.md shows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from benchmarks.regions import markdown_table
from tl_l2norm.core.layers import BUT_LAST, LATE
from tl_l2norm.paper.rules.theory import count_states


def claims(tables: Mapping[str, pd.DataFrame], notes: Mapping[str, str]) -> str:
    from tl_l2norm.paper.claims import claims_table
    from tl_l2norm.paper.summary import headline, p_text, verdict_text

    table = claims_table(tables, notes)
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
            "verdict": verdict_text(row),
        }
        for row in table.to_dict("records")
    ]
    return f"{headline(table)}\n\n{markdown_table(rows)}"


def own_questions(tables: Mapping[str, pd.DataFrame], short: bool = False) -> str:
    """What is asked of thinking itself: right and wrong samples, single tokens, other text in a thought's place.

    `short`: without single layers.
    """
    parts = []
    if "correctness" in tables:
        own = tables["correctness"].query("responses == 'all'")
        own = own[own["layer"].isin([LATE, BUT_LAST])] if short else own
        parts.append(markdown_table([_correctness(row) for row in own.to_dict("records")]))
    if "importance" in tables:
        own = tables["importance"].query("given == 'the rest'")
        own = own[~own["quantity"].str.startswith("l2_norm_")] if short else own
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
        own = texts[texts["layer"].isin([LATE, BUT_LAST, "says answer"])]
        parts.append(
            markdown_table(
                [
                    {
                        "in place of the thought": row["text"],
                        "of": f"{row['scope']}, {row['layer']}",
                        "own": f"{row['own']:.4g}",
                        "own minus that": _with_interval(row, "difference", ".4g"),
                        "p": f"{row['p']:.2g}",
                        "p without any one family": "-" if pd.isna(row["p_families"]) else f"{row['p_families']:.2g}",
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


def attribution_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The late difference on tokens that are alike in one respect, or in all."""
    rows = table[table["tokens"] == "read"].to_dict("records")
    return [
        {"compared": row["compared"], "thinking minus direct": _with_interval(row, "difference", ".1f"), "n": row["n"]}
        for row in rows
    ]


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
        for row in table[table["layer"] == LATE].to_dict("records")
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
            "over how many layers": count_states(rows["holds"]),
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
