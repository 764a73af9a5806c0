"""Rules of the theorem and its assumptions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pandas as pd

from tl_l2norm.analysis.bound import PREMISE
from tl_l2norm.analysis.bound_fit import LEAST_R2, MARGIN
from tl_l2norm.analysis.theory import AT_LEAST
from tl_l2norm.paper.finding import ALPHA, Finding, Known, Missing, span


def theorem(known: Known) -> Finding:
    """Of the premise, and of left as a multiple of right, at every layer: as they are, and given token types.

    Right sides that are alike can't show that left is a multiple of them; low R2 and a wide spread deny it there no more than
    they would of a multiple that scatters so. Only a slope outside the margin does, if its interval is no wider than that.
    """
    table = known["bound"]
    premise = table["premise"]
    always = int((table["premise_low"] > PREMISE).sum())
    slopes = f", slope {span(table['slope_low'].min(), table['slope_high'].max(), '.2f')}" if _fit(table) else ""
    finding = Finding(
        measured=f"premise (thinking norm larger) holds in {premise.mean():.0%} of prompts and layers, for nearly all prompts "
        f"at {always} of {len(table)} layers{_fit(table)}",
        interval=f"premise by layer {premise.min():.0%} to {premise.max():.0%}{slopes}",
        n=int(table["n"].max()),
    )
    encoded = set(known["explained"]["layer"]) if "explained" in known else set()
    if lacking := encoded - set(table["layer"]):
        found = f"reasoning features were found at {len(encoded) - len(lacking)} of {len(encoded)} layers with SAEs"
        return replace(finding, why=f"{found}: nothing can be said of every layer; with more problems there may be some")
    for name in ("bound_given_tokens", "bound_control"):
        if name not in known:
            return replace(finding, why=known.reason(name))
    given, sets = known["bound_given_tokens"], known["bound_control"]
    alike = sets[["meets", "meets_level"]].max()
    finding = replace(
        finding,
        measured=f"{finding.measured}; given token types and places{_fit(given).removeprefix(',') or ' no fit'}",
        control=f"random sets of other latents that meet it too, at the layer with most: {alike['meets']:.0%}, of their "
        f"activation in thinking alone {alike['meets_level']:.0%}",
    )
    held, unclear = zip(*(_states(own) for own in (table, given)), strict=True)
    if any(own.any() for own in unclear) and all((h | u).all() for h, u in zip(held, unclear, strict=True)):
        return replace(finding, why=_too_alike(table[unclear[0]], given[unclear[1]]))
    return replace(
        finding,
        p=float(pd.concat([table["p"], given["p"]]).max(skipna=False)),
        needs={
            f"premise, R2 and spread within bounds at every layer (at {held[0].sum()} of {len(table)})": bool(held[0].all()),
            f"the same of what token types and places leave (at {held[1].sum()} of {len(given)})": bool(held[1].all()),
        },
        control_meets=bool(alike.max() > ALPHA),
        why=f"needs at every layer the premise in over {PREMISE:.0%} of prompts, a slope of log left on log right surely in "
        f"{1 - MARGIN:g} to {1 + MARGIN:g}, R2 surely over {LEAST_R2:g} and a c2 / c1 under that of right alone, also of what "
        f"token types and places leave of both sides; and at most {ALPHA:.0%} of random sets of other latents that "
        "meet this too",
    )


def _fit(table: pd.DataFrame) -> str:
    """Slopes, R2 and spread, after a comma; nothing where no layer has them."""
    slope, r2 = table["slope"].dropna(), table["r2"].dropna()
    if not len(slope):
        return ""
    fit = f", slope in logs {slope.min():.2f} to {slope.max():.2f}, R2 {r2.min():.2f} to {r2.max():.2f}"
    return f"{fit}, c2 / c1 up to {table['spread'].max():.3g}"


def _states(table: pd.DataFrame) -> tuple[pd.Series[bool], pd.Series[bool]]:
    """By layer whether premise, R2 and spread are met; and whether the last two aren't while the slope denies nothing."""
    premise = (table["premise_low"] > PREMISE) & (table["c1"] > 0)
    follows = (table["r2_low"] > LEAST_R2) & (table["spread"] < table["spread_right"])
    known = table["slope_high"] - table["slope_low"] <= 2 * MARGIN
    return premise & follows, premise & ~follows & ~(known & ((table["slope"] - 1).abs() > MARGIN))


