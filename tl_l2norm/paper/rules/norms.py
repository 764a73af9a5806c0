"""Rules of what is claimed of norms alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from tl_l2norm.analysis.rise import SHARP
from tl_l2norm.analysis.separation import BUT_LAST_SPIKE, CONTROLS
from tl_l2norm.analysis.trend import GIVEN, LENGTH, MIN_TOLERANCE, PARTS, TOKENS
from tl_l2norm.core.layers import BUT_LAST, LATE
from tl_l2norm.paper.finding import ALPHA, Finding, Known, figure, late_needs, span, two_stages_p

_PREDICTORS = {
    "length": "the length of the response",
    "tokens": "the tokens of the response",
    "prompt": "the length of the prompt",
    "all": "these three together",
}


def stages(known: Known) -> Finding:
    """Of the norm by stages and modes: every part is needed, at every layer."""
    raw, shape = known["differences"], known["dynamics"].iloc[0]
    own, shuffled = (raw[raw["source"] == source] for source in ("as asked", "shuffled modes"))
    finding = Finding(
        measured=f"{shape['sharpness']:.0%} of the rise in the last quarter (without the last block "
        f"{figure(shape, 'sharpness_but_last', '.0%')}); on as many tokens of both, thinking above direct "
        f"at {int((own['low'] > 0).sum())} of {len(own)} layers, below at {int((own['high'] < 0).sum())}",
        interval=f"sharpness {span(shape['sharpness_low'], shape['sharpness_high'], '.0%')}",
        control=f"shuffled modes: above at {int((shuffled['low'] > 0).sum())}, below at {int((shuffled['high'] < 0).sum())}",
        n=int(own["n"].max()),
    )
    for name in ("mode_effects", "shapes"):
        if name not in known:
            return replace(finding, why=known.reason(name))
    effects, shapes = known["mode_effects"], known["shapes"]
    above, below = ((sign * effects["effect"] > 0) & (effects["p"] <= ALPHA) for sign in (1, -1))
    return replace(
        finding,
        measured=f"{finding.measured}; given type, position, length and prompt above at {int(above.sum())} of {len(effects)}, "
        f"below at {int(below.sum())}",
        p=float(max(effects["p"].max(), two_stages_p(shapes))),
        needs={
            "thinking above direct at every layer, all else equal": bool((effects["effect"] > 0).all()),
            **late_needs(shape, shapes),
        },
        why="needs thinking above direct at every layer, given types, repeats, position, length and prompt; "
        f"over {SHARP:.0%} of the rise late, also without the last block; and two straight pieces, not a smooth curve, for "
        f"thinking and for the difference ({_closest(shapes)})",
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
    effects = known["top_effects"].set_index("layer")
    effect = effects.loc[LATE]
    inner = f", without the last block {figure(effects.loc[BUT_LAST], 'effect', '.2f')}" if BUT_LAST in effects.index else ""
    return replace(
        finding,
        interval=f"in the top tenth more often than like tokens of direct answers by {figure(effect, 'effect', '.2f')}{inner}",
        p=float(effect["p"]),
        needs={
            "thinking tokens in the top tenth more often than like direct ones": bool(effect["effect"] > 0),
            "more thinking tokens in the top tenth than among all": bool(own["excess"] > 0),
        },
        why="needs thinking tokens in the top tenth of the late layers' norms more often than direct ones of the same type, "
        "behind the same, seen as often, at like places of responses of like length",
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
    """Of families told apart by norms, beyond tokens and lengths."""
    table = known["families"].set_index("predictor")
    if lacking := [name for name in CONTROLS if name not in table.index]:
        return Finding(why=f"the table of families lacks the controls {', '.join(lacking)}: it is of an earlier version")
    profile, rest, controls = table.loc["profile"], table.loc["rest"], table.loc[list(CONTROLS)]
    best = controls.loc[controls["accuracy"].idxmax()]
    inner = f" ({table.loc[BUT_LAST_SPIKE, 'accuracy']:.0%} without the last block)" if BUT_LAST_SPIKE in table.index else ""
    told = ", ".join(f"from {_PREDICTORS[name]} {figure(entry, 'accuracy', '.0%')}" for name, entry in controls.iterrows())
    finding = Finding(
        measured=f"family guessed right from the norms of all layers {profile['accuracy']:.0%}, given type, positions and "
        f"lengths {figure(rest, 'accuracy', '.0%')}, from the spike {figure(table.loc['spike'], 'accuracy', '.0%')}{inner}",
        interval=span(profile["low"], profile["high"], ".0%"),
        control=f"without norms: {told}; chance {profile['chance']:.0%}",
        n=int(profile["n"]),
    )
    if controls["least_p"].max() > ALPHA:
        by = next(name for name, entry in controls.iterrows() if entry["least_p"] > ALPHA)  # one alone rather than all
        teller = {"all": "lengths and tokens together tell", "tokens": f"{_PREDICTORS['tokens']} alone tell"}
        told = teller.get(by, f"{_PREDICTORS[by]} alone tells")
        alike = {"all": "words and lengths", "tokens": "words"}.get(by, "lengths")
        return replace(finding, why=f"{told} nearly every family: no norm could do better; give families that share {alike}")
    return replace(
        finding,
        p=float(max(profile["p"], rest["p"], controls["p"].max())),
        needs={
            "norms right more often than lengths and tokens": bool(profile["accuracy"] > best["accuracy"]),
            "norms right more often than chance, given types, positions and lengths": bool(rest["accuracy"] > rest["chance"]),
        },
        why="needs norms to be right where length and tokens of the response and the length of the prompt, alone and together, "
        "are wrong more often than the reverse; and more than chance from what type, positions and lengths leave of them; "
        "paraphrases of one problem count as one where they have the label original",
    )


def difficulty(known: Known) -> Finding:
    """Of amplification by level, beyond lengths and tokens."""
    every = known["trend"].set_index(["layer", "part", "given"])
    table = every.loc[LATE]
    if ("difference", TOKENS) not in table.index:
        return Finding(why=f"the table of trends has no difference given {TOKENS}: it is of an earlier version")
    own = table.loc[("ratio", "nothing")]
    parts = [f"{part} {table.loc[(part, 'nothing'), 'rho']:.2f}" for part in ("thinking", "direct")]
    last = [every.loc[(BUT_LAST, "ratio", "nothing"), "rho"]] if BUT_LAST in every.index else []
    inner = "".join(f", without the last block {rho:.2f}" for rho in last)
    finding = Finding(
        measured=f"rho of amplification and level {own['rho']:.2f}{inner} (p = {own['p']:.2g}); of its parts: "
        f"{', '.join(parts)}",
        interval=span(own["low"], own["high"], ".2f"),
        n=int(own["n"]),
    )
    needed = [table.loc[(part, given)] for given in GIVEN[1:] for part in ("ratio", "thinking", "difference")]
    for entry in needed:
        if np.isnan(entry["p"]):
            return replace(finding, control=f"given {_HELD[entry.name[1]]}: not defined", why=_inseparable(entry))
    told = [
        f"given {_HELD[given]}: " + ", ".join(f"{part} {figure(table.loc[(part, given)], 'rho', '.2f')}" for part in PARTS)
        for given in GIVEN[1:]
    ]
    return replace(
        finding,
        control="; ".join(told),
        p=float(max(entry["p"] for entry in (own, *needed))),
        needs={f"rho of {e.name[0]} over 0 given {_HELD[e.name[1]]}": bool(e["rho"] > 0) for e in (own, *needed)},
        why="needs rho over 0, within families, also given the lengths of prompt and both responses, and given token types and "
        "positions besides, there of the thinking norms by themselves and of thinking minus direct as well: a ratio also grows "
        "where direct answers get quieter, or where both modes get louder by the same",
    )


_HELD = {GIVEN[0]: "nothing", LENGTH: "the lengths of prompt and responses", TOKENS: "lengths, token types and positions"}


def _inseparable(entry: pd.Series) -> str:
    """Why there is no trend of a part given something."""
    part, given = entry.name
    if entry["tolerance"] >= MIN_TOLERANCE:
        return f"given {_HELD[given]}, nothing is left of the norms of {part}"
    if entry["tolerance_prompt"] < MIN_TOLERANCE:
        return (
            f"level and length of the prompt go together: it leaves {entry['tolerance_prompt']:.0%} of the level's variance; "
            "give levels whose prompts are of like lengths"
        )
    held, alike = _HELD[given].removeprefix("the "), "lengths" if given == LENGTH else "lengths and words"
    return (
        f"level and {held} go together: they leave {entry['tolerance']:.0%} of the level's variance; give levels whose "
        f"{alike} overlap"
    )
