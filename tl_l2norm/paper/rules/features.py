"""Rules of what is claimed of reasoning features."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tl_l2norm.analysis.rise import NO_SHAPE, SHARP
from tl_l2norm.core.layers import BUT_LAST, LATE
from tl_l2norm.paper.finding import Finding, Known, Missing, figure, late_needs, span, two_stages_p


def spike(known: Known) -> Finding:
    """Of the features' sharpness and shape."""
    trained, others = known.of_trained("feature_dynamics")
    own, others = trained.iloc[0], others.set_index("source")
    if np.isnan(own["sharpness"]):
        if (why := str(own["description"])).startswith(NO_SHAPE):
            raise Missing(why)
        raise Missing("no reasoning features were found, or their activation doesn't rise over the layers")
    controls = {source: entry for source, entry in others.iterrows() if not np.isnan(entry["sharpness"])}
    beyond = all(own["sharpness_low"] > entry["sharpness_high"] for entry in controls.values())
    finding = Finding(
        measured=f"{own['sharpness']:.0%} of the rise in the last quarter of the layers, without the last block "
        f"{figure(own, 'sharpness_but_last', '.0%')}",
        interval=span(own["sharpness_low"], own["sharpness_high"], ".0%"),
        control=", ".join(f"{source} {figure(entry, 'sharpness', '.0%')}" for source, entry in controls.items()),
        n=int(own["n"]),
    )
    if not controls:
        lacking = (
            f"with {', '.join(map(str, others.index))} none were found that rise"
            if len(others)
            else "none was made (controls=...)"
        )
        return replace(finding, why=f"there is no control to hold it against: {lacking}")
    if "feature_shapes" not in known:
        return replace(finding, why=known.reason("feature_shapes"))
    shapes = known["feature_shapes"]
    return replace(
        finding,
        p=two_stages_p(shapes),
        needs=late_needs(own, shapes),
        control_meets=bool(own["sharpness_low"] > SHARP) and not beyond,
        why=f"needs two straight pieces rather than a smooth curve, over {SHARP:.0%} of the rise late, also without the last "
        "block, and more of it than of every control",
    )


def link(known: Known) -> Finding:
    """Of the norm and the share of activation that is reasoning: a description, for no verdict of it holds.

    A gain that has nothing to do with reasoning moves latents that are near their threshold, and so the share; and any latents
    that read a direction in which the stream is loud go with the norm, untrained ones too.
    """
    trained, others = known.of_trained("links")
    own, norms = trained[trained["layer"] == LATE].set_index("quantity"), trained[trained["quantity"] == "l2_norm"]
    if "l2_norm" not in own.index:
        raise Missing("no reasoning features were found in the late layers, or no response has 8 tokens")
    norm, entropies = own.loc["l2_norm"], own.drop("l2_norm")
    rival = ""
    if len(entropies):
        best = entropies.loc[entropies["rho"].abs().idxmax()]
        rival = f"; best entropy ({best.name}) {figure(best, 'rho', '.2f')}"
    inner = "".join(f", without the last block {rho:.2f}" for rho in norms.loc[norms["layer"] == BUT_LAST, "rho"])
    shared = f" ({norm['shared']:.0%} of them chosen ones)" if "shared" in norm else ""
    around = span(norm["subsets_low"], norm["subsets_high"], ".2f")
    sets = f"random sets of such latents{shared} {norm['subsets_mean']:.2f} {around} "
    controls = others[(others["layer"] == LATE) & (others["quantity"] == "l2_norm")]
    return Finding(
        measured=f"rho of norm and share of activation {norm['rho']:.2f} (late layers{inner}; given type and position){rival}",
        interval=span(norm["low"], norm["high"], ".2f"),
        control=", ".join(
            [f"{sets}(p = {norm['p_subsets']:.2g})"]
            + [f"{source} {figure(entry, 'rho', '.2f')}" for source, entry in controls.set_index("source").iterrows()]
        ),
        n=int(norm["n"]),
        described=True,
        why="no verdict: a gain that has nothing to do with reasoning moves the share of latents near their threshold as well, "
        "and latents that read any loud direction go with the norm",
    )
