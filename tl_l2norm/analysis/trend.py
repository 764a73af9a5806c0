"""Whether thinking amplifies a quantity more at higher levels of difficulty."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_array

from tl_l2norm.analysis.covariates import Projection, indicators, log_powers, ranks_within
from tl_l2norm.analysis.labels import label
from tl_l2norm.analysis.pairing import Pair, Tokens, mode_means, pair_modes, require_prompts
from tl_l2norm.analysis.quantities import Latents, values
from tl_l2norm.analysis.rise import amplification
from tl_l2norm.analysis.token_rest import ResponseTokens
from tl_l2norm.core.arguments import as_number
from tl_l2norm.core.errors import InputError, Unmeasurable
from tl_l2norm.core.layers import BUT_LAST, LATE, late_groups, layer_ranges
from tl_l2norm.core.resampling import RESAMPLES, Array, interval, permuted_within, prompt_weights
from tl_l2norm.core.schema import MODEL, QUANTITY, SEED, Column, N, Schema, ends
from tl_l2norm.core.sign_flips import as_extreme
from tl_l2norm.core.trace import Trace, TracesLike, traces_of

MIN_TOLERANCE = 0.1
"""Share of the variance of the level that is left by what is held fixed. Below it the two can't be told apart."""

LENGTH, TOKENS = "length", "length and tokens"
GIVEN = ("nothing", LENGTH, TOKENS)
PARTS = ("ratio", "thinking", "direct", "difference")

