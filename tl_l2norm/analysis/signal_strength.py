"""What a score of sampled responses says of correctness within a problem: area under the curve, correlations, at equal length.

Problems are the unit throughout: a statistic of each, its mean over problems, and intervals by resampling problems.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import rankdata

from tl_l2norm.core.resampling import Array

LENGTH_RATIO = 1.1
"""Lengths in one stratum are within this factor."""

_MIN_CANDIDATES = 3  # of a prompt, for a correlation within it


def auc(
    values: Float[np.ndarray, " candidate"],
    correct: Float[np.ndarray, " candidate"],
    strata: Int[np.ndarray, " candidate"] | None = None,
) -> float:
    """Share of the pairs of a right and a wrong candidate in which the right one's value is higher, ties half; NaN without one.

    Args:
        values: of one problem's candidates.
        correct: 1 where right, 0 where wrong.
        strata: pairs within one stratum alone; None for all.

    Examples:
        >>> auc(np.array([3.0, 1.0, 2.0]), np.array([1.0, 0.0, 0.0]))
        1.0
    """
    groups = np.zeros(len(values), dtype=np.int64) if strata is None else strata
    higher, pairs = 0.0, 0
    for stratum in np.unique(groups):
        own, right = values[groups == stratum], correct[groups == stratum] > 0
        n_right, n_wrong = int(right.sum()), int((~right).sum())
        if n_right and n_wrong:
            higher += float(rankdata(own)[right].sum()) - n_right * (n_right + 1) / 2
            pairs += n_right * n_wrong
    return higher / pairs if pairs else float("nan")


def spearman(x: Array, y: Array) -> float:
    """Pearson's correlation of the ranks, ties at their mean rank; NaN if it is not defined or there are fewer than 3 values.

    Examples:
        >>> spearman(np.array([1.0, 2.0, 9.0]), np.array([0.0, 1.0, 2.0]))
        1.0
    """
    if len(x) < _MIN_CANDIDATES or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(np.corrcoef(rankdata(x), rankdata(y))[0, 1])


def length_strata(lengths: Float[np.ndarray, " candidate"], ratio: float = LENGTH_RATIO) -> Int[np.ndarray, " candidate"]:
    """Number of each candidate's stratum: from the shortest on, each begins where a length is over `ratio` times its shortest.

    Examples:
        >>> length_strata(np.array([100.0, 52.0, 50.0, 105.0]))
        array([1, 0, 0, 1])
    """
    strata = np.empty(len(lengths), dtype=np.int64)
    stratum, shortest = -1, -np.inf
    for i in np.argsort(lengths, kind="stable"):
        if stratum < 0 or lengths[i] > ratio * shortest:
            stratum, shortest = stratum + 1, lengths[i]
        strata[i] = stratum
    return strata
