"""The rule of each claim: what was measured, its control, and the verdict.

"supported" needs the whole 95% interval on the claim's side and, where there is a control, beyond the control's. Everything
else that could be measured is "not supported"; what could not says why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from tl_l2norm.analysis.rise import SHARP
from tl_l2norm.paper.tables import SCHEMAS

Tables = Mapping[str, pd.DataFrame]

SUPPORTED, NOT_SUPPORTED, UNTESTED = "supported", "not supported", "can't be tested here"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What became of one claim."""

    measured: str = ""
    interval: str = ""
    control: str = ""
    n: int = 0
    verdict: str = UNTESTED
    why: str = ""


class Missing(Exception):
    """A table that a claim rests on is not there."""


class Known:
    """Tables, with the reason where one is not there."""

    def __init__(self, tables: Tables, notes: Mapping[str, str]) -> None:
        self._tables, self._notes = tables, notes

    def __getitem__(self, name: str) -> pd.DataFrame:
        if name in self._tables and self._tables[name].empty:
            raise Missing("no reasoning features were found")
        if name not in self._tables:
            # a table that is made of another misses for the other's reason
            reason = next((self._notes[k] for k in (name, _MADE_OF.get(name, "")) if k in self._notes), "it was not measured")
            raise Missing(reason)
        return SCHEMAS[name].check(self._tables[name])


_MADE_OF = {
    "curves": "features",
    "feature_dynamics": "features",
    "bound": "bound_points",
    "assumptions": "explained",
    "pressure": "pressure_tokens",
    "causal": "causal_outcomes",
    "causal_differences": "causal_outcomes",
}


def _verdict(supported: bool | np.bool_) -> str:
    return SUPPORTED if supported else NOT_SUPPORTED


def _span(low: float, high: float, form: str = ".3g") -> str:
    return "none" if np.isnan(low) else f"[{low:{form}}, {high:{form}}]"


def _figure(entry: pd.Series, name: str, form: str) -> str:
    """A value with its interval."""
    low, high = (entry[f"{name}_{side}" if f"{name}_{side}" in entry else side] for side in ("low", "high"))
    return f"{entry[name]:{form}} {_span(low, high, form)}"


def features_spike(known: Known) -> Finding:
    """Of the features' sharpness."""
    table = known["feature_dynamics"].set_index("source")
    own, others = table.iloc[0], table.iloc[1:]
    if np.isnan(own["sharpness"]):
        raise Missing("no reasoning features were found, or their activation doesn't rise over the layers")
    controls = {source: entry for source, entry in others.iterrows() if not np.isnan(entry["sharpness"])}
    beyond = all(own["sharpness_low"] > entry["sharpness_high"] for entry in controls.values())
    return Finding(
        measured=f"{own['sharpness']:.0%} of the rise in the last quarter of the layers",
        interval=_span(own["sharpness_low"], own["sharpness_high"], ".0%"),
        control=", ".join(f"{source} {_figure(entry, 'sharpness', '.0%')}" for source, entry in controls.items()),
        n=int(own["n"]),
        verdict=_verdict(own["sharpness_low"] > SHARP and beyond),
        why=f"a sharp spike has over {SHARP:.0%} of the rise there and more than every control; an even rise has 25%",
    )


def norm_stages(known: Known) -> Finding:
    """Of the norm by stages and modes."""
    table, shape = known["differences"], known["dynamics"].iloc[0]
    own, shuffled = (table[table["source"] == source] for source in ("as asked", "shuffled modes"))
    above, below = int((own["low"] > 0).sum()), int((own["high"] < 0).sum())
    sharp = shape["sharpness_low"] > SHARP
    return Finding(
        measured=f"above at {above} of {len(own)} layers, below at {below}; {shape['sharpness']:.0%} of the rise in the last "
        "quarter",
        interval=f"spike {shape['spike']:.4g} {_span(shape['spike_low'], shape['spike_high'], '.4g')}",
        control=f"shuffled modes: above at {int((shuffled['low'] > 0).sum())}, below at {int((shuffled['high'] < 0).sum())}",
        n=int(own["n"].max()),
        verdict=_verdict(above == len(own) and sharp),
        why=f"needs every layer's interval over 0 and a sharp late spike; found: {shape['description']}",
    )


