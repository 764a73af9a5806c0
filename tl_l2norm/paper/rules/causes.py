"""Rules of what is claimed of causes and methods."""

from __future__ import annotations

import pandas as pd

from tl_l2norm.paper.finding import Finding, Known, figure, span


def pressure(known: Known) -> Finding:
    """Of the gradient with the probability of the true token, and with the norm."""
    table = known["pressure"]
    scope = "tokens" if ((table["mode"] == "think") & (table["scope"] == "tokens")).any() else "prompts"
    own = table[(table["mode"] == "think") & (table["scope"] == scope)].set_index(["quantity", "against"])
    by_p, by_norm = own.loc[("pressure", "p_true")], own.loc[("pressure", "l2_norm")]
    partial = table[(table["mode"] == "think") & (table["scope"] == "partial") & (table["against"] == "l2_norm")]
    direct = table[(table["mode"] == "direct") & (table["scope"] == "prompts") & (table["against"] == "l2_norm")]
    control = [f"given position {figure(entry, 'rho', '.2f')}" for _, entry in partial.iterrows()]
    control += [f"over direct answers {figure(entry, 'rho', '.2f')}" for _, entry in direct.iterrows()]
    return Finding(
        measured=f"rho of pull and probability {by_p['rho']:.2f}, of pull and norm {by_norm['rho']:.2f} (over {scope})",
        interval=f"{span(by_p['low'], by_p['high'], '.2f')}, {span(by_norm['low'], by_norm['high'], '.2f')}",
        control=", ".join(control),
        n=int(by_norm["n"]),
        meets=bool(by_p["high"] < 0 and by_norm["low"] > 0),
        why="needs the first under 0 (nearly so by construction) and the second over 0",
    )


def suppression(known: Known) -> Finding:
    """Of accuracy under suppression, against as many random tokens."""
    table = known["causal_differences"]
    whole = table[table["quantile"].isna()].set_index(["arm", "against"])
    own = whole.loc[("high", "random")]
    others = {f"{a} minus {b}": whole.loc[(a, b)] for a, b in whole.index if (a, b) != ("high", "random")}
    return Finding(
        measured=f"accuracy with high-norm tokens suppressed, minus as many random ones: {100 * own['difference']:+.1f} points "
        f"{_counts(own)}",
        interval=span(100 * own["low"], 100 * own["high"]),
        control=", ".join(
            f"{name} {100 * entry['difference']:+.1f} {span(100 * entry['low'], 100 * entry['high'])} {_counts(entry)}"
            for name, entry in others.items()
        ),
        n=int(own["n"]),
        meets=bool(own["high"] < 0),
        why="needs high-norm suppression to cost more than as much of random tokens, over all thresholds; the other arms "
        "change other numbers of positions",
    )


def _counts(entry: pd.Series) -> str:
    """How many positions either arm changed: a difference between unlike numbers says little."""
    return f"({entry['positions']:.1f} against {entry['against_positions']:.1f} positions)"


def methods(known: Known) -> Finding:
    """Not of this study."""
    return Finding(why="takes a run with each method: generate(..., interventions=[ALRR(...)]), ERSS and select")
