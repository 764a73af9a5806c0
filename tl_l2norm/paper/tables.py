"""Schemas of an analysis' tables: what its stages must make, and what claims, figures and pages may read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from tl_l2norm.analysis.accuracy import ACCURACIES
from tl_l2norm.analysis.attribution import ATTRIBUTIONS
from tl_l2norm.analysis.bound import BOUND_BY_LAYER, BOUND_CONTROLS, BOUND_POINTS
from tl_l2norm.analysis.causal import ARM_ACCURACIES, ARM_DIFFERENCES
from tl_l2norm.analysis.correctness import CORRECTNESS
from tl_l2norm.analysis.correlation import CORRELATIONS
from tl_l2norm.analysis.curves import CURVES, DIFFERENCES
from tl_l2norm.analysis.deconfounding import MODE_EFFECTS
from tl_l2norm.analysis.high_norm import HIGH_NORM_KINDS, TOP_EFFECTS
from tl_l2norm.analysis.importance import IMPORTANCES
from tl_l2norm.analysis.late import LATE_DIFFERENCES
from tl_l2norm.analysis.latents import TOP_TOKENS
from tl_l2norm.analysis.link import LINKS
from tl_l2norm.analysis.pressure_correlation import PRESSURE_CORRELATIONS
from tl_l2norm.analysis.pull import PULL_LINKS
from tl_l2norm.analysis.reasoning import TESTED
from tl_l2norm.analysis.rise import DYNAMICS
from tl_l2norm.analysis.sample_norms import SAMPLES
from tl_l2norm.analysis.separation import SEPARATIONS
from tl_l2norm.analysis.shape import SHAPES
from tl_l2norm.analysis.theory import ASSUMPTIONS
from tl_l2norm.analysis.thought_texts import LEVELS_AT_LENGTH, THOUGHT_TEXTS
from tl_l2norm.analysis.trend import TRENDS
from tl_l2norm.core.errors import InputError, InputTypeError
from tl_l2norm.core.measured import EXPLAINED, OUTCOMES, PRESSURES
from tl_l2norm.core.schema import LAYER, MODEL, SEED, Column, N, Schema

_SOURCE = Column("source", str, "of the features or of the modes: as asked, or which control")
_TOKENS = Column("tokens", str, '"read" or "chosen": which tokens stand for a response')
_VERDICT = Column("verdict", str, "in words, of all ways of matching")

MATCHED_FEATURES = Schema(
    "features by way of matching",
    "analyse(...).tables",
    (
        Column("match", str, "how the modes are matched"),
        _TOKENS,
        LAYER,
        Column("tested", int, "latents that are active often enough"),
        Column("found", int, "reasoning features"),
        Column("replicated", int, "of them on the other half of the prompts"),
        Column("split_found", float, "found between two random parts of thinking responses; NaN where there is no such"),
        Column("split_replicated", float, "of those on the other half of the prompts"),
        Column("median_effect", float, "of them on the other half; NaN where there are none"),
        N,
        SEED,
        MODEL,
    ),
)

SCHEMAS: Mapping[str, Schema] = {
    "accuracy": ACCURACIES,
    "accuracy_by_cell": ACCURACIES,
    "differences": DIFFERENCES.plus(_SOURCE),
    "late": LATE_DIFFERENCES,
    "dynamics": DYNAMICS,
    "dynamics_by_family": DYNAMICS,
    "dynamics_by_level": DYNAMICS,
    "trend": TRENDS,
    "families": SEPARATIONS,
    "high_norm_tokens": HIGH_NORM_KINDS,
    "mode_effects": MODE_EFFECTS,
    "top_effects": TOP_EFFECTS,
    "shapes": SHAPES,
    "attribution": ATTRIBUTIONS.plus(_TOKENS, _VERDICT),
    "latents": TESTED,
    "features": MATCHED_FEATURES,
    "top_tokens": TOP_TOKENS,
    "explained_random": EXPLAINED,
    "curves": CURVES.plus(_SOURCE),
    "feature_dynamics": DYNAMICS.plus(_SOURCE),
    "feature_shapes": SHAPES,
    "feature_attribution": ATTRIBUTIONS.plus(_TOKENS, _VERDICT),
    "correlations": CORRELATIONS.plus(_SOURCE),
    "links": LINKS.plus(_SOURCE),
    "bound_points": BOUND_POINTS,
    "bound": BOUND_BY_LAYER,
    "bound_given_tokens": BOUND_BY_LAYER,
    "bound_control": BOUND_CONTROLS,
    "explained": EXPLAINED,
    "assumptions": ASSUMPTIONS,
    "pressure_tokens": PRESSURES,
    "pressure": PRESSURE_CORRELATIONS,
    "pull_links": PULL_LINKS,
    "causal_outcomes": OUTCOMES,
    "causal": ARM_ACCURACIES,
    "samples": SAMPLES,
    "correctness": CORRECTNESS,
    "importance": IMPORTANCES,
    "thought_texts": THOUGHT_TEXTS,
    "levels_at_length": LEVELS_AT_LENGTH,
    "causal_differences": ARM_DIFFERENCES,
}
"""By the table's name; beside these columns each table has seed and model."""

