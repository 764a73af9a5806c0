"""Rules of what is claimed of causes and methods."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from tl_l2norm.analysis.causal import ARMS, DOSE, MARGIN
from tl_l2norm.analysis.correctness import MAX_CUT_OFF
from tl_l2norm.paper.finding import ALPHA, Finding, Known, figure, span


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
    greatest = links[["p", "p_shifts"]].max(axis=1)
    best = links.loc[greatest.where(links["rho"] > 0, 2.0).idxmin()]  # the claim is of a rho over 0
    opposed = bool(((links["rho"] < 0) & (greatest <= ALPHA)).any())
    least = float(min(1.0, len(links) * best[["p", "p_shifts"]].max()))
    rhos = (f"{_READINGS[str(entry['reading'])]} {figure(entry, 'rho', '.2f')}" for _, entry in links.iterrows())
    shifted = (f"{span(entry['shifts_low'], entry['shifts_high'], '.2f')}" for _, entry in links.iterrows())
    return replace(
        finding,
        measured=f"rho of pull and norm, given type, position and response: {', '.join(rhos)}; {finding.measured}",
        interval=span(best["low"], best["high"], ".2f"),
        control=f"pull shifted round its response {', '.join(shifted)}",
        n=int(best["n"]),
        p=least,
        needs={
            "rho of pull and norm over 0 in one of the readings": bool(best["rho"] > 0),
            "rho of every reading not surely under 0": not opposed,
            "rho of pull and probability under 0": bool(by_p["rho"] < 0),
        },
        why="needs rho of pull and norm over 0, over prompts and beyond shifted pulls, for one of the two readings (p is times "
        "their number), and none surely under 0; that the pull falls with the probability is needed, but no evidence. "
        "Sections of some 10 tokens that are loud and of high pull for a reason of their own "
        "pass for it (38 of 40 made-up worlds)",
    )


_READINGS = {"predicting": "of the state that predicts", "read back": "of the token itself as it is read back"}


def suppression(known: Known) -> Finding:
    """Of accuracy under suppression of high-norm tokens, against their partners of ordinary norm, and against nothing."""
    accuracies, table = known["causal"].set_index("arm"), known["causal_differences"]
    whole = table[table["quantile"].isna()].set_index(["arm", "against"])
    pairs = (("paired", "random"), ("paired", "none"), ("random", "none"), ("high", "none"))
    own, paired, random, high = (whole.loc[pair] for pair in pairs)
    others = {f"{a} minus {b}": whole.loc[(a, b)] for a, b in whole.index if "none" not in (a, b) and (a, b) != pairs[0]}
    thresholds = _thresholds(own)
    opposite = "; the others do more harm than these" if own["difference"] > 0 and own["p"] <= ALPHA else ""
    finding = Finding(
        measured="accuracy with high-norm tokens suppressed, minus as many others of the same types and places, mean over "
        f"{thresholds}: {_points(own)} {_counts(own)}{opposite}; minus nothing suppressed "
        f"{_points(paired)}, all high-norm tokens {_points(high)} ({high['positions']:.1f} positions)",
        interval=span(100 * own["low"], 100 * own["high"]),
        control=", ".join(
            [
                f"others minus nothing {_points(random)}",
                *(f"{name} {_points(e)} {_counts(e)}{_fewer(e, own)}" for name, e in others.items()),
            ]
        ),
        n=int(own["n"]),
    )
    breaks, random_breaks, all_break = (bool(-entry["difference"] >= MARGIN) for entry in (paired, random, high))
    if why := _cut_off(known["causal"]) or _why_untested(
        own, float(accuracies.loc["none", "accuracy"]), all_break and not breaks and not random_breaks
    ):
        return replace(finding, why=why)
    return replace(
        finding,
        p=float(max(own["p"], random["p_margin"])),
        needs={
            f"a loss of {100 * MARGIN:.0f} points or more where high-norm tokens are suppressed": breaks,
            "a greater loss than where as many others are": bool(own["difference"] < 0) or (breaks and random_breaks),
        },
        control_meets=random_breaks,
        why=f"needs suppression of high-norm tokens to lose {100 * MARGIN:.0f} points or more, and more than that of as many "
        f"others of the same types and places, which is to lose surely less than {100 * MARGIN:.0f} (one-sided p = "
        f"{random['p_margin']:.2g}). The first token of a type in a response is left alone on both sides; that others stand "
        "behind tokens that matter, such as an equals sign, is not seen",
    )


def _cut_off(accuracies: pd.DataFrame) -> str:
    """Where suppression makes responses run into the limit, they are wrong for want of room."""
    shares = accuracies.groupby("arm")["cut_off"].mean()
    plain, most = shares["none"], shares[["paired", "random", "high"]]
    if most.max() <= plain + MAX_CUT_OFF:
        return ""
    return (
        f"{most.max():.0%} of the responses with {ARMS[str(most.idxmax())]} were cut off, which are wrong for want of room, "
        f"and {plain:.0%} of those without: give them more tokens"
    )


def _why_untested(own: pd.Series, plain: float, only_all_break: bool) -> str:
    if plain < 2 * MARGIN:
        return f"with nothing suppressed {plain:.0%} are right: there is little to break; give easier problems"
    if not DOSE[0] <= own["dose"] <= DOSE[1]:
        return (
            f"unlike doses: others of the same types and places {own['against_positions']:.1f} positions "
            f"({own['against_events']:.1f} positions and layers), high-norm ones {own['positions']:.1f} ({own['events']:.1f}); "
            f"needs {DOSE[0]:.0%} to {DOSE[1]:.0%}; more problems or other quantiles may have them"
        )
    if only_all_break:
        return (
            "all high-norm tokens together break the model, those that have partners of the same type don't: norm and type "
            "can't be told apart"
        )
    return ""


def _points(entry: pd.Series) -> str:
    """A difference of accuracy with its interval, in points."""
    return f"{100 * entry['difference']:+.1f} {span(100 * entry['low'], 100 * entry['high'])}"


def _thresholds(entry: pd.Series) -> str:
    return f"{entry['thresholds']} threshold{'s' if entry['thresholds'] != 1 else ''}"


def _fewer(entry: pd.Series, own: pd.Series) -> str:
    """A mean over other thresholds than the claim's own says so."""
    return "" if entry["thresholds"] == own["thresholds"] else f" at {_thresholds(entry)}"


def _counts(entry: pd.Series) -> str:
    """How many positions either arm changed: a difference between unlike numbers says little."""
    return f"({entry['positions']:.1f} against {entry['against_positions']:.1f} positions)"


def methods(known: Known) -> Finding:
    """Not of this study."""
    return Finding(why="takes a run with each method: generate(..., interventions=[ALRR(...)]), ERSS and select")
