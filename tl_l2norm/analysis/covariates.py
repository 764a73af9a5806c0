"""What may act on a token beside the thing in question, and what is left when it is taken out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.polynomial.legendre import legvander
from numpy.typing import NDArray
from scipy.interpolate import BSpline
from scipy.linalg import block_diag, cho_solve
from scipy.linalg.lapack import dpstrf
from scipy.sparse import csr_array, diags_array, hstack
from scipy.stats import rankdata

from tl_l2norm.core.resampling import Array

OCCURRENCES = 8
"""Of a type before a token that have a level each, at the most; from so many on they share one."""
LAST = 6
"""Tokens to the end that have a level each; all before them share one."""

_KNOTS, _POWERS = 3, 3
_TOKENS_PER_DEGREE = 5
_LEAST_FREE = 0.1
_COLLINEAR = 1e-8  # of the square of a column of length 1: what others leave of it

Integers = NDArray[np.integer]


def indicators(x: Integers) -> csr_array:
    """A column for each value, 1 where it is the token's: [token, value]."""
    index = np.unique(x, return_inverse=True)[1]
    return csr_array((np.ones(len(x)), (np.arange(len(x)), index)))


def smooth(index: Integers) -> csr_array:
    """A spline of the square root of the index, because early tokens differ most: [token, 6] at the most."""
    return spline(np.sqrt((index - index.min()).astype(np.float64)))


def pooled(ids: Integers, *, least: int) -> Integers:
    """Ids [token], those of fewer tokens than `least` all made -1: an indicator of its own would explain such a token whole."""
    values, index, counts = np.unique(ids, return_inverse=True, return_counts=True)
    return np.where(counts >= least, values, -1)[index]


def occurrence(ids: Integers, group: Integers, *, most: int) -> Integers:
    """Of tokens in their order [token], how many of the same id their group holds before each; `most` where there are more."""
    counts: Integers = pd.DataFrame({"id": ids, "group": group}).groupby(["group", "id"]).cumcount().to_numpy()
    return np.minimum(counts, most)


def to_end(group: Integers, *, most: int) -> Integers:
    """Of tokens in their order [token], how many their group holds behind each; `most` where there are more."""
    behind: Integers = pd.Series(group).groupby(group).cumcount(ascending=False).to_numpy()
    return np.minimum(behind, most)


def before(ids: Integers, group: Integers, *, by: int) -> Integers:
    """Of tokens in their order, the ids so many places before each in its group, -1 where there are none: [token]."""
    shifted: Integers = pd.Series(ids).groupby(group).shift(by, fill_value=-1).to_numpy()
    return shifted


