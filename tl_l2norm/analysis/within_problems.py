"""What may act on the norm and on the correctness of samples of one problem alike: their length and log-probability."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tl_l2norm.analysis.conditional_logit import RIDGE, Groups
from tl_l2norm.core.resampling import Array

_MOST_KNOTS, _PROBLEMS_PER_KNOT = 4, 12


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Covariates:
    """Smooth functions of log length and log-probability, each of mean 0 within problems and of variance 1.

    The log length is taken apart into the problem's mean and the deviation from it. Functions of the deviation and of the whole:
    powers to the third and hinges at quantiles (up to 4 of each, one for 12 problems); of the log-probability: powers to
    the second.
    """

    held: NDArray[np.bool_]
    """[problem, sample]"""
    deviation: Array
    """[problem, sample] log length minus the problem's mean."""
    free: Array
    """[problem, sample, covariate] those that act on correctness alone: the deviation, and that times the problem's mean."""
    shared: Array
    """[problem, sample, covariate] all others, without what goes with the deviation along a line of each problem's own."""

    @classmethod
    def of(cls, log_length: Array, log_prob: Array, held: NDArray[np.bool_]) -> Covariates:
        """From [problem, sample] each."""
        count = held.sum(1, keepdims=True)
        centre = np.where(held, log_length, 0).sum(1, keepdims=True) / count
        deviation = _unit(_centred(log_length, held), held)
        scale = max(float(np.sqrt((_centred(log_length, held)[held] ** 2).mean())), 1e-12)
        centre = (centre - centre.mean()) / scale if np.abs(deviation).max(initial=0) > 0 else np.zeros_like(centre)
        whole, certain = deviation + centre, _unit(_centred(log_prob, held), held)
        knots = min(_MOST_KNOTS, len(held) // _PROBLEMS_PER_KNOT)
        shared = [deviation**2, deviation**3, deviation**2 * centre, certain, certain**2]
        shared += [*_hinges(deviation, held, knots), *_hinges(whole, held, knots)]
        free = np.stack([_unit(_centred(x, held), held) for x in (deviation, deviation * centre)], axis=-1)
        made = [_unit(_without(_centred(x, held), deviation), held) for x in shared]
        return cls(held=held, deviation=deviation, free=free, shared=np.stack(made, axis=-1))

    @property
    def all(self) -> Array:
        """[problem, sample, covariate]"""
        return np.concatenate([self.free, self.shared], axis=-1)

    def beside(self, x: Array) -> Array:
        """All covariates with each of x [layer, problem, sample] behind them: [layer, problem, sample, covariate + 1]."""
        z = self.all
        return np.concatenate([np.broadcast_to(z, (len(x), *z.shape)), x[..., None]], axis=-1)

    def standardised(self, x: Array) -> Array:
        """x [layer, problem, sample] of mean 0 within problems, per standard deviation within problems."""
        return np.stack([_unit(_centred(layer, self.held), self.held) for layer in x])

    def without_length(self, x: Array) -> Array:
        """x less what goes with the log length along a line of each problem's own."""
        return _without(x, self.deviation)

    def efficient(self, x: Array, covariance: Array) -> Array:
        """x less its regression on the shared covariates, samples of a problem weighted by the covariance
        [problem, sample, sample] of their correctness: the score of x is then orthogonal to theirs."""
        weighted = np.einsum("gst,gtp->gsp", covariance, self.shared)
        products = np.einsum("gsp,gsq->pq", self.shared, weighted) + RIDGE * np.eye(self.shared.shape[-1])
        return x - np.einsum("gsp,pl->lgs", self.shared, np.linalg.solve(products, np.einsum("gsp,lgs->pl", weighted, x)))


def pair_counts(groups: Groups, score: Array) -> tuple[Array, Array]:
    """Of the pairs of a right and a wrong sample of each problem, in how many the right one's score is higher (ties half):
    [layer, problem]; and how many there are: [problem]."""
    right, wrong = groups.y > 0, groups.held & (groups.y == 0)
    pairs = right[:, :, None] & wrong[:, None, :]
    difference = score[..., :, None] - score[..., None, :]
    higher = (difference > 1e-9) + 0.5 * (np.abs(difference) <= 1e-9)
    return np.where(pairs, higher, 0).sum((-2, -1)), pairs.sum((-2, -1)).astype(np.float64)


def _centred(x: Array, held: NDArray[np.bool_]) -> Array:
    """Minus the mean of each problem's samples; 0 where there is no sample."""
    mean = np.where(held, x, 0).sum(-1, keepdims=True) / held.sum(-1, keepdims=True)
    return np.where(held, x - mean, 0.0)


def _unit(x: Array, held: NDArray[np.bool_]) -> Array:
    """Over its standard deviation; 0 where it doesn't vary."""
    scale = float(np.sqrt((x[held] ** 2).mean()))
    return x / scale if scale > 1e-9 else np.zeros_like(x)


def _without(x: Array, line: Array) -> Array:
    """x [..., problem, sample] less its projection on `line` in each problem."""
    size = (line**2).sum(-1, keepdims=True)
    slope = np.divide((x * line).sum(-1, keepdims=True), size, out=np.zeros((*x.shape[:-1], 1)), where=size > 1e-9)
    return x - slope * line


def _hinges(x: Array, held: NDArray[np.bool_], knots: int) -> list[Array]:
    return [np.maximum(x - at, 0) for at in np.quantile(x[held], np.linspace(0, 1, knots + 2)[1:-1])]
