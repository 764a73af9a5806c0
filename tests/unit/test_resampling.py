import numpy as np
import pytest

from tl_l2norm.analysis.accuracy import wilson_interval
from tl_l2norm.analysis.resampling import bootstrap_mean, estimate


def test_the_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(400):
        found = estimate(rng.normal(3, 1, size=40), seed=trial, resamples=400)
        hits += found.low <= 3 <= found.high
    assert 0.90 <= hits / 400 <= 0.98  # nominal 0.95; the percentile bootstrap is a little short at n = 40


def test_missing_values_are_left_out_and_counted_out() -> None:
    found = estimate(np.array([1.0, np.nan, 3.0, np.nan]))
    assert (found.mean, found.n) == (2.0, 2)


def test_each_column_is_its_own_mean() -> None:
    mean, low, high = bootstrap_mean(np.array([[1.0, 10.0], [3.0, 10.0], [np.nan, 10.0]]))
    assert mean.tolist() == [2.0, 10.0]
    assert low[1] == high[1] == 10.0
    assert 1 <= low[0] <= 2 <= high[0] <= 3


def test_one_prompt_has_no_interval() -> None:
    found = estimate(np.array([4.0]))
    assert found.mean == 4.0 and np.isnan(found.low) and not found.excludes_zero


def test_wilson_against_published_values() -> None:
    # Newcombe (1998), Statistics in Medicine 17, table I, method 3 (score without continuity correction)
    for successes, n, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)
