"""The paper's theorem: its premise, and both sides of its bound."""

from __future__ import annotations

import numpy as np
import pandas as pd

from tl_l2norm.analysis.accuracy import WILSON, wilson_interval
from tl_l2norm.analysis.pairing import Tokens, mode_means, pair_modes
from tl_l2norm.analysis.reasoning import ReasoningFeatures
from tl_l2norm.core.errors import InputError
from tl_l2norm.core.resampling import MIN_PROMPTS, RESAMPLES, Array, Estimate, interval, prompt_weights
from tl_l2norm.core.schema import LAYER, MODEL, SEED, Column, N, Schema, ends
from tl_l2norm.core.trace import TracesLike, traces_of

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
        Column("c1", float, "least left / right of them"),
        Column("c2", float, "greatest left / right of them"),
        Column("r2", float, "squared correlation of left and right; NaN below 8 such prompts"),
        *ends("r2", prefix=True),
        SEED,
        MODEL,
    ),
)


def bound_points(
    think: TracesLike, direct: TracesLike, features: ReasoningFeatures, *, tokens: Tokens = "read"
) -> pd.DataFrame:
    """Both sides of the theorem for each prompt and layer with reasoning features.

    `left` is the sum over reasoning features of mean activation in thinking minus in direct answers; `right` is
    `sqrt(||h_think||^2 - ||h_direct||^2)` of mean squared norms, NaN where the difference is not positive: there the theorem's
    premise fails.

    Returns:
        One entry per prompt and layer: prompt, layer, left, right, premise, model.

    Raises:
        ValueError: prompts that the features were chosen on, modes with different prompts, or fewer than 8.
    """
    think, direct = traces_of(think), traces_of(direct)
    pairs = pair_modes(think, direct)
    left_think, left_direct = mode_means(pairs, features.total, tokens=tokens)
    square_think, square_direct = mode_means(pairs, lambda trace: trace.l2_norms**2, tokens=tokens)
    left, square = left_think - left_direct, square_think - square_direct
    frames = []
    for i, layer in enumerate(think[0].layers):
        if features.latents.get(layer):
            premise = square[:, i] > 0
            sides = {"left": left[:, i], "right": np.sqrt(np.where(premise, square[:, i], np.nan)), "premise": premise}
            frames.append(pd.DataFrame({"prompt": list(pairs), "layer": layer, **sides})[~np.isnan(square[:, i])])
    points = pd.concat(frames, ignore_index=True) if frames else ()
    return BOUND_POINTS.frame(points, model=think[0].provenance.model)


def bound_table(points: pd.DataFrame, *, seed: int = 0, resamples: int = RESAMPLES) -> pd.DataFrame:
    """The theorem layer by layer: how often its premise holds, and `c1 <= left / right <= c2` where it does.

    c1 and c2 are the tightest constants for these prompts, the least and the greatest ratio; c1 over 0 is what the theorem
    asks for.

    Returns:
        One entry per layer: layer, n (prompts), premise (share with a larger thinking norm), premise_low, premise_high
        (Wilson), n_premise, c1, c2, r2 (squared correlation of left and right), r2_low, r2_high (NaN below 8 such prompts),
        seed, model.

    Raises:
        InputError: a table of other columns, or one that holds a prompt twice at a layer.

    Examples:
        >>> right = np.linspace(1, 2, 10)
        >>> points = pd.DataFrame({"prompt": range(10), "layer": 3, "left": 2 * right, "right": right, "premise": True})
        >>> bound_table(points.assign(model="by hand"))[["layer", "premise", "c1", "c2", "r2"]]
           layer  premise   c1   c2   r2
        0      3      1.0  2.0  2.0  1.0
    """
    if BOUND_POINTS.check(points).duplicated(["prompt", "layer"]).any():
        raise InputError("the points hold a prompt twice at the same layer: give what bound_points returned, once")
    entries = []
    for layer, group in points.groupby("layer", sort=True):
        holds = group["premise"].to_numpy(dtype=bool)
        low, high = wilson_interval(int(holds.sum()), len(holds))
        left, right = (group[name].to_numpy(dtype=np.float64)[holds] for name in ("left", "right"))
        r2 = _r_squared(left, right, seed, resamples)
        entries.append(
            {
                "layer": layer,
                "n": len(holds),
                "premise": float(holds.mean()),
                "premise_low": low,
                "premise_high": high,
                "n_premise": int(holds.sum()),
                "c1": float((left / right).min()) if len(left) else np.nan,
                "c2": float((left / right).max()) if len(left) else np.nan,
                "r2": r2.mean,
                "r2_low": r2.low,
                "r2_high": r2.high,
            }
        )
    return BOUND_BY_LAYER.frame(entries, seed=seed, model=points["model"].iloc[0] if len(points) else "")


def _r_squared(x: Array, y: Array, seed: int, resamples: int) -> Estimate:
    if len(x) < MIN_PROMPTS:
        return Estimate(mean=np.nan, low=np.nan, high=np.nan, n=len(x))
    weights = np.vstack([np.ones(len(x)), prompt_weights(len(x), seed=seed, resamples=resamples)])
    total = weights.sum(1)
    mean_x, mean_y = weights @ x / total, weights @ y / total
    cross = weights @ (x * y) / total - mean_x * mean_y
    scale = (weights @ x**2 / total - mean_x**2) * (weights @ y**2 / total - mean_y**2)
    with np.errstate(divide="ignore", invalid="ignore"):
        r2 = np.where(scale > 0, cross**2 / scale, np.nan)
    return interval(float(r2[0]), r2[1:], len(x))