def correlation(known: Known) -> Finding:
    """Of rho between the norm and the features."""
    table = known["correlations"]
    late = table[(table["scope"] == "tokens") & (table["layer"] == "late")].dropna(subset=["rho"])
    by_source = {source: entries.set_index("quantity") for source, entries in late.groupby("source", sort=False)}
    own = by_source.pop(table["source"].iloc[0], None)
    if own is None or "l2_norm" not in own.index:
        raise Missing("no reasoning features were found in the late layers, or no response has 8 tokens")
    norm, entropies = own.loc["l2_norm"], own.drop("l2_norm")
    best = entropies.loc[entropies["rho"].idxmax()] if len(entropies) else None
    controls = {source: entries.loc["l2_norm"] for source, entries in by_source.items() if "l2_norm" in entries.index}
    beyond = all(norm["low"] > entry["high"] for entry in controls.values())
    ahead = best is None or norm["low"] > best["high"]
    rival = "" if best is None else f"; best entropy ({best.name}) {_figure(best, 'rho', '.2f')}"
    return Finding(
        measured=f"rho {norm['rho']:.2f} over tokens in the late layers{rival}",
        interval=_span(norm["low"], norm["high"], ".2f"),
        control=", ".join(f"{source} {_figure(entry, 'rho', '.2f')}" for source, entry in controls.items()),
        n=int(norm["n"]),
        verdict=_verdict(norm["low"] > 0 and ahead and beyond),
        why="needs the norm's rho over that of every entropy and over the norm's own rho with every control's features",
    )


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
        verdict=_verdict(always == len(table) and bool((usable["c1"] > 0).all())),
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
            spans.append(_span(worst["low"], worst["high"]) if worst["n"] else "exact, from weights")
        holds = own.groupby("layer")["holds"].apply(lambda h: (h == "holds").all())
        controls = own.dropna(subset=["control"])
        control = f"{controls['control_name'].iloc[0]} {controls['control'].mean():.3g}" if len(controls) else "none"
        return Finding(
            measured=", ".join(parts) + f"; holds at {int(holds.sum())} of {len(holds)} layers",
            interval=", ".join(spans),
            control=control,
            n=int(own["n"].max()),
            verdict=_verdict(bool(holds.all())),
            why=f"needs at every layer: {'; '.join(own['statement'].unique())}{_met_anyway(controls)}",
        )

    return rule


def _met_anyway(entries: pd.DataFrame) -> str:
    """A bound that the control keeps as well says little."""
    if entries.empty or (entries["control"] >= entries["bound"]).any():
        return ""
    return "; but the control keeps this bound as well, so that it holds says little"


def pressure(known: Known) -> Finding:
    """Of the gradient with the probability of the true token, and with the norm."""
    table = known["pressure"]
    scope = "tokens" if ((table["mode"] == "think") & (table["scope"] == "tokens")).any() else "prompts"
    own = table[(table["mode"] == "think") & (table["scope"] == scope)].set_index(["quantity", "against"])
    by_p, by_norm = own.loc[("pressure", "p_true")], own.loc[("pressure", "l2_norm")]
    partial = table[(table["mode"] == "think") & (table["scope"] == "partial") & (table["against"] == "l2_norm")]
    direct = table[(table["mode"] == "direct") & (table["scope"] == "prompts") & (table["against"] == "l2_norm")]
    control = [f"given position {_figure(entry, 'rho', '.2f')}" for _, entry in partial.iterrows()]
    control += [f"over direct answers {_figure(entry, 'rho', '.2f')}" for _, entry in direct.iterrows()]
    return Finding(
        measured=f"rho of pull and probability {by_p['rho']:.2f}, of pull and norm {by_norm['rho']:.2f} (over {scope})",
        interval=f"{_span(by_p['low'], by_p['high'], '.2f')}, {_span(by_norm['low'], by_norm['high'], '.2f')}",
        control=", ".join(control),
        n=int(by_norm["n"]),
        verdict=_verdict(by_p["high"] < 0 and by_norm["low"] > 0),
        why="needs the first under 0 (nearly so by construction) and the second over 0",
    )


