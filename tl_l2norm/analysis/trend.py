"""Whether thinking amplifies a quantity more at higher levels of difficulty."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_array

from tl_l2norm.analysis.covariates import Projection, indicators, log_powers, ranks_within
from tl_l2norm.analysis.pairing import Pair, Tokens, label, mode_means, pair_modes
from tl_l2norm.analysis.quantities import Latents, values
from tl_l2norm.analysis.rise import amplification
from tl_l2norm.core.errors import Unmeasurable
from tl_l2norm.core.layers import BUT_LAST, LATE, late_groups
from tl_l2norm.core.resampling import RESAMPLES, Array, interval, permuted_within, prompt_weights
from tl_l2norm.core.schema import MODEL, QUANTITY, SEED, Column, N, Schema, ends
from tl_l2norm.core.sign_flips import as_extreme
from tl_l2norm.core.trace import Trace, TracesLike, traces_of

MIN_TOLERANCE = 0.1
"""Share of the variance of the level that lengths leave. Below it the two can't be told apart."""

TRENDS = Schema(
    "trends",
    "level_trend",
    (
        Column("layer", object, f'"{LATE}", "{BUT_LAST}" or a number'),
        Column("part", str, '"ratio" (thinking over direct), "thinking" (its numerator) or "direct" (its denominator)'),
        Column("given", str, 'what is held fixed: "nothing" or "length"'),
        Column("rho", float, "rank correlation with the level within families; NaN where length and level go together"),
        *ends("rho"),
        Column("p", float, "two-sided, of permuted levels"),
        Column("p_max", float, "over all layers and both means together"),
        Column("tolerance", float, "share of the level's variance within families that is left at given lengths"),
        N,
        Column("levels", int, "how many"),
        QUANTITY,
        SEED,
        MODEL,
    ),
)


