"""Paired statistics against statsmodels, scipy, enumeration and simulation."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom, binomtest, permutation_test
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests

from tl_l2norm.analysis.paired import (
    DEALT,
    MCNEMAR,
    RANDOM_CHOICE,
    SIGN_FLIPS,
    compare,
    dealt_anew,
    exact_p_loss,
    mcnemar,
    mcnemar_power,
    random_choice,
    smallest_difference,
)
from tl_l2norm.analysis.response_worth import worth
from tl_l2norm.core.errors import InputError, Unmeasurable
from tl_l2norm.core.holm import holm


def arms(both: int, better: int, worse: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    own = np.repeat([1.0, 1.0, 0.0, 0.0], [both, better, worse, neither])
    return own, np.repeat([1.0, 0.0, 1.0, 0.0], [both, better, worse, neither])


@pytest.mark.parametrize("table", [(20, 9, 2, 9), (0, 1, 0, 0), (5, 0, 0, 5), (3, 6, 6, 1), (30, 1, 14, 5)])
def test_mcnemar_is_that_of_statsmodels(table: tuple[int, int, int, int]) -> None:
    both, better, worse, neither = table
    one = compare(*arms(*table))
    theirs = statsmodels_mcnemar([[both, better], [worse, neither]], exact=True)
    assert one.p == pytest.approx(theirs.pvalue) and one.test == MCNEMAR
    assert (one.better, one.worse) == (better, worse)
    assert one.difference.mean == pytest.approx((better - worse) / sum(table)) and one.difference.n == sum(table)
    assert one.difference.low < one.difference.mean <= one.difference.high
    assert compare(*reversed(arms(*table))).p == one.p


def test_shares_are_compared_by_the_signs_of_problems() -> None:
    rng = np.random.default_rng(0)
    own, other = rng.integers(0, 5, size=(2, 9)) / 4
    theirs = permutation_test((own, other), lambda x, y: (x - y).mean(), permutation_type="samples", n_resamples=np.inf)
    one = compare(own, other)
    assert one.p == pytest.approx(theirs.pvalue) and one.test == SIGN_FLIPS
    assert (one.better, one.worse) == ((own > other).sum(), (own < other).sum())
    assert one.difference.low < one.difference.mean < one.difference.high


def test_mcnemar_is_what_sign_flips_of_single_responses_are() -> None:
    own, other = arms(4, 6, 1, 3)
    theirs = permutation_test((own, other), lambda x, y: (x - y).mean(), permutation_type="samples", n_resamples=np.inf)
    assert compare(own, other).p == pytest.approx(theirs.pvalue)


def test_a_choice_is_judged_by_all_choices_that_chance_could_make() -> None:
    shares = np.array([0.25, 0.5, 0.75, 0.75, 0.5, 1.0, 0.0])
    chosen = np.array([1.0, 1, 1, 1, 0, 1, 0])
    weights = {}
    for right in itertools.product([0, 1], repeat=len(shares)):
        chance = np.prod(np.where(right, shares, 1 - shares))
        weights[sum(right)] = weights.get(sum(right), 0) + chance
    upper, lower = (sum(w for k, w in weights.items() if keep(k)) for keep in (lambda k: k >= 5, lambda k: k <= 5))
    assert random_choice(chosen, shares) == pytest.approx(2 * min(upper, lower))
    assert compare(chosen, shares, chosen=True).test == RANDOM_CHOICE
    assert random_choice(np.ones(7), np.full(7, 0.5)) == pytest.approx(binomtest(7, 7).pvalue)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, float("nan")]).tolist()[:3] == pytest.approx([0.03, 0.06, 0.06])
    assert np.isnan(holm([float("nan")])).all() and holm([]).tolist() == []


def test_holm_is_that_of_statsmodels() -> None:
    p = np.random.default_rng(2).random(12) ** 3
    assert holm(p.tolist()) == pytest.approx(multipletests(p, method="holm")[1])


def test_power_is_how_often_the_test_refuses() -> None:
    n, discordance, difference, rng = 60, 0.3, 0.2, np.random.default_rng(1)
    differing = rng.binomial(n, discordance, size=20_000)
    better = rng.binomial(differing, (discordance + difference) / (2 * discordance))
    p = {pair: mcnemar(pair[0], pair[1] - pair[0]) for pair in set(zip(better.tolist(), differing.tolist(), strict=True))}
    refused = np.mean([p[pair] <= 0.05 and 2 * pair[0] > pair[1] for pair in zip(better, differing, strict=True)])
    assert mcnemar_power(n, discordance, difference) == pytest.approx(refused, abs=0.01)


@pytest.mark.parametrize("tests", [1, 4])
def test_the_smallest_difference_has_the_power(tests: int) -> None:
    least = smallest_difference(150, discordance=0.2, tests=tests)
    assert mcnemar_power(150, 0.2, least, alpha=0.05 / tests) == pytest.approx(0.8, abs=1e-6)
    assert least < smallest_difference(100, discordance=0.2, tests=tests)
    assert least < smallest_difference(150, discordance=0.2, tests=tests + 1)
    assert smallest_difference(30, discordance=0.05) > 0.05  # arms that never differ the other way
    assert np.isnan(smallest_difference(5, discordance=0.5))


def test_what_can_not_be_compared_is_refused() -> None:
    with pytest.raises(InputError, match="same problems"):
        compare(np.ones(3), np.ones(4))
    with pytest.raises(InputError, match="between 0 and 1"):
        compare(np.array([2.0]), np.ones(1))
    with pytest.raises(Unmeasurable, match="no problems"):
        compare(np.ones(0), np.ones(0))
    with pytest.raises(InputError, match="one of the problem's responses"):
        random_choice(np.ones(2), np.array([0.0, 0.5]))
    with pytest.raises(InputError, match="that arms never differ"):
        smallest_difference(10, discordance=0.0)
    with pytest.raises(InputError, match="at most the share"):
        mcnemar_power(10, 0.1, 0.2)


def test_one_response_beside_several_is_not_called_better_for_being_mostly_right() -> None:
    """20 problems, 93% right in both arms: no loss in a run in four, and the signs of the gains say nothing."""
    rng, refused, missed, flipped = np.random.default_rng(8), 0, 0, 0
    for _ in range(200):
        own, several = rng.random(20) < 0.93, rng.random((20, 8)) < 0.93
        for turned in (False, True):
            pair = (own.astype(float), several.mean(1))
            one = compare(*(pair[::-1] if turned else pair), responses=(8, 1) if turned else (1, 8), resamples=199)
            refused += one.p <= 0.05
            missed += not one.difference.low <= 0 <= one.difference.high
        flipped += compare(*pair, resamples=199).p <= 0.05
    assert refused <= 0.07 * 400 and missed <= 0.07 * 400 and flipped > 0.14 * 200


def several(rng: np.random.Generator, p: Any, k: int) -> Any:
    return (rng.random((len(p), k)) < np.asarray(p)[:, None]).mean(1)


@pytest.mark.parametrize(
    ("own", "counts", "n", "right"),
    [
        ("copies", (8, 8), 20, 0.93),
        ("copies", (4, 8), 20, 0.93),
        ("copies", (8, 4), 20, 0.07),
        ("mostly", (8, 8), 20, 0.93),
        ("free", (2, 8), 12, 0.95),
        ("free", (2, 8), 40, 0.98),
        ("free", (3, 32), 12, 0.95),
        ("free", (8, 8), 20, 0.6),
    ],
)
def test_where_nothing_differs_but_how_responses_agree_no_arm_is_called_better(
    own: str, counts: tuple[int, int], n: int, right: float
) -> None:
    """Eight responses at a temperature near 0 are one, eight times, and few problems without a loss don't say there is none."""
    refused = missed = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        chances = {"copies": rng.random(n) < right, "mostly": rng.beta(0.3 * right, 0.3 * (1 - right), n)}
        pair = several(rng, chances.get(own, np.full(n, right)), counts[0]), several(rng, np.full(n, right), counts[1])
        one = compare(*pair, responses=counts, seed=seed, resamples=199)
        refused += one.p <= 0.05
        missed += not one.difference.low <= 1e-12 or not one.difference.high >= -1e-12
    assert refused <= 0.07 * 200 and missed <= 0.07 * 200


