"""Conditional logistic regression: which samples of a group are positive, given how many are.

    P(y | sum y = k) = exp(sum_j y_j eta_j) / e_k(exp eta),  eta = x beta

e_k is the elementary symmetric polynomial, the sum over all ways to choose k of the samples; a group's own intercept cancels.
statsmodels' `ConditionalLogit` is the same model, one fit at a time and without the covariance within a group, which the score
test needs; tests hold both equal. Here many fits run side by side (every layer and every fold).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.special import expit
from torch import Tensor

from tl_l2norm.core.resampling import Array

RIDGE = 1e-3
"""Precision of a normal prior on each coefficient, of a covariate of unit variance: it keeps them finite where the outcomes are
separated, and moves an estimate of 1 with a standard error of 0.1 by 0.00001."""

_STEPS, _TOLERANCE, _LONGEST_STEP = 50, 1e-8, 3.0
_HALVINGS = 30
_FAR, _BISECTIONS = 40.0, 30  # of log-odds


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Groups:
    """Samples by group, padded to the largest."""

    y: Array
    """[group, sample] 1 or 0; 0 where there is none."""
    held: NDArray[np.bool_]
    """[group, sample] whether there is one."""

    @property
    def k(self) -> NDArray[np.intp]:
        """[group] positives."""
        return np.asarray(self.y.sum(1), dtype=np.intp)


def fit(
    groups: Groups,
    x: Array,
    weights: Array | None = None,
    *,
    offset: Array | float = 0.0,
    start: Array | float = 0.0,
    ridge: float = RIDGE,
) -> Array:
    """Coefficients by Newton's method: [fit, covariate].

    Args:
        groups: samples.
        x: [fit, group, sample, covariate]
        weights: [fit, group] of the groups in each fit, 0 leaves one out; all 1 by default.
        offset: [fit, group, sample] what is known of eta beside x.
        start: [fit, covariate] coefficients that the search starts from.
        ridge: see `RIDGE`.
    """
    n_fits, n_groups, _, p = x.shape
    own = np.ones((n_fits, n_groups)) if weights is None else weights
    beta, penalty = np.zeros((n_fits, p)) + start, ridge * np.eye(p)

    def likelihood(beta: Array) -> Array:
        eta = np.einsum("fgsp,fp->fgs", x, beta) + offset
        logs = np.where(groups.held, eta * groups.y, 0.0).sum(-1) - _log_polynomial(torch.from_numpy(eta), groups).numpy()
        total: Array = (own * logs).sum(-1) - 0.5 * ridge * (beta**2).sum(-1)
        return total

    reached = likelihood(beta)
    for _ in range(_STEPS):
        mean, covariance = moments(groups, np.einsum("fgsp,fp->fgs", x, beta) + offset)
        gradient = np.einsum("fg,fgsp,fgs->fp", own, x, groups.y - mean) - ridge * beta
        spread = covariance @ x  # symmetric
        information = np.einsum("fg,fgtp,fgtq->fpq", own, spread, x, optimize=True) + penalty
        step = np.linalg.solve(information, gradient[..., None])[..., 0]
        size = np.abs(step).max(1, keepdims=True)
        step = step * np.minimum(1, _LONGEST_STEP / np.maximum(size, 1e-300))
        if size.max(initial=0) < _TOLERANCE:
            beta = beta + step
            break
        beta, reached = _uphill(likelihood, beta, step, reached)
    return beta


def _uphill(likelihood: Callable[[Array], Array], beta: Array, step: Array, reached: Array) -> tuple[Array, Array]:
    """Each fit's step, halved until its likelihood doesn't fall: where outcomes are nearly separated whole steps go too far."""
    value = likelihood(beta + step)
    for _ in range(_HALVINGS):
        lower = ~(value >= reached - 1e-9 * np.abs(reached))
        if not lower.any():
            break
        step = np.where(lower[:, None], step / 2, step)
        value = likelihood(beta + step)
    return beta + step, value


def moments(groups: Groups, eta: Array) -> tuple[Array, Array]:
    """Mean [..., group, sample] and covariance [..., group, sample, sample] of y given its sum.

    Independent samples of the same odds, given their sum, are such y. So P(sum = k), and with it that one or two of them are
    positive, is a discrete Fourier transform of the product of their characteristic functions, exact where there are more
    frequencies than samples, and without cancellation where the odds are scaled so that k are expected.
    """
    p, n = _chances(groups, eta), eta.shape[-1]
    half = (n + 2) // 2  # of an odd number of frequencies: pi is none, at which a chance of a half has a factor of 0
    turn = np.exp(2j * np.pi * np.arange(half + 1) / (2 * half + 1))
    factor = 1 + p[..., None] * (turn - 1)
    weight = factor.prod(-2) * turn ** -groups.k[:, None].astype(np.float64) * np.where(np.arange(half + 1), 2, 1)
    weight = weight / weight.real.sum(-1, keepdims=True)
    share = p[..., None] * turn / factor
    mean = np.einsum("...sm,...m->...s", share, weight).real
    covariance = ((share * weight[..., None, :]) @ share.swapaxes(-1, -2)).real - mean[..., None] * mean[..., None, :]
    at = np.arange(n)
    covariance[..., at, at] = mean * (1 - mean)
    return mean, covariance


def _chances(groups: Groups, eta: Array) -> Array:
    """[..., group, sample] of independent samples with odds as exp(eta), times what makes k of a group expected."""
    low = -np.where(groups.held, eta, -np.inf).max(-1, keepdims=True) - _FAR
    high = -np.where(groups.held, eta, np.inf).min(-1, keepdims=True) + _FAR
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        few = np.where(groups.held, expit(eta + middle), 0.0).sum(-1, keepdims=True) < groups.k[:, None]
        low, high = np.where(few, middle, low), np.where(few, high, middle)
    return np.where(groups.held, expit(eta + (low + high) / 2), 0.0)


def _log_polynomial(eta: Float[Tensor, "*fit group sample"], groups: Groups) -> Float[Tensor, "*fit group"]:
    """Log e_k of each group's k."""
    held, k = torch.from_numpy(groups.held), torch.from_numpy(groups.k)
    shift = torch.from_numpy(_level(groups, eta.detach().numpy()))
    weight = torch.where(held, (torch.where(held, eta, 0.0) - shift).exp(), 0.0)
    most = int(k.max())
    e = torch.cat([torch.ones_like(eta[..., :1]), torch.zeros_like(eta[..., :1]).expand(*eta.shape[:-1], most)], -1)
    for j in range(eta.shape[-1]):
        moved = torch.nn.functional.pad(e[..., :-1], (1, 0))
        e = e + weight[..., j : j + 1] * moved
    chosen = e.gather(-1, k[:, None].expand(*e.shape[:-1], 1))[..., 0]
    return chosen.log() + k * shift[..., 0]