def _too_alike(raw: pd.DataFrame, given: pd.DataFrame) -> str:
    """Why the bound isn't tested at the first of these layers."""
    of, table = ("", raw) if len(raw) else ("of what token types and places leave, ", given)
    entry = table.iloc[0]
    return (
        f"layer {entry['layer']}: {of}the prompts' right sides are too much alike (95% over 5% quantile "
        f"{entry['spread_right']:.2f}) beside left / right ({entry['spread']:.2f}): even a multiple of right would not be seen "
        "to follow it; it takes prompts whose norms differ more"
    )


def assumption(*names: str) -> Callable[[Known], Finding]:
    """Of the bounds of one assumption, at every layer."""

    def rule(known: Known) -> Finding:
        table = known["assumptions"]
        own = table[table["assumption"].isin(names)]
        if own.empty:
            raise Missing("no reasoning features were found")
        parts, spans = [], []
        for name, entries in own.groupby("assumption", sort=False):
            at_least = name in AT_LEAST
            worst = entries.loc[entries["value"].idxmin() if at_least else entries["value"].idxmax()]
            word = "least" if at_least else "greatest"
            parts.append(f"{_label(name, names)}{worst['value']:.3g} ({word}, layer {worst['layer']})")
            spans.append(span(worst["low"], worst["high"]) if worst["n"] else "exact, from weights")
        holds = own.groupby("layer")["holds"].agg(lambda h: max(h, key=STATES.index))
        controls = own.dropna(subset=["control"])
        control = ", ".join(_controls(controls, names)) or "none"
        return Finding(
            measured=f"{', '.join(parts)}; {count_states(holds)}",
            interval=", ".join(spans),
            control=control,
            n=int(own["n"].max()),
            described=True,
            why=f"holds at a layer where {' and '.join(own['statement'].unique())}{_notes_on(holds, controls)}",
        )

    return rule


def _controls(entries: pd.DataFrame, names: tuple[str, ...]) -> list[str]:
    """The control of each part, mean over layers, with the widest interval."""
    texts = []
    for name, own in entries.groupby("assumption", sort=False):
        around = span(own["control_low"].min(), own["control_high"].max())
        part = f"{_label(name, names)}against " if len(names) > 1 else ""
        texts.append(f"{part}{own['control_name'].iloc[0]} {own['control'].mean():.3g} {around}")
    return texts


def _label(name: str, names: tuple[str, ...]) -> str:
    """What sets a part apart from the others: "co-active " of "A1 co-active"."""
    own = name.removeprefix(names[0][:2]).strip() or "all pairs"
    return f"{own} " if len(names) > 1 else ""


STATES = ("holds", "undecided", "not measured", "does not hold")
"""Of an assumption at a layer; of one of several parts the last of theirs counts."""


def count_states(states: pd.Series[str]) -> str:
    """At how many layers an assumption holds, and what it does at the others.

    >>> count_states(pd.Series(["holds", "undecided", "holds"]))
    'holds at 2 of 3 layers, undecided at 1'
    """
    counts = states.value_counts()
    others = [f"{state} at {counts[state]}" for state in STATES[1:] if state in counts]
    return ", ".join([f"holds at {counts.get('holds', 0)} of {len(states)} layers", *others])


def _notes_on(states: pd.Series[str], controls: pd.DataFrame) -> str:
    """What undecided means; and that a bound that the control keeps as well says little."""
    if (states == "undecided").any():
        return "; undecided where the interval reaches to both sides of the bound"
    if not (states == "holds").all() or controls.empty or (controls["control"] >= controls["bound"]).any():
        return ""
    return "; but the control keeps this bound as well, so that it holds says little"
