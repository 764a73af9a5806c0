"""The paper's theorem: its premise, and both sides of its bound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.stats import binomtest

from tl_l2norm.analysis.accuracy import WILSON, wilson_interval
from tl_l2norm.analysis.activations import activation_means, response_acts
from tl_l2norm.analysis.bound_fit import BoundFit
from tl_l2norm.analysis.pairing import Pair, Tokens, mode_means, pair_modes, require_prompts
from tl_l2norm.analysis.random_sets import random_sets
from tl_l2norm.analysis.reasoning import ReasoningFeatures, check_features
from tl_l2norm.analysis.token_rest import ResponseTokens
from tl_l2norm.core.arguments import as_integer, check_choice
from tl_l2norm.core.errors import InputError
from tl_l2norm.core.resampling import RESAMPLES, Array, interval
from tl_l2norm.core.schema import LAYER, MODEL, SEED, Column, N, Schema, ends
from tl_l2norm.core.trace import Trace, TracesLike, traces_of

PREMISE = 0.9
SETS = 199
Given = Literal["nothing", "tokens"]
"""What is taken out of both sides of the bound."""

BOUND_POINTS = Schema(
    "the bound's points",
    "bound_points",
    (
        Column("prompt", str, "the problem's id"),
        LAYER,
        Column("left", float, "summed activation of reasoning features, thinking minus direct"),
        Column("right", float, "sqrt(||h_think||^2 - ||h_direct||^2); NaN where the premise fails"),
        Column("premise", bool, "whether the thinking norm is the larger one"),
        MODEL,
    ),
)

BOUND_BY_LAYER = Schema(
    "the bound by layer",
    "bound_table",
    (
        LAYER,
        N,
        Column("premise", float, "share of prompts with a larger thinking norm"),
        *ends("premise", prefix=True, kind=WILSON),
        Column("n_premise", int, "prompts for which the premise holds"),
        Column("c1", float, "left / right of them, 5% quantile"),
        Column("c2", float, "left / right of them, 95% quantile"),
        Column("spread", float, "c2 / c1; NaN where c1 is not over 0"),
        Column("spread_right", float, "the same of right alone: what a left that doesn't depend on it would have"),
        Column(
            "slope",
            float,
            "of log left on log right; NaN below 8 such prompts, and where c1 is not over 0 or right is all the same",
        ),
        *ends("slope", prefix=True, kind="95% interval, errors by HC3"),
        Column("r2", float, "share of the variance of log left that log right explains; NaN like slope"),
        *ends("r2", prefix=True),
        Column("p", float, "the greater of two: of a slope outside 0.5 to 1.5, of a premise that holds in 90% or less"),
        SEED,
        MODEL,
    ),
)

BOUND_CONTROLS = Schema(
    "controls of the bound",
    "bound_control",
    (
        LAYER,
        Column("sets", int, "random sets of latents"),
        Column("meets", float, "share of them whose activation, thinking minus direct, meets the bound as well"),
        Column("meets_level", float, "share of them whose activation in thinking, nothing taken off, meets it"),
        Column("slope_level", float, "median slope of log of that on log right"),
        Column("latents", int, "that are chosen"),
        N,
        SEED,
        MODEL,
    ),
)


def bound_points(
    think: TracesLike,
    direct: TracesLike,
    features: ReasoningFeatures,
    *,
    tokens: Tokens = "read",
    given: Given = "nothing",
) -> pd.DataFrame:
    """Both sides of the theorem for each prompt and layer with reasoning features.

    `left` is the sum over reasoning features of mean activation in thinking minus in direct answers; `right` is
    `sqrt(||h_think||^2 - ||h_direct||^2)` of mean squared norms, NaN where the difference is not positive: there the theorem's
    premise fails.

    Given "tokens" both sides are what they would be with all token ids, smooth indices and smooth positions as frequent in each
    prompt's responses, mode by mode (of a linear fit of these and the prompts on activations and on squared norms): where a
    loud type is a larger share of some prompts' thinking, and latents fire on it, left follows right by types alone.

    Returns:
        One entry per prompt and layer: prompt, layer, left, right, premise, model.

    Raises:
        ValueError: prompts that the features were chosen on, modes with different prompts, one prompt under two labels, or
            fewer than 8.
        Unmeasurable: given tokens, fewer than 8 prompts that share token types with others in both modes.
    """
    check_features(features)
    check_choice("given", given, get_args(Given))
    think, direct = traces_of(think), traces_of(direct)
    pairs = pair_modes(think, direct)
    left_think, left_direct = mode_means(pairs, features.total, tokens=tokens)
    left, square = left_think - left_direct, _squares(pairs, tokens)
    rows = [i for i, layer in enumerate(think[0].layers) if features.latents.get(layer)]
    if given == "tokens" and rows:
        left[:, rows], rest = _given_tokens(pairs, features, rows, tokens)
        square[:, rows] = np.where(np.isnan(square[:, rows]), np.nan, rest)
    frames = []
    for i, layer in enumerate(think[0].layers):
        if i in rows:
            premise = square[:, i] > 0
            sides = {"left": left[:, i], "right": np.sqrt(np.where(premise, square[:, i], np.nan)), "premise": premise}
            frames.append(pd.DataFrame({"prompt": list(pairs), "layer": layer, **sides})[~np.isnan(square[:, i])])
    points = pd.concat(frames, ignore_index=True) if frames else ()
    return BOUND_POINTS.frame(points, model=think[0].provenance.model)


def _squares(pairs: Mapping[str, Sequence[Pair]], tokens: Tokens) -> Array:
    """[prompt, layer] mean squared norm, thinking minus direct."""
    first, second = mode_means(pairs, lambda trace: trace.l2_norms**2, tokens=tokens)
    return first - second


def _given_tokens(
    pairs: Mapping[str, Sequence[Pair]], features: ReasoningFeatures, rows: list[int], tokens: Tokens
) -> tuple[Array, Array]:
    """[prompt, layer of these rows] both sides at equal token types and places, the right one squared."""

    def read(trace: Trace) -> Array:
        sides = torch.cat([features.total(trace)[rows].double(), trace.l2_norms[rows].double() ** 2])
        return sides.numpy()

    modes = []
    for m in (0, 1):
        members = [list({id(pair[m]): pair[m] for pair in own}.values()) for own in pairs.values()]
        modes.append(ResponseTokens.of(members, read, tokens).at_equal_types())
    left, square = np.split(modes[0] - modes[1], 2, axis=1)
    require_prompts(int((~np.isnan(square)).all(1).sum()), what="prompts that share token types with others in both modes")
    return left, square


def bound_table(points: pd.DataFrame, *, seed: int = 0, resamples: int = RESAMPLES) -> pd.DataFrame:
    """The theorem layer by layer: how often its premise holds, and whether left is a multiple of right where it does.

    Any left that is positive is bounded from below by some c1 times right, so that a bound says nothing by itself: of left =
    right^b times a constant the theorem needs b = 1. `log left = a + b log right` is fitted over prompts, and b is tested for
    lying within 1 -+ 0.5 (two one-sided tests, errors by HC3: logs of small differences scatter more). The margin is half-way
    to a left that doesn't depend on right (b = 0) and to one that follows its square (b = 2). c1 and c2 are quantiles of left /
    right: their ratio, the spread, is that of right alone where left is anything else than a multiple of it.

    R2 and the spread depend on how unlike the prompts are: where right hardly varies, beside the scatter of left, R2 is low
    and the spread wide also of a multiple of right. They can't deny the bound then, and the claim isn't tested.

    Returns:
        One entry per layer: layer, n (prompts), premise (share with a larger thinking norm), premise_low, premise_high
        (Wilson), n_premise, c1, c2 (5% and 95% quantiles of left / right), spread (c2 / c1), spread_right (the same of right
        alone), slope, slope_low, slope_high, r2 (share of the variance of log left that is explained), r2_low, r2_high (NaN
        below 8 such prompts), p (two-sided: the greater of those of slope and premise; 1 where c1 is not over 0), seed, model.

    Raises:
        InputError: a table of other columns or values, of several models, or one that holds a prompt twice at a layer. One
            prompt under two labels is refused by `bound_points`, which sees its tokens; here it can't be told.

    Examples:
        >>> right = np.linspace(1, 2, 40)
        >>> points = pd.DataFrame({"prompt": range(40), "layer": 3, "left": 2 * right, "right": right, "premise": True})
        >>> bound_table(points.assign(model="by hand"))[["layer", "premise", "c1", "c2", "slope", "r2"]].round(3)
           layer  premise   c1   c2  slope   r2
        0      3      1.0  2.0  2.0    1.0  1.0
    """
    points = _checked(points)
    entries = []
    for layer, group in points.groupby("layer", sort=True):
        holds = group["premise"].to_numpy(dtype=bool)
        low, high = wilson_interval(int(holds.sum()), len(holds))
        left, right = (group[name].to_numpy(dtype=np.float64)[holds] for name in ("left", "right"))
        premise = {"premise": float(holds.mean()), "premise_low": low, "premise_high": high}
        counts = {"layer": layer, "n": len(holds), "n_premise": int(holds.sum())}
        entries.append({**counts, **premise, **_fitted(left, right, _premise_p(holds), seed, resamples)})
    return BOUND_BY_LAYER.frame(entries, seed=seed, model=points["model"].iloc[0] if len(points) else "")


def _checked(points: pd.DataFrame) -> pd.DataFrame:
    """The table; refuses what isn't such a one."""
    points = BOUND_POINTS.check(points)
    if missing := int(points["prompt"].isna().sum()):
        raise InputError(f"prompt is missing in {missing} points: pandas reads NA and null in a CSV file as missing")
    if points.duplicated(["prompt", "layer"]).any():
        raise InputError("the points hold a prompt twice at the same layer: give what bound_points returned, once")
    if len(models := sorted(map(str, set(points["model"])))) > 1:
        raise InputError(f"the points are of the models {', '.join(models)}: give those of one at a time")
    held = points[points["premise"].to_numpy(dtype=bool)].astype({"left": float, "right": float})
    for name, good in (("left", np.isfinite(held["left"])), ("right", np.isfinite(held["right"]) & (held["right"] > 0))):
        if not good.all():
            odd = held[~good].iloc[0]
            raise InputError(
                f"{name} of prompt {odd['prompt']} at layer {odd['layer']} can't be {odd[name]:g} where the premise holds"
            )
    return points


