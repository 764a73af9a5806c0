"""Intervals by resampling prompts: tokens of one sequence are not independent, prompts are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean over prompts with its 95% bootstrap interval."""

    mean: float
    low: float
    high: float
    n: int
    """Prompts, not tokens."""

    def __str__(self) -> str:
        """`1.23 [0.98, 1.47], n = 24`."""
        return f"{self.mean:.4g} [{self.low:.4g}, {self.high:.4g}], n = {self.n}"

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


def bootstrap_mean(
    values: NDArray[np.floating], *, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Mean over the first axis (prompts) and its 95% percentile bootstrap interval.

    Args:
        values: [prompt, ...]; NaN marks a prompt that has no value there and is left out.
        seed: of the resampling.
        resamples: how many.

    Returns:
        mean, low, high: each of the shape of one prompt's values; low and high are NaN below two prompts.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim == 0 or values.shape[0] == 0:
        raise ValueError("no prompts to average over")
    n = values.shape[0]
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)
    present = ~np.isnan(values)
    flat, held = np.where(present, values, 0).reshape(n, -1), present.reshape(n, -1).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = flat.sum(0) / held.sum(0)
        draws = (weights @ flat) / (weights @ held)
    low, high = np.full((2, flat.shape[1]), np.nan)
    enough = held.sum(0) >= 2
    if enough.any():
        low[enough], high[enough] = np.nanquantile(draws[:, enough], [0.025, 0.975], axis=0)
    shape = values.shape[1:]
    return mean.reshape(shape), low.reshape(shape), high.reshape(shape)


def estimate(values: NDArray[np.floating], *, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """`bootstrap_mean` of one number per prompt, NaN left out."""
    values = np.asarray(values, dtype=np.float64)
    mean, low, high = bootstrap_mean(values, seed=seed, resamples=resamples)
    return Estimate(mean=float(mean), low=float(low), high=float(high), n=int((~np.isnan(values)).sum()))
