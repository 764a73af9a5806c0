"""The fit of the theorem's bound: log left on log right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from tl_l2norm.core.resampling import MIN_PROMPTS, Array, prompt_weights

MARGIN = 0.5
"""Of the slope in logs about 1. Half-way to the nearest laws that are no bound: a left side that doesn't depend on the right
one has slope 0, one that follows the difference of the squares slope 2."""
LEAST_R2 = 0.5
"""Share of the variance of log left that log right must explain: more than all else does."""
OUTER = 0.05
"""c1 and c2 hold for all but this share of prompts on either side: extremes grow with their number."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BoundFit:
    """Of log left on log right, for each column of left [prompt, set] and one right [prompt]; NaN where it can't be."""

    c1: Array
    c2: Array
    slope: Array
    half: Array
    """Half of its 95% interval."""
    p: Array
    """That it is not within the margin about 1, two-sided."""
    r2: Array
    r2_draws: Array
    """[resample, set]"""
    spread_right: float

    @classmethod
    def of(cls, left: Array, right: Array, seed: int, resamples: int) -> BoundFit:
        """From left [prompt, set] and right [prompt], which is over 0."""
        n, sets = left.shape
        nothing = np.full(sets, np.nan)
        if n == 0:
            blank = dict.fromkeys(("c1", "c2", "slope", "half", "p", "r2"), nothing)
            return cls(**blank, r2_draws=nothing[None], spread_right=np.nan)
        (c1, c2), (low, high) = (np.quantile(x, (OUTER, 1 - OUTER), axis=0) for x in (left / right[:, None], right))
        usable = (c1 > 0) & (n >= MIN_PROMPTS) & (np.ptp(right) > 1e-6 * high)
        held = left > 0  # all but a few, which have no log
        y, x = np.log(np.where(held, left, 1.0)), np.log(right)[:, None] * held
        with np.errstate(divide="ignore", invalid="ignore"):
            slope, error, df = _slope(x, y, held)
            sides = t.sf((slope - 1 + MARGIN) / error, df), t.sf((1 + MARGIN - slope) / error, df)
            weights = np.vstack([np.ones(n), prompt_weights(n, seed=seed, resamples=resamples)])
            r2 = np.where(usable, _r_squared(x, y, held, weights), np.nan)
        fit = [np.where(usable, z, np.nan) for z in (slope, t.ppf(0.975, df) * error, np.minimum(1, 2 * np.maximum(*sides)))]
        return cls(c1=c1, c2=c2, slope=fit[0], half=fit[1], p=fit[2], r2=r2[0], r2_draws=r2[1:], spread_right=float(high / low))

    @property
    def spread(self) -> Array:
        """C2 / c1; NaN where c1 is not over 0."""
        return np.where(self.c1 > 0, self.c2 / np.where(self.c1 > 0, self.c1, 1), np.nan)

    @property
    def meets(self) -> NDArray[np.bool_]:
        """Which sets meet the bound by the rule of the claim."""
        tails = np.quantile(np.nan_to_num(self.r2_draws), 0.025, axis=0)
        return (self.p <= 0.05) & (tails > LEAST_R2) & (self.spread < self.spread_right)


def _slope(x: Array, y: Array, held: NDArray[np.bool_]) -> tuple[Array, Array, Array]:
    """Slope, its HC3 standard error and degrees of freedom of each column, over the prompts that are held."""
    n = held.sum(0)
    u, v = ((z - z.sum(0) / n) * held for z in (x * held, y * held))
    size = (u**2).sum(0)
    slope = (u * v).sum(0) / size
    residual = (v - slope * u) / (1 - held / n - u**2 / size)
    error = np.sqrt(((u * residual) ** 2).sum(0)) / size
    return slope, np.maximum(error, 1e-9), np.maximum(n - 2.0, 1)


def _r_squared(x: Array, y: Array, held: NDArray[np.bool_], weights: Array) -> Array:
    """[resample, set] squared correlation."""
    total, at = weights @ held, held.astype(np.float64)
    mean_x, mean_y = weights @ (at * x) / total, weights @ (at * y) / total
    cross = weights @ (at * x * y) / total - mean_x * mean_y
    scale = (weights @ (at * x**2) / total - mean_x**2) * (weights @ (at * y**2) / total - mean_y**2)
    r2: Array = np.where(scale > 1e-18, cross**2 / scale, np.nan)
    return r2
