"""Intervals by resampling prompts: tokens of one sequence are not independent, prompts are.

All are 95% percentile bootstrap intervals, expanded for small n (Hesterberg, "What Teachers Should Know About the Bootstrap",
arXiv 1411.5279): with 8 prompts the plain ones miss the truth in 12% of cases, these in 6%.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit

from tl_l2norm.core.arguments import as_integer, as_seed
from tl_l2norm.core.errors import Unmeasurable

Array = NDArray[np.float64]

RESAMPLES = 2000
MIN_DRAWS, MAX_DRAWS = 19, 1_000_000
"""Of resamples, and of flips of signs: with fewer than 19 there is no p of 0.05, and no interval of 95%."""
_QUANTILE: Literal["weibull"] = "weibull"  # unbiased far out, where numpy's default lies inwards

MIN_PROMPTS = 8
"""Below this an interval is fiction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A figure over prompts with its 95% bootstrap interval."""

    mean: float
    low: float
    high: float
    n: int
    """Prompts, not tokens."""

    def __str__(self) -> str:
        """`1.23 [0.98, 1.47], n = 24`; one prompt has no interval."""
        if self.n == 1:
            return f"{self.mean:.4g} (no interval with one prompt), n = 1"
        return f"{self.mean:.4g} [{self.low:.4g}, {self.high:.4g}], n = {self.n}"

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


def bootstrap_mean(values: NDArray[np.floating], *, seed: int = 0, resamples: int = RESAMPLES) -> tuple[Array, Array, Array]:
    """Mean over the first axis (prompts) and its 95% interval.

    Args:
        values: [prompt, ...]; NaN marks a prompt that has no value there and is left out.
        seed: of the resampling.
        resamples: how many.

    Returns:
        mean, low, high: each of the shape of one prompt's values; low and high are NaN below two prompts.
    """
    values = np.asarray(values, dtype=np.float64)
    mean, draws = resampled_means(values, seed=seed, resamples=resamples)
    counts, flat = (~np.isnan(values)).sum(0).reshape(-1), draws.reshape(resamples, -1)
    low, high = np.full((2, flat.shape[1]), np.nan)
    for n in np.unique(counts[counts >= 2]):
        at = counts == n
        quantile = np.nanquantile if n < len(values) else np.quantile  # a resample of few may hold none of a column's
        low[at], high[at] = quantile(flat[:, at], tails(int(n)), axis=0, method=_QUANTILE)
    return mean, low.reshape(mean.shape), high.reshape(mean.shape)


def resampled_means(values: NDArray[np.floating], *, seed: int = 0, resamples: int = RESAMPLES) -> tuple[Array, Array]:
    """Mean over the first axis (prompts), and the means of as many prompts drawn with replacement: [resamples, ...]."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim == 0 or values.shape[0] == 0:
        raise Unmeasurable("no prompts to average over")
    weights = prompt_weights(values.shape[0], seed=seed, resamples=resamples)
    present = ~np.isnan(values)
    flat = np.where(present, values, 0).reshape(len(values), -1)
    held = present.reshape(len(values), -1).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean, draws = flat.sum(0) / held.sum(0), (weights @ flat) / (weights @ held)
    return mean.reshape(values.shape[1:]), draws.reshape(resamples, *values.shape[1:])


def prompt_weights(n: int, *, seed: int = 0, resamples: int = RESAMPLES) -> Array:
    """How often each of n prompts is drawn: [resamples, n].

    Raises:
        InputError: fewer than 19 resamples, or over a million.
    """
    resamples = as_integer("resamples", resamples, least=MIN_DRAWS, most=MAX_DRAWS)
    return generator(seed).multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)


def generator(seed: int) -> np.random.Generator:
    """A generator of random numbers, the same for the same seed."""
    return np.random.default_rng(as_seed(seed))


def bootstrap(
    values: NDArray[np.floating], statistic: Callable[[Array], Array], *, seed: int = 0, resamples: int = RESAMPLES
) -> Estimate:
    """A statistic of the prompts' mean, such as the bend of a mean curve, with its 95% interval.

    Args:
        values: [prompt, ...], NaN as in `bootstrap_mean`.
        statistic: from means [resample, ...] to [resample]; NaN where it is not defined.
        seed: of the resampling.
        resamples: how many.
    """
    values = np.asarray(values, dtype=np.float64)
    mean, draws = resampled_means(values, seed=seed, resamples=resamples)
    n = int((~np.isnan(values)).reshape(len(values), -1).any(1).sum())
    return interval(float(statistic(mean[None])[0]), statistic(draws), n)


def interval(value: float, draws: NDArray[np.floating], n: int) -> Estimate:
    """An estimate from a statistic's value and its values in resamples; no interval where a tenth of those is not defined."""
    measured = draws[~np.isnan(draws)]
    defined = n >= 2 and len(measured) >= 0.9 * len(draws)
    low, high = np.quantile(measured, tails(n), method=_QUANTILE) if defined else (np.nan, np.nan)
    return Estimate(mean=value, low=float(low), high=float(high), n=n)


def tails(n: int) -> tuple[float, float]:
    """Quantiles of the resamples that bound a 95% interval: 0.025 and 0.975 for many prompts, further out for few."""
    outer = float(ndtr(np.sqrt(n / (n - 1)) * stdtrit(n - 1, 0.025)))
    return outer, 1 - outer


def estimate(values: NDArray[np.floating], *, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """`bootstrap_mean` of one number per prompt, NaN left out.

    Examples:
        >>> print(estimate(np.array([1.0, 2.0, 3.0, np.nan, 2.0])))
        2 [1, 3], n = 4
    """
    values = np.asarray(values, dtype=np.float64)
    mean, low, high = bootstrap_mean(values, seed=seed, resamples=resamples)
    return Estimate(mean=float(mean), low=float(low), high=float(high), n=int((~np.isnan(values)).sum()))


def permuted_within(x: NDArray[np.floating], groups: NDArray[np.integer], *, seed: int, resamples: int) -> Array:
    """[resample, prompt] the values of x [prompt], dealt out anew within each group."""
    order = np.argsort(groups, kind="stable")
    keys = groups[order][None] + generator(seed).random((resamples, len(x)))
    dealt = np.empty((resamples, len(x)))
    dealt[:, order] = x[order][np.argsort(keys, axis=1)]
    return dealt
