"""How often a right response is selected from n of a prompt's responses: expectations over all subsets of size n.

Ties are shared: of several candidates that are equally good each is taken as often, so that the order of samples says nothing.
"""

from __future__ import annotations

import itertools
import zlib
from math import comb

import numpy as np
from jaxtyping import Float, Int, Num
from numpy.typing import NDArray

from tl_l2norm.core.resampling import Array, generator

NO_ANSWER = -1
"""In place of an answer's number, where a response gives none: it has no vote."""

_MOST_SUBSETS = 512  # of a prompt: that many are all taken, or drawn from more
_ROUNDING = 1e-12


def expected_best(values: Float[np.ndarray, " candidate"], correct: Float[np.ndarray, " candidate"], n: int) -> float:
    """Probability that the candidate with the highest value among n of them is right. Exact.

    Args:
        values: what is selected by.
        correct: 1 where right, 0 where wrong.
        n: how many of them there are to select from.

    Examples:
        >>> expected_best(np.array([3.0, 2.0, 1.0]), np.array([1.0, 0.0, 0.0]), 2)  # the first is in two pairs of three
        0.6666666666666666
    """
    total, below, found = len(values), 0, 0.0
    for value in np.unique(values):
        tied = values == value
        upto = below + int(tied.sum())
        found += (comb(upto, n) - comb(below, n)) / comb(total, n) * float(correct[tied].mean())
        below = upto
    return found


def expected_majority(answers: Int[np.ndarray, " candidate"], correct: Float[np.ndarray, " candidate"], n: int) -> float:
    """Probability that the most frequent answer among n candidates is right. Exact.

    Args:
        answers: number of each candidate's answer; `NO_ANSWER` has no vote, and is taken only where nobody has one.
        correct: 1 where right, 0 where wrong.
        n: how many vote.

    Examples:
        >>> expected_majority(np.array([0, 0, 1]), np.array([1.0, 1.0, 0.0]), 3)
        1.0
        >>> expected_majority(np.array([0, 0, 1]), np.array([1.0, 1.0, 0.0]), 2)  # two of three pairs are ties
        0.6666666666666666
    """
    voted, sizes = np.unique(answers[answers != NO_ANSWER], return_counts=True)
    silent = int((answers == NO_ANSWER).sum())
    found = comb(silent, n) * float(correct[answers == NO_ANSWER].mean()) if silent else 0.0
    for i, answer in enumerate(voted):
        others = np.delete(sizes, i)
        right = float(correct[answers == answer].mean())
        for votes in range(1, min(n, int(sizes[i])) + 1):
            ways = _fewer_or_tied(others, silent, votes, n - votes)
            shared = sum(count / (1 + ties) for ties, count in enumerate(ways))
            found += comb(int(sizes[i]), votes) * shared * right
    return found / comb(len(answers), n)


def _fewer_or_tied(sizes: Int[np.ndarray, " answer"], silent: int, votes: int, rest: int) -> list[int]:
    """[ties] in how many ways `rest` candidates are chosen so that so many answers have `votes` votes, and none more."""
    ways = {(0, 0): 1}
    for size in map(int, sizes):
        grown: dict[tuple[int, int], int] = {}
        for (taken, ties), count in ways.items():
            for own in range(min(size, votes, rest - taken) + 1):
                key = (taken + own, ties + (own == votes))
                grown[key] = grown.get(key, 0) + count * comb(size, own)
        ways = grown
    found = [0] * (len(sizes) + 1)
    for (taken, ties), count in ways.items():
        found[ties] += count * comb(silent, rest - taken)
    return found


def expected_vote(
    answers: Int[np.ndarray, " candidate"],
    correct: Float[np.ndarray, " candidate"],
    weights: Float[np.ndarray, " candidate"],
    n: int,
    *,
    keep: Float[np.ndarray, " candidate"] | None = None,
    seed: int = 0,
) -> float:
    """Probability that the answer with the largest sum of weights among n candidates is right.

    Over all subsets where there are at most 512, else over as many random ones, which depend on the candidates and not on their
    order.

    Args:
        answers: number of each candidate's answer, or `NO_ANSWER`.
        correct: 1 where right, 0 where wrong.
        weights: of the votes.
        n: how many candidates there are.
        keep: a value of each candidate, by which only the upper half of the n vote, an odd half rounded up, with all that are
            as good as the last of them; None for all.
        seed: of the subsets.

    Examples:
        >>> expected_vote(np.array([0, 0, 1]), np.array([1.0, 1.0, 0.0]), np.array([1.0, 1.0, 3.0]), 3)
        0.0
    """
    answers, correct, weights, kept = _canonical(answers, correct, weights, np.zeros(len(answers)) if keep is None else keep)
    subsets = _subsets(len(answers), n, zlib.crc32(np.stack([answers, correct, weights, kept]).tobytes()), seed)
    shares = vote_shares(answers[subsets], weights[subsets], None if keep is None else kept[subsets])
    best = shares >= shares.max(1, keepdims=True) - _ROUNDING
    return float((np.where(best, correct[subsets], 0.0).sum(1) / best.sum(1)).mean())


def _canonical(answers: NDArray[np.integer], *others: Array) -> tuple[NDArray[np.integer] | Array, ...]:
    """The candidates in an order of their own, answers numbered by it."""
    sizes = (answers[:, None] == answers[None]).sum(1)
    order = np.lexsort((sizes, *others))
    answers = answers[order]
    numbers = np.where(answers == NO_ANSWER, NO_ANSWER, (answers[:, None] == answers[None]).argmax(1))
    return (numbers.astype(np.float64), *(other[order].astype(np.float64) for other in others))


def _subsets(total: int, n: int, key: int, seed: int) -> NDArray[np.integer]:
    """[subset, candidate] which they are."""
    if comb(total, n) <= _MOST_SUBSETS:
        return np.array(list(itertools.combinations(range(total), n)))
    rng = generator((seed * 0x9E3779B1 + key * 31 + n) & ((1 << 63) - 1))
    return rng.permuted(np.tile(np.arange(total), (_MOST_SUBSETS, 1)), axis=1)[:, :n]


def vote_shares(
    answers: Num[np.ndarray, "*subset candidate"],
    weights: Float[np.ndarray, "*subset candidate"],
    keep: Float[np.ndarray, "*subset candidate"] | None = None,
) -> Float[np.ndarray, "*subset candidate"]:
    """Share of the weights that each candidate's answer has; 0 without an answer, or where it isn't kept.

    Args:
        answers: number of each candidate's answer, or `NO_ANSWER`.
        weights: of the votes.
        keep: only the upper half by this votes, and can be selected.

    Examples:
        >>> vote_shares(np.array([0, 1, 0, NO_ANSWER]), np.array([1.0, 2.0, 1.0, 4.0]))
        array([0.25, 0.25, 0.25, 0.  ])
        >>> vote_shares(np.array([0, 1, 0, 1]), np.ones(4), keep=np.array([1.0, 2.0, 3.0, 0.0]))
        array([0. , 0.5, 0.5, 0. ])
    """
    votes = answers != NO_ANSWER
    if keep is not None:
        votes = votes & (keep >= np.sort(keep, axis=-1)[..., [keep.shape[-1] // 2]])
    counted = np.where(votes, weights, 0.0)
    total = (weights if keep is None else counted).sum(-1, keepdims=True)
    sums = np.where(answers[..., :, None] == answers[..., None, :], counted[..., None, :], 0.0).sum(-1)
    shares: Array = np.where(votes, sums, 0.0) / np.where(total > 0, total, 1.0)
    return shares