def own_curves(place: Integers, group: Integers, degree: int) -> csr_array:
    """Legendre polynomials in each group's own place, from degree 1 to this one: [token, group * degree].

    A group has one for every 5 of its tokens, so that short ones keep something: of 8 tokens a straight line, of 12 a parabola.
    """
    groups = pd.Series(place.astype(np.float64)).groupby(group)
    low, high, size = (groups.transform(name).to_numpy() for name in ("min", "max", "size"))
    powers = legvander(2 * (place - low) / np.maximum(high - low, 1.0) - 1, degree)[:, 1:]
    powers = np.where(np.arange(1, degree + 1) <= (size // _TOKENS_PER_DEGREE)[:, None], powers, 0.0)
    return csr_array(hstack([diags_array(own) @ indicators(group) for own in powers.T]))


def spline(x: Array) -> csr_array:
    """A cubic spline of x with knots where tokens are: [token, 6] at the most; zeros of what doesn't vary."""
    at = (x - x.min()) / max(float(x.max() - x.min()), 1e-12)
    inner = np.unique(np.quantile(at, np.linspace(0, 1, _KNOTS + 2)[1:-1]))
    knots = np.concatenate([np.zeros(4), inner[(inner > 0) & (inner < 1)], np.ones(4)])
    return csr_array(BSpline.design_matrix(np.clip(at, 0, 1 - 1e-12), knots, 3)[:, 1:])


def ranks_within(x: Array, group: Integers) -> Array:
    """Ranks within each group, about 0, as shares of its size, of x [token] or of each column of [token, column]."""
    ranks = np.empty(x.shape)
    for number in np.unique(group):
        at = group == number
        own = rankdata(x[at], axis=0)
        ranks[at] = (own - own.mean(0)) / at.sum()
    return ranks


def log_powers(length: Integers | Array) -> csr_array:
    """Powers 1 to 3 of the standardised log length: [token, 3]."""
    log = np.log(length.astype(np.float64))
    z = (log - log.mean()) / max(float(log.std()), 1e-12)
    return csr_array(np.stack([z**k for k in range(1, _POWERS + 1)], axis=1))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Projection:
    """Least squares on covariates, each token with its weight. All that goes in and out is times the root of the weight."""

    covariates: csr_array
    """[token, covariate]"""
    inverse: Array
    """Of their cross-products."""

    @classmethod
    def on(cls, *blocks: csr_array, root_weight: Array | None = None) -> Projection:
        """On the columns of all blocks; collinear ones do no harm."""
        covariates = csr_array(hstack(blocks))
        if root_weight is not None:
            covariates = csr_array(diags_array(root_weight) @ covariates)
        return cls(covariates=covariates, inverse=_inverted((covariates.T @ covariates).toarray()))

    def beside(self, *blocks: csr_array, root_weight: Array | None = None) -> Projection:
        """On these columns too: what this leaves of them is added, so that no more than their own products is inverted."""
        added = hstack(blocks).toarray()
        if root_weight is not None:
            added = added * root_weight[:, None]
        rest = self.rest(added)
        rest[:, (rest**2).sum(0) <= 1e-10 * (added**2).sum(0)] = 0.0
        inverse = block_diag(self.inverse, _inverted(rest.T @ rest))
        return Projection(covariates=csr_array(hstack([self.covariates, csr_array(rest)])), inverse=inverse)

    @property
    def rank(self) -> int:
        """Of the covariates: how many tokens they could explain whatever these hold."""
        return round(float((self.inverse * (self.covariates.T @ self.covariates).toarray()).sum()))

    def rest(self, y: Array) -> Array:
        """What the covariates don't explain of y [token] or [token, column]."""
        left: Array = y - self.covariates @ (self.inverse @ (self.covariates.T @ y))
        return left

    def why_too_little(self, values: Array, rest: Array, group: Integers, tolerance: float) -> str | None:
        """Why what is left of the values [token] can't be tested, or None where it can.

        Too few tokens for so many covariates, or less than this share of the variance within groups that these leave.
        """
        n, rank, members = len(values), self.rank, indicators(group)
        if n - rank < _LEAST_FREE * n:
            return f"{n} tokens are too few beside {rank} covariates"
        means = (members.T @ values) / members.sum(0)
        total = float(((values - means[np.unique(group, return_inverse=True)[1]]) ** 2).sum())
        left = float((rest**2).sum()) / total if total > 0 else 1.0
        return f"covariates explain {1 - left:.0%} of its variance within responses" if left < tolerance else None


def _inverted(products: Array) -> Array:
    """A generalised inverse, by Cholesky with pivots: columns that follow from others get zeros."""
    scale = np.sqrt(np.diag(products))
    there = np.flatnonzero(scale > 0)
    scale = scale[there]
    factor, pivots, rank, _ = dpstrf(products[np.ix_(there, there)] / np.outer(scale, scale), tol=_COLLINEAR)
    order = pivots[:rank] - 1
    own = cho_solve((factor[:rank, :rank], False), np.eye(rank)) / np.outer(scale[order], scale[order])
    inverse = np.zeros(products.shape)
    inverse[np.ix_(there[order], there[order])] = own
    return inverse
