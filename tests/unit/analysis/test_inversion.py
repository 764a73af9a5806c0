"""Against a test whose interval is known, and one that loses its power far out."""

from __future__ import annotations

import numpy as np

from tl_l2norm.analysis.inversion import VALUES, evidence, lower_end, upper_end

ESTIMATE, ERROR, CRITICAL = np.array([0.7, -3.0, 0.1, 30.0]), np.array([0.2, 2.0, 0.05, 2.0]), np.array([2.0, 1.5, 2.5, 2.0])


def walds(at: np.ndarray) -> np.ndarray:
    return np.asarray((ESTIMATE - at) / ERROR)


def fading(at: np.ndarray) -> np.ndarray:
    """As Wald's, but of a value that is 3 or more below 0 nothing is said."""
    return np.asarray(np.where(at <= -3, 0.3, walds(at)))


def test_of_a_wald_test_the_interval_and_the_evidence_are_walds() -> None:
    t = walds(VALUES[:, None])
    np.testing.assert_allclose(lower_end(walds, t, ESTIMATE, CRITICAL), ESTIMATE - CRITICAL * ERROR, atol=1e-3)
    upper = ESTIMATE + CRITICAL * ERROR
    np.testing.assert_allclose(upper_end(walds, t, ESTIMATE, CRITICAL), np.where(upper > 16, np.inf, upper), atol=1e-3)
    np.testing.assert_allclose(evidence(t, ESTIMATE), np.abs(ESTIMATE) / ERROR)


def test_a_value_far_beyond_0_that_passes_is_in_the_interval_and_speaks_against_what_is_said_of_0() -> None:
    t = fading(VALUES[:, None])
    low, high = (end(fading, t, ESTIMATE, CRITICAL) for end in (lower_end, upper_end))
    assert (low == -np.inf).all()
    np.testing.assert_allclose(evidence(t, ESTIMATE), [0.3, 1.5, 0.3, 0.3])
    outside = (low > 0) | (high < 0)
    assert (outside == (evidence(t, ESTIMATE) > CRITICAL)).all()


def test_evidence_against_the_estimate_is_none() -> None:
    assert (evidence(-np.ones((len(VALUES), 1)), np.array([2.0])) == 0).all()
