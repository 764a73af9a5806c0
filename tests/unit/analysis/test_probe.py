"""The probe learns what is there, of other problems alone."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from tl_l2norm.analysis.probe import _fit, cross_fitted
from tl_l2norm.analysis.signal_strength import auc
from tl_l2norm.core.errors import Unmeasurable


def states_of(seed: int, planted: float, n_problems: int = 24, n: int = 6, d: int = 40) -> tuple[np.ndarray, ...]:
    """Of problems that lie far apart, along a direction that has nothing to do with the planted one."""
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=d) / d**0.5
    correct = (rng.random(n_problems * n) < 0.5).astype(float)
    names = np.repeat([f"p{i:02d}" for i in range(n_problems)], n)
    states = rng.normal(size=(len(names), d)) + np.repeat(9 * rng.normal(size=(n_problems, d)), n, axis=0)
    return states + planted * np.outer(correct - 0.5, direction), correct, names


def fitted(states: np.ndarray, correct: np.ndarray, names: np.ndarray) -> np.ndarray:
    return cross_fitted(states, correct, names.tolist())


def mean_auc(scores: np.ndarray, correct: np.ndarray, names: np.ndarray) -> float:
    return float(np.nanmean([auc(scores[names == name], correct[names == name]) for name in np.unique(names)]))


def test_it_finds_a_planted_direction_and_nothing_where_nothing_is() -> None:
    states, correct, names = states_of(0, planted=6.0)
    assert mean_auc(fitted(states, correct, names), correct, names) > 0.9
    without = [mean_auc(fitted(*states_of(seed, 0.0)), *states_of(seed, 0.0)[1:]) for seed in range(6)]
    assert abs(np.mean(without) - 0.5) < 0.05  # 144 responses in 40 dimensions can be told apart by chance, if they are seen


def test_a_problems_own_labels_say_nothing_of_its_scores() -> None:
    states, correct, names = states_of(1, planted=3.0)
    scores, turned = fitted(states, correct, names), correct.copy()
    own = names == "p07"
    turned[own] = 1 - turned[own]
    again = fitted(states, turned, names)
    np.testing.assert_array_equal(scores[own], again[own])
    assert (scores[names == "p08"] != again[names == "p08"]).all()  # of another fold, which learns from it
    hidden = correct.copy()
    hidden[own] = np.nan
    assert np.isfinite(fitted(states, hidden, names)).all()


def test_order_changes_nothing() -> None:
    states, correct, names = states_of(2, planted=3.0)
    order = np.random.default_rng(0).permutation(len(names))
    np.testing.assert_allclose(
        fitted(states[order], correct[order], names[order]),
        fitted(states, correct, names)[order],
        rtol=1e-3,
        atol=1e-3,
    )


def test_a_fit_is_where_the_penalised_loss_is_least() -> None:
    rng = np.random.default_rng(4)
    states, correct = rng.normal(size=(50, 3)), (rng.random(50) < 0.7).astype(float)
    fit = _fit(states, correct, 0.1)
    residual = expit(fit(states)) - correct
    np.testing.assert_allclose(states.T @ residual / 50 + 0.1 * fit.weights, 0, atol=1e-5)
    assert residual.mean() == pytest.approx(0, abs=1e-5)


def test_it_needs_right_and_wrong_of_several_problems() -> None:
    states, correct, names = states_of(0, 1.0, n_problems=3)
    for labels in (np.ones(18), np.where(names == "p00", correct, np.nan)):
        with pytest.raises(Unmeasurable, match="learns from right and wrong responses to other problems"):
            fitted(states, labels, names)
    few = np.where(np.isin(names, ("p00", "p02")), correct, np.nan)
    assert np.isfinite(fitted(states, few, names)).all()
