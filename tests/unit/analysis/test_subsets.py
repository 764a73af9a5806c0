"""Expectations over subsets, against all subsets, selected from one by one as a reader would."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tl_l2norm.analysis.subsets import NO_ANSWER, expected_best, expected_majority, expected_vote, vote_shares

Candidate = tuple[int, int, int]  # answer (-1 is none), value, weight

candidates = st.lists(st.tuples(st.integers(-1, 3), st.integers(0, 3), st.integers(1, 4)), min_size=1, max_size=7)


def right(answer: int) -> float:
    return float(answer == 1)


def mean_of_best(subset: tuple[Candidate, ...], worth: dict[Candidate, float]) -> float:
    """Ties are shared."""
    best = [one for one in subset if worth[one] == max(worth[other] for other in subset)]
    return sum(right(one[0]) for one in best) / len(best)


def by_vote(subset: tuple[Candidate, ...], weigh: bool, halve: bool) -> float:
    voters = list(subset)
    if halve:
        least = sorted((one[1] for one in subset), reverse=True)[(len(subset) + 1) // 2 - 1]
        voters = [one for one in subset if one[1] >= least]
    votes: Counter[int] = Counter()
    for answer, _, weight in voters:
        if answer != NO_ANSWER:
            votes[answer] += weight if weigh else 1
    if not votes:
        return sum(right(one[0]) for one in subset) / len(subset)
    winners = [one for one in voters if votes.get(one[0]) == max(votes.values())]
    return sum(right(one[0]) for one in winners) / len(winners)


def arrays(given: list[Candidate]) -> tuple[np.ndarray, ...]:
    answers, values, weights = np.array(given).T
    return answers, np.array([right(a) for a in answers]), values.astype(float), weights.astype(float)


@settings(max_examples=60, deadline=None)
@given(candidates=candidates, data=st.data())
def test_expectations_are_means_over_all_subsets(candidates: list[Candidate], data: st.DataObject) -> None:
    n = data.draw(st.integers(1, len(candidates)))
    answers, correct, values, weights = arrays(candidates)
    subsets = list(itertools.combinations(candidates, n))
    best = np.mean([mean_of_best(subset, {one: one[1] for one in subset}) for subset in subsets])
    assert expected_best(values, correct, n) == pytest.approx(best)
    majority = np.mean([by_vote(subset, False, False) for subset in subsets])
    assert expected_majority(answers, correct, n) == pytest.approx(majority)
    assert expected_vote(answers, correct, np.ones(len(answers)), n) == pytest.approx(majority)
    weighed = np.mean([by_vote(subset, True, False) for subset in subsets])
    assert expected_vote(answers, correct, weights, n) == pytest.approx(weighed)
    halved = np.mean([by_vote(subset, False, True) for subset in subsets])
    assert expected_vote(answers, correct, np.ones(len(answers)), n, keep=values) == pytest.approx(halved)


def test_one_of_one_is_chance_and_all_are_sure() -> None:
    answers, correct = np.array([0, 0, 1, 2]), np.array([0.0, 0.0, 1.0, 0.0])
    assert expected_majority(answers, correct, 1) == expected_best(np.arange(4.0), correct, 1) == 0.25
    assert expected_majority(answers, correct, 4) == 0.0
    assert expected_best(np.array([1.0, 2.0, 9.0, 3.0]), correct, 4) == 1.0


def test_random_subsets_come_near_and_do_not_depend_on_the_order() -> None:
    rng = np.random.default_rng(3)
    answers, weights = rng.integers(-1, 3, 16), rng.random(16)
    correct = (answers == 1).astype(float)
    exact = expected_majority(answers, correct, 8)  # of 12,870 subsets
    drawn = expected_vote(answers, correct, np.ones(16), 8)
    assert drawn != exact and abs(drawn - exact) < 4 * 0.5 / 512**0.5
    order = rng.permutation(16)
    renamed = np.array([7, 2, 5])[answers]  # -1 takes the last of them
    renamed[answers == NO_ANSWER] = NO_ANSWER
    one = expected_vote(answers, correct, weights, 8, keep=weights, seed=5)
    assert one == expected_vote(renamed[order], correct[order], weights[order], 8, keep=weights[order], seed=5)
    assert one != expected_vote(answers, correct, weights, 8, keep=weights, seed=6)


def test_shares_of_votes() -> None:
    assert vote_shares(np.array([NO_ANSWER, NO_ANSWER]), np.ones(2)).tolist() == [0, 0]
    assert vote_shares(np.array([0, 1, 1]), np.array([3.0, 1.0, 1.0])).tolist() == [0.6, 0.4, 0.4]
    kept = vote_shares(np.array([0, 1, 1, 0, 0]), np.ones(5), np.array([5.0, 4.0, 3.0, 2.0, 1.0]))  # three of five vote
    assert kept == pytest.approx([1 / 3, 2 / 3, 2 / 3, 0, 0])
