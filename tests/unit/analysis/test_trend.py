import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import rankdata, spearmanr

from tests.planted import Array, made
from tl_l2norm.analysis.trend import level_trend

STRAIGHT = np.arange(8.0)


def growing(i: int, mode: str) -> Array:
    rng = np.random.default_rng([i, 0])
    return STRAIGHT + 10 + (rng.normal() + 0.8 * (i % 3)) * (mode == "think")


def by_given(*args: Any, part: str = "ratio", **options: Any) -> pd.DataFrame:
    """Of one part, by what is held fixed."""
    table = level_trend(*args, **options)
    return table[(table["part"] == part) & (table["layer"] == "late")].set_index("given")


def ratios(value: Callable[[int, str], Array], n: int) -> Array:
    return np.array([value(i, "think")[6:].mean() / value(i, "direct")[6:].mean() for i in range(n)])


def test_the_trend_within_one_family_is_spearmans() -> None:
    trend = by_given(*made(growing, n=20, level=lambda i: i % 3))
    expected = spearmanr(np.arange(20) % 3, ratios(growing, 20)).statistic
    assert trend.loc["nothing", "rho"] == pytest.approx(expected, abs=1e-6)
    assert trend.loc["nothing", "low"] < expected < trend.loc["nothing", "high"]
    assert (trend["levels"] == 3).all() and (trend["n"] == 20).all()


def test_the_p_value_is_that_of_all_permutations() -> None:
    """8 prompts of levels 0 and 1: 70 ways to spread them."""
    levels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    noise = np.array([0.3, -1.2, 0.8, 0.1, 1.4, 0.9, 2.2, 0.5])
    value = lambda i, mode: STRAIGHT + 10 + noise[i] * (mode == "think")  # noqa: E731
    trend = level_trend(*made(value, n=8, level=lambda i: int(levels[i])), resamples=20_000).iloc[0]
    y = rankdata(ratios(value, 8)) - 4.5

    def t(chosen: tuple[int, ...]) -> float:
        products = y * (np.isin(np.arange(8), chosen) - 0.5)
        return abs(float(products.sum() / np.sqrt((products**2).sum())))

    own = t(tuple(np.flatnonzero(levels == 1)))
    exact = np.mean([t(chosen) >= own - 1e-9 for chosen in itertools.combinations(range(8), 4)])
    assert 0.02 < exact < 0.3
    assert trend["p"] == pytest.approx(exact, abs=0.012)


def test_families_of_other_levels_and_other_norms_do_not_make_a_trend() -> None:
    """Family b is harder and louder in thinking; within each there is no trend."""
    noise = np.random.default_rng(2).normal(size=40)
    trend = level_trend(
        *made(
            lambda i, mode: STRAIGHT + 10 + (noise[i] + 9 * (i >= 20)) * (mode == "think"),
            n=40,
            family=lambda i: "ab"[i >= 20],
            level=lambda i: i % 3 + 3 * (i >= 20),
        )
    ).iloc[0]
    assert abs(trend["rho"]) < 0.3 and trend["p"] > 0.05
    plain = spearmanr(np.arange(40) >= 20, ratios(lambda i, m: STRAIGHT + 10 + (noise[i] + 9 * (i >= 20)) * (m == "think"), 40))
    assert plain.statistic > 0.8, "over all of them it would be one"


def test_families_of_unequal_size_count_by_their_prompts() -> None:
    """Ranks are shares of the family's size: otherwise the larger one would also count by its larger ranks."""
    levels, families = np.arange(18) % 3, "a" * 5 + "b" * 13
    trend = level_trend(*made(growing, n=18, family=lambda i: families[i], level=lambda i: int(levels[i]))).iloc[0]
    sides = []
    for values in (levels, ratios(growing, 18)):
        parts = [values[:5], values[5:]]
        sides.append(np.concatenate([(rankdata(x) - (len(x) + 1) / 2) / len(x) for x in parts]))
    assert trend["rho"] == pytest.approx(sides[0] @ sides[1] / np.linalg.norm(sides[0]) / np.linalg.norm(sides[1]), abs=1e-6)


