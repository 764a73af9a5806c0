"""What became of one claim, before it is judged beside the others, and the tables that its rule may read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from tl_l2norm.analysis.rise import SHARP
from tl_l2norm.paper.tables import checked, frames_of

Tables = Mapping[str, pd.DataFrame]

ALPHA = 0.05
TRAINED = "trained SAE"
"""Source of a table's entries that are the model's own; the others are controls."""
SUPPORTED, NOT_SUPPORTED = "supported", "not supported"
UNINFORMATIVE, UNTESTED, DESCRIBED = "uninformative", "can't be tested here", "described"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a rule says of its claim."""

    measured: str = ""
    interval: str = ""
    control: str = ""
    n: int = 0
    p: float = float("nan")
    """Two-sided; of a claim of several parts the greatest of theirs, so that each part is needed. NaN: no verdict."""
    needs: Mapping[str, bool] = field(default_factory=dict)
    """What the claim needs of the figures beside p, and whether it is so: whether they lie on its side, within its bounds."""
    control_meets: bool = False
    """Whether what has nothing to do with the claim lies there as well."""
    described: bool = False
    """An assumption: figures and bounds, no verdict."""
    why: str = ""
    """The rule, or why it can't be tested."""

    @property
    def meets(self) -> bool:
        """Whether the figures are all that the claim needs."""
        return bool(self.needs) and all(self.needs.values())

    def verdict(self, p_adjusted: float) -> str:
        """In a word, with the p-value that counts, adjusted for the other claims."""
        if self.described:
            return DESCRIBED
        if np.isnan(p_adjusted):
            return UNTESTED
        if self.meets and self.control_meets:
            return UNINFORMATIVE
        return SUPPORTED if self.meets and p_adjusted <= ALPHA else NOT_SUPPORTED

    def unmet(self, p_adjusted: float) -> str:
        """What of the rule is not met, of a claim that could be tested and is not supported."""
        verdict = self.verdict(p_adjusted)
        if verdict == UNINFORMATIVE:
            return "a control meets the rule as well"
        if verdict != NOT_SUPPORTED:
            return ""
        failed = [need for need, is_so in self.needs.items() if not is_so]
        if p_adjusted > ALPHA:
            failed.append(f"p of at most {ALPHA:g}")
        return "; ".join(failed) + (f" ({_TWO_SIDED})" if p_adjusted <= ALPHA else "")

    def reason(self, p_adjusted: float) -> str:
        """The rule, or why it can't be tested."""
        if self.verdict(p_adjusted) == UNTESTED and self.needs:
            return f"there is no p-value, which takes more prompts or more varied ones; {self.why}"
        return self.why


_TWO_SIDED = "p is two-sided: it is small for an effect against the claim too"


class Missing(Exception):
    """A table that a claim rests on is not there."""


class Known:
    """Tables, with the reason where one is not there."""

    def __init__(self, tables: Tables, notes: Mapping[str, str]) -> None:
        self._tables, self._notes = frames_of(tables), notes
        self._checked: dict[str, pd.DataFrame] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._tables and not self._tables[name].empty

    def reason(self, name: str) -> str:
        """Why a table is not there."""
        try:
            self[name]
        except Missing as reason:
            return str(reason)
        return ""

    def __getitem__(self, name: str) -> pd.DataFrame:
        if name in self._tables and self._tables[name].empty:
            raise Missing("no reasoning features were found" if name in _OF_FEATURES else f"the table of {name} is empty")
        if name not in self._tables:
            # a table that is made of another misses for the other's reason
            reason = next((self._notes[k] for k in (name, _MADE_OF.get(name, "")) if k in self._notes), "it was not measured")
            raise Missing(reason)
        if name not in self._checked:
            self._checked[name] = checked(name, self._tables[name])
        return self._checked[name]

    def of_trained(self, name: str) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The entries of the trained SAEs, and those of the controls."""
        table = self[name]
        own = table["source"] == TRAINED
        if not own.any():
            raise Missing(f"the table of {name} has nothing of the trained SAEs")
        return table[own], table[~own]


_OF_FEATURES = {"features", "curves", "feature_dynamics", "feature_shapes", "correlations", "links"}
_OF_FEATURES |= {"bound_points", "bound", "bound_given_tokens", "bound_control", "assumptions"}

_MADE_OF = {
    "curves": "features",
    "feature_dynamics": "features",
    "feature_shapes": "features",
    "links": "features",
    "correctness": "samples",
    "bound": "bound_points",
    "bound_given_tokens": "bound_points",
    "bound_control": "bound_points",
    "assumptions": "explained",
    "pressure": "pressure_tokens",
    "pull_links": "pressure_tokens",
    "causal": "causal_outcomes",
    "causal_differences": "causal_outcomes",
}


def span(low: float, high: float, form: str = ".3g") -> str:
    """An interval in brackets, or "none"."""
    return "none" if np.isnan(low) else f"[{low:{form}}, {high:{form}}]"


def figure(entry: pd.Series, name: str, form: str) -> str:
    """A value with its interval."""
    low, high = (entry[f"{name}_{side}" if f"{name}_{side}" in entry else side] for side in ("low", "high"))
    return f"{entry[name]:{form}} {span(low, high, form)}"


def late_needs(shape: pd.Series, shapes: pd.DataFrame) -> dict[str, bool]:
    """Most of the rise late, also without the last block, and every knot before its step: the unembedding alone reads that."""
    inner = shape["sharpness_but_last_low"] > SHARP or np.isnan(shape["sharpness_but_last"])
    knots = shapes["knot"].notna() & (shapes["knot"] < shapes["n_layers"] - 2)
    return {
        f"surely over {SHARP:.0%} of the rise late": bool(shape["sharpness_low"] > SHARP),
        f"surely over {SHARP:.0%} of it late without the last block": bool(inner),
        "a bend upwards before the last block": bool(knots.all()),
    }


def two_stages_p(shapes: pd.DataFrame) -> float:
    """That two straight pieces err less than every smooth curve, by prompts and by layers, for every curve."""
    return float(shapes[["p_prompts", "p_layers"]].max().max())
