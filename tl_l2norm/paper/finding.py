"""What became of one claim, before it is judged beside the others, and the tables that its rule may read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from tl_l2norm.analysis.rise import SHARP
from tl_l2norm.core.errors import InputError
from tl_l2norm.paper.tables import SCHEMAS

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
    meets: bool = False
    """Whether the figures lie on the claim's side, within its bounds."""
    control_meets: bool = False
    """Whether what has nothing to do with the claim lies there as well."""
    described: bool = False
    """An assumption: figures and bounds, no verdict."""
    why: str = ""

    def verdict(self, p_adjusted: float) -> str:
        """In a word, with the p-value that counts, adjusted for the other claims."""
        if self.described:
            return DESCRIBED
        if np.isnan(p_adjusted):
            return UNTESTED
        if self.meets and self.control_meets:
            return UNINFORMATIVE
        return SUPPORTED if self.meets and p_adjusted <= ALPHA else NOT_SUPPORTED


class Missing(Exception):
    """A table that a claim rests on is not there."""


class Known:
    """Tables, with the reason where one is not there."""

    def __init__(self, tables: Tables, notes: Mapping[str, str]) -> None:
        self._tables, self._notes = tables, notes

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
        table = SCHEMAS[name].check(self._tables[name]).reset_index(drop=True)
        for column in ("model", "seed") if "source" not in table else ("seed",):  # a control may be another model
            if column in table and table[column].nunique() > 1:
                raise InputError(f"the table of {name} is of {table[column].nunique()} {column}s: give those of one analysis")
        if table.duplicated().any():
            raise InputError(f"the table of {name} holds entries twice: give those of one analysis")
        return table

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


def is_late_twice(shape: pd.Series, shapes: pd.DataFrame) -> bool:
    """Most of the rise late, also without the last block, and every knot before its step: the unembedding alone reads that."""
    inner = shape["sharpness_but_last_low"] > SHARP or np.isnan(shape["sharpness_but_last"])
    knots = shapes["knot"].notna() & (shapes["knot"] < shapes["n_layers"] - 2)
    return bool(shape["sharpness_low"] > SHARP and inner and knots.all())


def two_stages_p(shapes: pd.DataFrame) -> float:
    """That two straight pieces err less than every smooth curve, by prompts and by layers, for every curve."""
    return float(shapes[["p_prompts", "p_layers"]].max().max())