def test_given_length_a_trend_that_is_lengths_goes_away() -> None:
    length = lambda i, mode: 2 + 2 * (i % 3) + (i // 3) % 4 if mode == "think" else 2  # noqa: E731
    noise = np.random.default_rng(3).normal(size=48)
    value = lambda i, mode: STRAIGHT + 50 + (3 * length(i, mode) + noise[i]) * (mode == "think")  # noqa: E731
    trend = by_given(*made(value, n=48, lengths=length, level=lambda i: i % 3))
    assert trend.loc["nothing", "rho"] > 0.5 and trend.loc["nothing", "p"] < 0.01
    assert abs(trend.loc["length", "rho"]) < 0.3 and trend.loc["length", "p"] > 0.05


def test_given_length_it_is_the_partial_correlation_of_ranks_given_powers_and_ranks_of_both_lengths() -> None:
    length = lambda i, mode: 2 + ((7 if mode == "think" else 3) * i) % 11  # noqa: E731
    trend = by_given(*made(growing, n=20, lengths=length, level=lambda i: i % 3))
    columns = [np.ones(20)]
    for mode in ("think", "direct"):
        lengths = np.array([length(i, mode) for i in range(20)])
        columns += [np.log(lengths) ** k for k in (1, 2, 3)] + [rankdata(lengths)]
    design = np.stack(columns, axis=1)
    sides = [rankdata(x) for x in (np.arange(20) % 3, ratios(growing, 20))]
    left = [y - design @ np.linalg.lstsq(design, y, rcond=None)[0] for y in sides]
    assert trend.loc["length", "rho"] == pytest.approx(np.corrcoef(*left)[0, 1], abs=1e-6)
    level = np.arange(20) % 3
    assert trend.loc["length", "tolerance"] == pytest.approx((left[0] ** 2).sum() / ((rankdata(level) - 10.5) ** 2).sum())


def test_numerator_and_denominator_stand_apart() -> None:
    """Direct answers get quieter with the level, thinking does nothing: the ratio grows."""
    noise = np.random.default_rng(4).normal(size=40)
    value = lambda i, mode: STRAIGHT + 60 + noise[i] - 6 * (i % 4) * (mode == "direct")  # noqa: E731
    traces = made(value, n=40, level=lambda i: i % 4)
    rho = {part: by_given(*traces, part=part).loc["nothing", "rho"] for part in ("ratio", "thinking", "direct")}
    assert rho["ratio"] > 0.9 and rho["direct"] < -0.9 and abs(rho["thinking"]) < 0.3


def test_where_level_follows_from_length_nothing_is_said_given_it() -> None:
    trend = by_given(*made(growing, n=20, lengths=lambda i, m: 2 + i % 3, level=lambda i: i % 3))
    assert trend.loc["length", ["rho", "low", "high", "p"]].isna().all()
    assert trend.loc["length", "tolerance"] < 1e-6
    assert np.isfinite(trend.loc["nothing", "rho"])


def test_what_can_not_be_told_is_refused() -> None:
    with pytest.raises(ValueError, match="all prompts are of one level"):
        level_trend(*made(lambda i, mode: STRAIGHT, level=lambda i: 1))
    with pytest.raises(ValueError, match="lacks the label 'level'"):
        level_trend(*made(lambda i, mode: STRAIGHT))


def test_the_order_of_prompts_only_changes_the_resampling() -> None:
    think, direct = made(growing, n=20, level=lambda i: i % 3)
    trends = [level_trend(t, direct).iloc[0] for t in (think, think[::-1])]
    assert trends[0]["rho"] == pytest.approx(trends[1]["rho"]) and trends[0]["p"] == pytest.approx(trends[1]["p"], abs=0.03)


def test_each_layer_and_the_last_block_left_out() -> None:
    """Only the last of 8 layers grows with the level."""
    noise = np.random.default_rng(5).normal(size=(24, 8))
    value = lambda i, mode: STRAIGHT + 50 + noise[i] + 9 * (i % 3) * (np.arange(8) == 7) * (mode == "think")  # noqa: E731
    table = level_trend(*made(value, n=24, level=lambda i: i % 3))
    assert list(dict.fromkeys(table["layer"])) == ["late", "late but the last", *range(8)]
    own = table[(table["part"] == "thinking") & (table["given"] == "nothing")].set_index("layer")
    for layer in range(8):
        norms = [value(i, "think")[layer] for i in range(24)]
        assert own.loc[layer, "rho"] == pytest.approx(spearmanr(np.arange(24) % 3, norms).statistic, abs=1e-6)
    assert own.loc["late but the last", "rho"] == own.loc[6, "rho"] and own.loc["late", "rho"] > 0.9
    assert (own["p_max"] >= own["p"]).all() and own.loc[7, "p_max"] < 0.01 < own.loc[6, "p_max"]