TRENDS = Schema(
    "trends",
    "level_trend",
    (
        Column("layer", object, f'"{LATE}", "{BUT_LAST}" or a number'),
        Column("part", str, '"ratio" (thinking over direct), "thinking" and "direct" (its parts) or "difference" (of these)'),
        Column("given", str, 'what is held fixed: "nothing", "length" or "length and tokens"'),
        Column("rho", float, "rank correlation with the level within families; NaN where that and the level go together"),
        *ends("rho"),
        Column("p", float, "two-sided, of permuted levels"),
        Column("p_max", float, "over all layers and both means together"),
        Column("tolerance", float, "share of the level's variance within families that is left by what is held fixed"),
        Column("tolerance_prompt", float, "the same by the length of the prompt alone"),
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
    a trend, for the ratio, its numerator and its denominator, and their difference: a ratio also grows where direct answers
    alone get quieter, or where both modes get louder by the same and direct answers were the louder ones; a difference, where
    both are multiplied by the same. Only thinking, ratio and difference together say that thinking gets louder by more. What
    draws both modes towards one ceiling makes all three grow. The test permutes the levels within families.

    Given the length: what powers 1 to 3 of the log lengths of both responses and of the prompt, their ranks and the family
    explain is taken out of the ranks of levels and amounts; what is left of the levels is permuted within families, and t, not
    rho, is compared, so that neither a length that acts non-linearly nor scatter that grows with it breaks the test.

    Given length and tokens: the same, of norms from which is taken, mode by mode and token by token, what token id, smooth
    index, smooth position in the sequence and both log lengths explain (harder problems may use louder types). Where what is
    held fixed leaves less than a tenth of the level's variance, rho and p are NaN: there is no telling them apart.

    Returns:
        For "late", "late but the last" (without the model's last block) and each layer three entries for each part ("ratio",
        "thinking", "direct", "difference"): layer, part, given ("nothing", "length", "length and tokens"), rho, low, high, p
        (two-sided), p_max (over all layers and both means together), tolerance (share of the level's variance that is left),
        tolerance_prompt (by the length of the prompt alone), n (prompts), levels (how many), quantity, seed, model.

    Raises:
        ValueError: as `dynamics`; or levels that are no numbers.
        Unmeasurable: fewer than 8 prompts with values in both modes, one level only, or no family with several.

    Examples:
        >>> trend = level_trend(think, direct, resamples=200).set_index(["layer", "part", "given"])
        >>> trend.loc[("late", "thinking", "nothing"), ["rho", "n"]].round(1).tolist()  # harder, quieter
        [-1.0, 12.0]
    """
    think, direct = traces_of(think), traces_of(direct)
    pairs = pair_modes(think, direct)
    means = np.stack(mode_means(pairs, lambda trace: values(trace, quantity, features), tokens=tokens), axis=1)
    held = np.isfinite(_parts(means, think[0])["ratio"][:, 0])
    _require_values(held, means, think[0], quantity)
    members, means = [own for own, kept in zip(pairs.values(), held, strict=True) if kept], means[held]
    levels = _levels(members)
    families = np.unique([str(own[0][0].labels.get("family", "")) for own in members], return_inverse=True)[1]
    level = ranks_within(levels, families)
    if not level.any():
        raise Unmeasurable("each family has one level, or one problem: nothing can be compared within families")
    fixed = _fixed(means, members, level, families, lambda trace: values(trace, quantity, features).double().numpy(), tokens)
    layers = [*_groups(think[0])]
    frames = [
        _trend(level, families, own, part, seed, resamples).assign(layer=layers, part=part, given=given)
        for part in PARTS
        for given, own in fixed.items()
    ]
    table = pd.concat(frames, ignore_index=True)
    table = table.sort_values("layer", key=lambda x: x.map(layers.index), kind="stable", ignore_index=True)
    prompt = Projection.on(indicators(families), *_of_length(_lengths(members)[:, 2:], families))
    table = table.assign(tolerance_prompt=_left(prompt.rest(level), level), levels=len(set(levels.tolist())))
    return TRENDS.frame(table, quantity=quantity, seed=seed, model=think[0].provenance.model)


def _require_values(held: NDArray[np.bool_], means: Array, trace: Trace, quantity: str) -> None:
    """Refuse where too few prompts have an amplification of the late layers."""
    rows = next(iter(_groups(trace).values()))
    empty = [trace.layers[row] for row in rows if np.isnan(means[:, :, row]).all()]
    if not held.any() and empty and len(empty) < len(means[0, 0]) and not np.isnan(means).all():
        raise Unmeasurable(
            f"{quantity} has no values at layers {layer_ranges(empty)}: a mean over the late layers needs all of them"
        )
    require_prompts(int(held.sum()), what=f"prompts with {quantity} that is not 0 in both modes, attention sinks left out")


def _levels(members: Sequence[Sequence[Pair]]) -> Array:
    """Of each prompt."""
    levels = np.array([as_number("levels", label(own[0][0], "level"), "numbers") for own in members])
    if not np.isfinite(levels).all():
        raise InputError("levels must be numbers, got NaN or infinity")
    if len(set(levels.tolist())) < 2:
        raise Unmeasurable("all prompts are of one level: a trend needs at least two")
    return levels


class _Fixed(NamedTuple):
    """What is compared with the level where something is held fixed."""

    parts: dict[str, Array]
    """[prompt, group]"""
    projection: Projection
    tolerance: float


def _fixed(
    means: Array,
    members: Sequence[Sequence[Pair]],
    level: Array,
    families: NDArray[np.intp],
    read: Callable[[Trace], Array],
    tokens: Tokens,
) -> dict[str, _Fixed]:
    """By what is held fixed; means [prompt, mode, layer]."""
    first = members[0][0][0]
    lengths = Projection.on(indicators(families), *_of_length(_lengths(members), families))
    modes = [
        ResponseTokens.of([list({id(pair[m]): pair[m] for pair in own}.values()) for own in members], read, tokens)
        for m in (0, 1)
    ]
    rest = np.stack([own.level + own.rest() for own in modes], axis=1)
    raw = _parts(means, first)
    return {
        "nothing": _Fixed(raw, Projection.on(indicators(families)), 1.0),
        LENGTH: _Fixed(raw, lengths, _left(lengths.rest(level), level)),
        TOKENS: _Fixed(_parts(rest, first), lengths, _left(lengths.rest(modes[0].of_prompts(level)), level)),
    }


def _left(rest: Array, level: Array) -> float:
    """Share of the level's variance that the rest of it has."""
    return float((rest @ rest) / (level @ level))


def _groups(trace: Trace) -> dict[object, list[int]]:
    """Rows by name: the means over late layers, then each layer."""
    return dict(late_groups(trace.layers, trace.provenance.n_layers)) | {layer: [i] for i, layer in enumerate(trace.layers)}


def _parts(means: Array, trace: Trace) -> dict[str, Array]:
    """[prompt, group] of means [prompt, mode, layer]."""
    groups = [means[..., rows] for rows in _groups(trace).values()]
    thinking, direct = (np.stack([own[:, m].mean(-1) for own in groups], axis=1) for m in (0, 1))
    ratio = np.stack([amplification(own) for own in groups], axis=1)
    return dict(zip(PARTS, (ratio, thinking, direct, thinking - direct), strict=True))


def _lengths(members: Sequence[Sequence[Pair]]) -> Array:
    """[prompt, 3] mean length of the thinking response, the direct one and the prompt of both."""
    responses = [[np.mean([len(p[m]) - p[m].prompt_len for p in pairs]) for m in (0, 1)] for pairs in members]
    prompts = [np.mean([trace.prompt_len for pair in pairs for trace in pair]) for pairs in members]
    return np.column_stack([responses, prompts])


def _of_length(lengths: Array, families: NDArray[np.intp]) -> list[csr_array]:
    """Covariates of [prompt, length]: powers of log lengths, and ranks: a monotone effect on ranks is nearly linear in them."""
    powers = [log_powers(length) for length in lengths.T]
    return [*powers, csr_array(ranks_within(lengths, families))]


def _trend(level: Array, families: NDArray[np.intp], fixed: _Fixed, part: str, seed: int, resamples: int) -> pd.DataFrame:
    """Of what the projection leaves of level and part; NaN where a group of layers is not there for every prompt."""
    projection, tolerance, amounts = fixed.projection, fixed.tolerance, ranks_within(fixed.parts[part], families)
    x, y, n = projection.rest(level), projection.rest(np.nan_to_num(amounts)), len(level)
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
