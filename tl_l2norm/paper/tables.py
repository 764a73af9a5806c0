"""Schemas of an analysis' tables: what its stages must make, and what claims, figures and pages may read."""

from __future__ import annotations

from collections.abc import Mapping

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
