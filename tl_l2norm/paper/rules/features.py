"""Rules of what is claimed of reasoning features."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tl_l2norm.analysis.rise import SHARP
from tl_l2norm.core.layers import BUT_LAST, LATE
from tl_l2norm.paper.finding import ALPHA, Finding, Known, Missing, figure, span, two_stages_p


def spike(known: Known) -> Finding:
    """Of the features' sharpness and shape."""
    table = known["feature_dynamics"].set_index("source")
    own, others = table.iloc[0], table.iloc[1:]
    if np.isnan(own["sharpness"]):
        raise Missing("no reasoning features were found, or their activation doesn't rise over the layers")
    controls = {source: entry for source, entry in others.iterrows() if not np.isnan(entry["sharpness"])}
    beyond = all(own["sharpness_low"] > entry["sharpness_high"] for entry in controls.values())
    finding = Finding(
        measured=f"{own['sharpness']:.0%} of the rise in the last quarter of the layers",
        interval=span(own["sharpness_low"], own["sharpness_high"], ".0%"),
        control=", ".join(f"{source} {figure(entry, 'sharpness', '.0%')}" for source, entry in controls.items()),
        n=int(own["n"]),
    )
    if not controls:
        lacking = f"with {', '.join(map(str, others.index))} none were found that rise" if len(others) else "none was made"
        return replace(finding, why=f"there is no control to hold it against: {lacking}")
    if "feature_shapes" not in known:
        return replace(finding, why=known.reason("feature_shapes"))
    sharp = bool(own["sharpness_low"] > SHARP)
    return replace(
        finding,
        p=two_stages_p(known["feature_shapes"]),
        meets=sharp and bool(known["feature_shapes"]["knot"].notna().all()),
        control_meets=sharp and not beyond,
        why=f"needs two straight pieces rather than a smooth curve, over {SHARP:.0%} of the rise late, and more of it than of "
        "every control",
    )


def link(known: Known) -> Finding:
    """Of the norm and the share of activation that is reasoning."""
    table = known["links"]
    late = table[table["layer"] == LATE]
    by_source = {source: entries.set_index("quantity") for source, entries in late.groupby("source", sort=False)}
    own = by_source.pop(table["source"].iloc[0], None)
    if own is None or "l2_norm" not in own.index:
        raise Missing("no reasoning features were found in the late layers, or no response has 8 tokens")
    norm, entropies = own.loc["l2_norm"], own.drop("l2_norm")
    best = entropies.loc[entropies["rho"].abs().idxmax()] if len(entropies) else None
    controls = {source: entries.loc["l2_norm"] for source, entries in by_source.items()}
    ahead = best is None or norm["low"] > max(abs(best["low"]), abs(best["high"]))
    last = table[(table["layer"] == BUT_LAST) & (table["quantity"] == "l2_norm") & (table["source"] == table["source"].iloc[0])]
    inner = f", without the last block {last['rho'].iloc[0]:.2f}" if len(last) else ""
    rival = "" if best is None else f"; best entropy ({best.name}) {figure(best, 'rho', '.2f')}"
    shared = f" ({norm['shared']:.0%} of them chosen ones)" if "shared" in norm else ""
    sets = f"random sets of such latents{shared} {norm['subsets_mean']:.2f}"
    return Finding(
        measured=f"rho of norm and share of activation {norm['rho']:.2f} (late layers{inner}; given type and position){rival}",
        interval=span(norm["low"], norm["high"], ".2f"),
        control=", ".join(
            [f"{sets} {span(norm['subsets_low'], norm['subsets_high'], '.2f')}"]
            + [f"{source} {figure(entry, 'rho', '.2f')}" for source, entry in controls.items()]
        ),
        n=int(norm["n"]),
        p=norm["p_subsets"],
        meets=bool(norm["low"] > 0 and norm["rho"] > norm["subsets_high"] and ahead),
        control_meets=any(e["low"] > 0 and e["p_subsets"] <= ALPHA and e["rho"] > e["subsets_high"] for e in controls.values()),
        why="needs rho over 0, over that of random sets of latents as frequent and as active, and over every entropy's "
        "absolute rho",
    )
