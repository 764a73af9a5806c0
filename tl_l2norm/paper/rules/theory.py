"""Rules of the theorem and its assumptions."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from tl_l2norm.paper.finding import Finding, Known, Missing, span


def theorem(known: Known) -> Finding:
    """Of the bound and its premise."""
    table = known["bound"]
    premise = table["premise"]
    usable = table[table["n_premise"] > 0]
    r2 = usable["r2"].dropna()
    constants = f", c1 {usable['c1'].min():.3g}, c2 {usable['c2'].max():.3g}" if len(usable) else ""
    fit = f", R2 {r2.min():.2f} to {r2.max():.2f}" if len(r2) else ""
    always = int((table["premise_low"] > 0.9).sum())
    return Finding(
        measured=f"premise (thinking norm larger) holds in {premise.mean():.0%} of prompts and layers, for nearly all prompts "
        f"at {always} of {len(table)} layers{constants}{fit}",
        interval=f"premise by layer {premise.min():.0%} to {premise.max():.0%}",
        control="50% where modes don't differ",
        n=int(table["n"].max()),
        meets=bool(always == len(table) and (usable["c1"] > 0).all()),
        why="needs the premise in over 90% of prompts at every layer, and a c1 over 0",
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
            at_least = entries["bound"].iloc[0] > 0.5
            worst = entries.loc[entries["value"].idxmin() if at_least else entries["value"].idxmax()]
            word = "least" if at_least else "greatest"
            label = f"{name.removeprefix(names[0][:2]).strip()} " if len(names) > 1 else ""
            parts.append(f"{label}{worst['value']:.3g} ({word}, layer {worst['layer']})")
            spans.append(span(worst["low"], worst["high"]) if worst["n"] else "exact, from weights")
        holds = own.groupby("layer")["holds"].apply(lambda h: (h == "holds").all())
        controls = own.dropna(subset=["control"])
        control = f"{controls['control_name'].iloc[0]} {controls['control'].mean():.3g}" if len(controls) else "none"
        return Finding(
            measured=", ".join(parts) + f"; holds at {int(holds.sum())} of {len(holds)} layers",
            interval=", ".join(spans),
            control=control,
            n=int(own["n"].max()),
            described=True,
            why=f"needs at every layer: {'; '.join(own['statement'].unique())}{_met_anyway(controls)}",
        )

    return rule


def _met_anyway(entries: pd.DataFrame) -> str:
    """A bound that the control keeps as well says little."""
    if entries.empty or (entries["control"] >= entries["bound"]).any():
        return ""
    return "; but the control keeps this bound as well, so that it holds says little"
