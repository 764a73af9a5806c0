import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm, t

from tl_l2norm.analysis.accuracy import wilson_interval
from tl_l2norm.core.resampling import bootstrap, bootstrap_mean, estimate, interval, prompt_weights, tails


def test_the_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(400):
        estimated = estimate(rng.normal(3, 1, size=40), seed=trial, resamples=400)
        hits += estimated.low <= 3 <= estimated.high
    assert 0.90 <= hits / 400 <= 0.98  # nominal 0.95; the percentile bootstrap is a little short at n = 40


def test_missing_values_are_left_out_and_counted_out() -> None:
    estimated = estimate(np.array([1.0, np.nan, 3.0, np.nan]))
    assert (estimated.mean, estimated.n) == (2.0, 2)


def test_each_column_is_its_own_mean() -> None:
    mean, low, high = bootstrap_mean(np.array([[1.0, 10.0], [3.0, 10.0], [np.nan, 10.0]]))
    assert mean.tolist() == [2.0, 10.0]
    assert low[1] == high[1] == 10.0
    assert 1 <= low[0] <= 2 <= high[0] <= 3


def test_one_prompt_has_no_interval() -> None:
    estimated = estimate(np.array([4.0]))
    assert estimated.mean == 4.0 and np.isnan(estimated.low) and not estimated.excludes_zero


def test_wilson_against_published_values() -> None:
    # Newcombe (1998), Statistics in Medicine 17, table I, method 3 (score without continuity correction)
    for successes, n, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("n", [2, 8, 24, 1000])
def test_the_tails_are_hesterbergs(n: int) -> None:
    # "What Teachers Should Know About the Bootstrap" (2015): Phi(-sqrt(n / (n - 1)) t(alpha / 2, n - 1)) instead of alpha / 2
    low, high = tails(n)
    assert low == pytest.approx(norm.cdf(-np.sqrt(n / (n - 1)) * t.isf(0.025, n - 1)))
    assert low + high == 1


def test_with_many_prompts_the_tails_are_the_plain_ones() -> None:
    assert tails(100_000)[0] == pytest.approx(0.025, abs=1e-5)
    assert tails(8)[0] == pytest.approx(0.00574, abs=2e-5)


def test_the_mean_of_a_column_is_a_statistic_like_any_other() -> None:
    values = np.random.default_rng(0).normal(size=20)
    estimated, same = bootstrap(values, lambda means: means, seed=3), estimate(values, seed=3)
    assert (estimated.mean, estimated.n) == (pytest.approx(same.mean), same.n)
    assert (estimated.low, estimated.high) == (pytest.approx(same.low), pytest.approx(same.high))
    log = bootstrap(np.exp(values), np.log, seed=3)
    plain = estimate(np.exp(values), seed=3)
    assert log.low == pytest.approx(np.log(plain.low), abs=0.01), "a monotone statistic keeps the quantiles"


def test_the_resamples_are_a_plain_loop_over_drawn_prompts() -> None:
    values = np.random.default_rng(1).normal(size=9)
    rng = np.random.default_rng(2)
    draws = [rng.choice(values, 9).mean() for _ in range(20_000)]
    low, high = np.quantile(draws, tails(9))
    estimated = estimate(values, resamples=20_000)
    assert (estimated.low, estimated.high) == (pytest.approx(low, abs=0.05), pytest.approx(high, abs=0.05))


def test_every_resample_draws_as_many_prompts_as_there_are() -> None:
    weights = prompt_weights(7, resamples=50)
    assert weights.shape == (50, 7) and (weights.sum(1) == 7).all() and (weights >= 0).all()
    assert (prompt_weights(7, seed=0, resamples=50) == weights).all()
    assert (prompt_weights(7, seed=1, resamples=50) != weights).any()


def test_a_statistic_that_a_tenth_of_the_resamples_lack_has_no_interval() -> None:
    draws = np.arange(100.0)
    draws[:11] = np.nan
    assert np.isnan(interval(1.0, draws, 20).low)
    draws[0] = 0.0
    estimated = interval(1.0, draws, 20)
    known = np.sort(draws[~np.isnan(draws)])  # the k-th of m stands for the quantile k / (m + 1)
    at = np.interp(np.array(tails(20)) * (len(known) + 1), np.arange(1, len(known) + 1), known)
    assert (estimated.low, estimated.high) == pytest.approx(tuple(at))


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=12), st.floats(0.1, 10), st.floats(-50, 50))
def test_the_interval_moves_and_stretches_with_the_values(values: list[float], scale: float, shift: float) -> None:
    x = np.array(values)
    estimated, moved = (estimate(v, resamples=100) for v in (x, scale * x + shift))
    for name in ("mean", "low", "high"):
        assert getattr(moved, name) == pytest.approx(scale * getattr(estimated, name) + shift, abs=1e-8)


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=12))
def test_the_interval_lies_within_the_values(values: list[float]) -> None:
    estimated = estimate(np.array(values), resamples=400)
    assert min(values) - 1e-9 <= estimated.low <= estimated.high <= max(values) + 1e-9
