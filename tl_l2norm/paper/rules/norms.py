"""Rules of what is claimed of norms alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from tl_l2norm.analysis.rise import SHARP
from tl_l2norm.paper.finding import ALPHA, Finding, Known, figure, span, two_stages_p


def stages(known: Known) -> Finding:
    """Of the norm by stages and modes: every part is needed, at every layer."""
    raw, shape = known["differences"], known["dynamics"].iloc[0]
    own, shuffled = (raw[raw["source"] == source] for source in ("as asked", "shuffled modes"))
    finding = Finding(
        measured=f"{shape['sharpness']:.0%} of the rise in the last quarter; on as many tokens of both, thinking above direct "
        f"at {int((own['low'] > 0).sum())} of {len(own)} layers, below at {int((own['high'] < 0).sum())}",
        interval=f"sharpness {span(shape['sharpness_low'], shape['sharpness_high'], '.0%')}",
        control=f"shuffled modes: above at {int((shuffled['low'] > 0).sum())}, below at {int((shuffled['high'] < 0).sum())}",
        n=int(own["n"].max()),
    )
    for name in ("mode_effects", "shapes"):
        if name not in known:
            return replace(finding, why=known.reason(name))
    effects, shapes = known["mode_effects"], known["shapes"]
    above = (effects["effect"] > 0) & (effects["p"] <= ALPHA)
    return replace(
        finding,
        measured=f"{finding.measured}; given type, position, length and prompt above at {int(above.sum())} of {len(effects)}",
        p=float(max(effects["p"].max(), two_stages_p(shapes))),
        meets=bool((effects["effect"] > 0).all() and shape["sharpness_low"] > SHARP and shapes["knot"].notna().all()),
        why="needs thinking above direct at every layer, given type, position, length and prompt; "
        f"over {SHARP:.0%} of the rise late; and two straight pieces, not a smooth curve, for thinking and for the difference "
        f"({_closest(shapes)})",
    )


def _closest(shapes: pd.DataFrame) -> str:
    """The smooth shape that errs least."""
    best = shapes.loc[shapes["error"].idxmin()]
    return f"best smooth: {best['rival']}, error {best['error']:.2g}, broken line {best['broken_error']:.2g} of the variance"


def thinking_tokens(known: Known) -> Finding:
    """Of which tokens have the highest norms."""
    table = known["high_norm_tokens"].set_index("kind")
    own, others = table.loc["thinking"], table.drop("thinking")
    first = others.loc[others["excess"].idxmax()]
    finding = Finding(
        measured=f"{own['among_top']:.0%} of the top tenth are thinking tokens, of all tokens {own['overall']:.0%}",
        control=f"most over-represented otherwise: {first.name} ({first['among_top']:.0%} of the top, "
        f"{first['overall']:.0%} of all)",
        n=int(own["n"]),
    )
    if "top_effects" not in known:
        return replace(finding, why=known.reason("top_effects"))
    effect = known["top_effects"].iloc[0]
    return replace(
        finding,
        interval=f"in the top tenth more often than like tokens of direct answers by {figure(effect, 'effect', '.2f')}",
        p=float(effect["p"]),
        meets=bool(effect["effect"] > 0 and own["excess"] > 0),
        why="needs thinking tokens in the top tenth of the late layers' norms more often than direct ones of the same type, "
        "index and length of response",
    )


def training(known: Known) -> Finding:
    """What one model shows of it."""
    shape = known["dynamics"].iloc[0]
    return Finding(
        measured=str(shape["description"]),
        interval=span(shape["sharpness_low"], shape["sharpness_high"], ".0%"),
        n=int(shape["n"]),
        why="takes models that differ in training alone; this is one model",
    )


def domain(known: Known) -> Finding:
    """Of families told apart by norms, beyond length."""
    table = known["families"].set_index("predictor")
    profile, length, spike = (table.loc[name] for name in ("profile", "length", "spike"))
    return Finding(
        measured=f"family guessed right from the norms of all layers {profile['accuracy']:.0%}, from the spike "
        f"{figure(spike, 'accuracy', '.0%')}",
        interval=span(profile["low"], profile["high"], ".0%"),
        control=f"from the response's length {figure(length, 'accuracy', '.0%')}, chance {profile['chance']:.0%}",
        n=int(profile["n"]),
        meets=bool(profile["low"] > max(profile["chance"], length["high"])),
        why="needs more than chance, and more than the response's length alone gives",
    )


def difficulty(known: Known) -> Finding:
    """Of amplification by level, beyond length."""
    table = known["trend"].set_index("given")
    own, given = table.loc["nothing"], table.loc["length"]
    alone = "not defined: level and length go together" if np.isnan(given["rho"]) else figure(given, "rho", ".2f")
    return Finding(
        measured=f"rho of amplification and level {own['rho']:.2f} (p = {own['p']:.2g})",
        interval=span(own["low"], own["high"], ".2f"),
        control=f"given the response's length {alone}",
        n=int(own["n"]),
        p=own["p"],
        meets=bool(own["low"] > 0 and given["low"] > 0),
        why="needs rho over 0, within families, also given the length where the two can be told apart",
    )