def thinking_tokens(known: Known) -> Finding:
    """Of which tokens have the highest norms."""
    table = known["high_norm_tokens"].set_index("kind")
    own = table.loc["thinking"]
    others = table.drop("thinking")
    first = others.loc[others["excess"].idxmax()]
    return Finding(
        measured=f"{own['among_top']:.0%} of the top tenth are thinking tokens, of all tokens {own['overall']:.0%}",
        interval=f"excess {_span(own['low'], own['high'], '.2f')}",
        control=f"most over-represented otherwise: {first.name} ({first['among_top']:.0%} of the top, "
        f"{first['overall']:.0%} of all)",
        n=int(own["n"]),
        verdict=_verdict(own["low"] > 0),
        why="needs thinking tokens over-represented among those of the highest norm in the late layers",
    )


def training(known: Known) -> Finding:
    """What one model shows of it."""
    shape = known["dynamics"].iloc[0]
    return Finding(
        measured=str(shape["description"]),
        interval=_span(shape["sharpness_low"], shape["sharpness_high"], ".0%"),
        n=int(shape["n"]),
        why="takes models that differ in training alone; this is one model",
    )


def causal(known: Known) -> Finding:
    """Of accuracy under suppression, against as many random tokens."""
    table = known["causal_differences"]
    whole = table[table["quantile"].isna()].set_index(["arm", "against"])
    own = whole.loc[("high", "random")]
    others = {f"{a} minus {b}": whole.loc[(a, b)] for a, b in whole.index if (a, b) != ("high", "random")}
    return Finding(
        measured=f"accuracy with high-norm tokens suppressed, minus as many random ones: {100 * own['difference']:+.1f} points "
        f"{_counts(own)}",
        interval=_span(100 * own["low"], 100 * own["high"]),
        control=", ".join(
            f"{name} {100 * entry['difference']:+.1f} {_span(100 * entry['low'], 100 * entry['high'])} {_counts(entry)}"
            for name, entry in others.items()
        ),
        n=int(own["n"]),
        verdict=_verdict(own["high"] < 0),
        why="needs high-norm suppression to cost more than as much of random tokens, over all thresholds; the other arms "
        "change other numbers of positions",
    )


def _counts(entry: pd.Series) -> str:
    """How many positions either arm changed: a difference between unlike numbers says little."""
    return f"({entry['positions']:.1f} against {entry['against_positions']:.1f} positions)"


def domain(known: Known) -> Finding:
    """Of families told apart by norms, beyond length."""
    table = known["families"].set_index("predictor")
    profile, length, spike = (table.loc[name] for name in ("profile", "length", "spike"))
    return Finding(
        measured=f"family guessed right from the norms of all layers {profile['accuracy']:.0%}, from the spike "
        f"{_figure(spike, 'accuracy', '.0%')}",
        interval=_span(profile["low"], profile["high"], ".0%"),
        control=f"from the response's length {_figure(length, 'accuracy', '.0%')}, chance {profile['chance']:.0%}",
        n=int(profile["n"]),
        verdict=_verdict(profile["low"] > max(profile["chance"], length["high"])),
        why="needs more than chance, and more than the response's length alone gives",
    )


def difficulty(known: Known) -> Finding:
    """Of amplification by level, beyond length."""
    table = known["trend"].set_index("given")
    own, given = table.loc["nothing"], table.loc["length"]
    alone = "not defined: level and length go together" if np.isnan(given["rho"]) else _figure(given, "rho", ".2f")
    return Finding(
        measured=f"rho of amplification and level {own['rho']:.2f} (p = {own['p']:.2g})",
        interval=_span(own["low"], own["high"], ".2f"),
        control=f"given the response's length {alone}",
        n=int(own["n"]),
        verdict=_verdict(own["low"] > 0 and own["p"] < 0.05 and (np.isnan(given["rho"]) or given["low"] > 0)),
        why="needs rho over 0, within families, also given the length where the two can be told apart",
    )


def methods(known: Known) -> Finding:
    """Not of this study."""
    return Finding(why="takes a run with each method: generate(..., interventions=[ALRR(...)]), ERSS and select")