_KEYS: Mapping[str, tuple[str, ...]] = {
    "accuracy": ("mode",),
    "differences": ("source", "layer"),
    "dynamics": ("quantity",),
    "dynamics_by_family": ("family",),
    "dynamics_by_level": ("level",),
    "trend": ("layer", "part", "given"),
    "families": ("predictor",),
    "high_norm_tokens": ("kind",),
    "mode_effects": ("layer",),
    "top_effects": ("layer",),
    "shapes": ("curve", "rival"),
    "attribution": ("tokens", "match"),
    "curves": ("source", "quantity", "mode", "layer"),
    "feature_dynamics": ("source",),
    "feature_shapes": ("curve", "rival"),
    "feature_attribution": ("tokens", "match"),
    "correlations": ("source", "scope", "layer", "quantity"),
    "links": ("source", "layer", "quantity"),
    "bound_points": ("prompt", "layer"),
    "bound": ("layer",),
    "bound_given_tokens": ("layer",),
    "bound_control": ("layer",),
    "explained": ("layer",),
    "assumptions": ("assumption", "layer"),
    "pressure_tokens": ("sequence", "position"),
    "pressure": ("mode", "quantity", "against", "scope"),
    "pull_links": ("mode", "reading"),
    "causal": ("arm", "quantile"),
    "causal_differences": ("arm", "against", "quantile"),
    "correctness": ("responses", "layer"),
    "importance": ("layer", "quantity", "given"),
    "thought_texts": ("text", "scope", "layer"),
}
"""What tells the entries of a table apart."""

_TESTED: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "trend": ("rho", ("p",)),
    "families": ("accuracy", ("p",)),
    "mode_effects": ("effect", ("p",)),
    "top_effects": ("effect", ("p",)),
    "shapes": ("error", ("p_prompts", "p_layers")),
    "feature_shapes": ("error", ("p_prompts", "p_layers")),
    "pull_links": ("rho", ("p", "p_shifts")),
    "causal_differences": ("difference", ("p", "p_margin")),
    "correctness": ("beta", ("p",)),
    "importance": ("rho", ("p", "p_shifted")),
}
"""Estimates that are never without their p-values."""


def frames_of(tables: Any) -> Mapping[str, pd.DataFrame]:
    """Tables by name, if that is what they are."""
    if not isinstance(tables, Mapping):
        raise InputTypeError(f"tables are DataFrames by name, as analyse(...).tables, got {tables!r:.80}")
    for name, table in tables.items():
        if not isinstance(table, pd.DataFrame):
            raise InputTypeError(f"the table of {name} is a DataFrame, as in analyse(...).tables, got {table!r:.80}")
    return tables


def checked(name: str, table: Any) -> pd.DataFrame:
    """A table as claims and figures read it: of one analysis, each entry once, in numpy's dtypes, with p-values from 0 to 1.

    Raises:
        InputError: anything else, by the table's name.
    """
    table = SCHEMAS[name].check(table).reset_index(drop=True)
    for column in ("model", "seed") if "source" not in table else ("seed",):  # a control may be another model
        if column in table and table[column].nunique() > 1:
            raise InputError(f"the table of {name} is of {table[column].nunique()} {column}s: give those of one analysis")
    keys = [key for key in _KEYS.get(name, ()) if key in table]
    if keys and (twice := table.duplicated(keys)).any():
        which = ", ".join(f"{key} {value}" for key, value in table.loc[twice, keys].iloc[0].items())
        raise InputError(f"the table of {name} holds entries twice ({which}): give those of one analysis")
    _require_p_values(name, table)
    return table


def _require_p_values(name: str, table: pd.DataFrame) -> None:
    """Refuse p-values that no test gives, and estimates without the p that they were made with."""
    columns = [column.name for column in SCHEMAS[name].columns if column.name.split("_")[0] == "p" or column.name == "least_p"]
    for column in columns:
        p = table[column].astype(float)
        if len(odd := p[p.notna() & ~p.between(0, 1 + 1e-6)]):
            raise InputError(f"the table of {name}: {column} is {odd.iloc[0]:g}, a probability is from 0 to 1")
    estimate, needed = _TESTED.get(name, ("", ()))
    for column in needed:
        tested = table[table["against"] == "none"] if column == "p_margin" else table
        if (lacking := tested[column].isna() & tested[estimate].notna()).any():
            value = float(tested.loc[lacking, estimate].iloc[0])
            maker = SCHEMAS[name].maker
            raise InputError(
                f"the table of {name}: {column} is missing beside {estimate} {value:.3g}; give what {maker} returns"
            )
