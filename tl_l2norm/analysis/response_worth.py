"""What several responses to one problem are worth, as they may agree: for the test of two arms, and for its interval."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tl_l2norm.analysis.accuracy import wilson_interval

Counts = int | NDArray[np.integer]
"""Responses to each problem."""


def worth(
    own: NDArray[np.floating], other: NDArray[np.floating], responses: tuple[Counts, Counts]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many responses of their own each arm's responses to a problem are worth: [problem] each, 1 where all are alike.

    k responses that agree more than draws from both arms' would, by a share rho, are worth k / (1 + (k - 1) rho) of these (the
    design effect of clusters: Kish, "Survey Sampling", 1965). At a temperature near 0 eight responses are one, eight times.

    Args:
        own: [problem] share of the arm's responses that are right.
        other: [problem] the same of the other arm.
        responses: of the arm and of the other one to each problem.

    Examples:
        >>> varied = np.full(4, 0.5)
        >>> [int(counts[0]) for counts in worth(np.array([1.0, 1.0, 0.0, 0.0]), varied, (8, 8))]
        [1, 8]
    """
    k, m = _counts(responses, len(own))
    pooled = _disagreement((own * k + other * m) / (k + m), k + m)

    def worth_of(shares: NDArray[np.floating], counts: NDArray[np.int64]) -> NDArray[np.int64]:
        alike = _likeness(_disagreement(shares, counts), pooled)
        return np.maximum(1, (counts / (1 + (counts - 1) * alike) + 1e-9).astype(np.int64))

    return worth_of(own, k), worth_of(other, m)


def score_interval(
    own: NDArray[np.floating], other: NDArray[np.floating], responses: tuple[Counts, Counts]
) -> tuple[float, float]:
    """95% interval of the mean difference from Wilson's interval of either arm, by their correlation (Newcombe 1998, Statistics
    in Medicine 17:2635): few problems without a loss don't say that there is none, which resampling them would.

    Each arm counts for as many responses as `worth` would have it, or fewer where they agree within problems more than the arm
    does over all; an arm that is all right or all wrong for one of each problem, as nothing tells how its responses agree.

    Args:
        own: [problem] share of the arm's responses that are right.
        other: [problem] the same of the other arm.
        responses: of the arm and of the other one to each problem.

    Examples:
        >>> low, high = score_interval(np.ones(20), np.full(20, 0.9), (1, 10))
        >>> print(f"{low:.2f} to {high:.2f}")
        -0.06 to 0.15
    """
    k, m = _counts(responses, len(own))
    pooled = _disagreement((own * k + other * m) / (k + m), k + m)
    ends = []
    for shares, counts in ((own, k), (other, m)):
        mean, within = float(shares.mean()), _disagreement(shares, counts)
        alike = max(_likeness(within, pooled), _likeness(within, mean * (1 - mean))) if 0 < mean < 1 else 1.0
        low, high = wilson_interval(mean * (size := float((counts / (1 + (counts - 1) * alike)).sum())), size)
        ends.append((mean - low, high - mean))
    (down, up), (others_down, others_up) = ends
    spread = float(np.std(own) * np.std(other))
    r = float(((own - own.mean()) * (other - other.mean())).mean()) / spread if spread > 0 else 0.0

    def reach(mine: float, theirs: float) -> float:
        return float(np.sqrt(max(0.0, mine**2 - 2 * r * mine * theirs + theirs**2)))

    difference = float(own.mean() - other.mean())
    return difference - reach(down, others_up), difference + reach(up, others_down)


def _counts(responses: tuple[Counts, Counts], n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """[problem] of either arm."""
    k, m = (np.broadcast_to(np.asarray(counts, dtype=np.int64), (n,)) for counts in responses)
    return k, m


def _disagreement(shares: NDArray[np.floating], counts: NDArray[np.int64]) -> float:
    """Half the probability that two responses to the same problem differ, mean over problems with two; 0 without any."""
    several = counts > 1
    if not several.any():
        return 0.0
    shares, counts = shares[several], counts[several]
    return float((shares * (1 - shares) * counts / (counts - 1)).mean())


def _likeness(within: float, among: float) -> float:
    """How much less two responses differ here than there, between 0 and 1; 0 where they don't differ anywhere."""
    return min(1.0, max(0.0, 1 - within / among)) if among > 0 else 0.0
