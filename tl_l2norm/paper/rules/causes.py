"""Rules of what is claimed of causes and methods."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from tl_l2norm.analysis.causal import LEAST_DOSE, MARGIN
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
    """Of accuracy under suppression, against random tokens of the same ids and positions, and against nothing."""
    accuracies, table = known["causal"].set_index("arm"), known["causal_differences"]
    whole = table[table["quantile"].isna()].set_index(["arm", "against"])
    own, high, random = (whole.loc[pair] for pair in (("high", "random"), ("high", "none"), ("random", "none")))
    plain = float(accuracies.loc["none", "accuracy"])
    others = {f"{a} minus {b}": whole.loc[(a, b)] for a, b in whole.index if "none" not in (a, b) and (a, b) != ("high", "random")}
    finding = Finding(
        measured=f"accuracy with high-norm tokens suppressed, minus random ones of the same types and positions: "
        f"{_points(own)} {_counts(own)}, over {own['thresholds']} thresholds; minus nothing suppressed {_points(high)}",
        interval=span(100 * own["low"], 100 * own["high"]),
        control=", ".join([f"random minus nothing {_points(random)}", *(f"{k} {_points(e)} {_counts(e)}" for k, e in others.items())]),
        n=int(own["n"]),
    )
    if plain < 2 * MARGIN:
        return replace(finding, why=f"with nothing suppressed {plain:.0%} are right: there is little to break")
    if not own["dose"] >= LEAST_DOSE:
        return replace(
            finding,
            why=f"unlike doses: random tokens of the same types and positions {own['against_positions']:.1f} positions "
            f"({own['against_events']:.1f} positions and layers), high-norm ones {own['positions']:.1f} ({own['events']:.1f}); "
            f"needs {LEAST_DOSE:.0%}",
        )
    breaks, control_breaks = (bool(-entry["difference"] >= MARGIN) for entry in (high, random))
    return replace(
        finding,
        p=float(max(own["p"], random["p_margin"])),
        meets=breaks and (bool(own["difference"] < 0) or control_breaks),
        control_meets=control_breaks,
        why=f"needs high-norm suppression to lose {100 * MARGIN:.0f} points or more, and more than suppressing as many random "
        f"tokens of the same types and positions, which is to lose surely less than {100 * MARGIN:.0f} "
        f"(one-sided p = {random['p_margin']:.2g})",
    )


def _points(entry: pd.Series) -> str:
    """A difference of accuracy with its interval, in points."""
    return f"{100 * entry['difference']:+.1f} {span(100 * entry['low'], 100 * entry['high'])}"


def _counts(entry: pd.Series) -> str:
    """How many positions either arm changed: a difference between unlike numbers says little."""
    return f"({entry['positions']:.1f} against {entry['against_positions']:.1f} positions)"


def methods(known: Known) -> Finding:
    """Not of this study."""
    return Finding(why="takes a run with each method: generate(..., interventions=[ALRR(...)]), ERSS and select")