def _level(groups: Groups, eta: Array) -> Array:
    """[..., group, 1] mean of the k largest: less this, e_k is from 1 to n over k, however far apart the samples are."""
    largest = -np.sort(-np.where(groups.held, eta, -np.inf), axis=-1)
    among = np.arange(eta.shape[-1]) < groups.k[:, None]
    level: Array = np.where(among, largest, 0.0).sum(-1, keepdims=True) / np.maximum(groups.k, 1)[:, None]
    return level


def draw(groups: Groups, eta: Array, rng: np.random.Generator, count: int) -> Array:
    """`count` arrangements of each group's positives, each as likely as eta makes it: [count, group, sample]."""
    n_groups, n = eta.shape
    weight = np.where(groups.held, np.exp(np.where(groups.held, eta, 0.0) - _level(groups, eta)), 0.0)
    k = groups.k
    behind = np.zeros((n + 1, n_groups, int(k.max()) + 1))  # e_c of the samples from j on
    behind[n, :, 0] = 1
    for j in reversed(range(n)):
        behind[j] = behind[j + 1]
        behind[j, :, 1:] += weight[:, j, None] * behind[j + 1, :, :-1]
    left = np.broadcast_to(k, (count, n_groups)).copy()
    y, at = np.zeros((count, n_groups, n)), np.arange(n_groups)
    for j in range(n):
        total = behind[j][at, left]
        chance = np.where(left > 0, weight[:, j] * behind[j + 1][at, np.maximum(left - 1, 0)] / total, 0.0)
        y[:, :, j] = rng.random((count, n_groups)) < chance
        left -= y[:, :, j].astype(np.intp)
    return y