def level_trend(
    think: TracesLike,
    direct: TracesLike,
    *,
    quantity: str = "l2_norm",
    features: Latents | None = None,
    tokens: Tokens = "read",
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> pd.DataFrame:
    """Does amplification (late layers, thinking over direct) grow with the level? Over prompts, within families.

    Spearman's rho of ranks that are centred within each family, so that families of different level or size of norm don't make
    a trend, for the ratio, its numerator and its denominator: a ratio also grows where direct answers alone get quieter. Its
    test permutes the levels within families.

    Given the length: what powers 1 to 3 of both responses' log length, their ranks and the family explain is taken out of the
    ranks of levels and amounts; what is left of the levels is permuted within families, and t, not rho, is compared, so that
    neither a length that acts non-linearly nor scatter that grows with it breaks the test. Where lengths leave less than a
    tenth of the level's variance, rho and p given it are NaN: there is no telling them apart.

    Returns:
        For "late", "late but the last" (without the model's last block) and each layer two entries for each part ("ratio",
        "thinking", "direct"): layer, part, given ("nothing", "length"), rho, low, high, p (two-sided), p_max (over all layers
        and both means together), tolerance (share of the level's variance that is left), n (prompts), levels (how many),
        quantity, seed, model.

    Raises:
        ValueError: as `dynamics`; or one level only.

    Examples:
        >>> trend = level_trend(think, direct, resamples=200).set_index(["layer", "part", "given"])
        >>> trend.loc[("late", "thinking", "nothing"), ["rho", "n"]].round(1).tolist()  # harder, quieter
        [-0.9, 12.0]
    """
    think, direct = traces_of(think), traces_of(direct)
    pairs = pair_modes(think, direct)
    means = np.stack(mode_means(pairs, lambda trace: values(trace, quantity, features), tokens=tokens), axis=1)
    firsts = [members[0][0] for members in pairs.values()]
    levels = np.array([float(label(trace, "level")) for trace in firsts])  # type: ignore[arg-type]
    if len(set(levels.tolist())) < 2:
        raise Unmeasurable("all prompts are of one level: a trend needs at least two")
    families = np.unique([str(trace.labels.get("family", "")) for trace in firsts], return_inverse=True)[1]
    parts, layers = _parts(means, think[0]), [*_groups(think[0])]
    held = np.isfinite(parts["ratio"][:, 0])
    own, lengths = families[held], _lengths(list(pairs.values()))[held]
    level = ranks_within(levels[held], own)
    sides = {"nothing": Projection.on(indicators(own)), "length": Projection.on(indicators(own), *_of_length(lengths, own))}
    frames = [
        _trend(level, ranks_within(amounts[held], own), own, projection, seed, resamples).assign(
            layer=layers, part=part, given=given
        )
        for part, amounts in parts.items()
        for given, projection in sides.items()
    ]
    table = pd.concat(frames).sort_values("layer", key=lambda x: x.map(layers.index), kind="stable")
    count, model = len(set(levels.tolist())), think[0].provenance.model
    return TRENDS.frame(table, levels=count, quantity=quantity, seed=seed, model=model)


def _groups(trace: Trace) -> dict[object, list[int]]:
    """Rows by name: the means over late layers, then each layer."""
    return dict(late_groups(trace.layers, trace.provenance.n_layers)) | {layer: [i] for i, layer in enumerate(trace.layers)}


def _parts(means: Array, trace: Trace) -> dict[str, Array]:
    """[prompt, group] of means [prompt, mode, layer]."""
    groups = [means[..., rows] for rows in _groups(trace).values()]
    ratio, thinking, direct = (
        [amplification(own) for own in groups],
        [own[:, 0].mean(-1) for own in groups],
        [own[:, 1].mean(-1) for own in groups],
    )
    return {name: np.stack(x, axis=1) for name, x in (("ratio", ratio), ("thinking", thinking), ("direct", direct))}


def _lengths(members: Sequence[Sequence[Pair]]) -> Array:
    """[prompt, mode] mean length of the responses."""
    return np.array([[np.mean([len(p[m]) - p[m].prompt_len for p in pairs]) for m in (0, 1)] for pairs in members])


def _of_length(lengths: Array, families: NDArray[np.intp]) -> list[csr_array]:
    """Covariates of [prompt, mode]: powers of log lengths, and ranks: a monotone effect on ranks is nearly linear in them."""
    powers = [log_powers(length) for length in lengths.T]
    return [*powers, csr_array(ranks_within(lengths, families))]


def _trend(
    level: Array, amounts: Array, families: NDArray[np.intp], projection: Projection, seed: int, resamples: int
) -> pd.DataFrame:
    """Of what the projection leaves of level and amounts [prompt, group]; NaN where a group is not there for every prompt."""
    x, y, n = projection.rest(level), projection.rest(np.nan_to_num(amounts)), len(level)
    tolerance = float((x @ x) / (level @ level)) if level.any() else 0.0
    known = np.logical_and(~np.isnan(amounts).any(0), y.any(0)) & (tolerance >= MIN_TOLERANCE)
    figures = np.full((len(known), 5), np.nan)
    if known.any():
        y = y[:, known]
        rho = _correlate(x[:, None], y, np.ones((1, n)))[0]
        draws = _correlate(x[:, None], y, prompt_weights(n, seed=seed, resamples=resamples))
        around = [interval(value, own, n) for value, own in zip(rho.tolist(), draws.T, strict=True)]
        orders = np.vstack([x, projection.rest(permuted_within(x, families, seed=seed, resamples=resamples).T).T])
        t = np.abs(_t(orders, y))
        p = as_extreme(t, t[0]), as_extreme(t.max(1, keepdims=True), t[0])
        figures[known] = np.stack([rho, [e.low for e in around], [e.high for e in around], *p], axis=1)
    return pd.DataFrame(figures, columns=["rho", "low", "high", "p", "p_max"]).assign(tolerance=tolerance, n=n)


def _correlate(x: Array, y: Array, weights: Array) -> Array:
    """[resample, group] correlation about 0, each prompt with its weight."""
    cross, first, second = weights @ (x * y), weights @ x**2, weights @ y**2
    with np.errstate(divide="ignore", invalid="ignore"):
        rho: Array = np.where(first * second > 1e-18, cross / np.sqrt(first * second), np.nan)
    return rho


def _t(orders: Array, y: Array) -> Array:
    """[draw, group] of the slope of y [prompt, group] on each order [draw, prompt], whatever the scatter."""
    with np.errstate(divide="ignore", invalid="ignore"):
        t: Array = np.nan_to_num((orders @ y) / np.sqrt(orders**2 @ y**2))
    return t
