"""The paper claim by claim, model by model: a table of docs/claims.md."""

from __future__ import annotations

from typing import Any

from benchmarks.arm_sets import ALRR, ALRR_AS_PUBLISHED, ERSS, LRS
from benchmarks.kept import MODELS, analysis_of, evaluation_of
from benchmarks.regions import markdown_table
from tl_l2norm.paper.claims import claims_table

SETTLES = {
    0: "a model and a temperature at which length and log-probability leave more of the norm; then 200 problems x 8",
    1: "SAEs at every layer of a model of 28 layers or more",
    2: "direct answers of a sentence or more, to hold token types and places equal",
    3: "nothing yet: any gain moves norm and features alike, so no rule tells them apart",
    4: "a model whose thinking norm is the larger at nearly every layer",
    5: "published SAEs, wider than these",
    6: "published SAEs, trained longer than these",
    7: "the same",
    8: "the same",
    9: "models of several sizes: on small ones its two readings differ",
    10: "direct answers of a sentence or more",
    11: "pairs of models that differ in training alone",
    12: "a model that is mostly right by thinking, and 200 problems",
    13: "families whose responses share tokens and lengths",
    14: "problems whose level doesn't go with their length",
    15: "the methods' own arms, on a model that is right in a fifth to nine tenths",
    16: "a model that is mostly right by thinking, and 200 problems",
    17: "the same",
}
"""What an open claim takes, by number; in words of our own."""

SUPPRESSION_CLAIM, METHODS_CLAIM = 12, 15
SUPPRESSED = ("arms", "doses")
"""Evaluations with arms that suppress tokens of high norm; beside each is "matched ...", in which as many others are."""
METHODS = {
    "LRS": ("selection", LRS),
    "ALRR": ("arms", (ALRR_AS_PUBLISHED, ALRR)),
    "ERSS": ("arms", (ERSS,)),
}
"""The paper's methods: the evaluation that has each, and its arms."""

_OPEN = ("can't be tested here", "not run")


def models_region() -> dict[str, str]:
    """Of docs/claims.md: verdicts beside the paper's figures."""
    tables = {model: claims_table(*own) for model in MODELS if (own := analysis_of(model))[0]}
    first = next(iter(tables.values()))
    rows = [_row(int(claim["number"]), claim, tables) for claim in first.to_dict("records")]
    return {"models": markdown_table(rows)}


def _row(number: int, claim: dict[str, Any], tables: dict[str, Any]) -> dict[str, Any]:
    verdicts = {MODELS[model]: _verdict(table[table["number"] == number]) for model, table in tables.items()}
    if (of_arms := {SUPPRESSION_CLAIM: _suppression, METHODS_CLAIM: _methods}.get(number)) is not None:
        verdicts |= {MODELS[model]: told for model in tables if (told := of_arms(model))}
    still_open = all(verdict.startswith(_OPEN) for verdict in verdicts.values())
    return {
        "#": number,
        "claim": claim["claim"],
        "paper": claim["paper"],
        **verdicts,
        "what would settle it": SETTLES[number] if still_open else "",
    }


def _verdict(own: Any) -> str:
    if own.empty:
        return "not run"
    [entry] = own.to_dict("records")
    if entry["why"] == "it was not measured":
        return "not run"
    n = f" (n = {int(entry['n'])})" if entry["n"] == entry["n"] and entry["n"] else ""
    return f"{entry['verdict']}{n}"


def _methods(model: str) -> str:
    """What an evaluation says of the paper's methods, against the baseline of their own."""
    told = []
    for method, (name, arms) in METHODS.items():
        found = evaluation_of(model, name)
        if found is None:
            continue
        own = found[found["arm"].isin(arms)]
        gains = 100 * own.loc[own["against"] == found["arm"].iloc[0], "difference"]
        verdicts = ", ".join(dict.fromkeys(own["verdict"]))
        span = " to ".join(dict.fromkeys(f"{gain:+.1f}" for gain in (gains.min(), gains.max())))
        told.append(f"{method} {span} points: {verdicts} (n = {own['n'].iloc[0]})")
    return "; ".join(told)


def _suppression(model: str) -> str:
    """What evaluations say of suppressing high norms, against nothing and against as many other tokens."""
    told = []
    for name in SUPPRESSED:
        if (found := evaluation_of(model, name)) is None:
            continue
        tried = list(dict.fromkeys(found["arm"]))
        for arm in (arm for arm in tried if f"matched {arm}" in tried):
            own = found[found["arm"] == arm].set_index("against")
            [nothing, others] = (100 * own.loc[against, "difference"] for against in (found["arm"].iloc[0], f"matched {arm}"))
            n, verdict = own["n"].iloc[0], own["verdict"].iloc[0]
            told.append(f"{arm} {nothing:+.1f} points, against as many others {others:+.1f}: {verdict} (n = {n})")
    return "; ".join(told)