def _premise_p(holds: NDArray[np.bool_]) -> float:
    """That the premise holds in 90% of prompts or less, two-sided."""
    return min(1.0, 2 * float(binomtest(int(holds.sum()), len(holds), PREMISE, alternative="greater").pvalue))


def _fitted(left: Array, right: Array, premise_p: float, seed: int, resamples: int) -> dict[str, float]:
    fit = BoundFit.of(left[:, None], right, seed, resamples)
    c1, c2, slope, half, r2 = (float(x[0]) for x in (fit.c1, fit.c2, fit.slope, fit.half, fit.r2))
    around = interval(r2, fit.r2_draws[:, 0], len(right))
    p = 1.0 if c1 <= 0 else float(fit.p[0])
    return {
        "c1": c1,
        "c2": c2,
        "spread": float(fit.spread[0]),
        "spread_right": fit.spread_right,
        "slope": slope,
        "slope_low": slope - half,
        "slope_high": slope + half,
        "r2": r2,
        "r2_low": around.low,
        "r2_high": around.high,
        "p": premise_p if premise_p > 0.05 else max(p, premise_p),  # NaN: the slope can't be tested
    }


def bound_control(
    think: TracesLike,
    direct: TracesLike,
    features: ReasoningFeatures,
    *,
    tokens: Tokens = "read",
    sets: int = SETS,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> pd.DataFrame:
    """How many random sets of other latents of the same SAE meet the theorem's bound as well.

    Each holds as many latents of every stratum of firing rate and mean activation as were chosen, none of the chosen. It is put
    through what the chosen are put through (`bound_table`), twice: its activation in thinking minus direct, and its activation
    in thinking as it is. A gain that scales a prompt's norms and activations alike makes any latent's activation proportional
    to right, while the difference of latents that have nothing to do with mode is about 0 and has no log.

    Returns:
        One entry per layer with reasoning features: layer, sets, meets (share of the sets, of differences), meets_level (of
        activations in thinking), slope_level (their median slope), latents (how many are chosen), n (prompts with the premise),
        seed, model.

    Raises:
        ValueError: as `bound_points`; or a layer with latents that was not recorded.
        Unmeasurable: too few other latents for random sets of the same kind.
    """
    sets = as_integer("sets", sets, least=1)
    check_features(features)
    think, direct = traces_of(think), traces_of(direct)
    pairs = pair_modes(think, direct)
    for trace in (*think, *direct):
        features.check(trace)
        features.check_layers(trace)
    square = _squares(pairs, tokens)
    entries = []
    for layer, latents in features.latents.items():
        if not latents:
            continue
        drawn = random_sets(response_acts(pairs, layer, tokens), latents, sets, seed, others=True)[:, 1:]
        gap, modes = square[:, think[0].index_of(layer)], [m @ drawn for m in activation_means(pairs, layer, tokens=tokens)]
        at = (gap > 0) & ~np.isnan(modes[0] - modes[1]).any(1)
        sides = modes[0][at] - modes[1][at], modes[0][at]
        fits = [BoundFit.of(side, np.sqrt(gap[at]), seed, resamples) for side in sides]
        meets, level = (float(fit.meets.mean()) for fit in fits)
        shares = {"meets": meets, "meets_level": level, "slope_level": float(pd.Series(fits[1].slope).median())}
        entries.append({"layer": layer, "sets": sets, **shares, "latents": len(latents), "n": int(at.sum())})
    return BOUND_CONTROLS.frame(entries, seed=seed, model=features.model)