@pytest.mark.parametrize(("n", "margin"), [(42, 0.1), (100, 0.05), (42, 0.3)])
def test_a_loss_as_large_as_the_margin_is_excluded_no_more_often_than_its_p_says(n: int, margin: float) -> None:
    """Whatever the level: nothing is gained, and losses are binomial."""
    losses = np.arange(n + 1)
    p = np.array([exact_p_loss(0, int(k), n, margin) for k in losses])
    assert (np.diff(p) >= -1e-12).all() and p[0] > (1 - margin) ** n
    for level in (0.05, 0.01, 0.05 / 12, 0.001):
        assert binom.pmf(losses, n, margin)[p <= level].sum() <= level
    assert exact_p_loss(0, 0, 400, margin) < 0.001
    assert exact_p_loss(30, 30, 400, margin) < 0.05 or margin < 0.06


def test_responses_are_worth_what_their_agreement_leaves() -> None:
    rng = np.random.default_rng(0)
    free, copies = several(rng, np.full(4000, 0.6), 8), several(rng, rng.random(4000) < 0.6, 8)
    assert [int(counts[0]) for counts in worth(copies, free, (8, 8))] == [1, 8]
    halves = several(rng, rng.beta(0.6, 0.4, 4000), 8)  # any two of a problem agree by a half more: 8 / (1 + 7 / 2) = 1.8
    assert int(worth(halves, free, (8, 8))[0][0]) == 1 and int(worth(halves, halves, (8, 8))[0][0]) in (7, 8)
    assert worth(np.ones(3), np.zeros(3), (1, 1))[0].tolist() == [1, 1, 1]


def test_an_effect_is_found_as_before_where_responses_differ_freely() -> None:
    found = 0
    for seed in range(50):
        rng = np.random.default_rng(seed)
        p = rng.beta(1.5, 1.0, 100)
        found += compare(several(rng, np.minimum(1, p + 0.1), 8), several(rng, p, 8), responses=(8, 8), resamples=199).p <= 0.05
    assert found >= 45


def test_responses_that_are_dealt_anew_are_those_of_enumeration() -> None:
    own, several = np.array([1.0, 1.0, 0.0, 1.0]), np.array([[0, 1, 0], [0, 0, 0], [0, 0, 0], [1, 1, 0]], dtype=float)
    pools = np.column_stack([own, several])
    sums = [sum(pools[i, j] for i, j in enumerate(which)) for which in itertools.product(range(4), repeat=4)]
    upper, lower = np.mean(np.array(sums) >= 3), np.mean(np.array(sums) <= 3)
    found = dealt_anew(own, several.mean(1), (1, 3), draws=40_000)
    assert found == pytest.approx(2 * min(upper, lower), abs=0.01)
    assert dealt_anew(several.mean(1), own, (3, 1), draws=40_000) == pytest.approx(found, abs=0.01)
    told = compare(own, several.mean(1), responses=(1, 3))
    assert told.test == DEALT and told.p >= compare(own, several.mean(1)).p
