"""Tables of selecting, against scipy and statsmodels and tables made by hand; and how often they err where nothing is there."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest, mannwhitneyu
from scipy.stats import spearmanr as scipy_spearman
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from tests.slow import slow
from tl_l2norm.analysis.selecting import (
    Rule,
    Sampled,
    Selected,
    accuracies,
    chance_p,
    curve_table,
    difference_table,
    in_order,
    paired_p,
    selected,
    strength_table,
)
from tl_l2norm.analysis.signal_strength import auc, length_strata, spearman
from tl_l2norm.core.errors import Unmeasurable
from tl_l2norm.core.holm import holm
from tl_l2norm.core.resampling import estimate

BEST, RANDOM, MAJORITY = Rule(), Rule(at_random=True), Rule(votes=True)


def sampled(correct: list[float], answers: list[int], lengths: list[float] | None = None, **values: list[float]) -> Sampled:
    return Sampled(
        correct=np.array(correct, dtype=float),
        answers=np.array(answers),
        lengths=np.array(lengths or [10.0] * len(correct), dtype=float),
        values={name: np.array(own, dtype=float) for name, own in values.items()},
    )


def simulated(seed: int, n_problems: int = 30, n: int = 6, rate: float = 0.5, planted: float = 0.0) -> list[Sampled]:
    """Correctness by chance, problems unlike in difficulty; scores that know nothing of it but `norm` where it is planted, and
    one that is the length."""
    rng, found = np.random.default_rng(seed), []
    for p in rng.beta(4 * rate, 4 * (1 - rate), n_problems):
        correct = (rng.random(n) < p).astype(float)
        lengths = rng.integers(20, 60, n).astype(float)
        noise = {f"noise {i}": rng.normal(size=n) for i in range(3)}
        values = {"norm": rng.normal(size=n) + planted * correct, "length": lengths, "random": np.zeros(n), **noise}
        values["majority"] = rng.integers(0, 3, n).astype(float)  # where it isn't voted: chance, with ties
        answers = np.where(correct > 0, 0, rng.integers(1, 4, n))
        found.append(Sampled(correct=correct, answers=answers, lengths=lengths, values=values))
    return in_order(found)


RULES = {"norm": BEST, "length": BEST, "noise 0": BEST, "noise 1": BEST, "noise 2": BEST, "random": RANDOM}


def better(problems: list[Sampled], *, at_length: bool = False, reference: str = "random", **rules: Rule) -> set[str]:
    chosen = RULES | rules
    table = difference_table(selected(problems, chosen, 0, at_length=at_length), list(chosen), seed=0)
    own = table[table["reference"] == reference]
    return set(own.loc[(own["p_holm"] <= 0.05) & (own["difference"] > 0), "score"])


def given(accuracy: np.ndarray) -> Selected:
    """Of problems as they are, half of whose responses are right."""
    n = len(accuracy)
    return Selected(accuracy=accuracy, weights=np.ones(n), problem=np.arange(n), shares=np.full(n, 0.5))


# What they are


def test_a_curve_by_hand() -> None:
    problems = [
        sampled([1, 0, 0], [0, 1, 1], a=[3, 2, 1], random=[0, 0, 0]),
        sampled([0, 1, 1], [0, 1, 1], a=[3, 2, 1], random=[0] * 3),
    ]
    rules = {"a": BEST, "random": RANDOM, "majority": MAJORITY}
    found = accuracies(problems, rules, [1, 2, 3], 0)
    # the first is the best of two pairs of three, the second of the third; two of three pairs of votes are ties
    expected = [[[1 / 3, 2 / 3, 1], [1 / 3] * 3, [1 / 3, 1 / 3, 0]], [[2 / 3, 1 / 3, 0], [2 / 3] * 3, [2 / 3, 2 / 3, 1]]]
    np.testing.assert_allclose(found, expected)
    table = curve_table(found, list(rules), [1, 2, 3], 0).set_index(["score", "n"])
    assert table.loc[("a", 2), "accuracy"] == pytest.approx(0.5) and table.loc[("majority", 3), "problems"] == 2
    one = estimate(found[:, 0, 2])
    assert tuple(table.loc[("a", 3), ["accuracy", "low", "high"]]) == pytest.approx((one.mean, one.low, one.high))


def test_differences_are_paired_by_problem() -> None:
    """Accuracies that differ wildly between problems, and by a little and always within them."""
    base = np.repeat([0.0, 0.9], 10)
    found = np.stack([base + 0.1, base, base], axis=1)
    table = difference_table(given(found), ["a", "random", "majority"], seed=0).set_index(["reference", "score"])
    for reference in ("random", "majority"):
        entry = table.loc[(reference, "a")]
        assert entry["difference"] == pytest.approx(0.1) and entry["low"] == pytest.approx(0.1) == entry["high"]
        assert entry["problems"] == 20
    assert table.loc[("majority", "random"), "p"] == table.loc[("random", "majority"), "p"]
    assert ("random", "random") not in table.index


def test_the_oracle_is_measured_and_not_tested() -> None:
    found = np.stack([np.ones(9), np.full(9, 0.25), np.full(9, 0.5)], axis=1)
    table = difference_table(given(found), ["oracle", "a", "random"], seed=0).set_index("score")
    assert table.loc["oracle", "difference"] == 0.5 and np.isnan(table.loc["oracle", ["p", "p_holm"]].astype(float)).all()
    assert table.loc["a", "p"] == table.loc["a", "p_holm"]  # it is the one that is tested


def test_chance_is_binomial_where_shares_are_equal_and_unequal_weights_count() -> None:
    for right in (3, 9, 12):
        expected = binomtest(right, 12, 0.5).pvalue  # symmetric: twice a tail
        assert chance_p(np.array([float(right)]), np.ones(12), np.full(12, 0.5))[0] == pytest.approx(expected, abs=0.02)
    certain = chance_p(np.array([7.0]), np.ones(7), np.ones(7))
    assert certain.tolist() == [1.0]
    one_of_two = chance_p(np.array([0.75, 0.25]), np.array([0.75, 0.25]), np.array([0.5, 0.5]))
    assert one_of_two == pytest.approx([1.0, 1.0], abs=0.05)  # 0.75 or more in half of all cases


@pytest.mark.parametrize(("more", "less", "same"), [(9, 2, 20), (5, 0, 3), (0, 7, 0), (4, 4, 1)])
def test_where_problems_are_right_or_wrong_it_is_mcnemars_exact_test(more: int, less: int, same: int) -> None:
    pairs = [[1.0, 0.0]] * more + [[0.0, 1.0]] * less + [[1.0, 1.0]] * same
    expected = mcnemar([[same, more], [less, 0]], exact=True).pvalue
    assert paired_p(given(np.array(pairs)), 0, 1) == paired_p(given(np.array(pairs)), 1, 0) == pytest.approx(expected)
    assert paired_p(given(np.zeros((4, 2))), 0, 1) == 1


def test_shared_problems_are_drawn_and_strata_flip_with_their_problem() -> None:
    ties = np.array([[1.0, 0.0]] * 6 + [[0.5, 0.0]] * 2)  # 6, 7 or 8 of no others
    expected = 2 * (0.25 * 2**-6 + 0.5 * 2**-7 + 0.25 * 2**-8)
    assert paired_p(given(ties), 0, 1) == pytest.approx(expected, rel=0.1)
    halves = Selected(
        accuracy=np.array([[1.0, 0.0]] * 16),
        weights=np.full(16, 0.5),
        problem=np.repeat(np.arange(8), 2),
        shares=np.full(16, 0.5),
    )
    assert paired_p(halves, 0, 1) == 2 / 2**8  # eight problems, not sixteen strata
    assert halves.by_problem(halves.accuracy).tolist() == [[1.0, 0.0]] * 8


def test_holms_correction_is_statsmodels() -> None:
    p = np.random.default_rng(0).random(12) ** 4
    np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1])
    gaps = np.array([0.5, np.nan, 0.001, 0.5, np.nan])
    np.testing.assert_allclose(holm(gaps), [1.0, np.nan, 0.003, 1.0, np.nan])


def test_auc_and_rank_correlation_are_scipys() -> None:
    rng = np.random.default_rng(1)
    for n in (2, 5, 40):
        values, correct = rng.integers(0, 6, n).astype(float), np.arange(n) % 2 * 1.0
        u = mannwhitneyu(values[correct == 1], values[correct == 0]).statistic
        assert auc(values, correct) == pytest.approx(u / ((correct == 1).sum() * (correct == 0).sum()))
        if n > 2:
            assert spearman(values, correct) == pytest.approx(scipy_spearman(values, correct).statistic)
    assert np.isnan(auc(values, np.ones(40))) and np.isnan(spearman(values, np.ones(40)))


def test_strata_hold_like_lengths_and_pairs_stay_inside() -> None:
    lengths = np.array([100, 51, 50, 110, 111, 55.0])
    assert length_strata(lengths).tolist() == [1, 0, 0, 1, 2, 0]
    correct, values = np.array([1, 0, 1, 0, 1, 0.0]), np.array([5, 1, 0, 9, 0, 0.0])
    # inside: 100 against 110 lost, 50 against 51 lost and against 55 tied
    assert auc(values, correct, length_strata(lengths)) == pytest.approx(0.5 / 3)
    assert np.isnan(auc(values[3:], correct[3:], length_strata(lengths[3:]) * 0 + np.arange(3)))


def test_at_length_one_is_selected_in_each_stratum_by_its_size() -> None:
    problem = sampled([1, 0, 1, 0, 0, 1], [0, 1, 0, 2, 2, 0], [50, 50, 50, 90, 90, 200], a=[1, 2, 3, 1, 2, 9], random=[0] * 6)
    found = selected([problem], {"a": BEST, "random": RANDOM, "majority": MAJORITY}, 0, at_length=True)
    # strata of 3 and 2: a takes a right one of three, a wrong one of two; the last is alone
    np.testing.assert_allclose(found.accuracy, [[1, 2 / 3, 1], [0, 0, 0]])
    np.testing.assert_allclose(found.by_problem(found.accuracy), [[3 / 5, 2 / 5, 3 / 5]])
    assert found.weights.tolist() == [3 / 5, 2 / 5] and found.shares == pytest.approx([2 / 3, 0])
    alone = sampled([1, 0], [0, 1], [10, 90], a=[1, 2], random=[0, 0])
    with pytest.raises(Unmeasurable, match="no two responses to one problem are of like length"):
        selected([alone], {"a": BEST}, 0, at_length=True)


def test_what_scores_say_is_a_mean_over_problems() -> None:
    problems = [
        sampled([1, 0, 0], [0, 1, 1], [30, 20, 10], a=[3, 2, 1]),
        sampled([0, 1, 1], [0, 1, 1], [30, 20, 10], a=[3, 2, 1]),
        sampled([1, 1, 1], [0, 0, 0], [30, 10, 20], a=[3, 2, 1]),
    ]
    entry = strength_table(problems, ["a"], 0).iloc[0]
    assert entry["auc"] == 0.5 and entry["problems_auc"] == 2 and entry["problems_at_length"] == 0
    assert entry["rho_correct"] == pytest.approx(0) and entry["rho_length"] == pytest.approx((1 + 1 + 0.5) / 3)
    assert np.isnan(entry["auc_at_length"])


# Laws


def test_order_of_samples_and_problems_changes_nothing() -> None:
    rules = RULES | {"majority": MAJORITY, "vote": Rule(votes=True, weights="length"), "half": Rule(votes=True, keep="norm")}
    problems = simulated(5, n_problems=9, n=7)

    def tables(given: list[Sampled]) -> list[pd.DataFrame]:
        own = in_order(given)
        found = accuracies(own, rules, [1, 3, 7], 4)
        return [
            curve_table(found, list(rules), [1, 3, 7], 4),
            difference_table(selected(own, rules, 4), list(rules), 4),
            difference_table(selected(own, rules, 4, at_length=True), list(rules), 4),
            strength_table(own, list(RULES), 4),
        ]

    rng = np.random.default_rng(0)
    shuffled = [problems[i].part(rng.permutation(7)) for i in rng.permutation(9)]
    for one, other in zip(tables(problems), tables(shuffled), strict=True):
        pd.testing.assert_frame_equal(one, other, rtol=1e-9)


def test_a_planted_verifier_that_rewards_high_norms_wins() -> None:
    problems = simulated(0, planted=2.0)
    assert better(problems) == {"norm"}
    assert "norm" in better(problems, at_length=True)
    strengths = strength_table(problems, list(RULES), 0).set_index("score")
    assert strengths.loc["norm", "auc_low"] > 0.8 and strengths.loc["norm", "auc_at_length_low"] > 0.7
    assert strengths.loc["noise 0", "auc_low"] < 0.5 < strengths.loc["noise 0", "auc_high"]


@pytest.mark.parametrize("rate", [slow(0.5), 0.9])
def test_with_random_correctness_no_score_is_called_better_in_over_7_percent(rate: float) -> None:
    """Of 200 data sets, each with a family of scores, against random and against another that is chance, with ties. At 0.9
    differences are skewed: tests that take them for symmetric err in 12%."""
    rules, wrong = RULES | {"majority": BEST}, []
    for seed in range(200):
        table = difference_table(selected(simulated(seed, rate=rate), rules, 0), list(rules), seed=0)
        called = (table["p_holm"] <= 0.05) & (table["difference"] > 0)
        wrong.append([bool(called[table["reference"] == reference].any()) for reference in ("random", "majority")])
    assert (np.mean(wrong, axis=0) <= 0.07).all() and np.any(wrong)


def test_a_score_that_is_the_length_vanishes_within_strata() -> None:
    """Long responses are right more often; a norm that grows with length says no more than that."""
    rng, problems = np.random.default_rng(2), []
    for _ in range(60):
        lengths = rng.choice([20.0, 40.0, 80.0], 8)
        correct = (rng.random(8) < np.log2(lengths / 10) / 4).astype(float)
        values = {
            "norm": lengths * 3.0,
            "length": lengths,
            "random": np.zeros(8),
            **{f"noise {i}": rng.random(8) for i in range(3)},
        }
        problems.append(Sampled(correct=correct, answers=np.where(correct > 0, 0, 1), lengths=lengths, values=values))
    assert {"norm", "length"} <= better(problems)
    assert better(problems, at_length=True) == set()
    strengths = strength_table(problems, ["norm"], 0).iloc[0]
    assert strengths["auc_low"] > 0.55 and strengths["auc_at_length"] == 0.5
    found = selected(problems, {"norm": BEST, "random": RANDOM}, 0, at_length=True).accuracy
    np.testing.assert_allclose(found[:, 0], found[:, 1])


def test_more_samples_with_a_majority_beat_one_within_strata_too() -> None:
    """Right answers agree and wrong ones don't, whatever the length: the control that a norm score has to beat."""
    problems = simulated(8, n_problems=150, n=16, rate=0.6)
    assert better(problems, at_length=True, majority=MAJORITY) == {"majority"}
    found = selected(problems, RULES | {"majority": MAJORITY}, 0, at_length=True)
    table = difference_table(found, [*RULES, "majority"], 0)
    norm = table[(table["score"] == "norm") & (table["reference"] == "majority")].iloc[0]
    assert norm["high"] < 0 and norm["p_holm"] < 0.05


def test_pairs_of_scores_differ_as_their_accuracies_do() -> None:
    problems = simulated(3, n=8)
    one = selected(problems, RULES | {"majority": MAJORITY}, 0)
    found = one.accuracy
    np.testing.assert_allclose(found, accuracies(problems, RULES | {"majority": MAJORITY}, [8], 0)[:, :, 0])
    table = difference_table(one, [*RULES, "majority"], 0).set_index(["reference", "score"])["difference"]
    for (i, one), (j, other) in itertools.permutations(enumerate([*RULES, "majority"]), 2):
        if one in ("random", "majority"):
            assert table[(one, other)] == pytest.approx(found[:, j].mean() - found[:, i].mean())
