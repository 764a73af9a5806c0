"""Rules of what is claimed of causes and methods."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from tl_l2norm.paper.finding import Finding, Known, figure, span


def pressure(known: Known) -> Finding:
    """Of the pull of the loss and the norm; that the pull goes against the probability is no evidence."""
    table = known["pressure"]
    own = table[(table["mode"] == "think") & (table["quantity"] == "pull") & (table["against"] == "p_true")].set_index("scope")
    by_p = own.loc["tokens" if "tokens" in own.index else "prompts"]
    finding = Finding(
        measured=f"rho of pull and probability {by_p['rho']:.2f} (nearly so by construction)",
        interval=span(by_p["low"], by_p["high"], ".2f"),
        n=int(by_p["n"]),
    )
    if "pull_links" not in known:
        return replace(finding, why=known.reason("pull_links"))
    links = known["pull_links"]
    links = links[links["mode"] == "think"]
    if links.empty:
        return replace(finding, why="too few thinking tokens are of types that occur again")
    p = links[["p", "p_shifts"]].max(axis=1)
    best = links.loc[p.idxmin()]
    rhos = (f"{_READINGS[str(entry['reading'])]} {figure(entry, 'rho', '.2f')}" for _, entry in links.iterrows())
    shifted = (f"{span(entry['shifts_low'], entry['shifts_high'], '.2f')}" for _, entry in links.iterrows())
    return replace(
        finding,
        measured=f"rho of pull and norm, given type, position and response: {', '.join(rhos)}; {finding.measured}",
        interval=span(best["low"], best["high"], ".2f"),
        control=f"pull shifted round its response {', '.join(shifted)}",
        n=int(best["n"]),
        p=float(min(1.0, len(links) * p.min())),
        meets=bool(best["rho"] > 0 and by_p["rho"] < 0),
        why="needs rho of pull and norm over 0, over prompts and beyond shifted pulls, for one of the two readings (p is times "
        "their number); that the pull falls with the probability is needed, but no evidence",
    )


_READINGS = {"predicting": "of the state that predicts", "read back": "of the token itself as it is read back"}


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
