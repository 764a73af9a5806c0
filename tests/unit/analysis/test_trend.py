import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import rankdata, spearmanr

from tests.planted import Array, both_modes, made, response
from tl_l2norm.analysis.trend import level_trend
from tl_l2norm.core.errors import InputError, Unmeasurable
from tl_l2norm.core.trace import Trace

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


def behind(before: Callable[[int], int], norms: Callable[[int, Array], Array], n: int = 48) -> tuple[list[Trace], list[Trace]]:
    """Thinking norms `norms(prompt, positions)` behind prompts of `before(prompt)` tokens; direct ones are 100."""
    rng = np.random.default_rng(6)

    def make(i: int, mode: str) -> Trace:
        at = before(i) + np.arange(20)
        own = 100 + (norms(i, at) + rng.normal()) * (mode == "think") + 0.1 * rng.normal(size=(4, 20))
        return response(
            own, prompt=str(i), mode=mode, prompt_len=before(i), tokens=rng.integers(0, 3, 20), labels={"level": i % 3}
        )

    return both_modes(n, make)


def test_given_length_what_is_the_length_of_the_prompts_goes_away() -> None:
    """Harder problems are longer by 10 tokens of 20 to 70, and norms grow with the position."""
    before = lambda i: 20 + 10 * (i % 3) + 7 * i % 31  # noqa: E731
    trend = by_given(*behind(before, lambda i, at: at**0.7))
    assert trend.loc["nothing", "rho"] > 0.5 and trend.loc["nothing", "p"] < 0.01
    assert trend.loc["length", "p"] > 0.05
    assert 0.2 < trend.loc["length", "tolerance"] == pytest.approx(trend.loc["length", "tolerance_prompt"])


def test_where_level_follows_from_the_length_of_the_prompt_nothing_is_said_given_it() -> None:
    trend = by_given(*behind(lambda i: 20 + 10 * (i % 3), lambda i, at: at**0.7))
    assert trend.loc[["length", "length and tokens"], "p"].isna().all() and (trend["tolerance_prompt"] < 1e-6).all()
    assert np.isfinite(trend.loc["nothing", "p"])


def test_given_tokens_what_is_types_goes_away_and_what_is_not_stays() -> None:
    """Harder problems use a louder type; with `lift` all of their tokens are louder."""

    def graded(lift: float) -> pd.DataFrame:
        rng = np.random.default_rng(7)

        def make(i: int, mode: str) -> Trace:
            ids = (rng.random(20) < 0.3 + 0.15 * (i % 3) * (mode == "think")).astype(int)
            own = 100 + 9.0 * ids + (lift * (i % 3) * (mode == "think") + rng.normal()) + 0.1 * rng.normal(size=(4, 20))
            return response(own, prompt=str(i), mode=mode, tokens=ids, labels={"level": i % 3})

        return by_given(*both_modes(60, make), part="thinking")

    types, more = graded(0.0), graded(2.0)
    assert types.loc["length", "rho"] > 0.3 and types.loc["length", "p"] < 0.01
    assert types.loc["length and tokens", "p"] > 0.05 and 0.5 < types.loc["length and tokens", "tolerance"] < 0.9
    assert more.loc["length and tokens", "rho"] > 0.5 and more.loc["length and tokens", "p"] < 0.01


def test_where_the_level_follows_from_tokens_nothing_is_said_given_them() -> None:
    def make(i: int, mode: str) -> Trace:
        own = growing(i, mode)[:, None] + np.zeros((8, 4))
        return response(own, prompt=str(i), mode=mode, tokens=np.full(4, i % 3), labels={"level": i % 3})

    trend = by_given(*both_modes(24, make))
    assert np.isfinite(trend.loc["length", "p"]) and np.isnan(trend.loc["length and tokens", "p"])
    assert trend.loc["length and tokens", "tolerance"] < 1e-6 < 0.9 < trend.loc["length", "tolerance"]


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


@pytest.mark.parametrize("odd", ["hard", None, np.nan, True])
def test_levels_are_numbers(odd: object) -> None:
    with pytest.raises(InputError, match="levels must be numbers"):
        level_trend(*made(growing, level=lambda i: odd if i == 3 else i % 3))


@pytest.mark.parametrize("family", [lambda i: "abc"[i % 3], str], ids=["a level each", "a problem each"])
def test_families_of_one_level_or_one_problem_have_nothing_within(family: Callable[[int], str]) -> None:
    with pytest.raises(Unmeasurable, match="each family has one level, or one problem: nothing can be compared within"):
        level_trend(*made(growing, n=24, level=lambda i: i % 3, family=family))


def test_where_no_prompt_has_a_value_it_is_said() -> None:
    levels = {"level": lambda i: i % 3}
    with pytest.raises(Unmeasurable, match="0 prompts with l2_norm that is not 0 in both modes"):
        level_trend(*made(lambda i, mode: 0 * STRAIGHT, **levels))
    think, direct = made(growing, **levels)
    sinks = [dataclasses.replace(t, is_sink=torch.ones_like(t.is_sink)) for t in direct]
    with pytest.raises(Unmeasurable, match="0 prompts with l2_norm that is not 0 in both modes, attention sinks left out"):
        level_trend(think, sinks)
    partly = [
        [
            dataclasses.replace(t, metrics={"mine": torch.where(torch.arange(8) == 6, torch.nan, 1.0)[:, None] * t.l2_norms})
            for t in own
        ]
        for own in (think, direct)
    ]
    with pytest.raises(Unmeasurable, match="mine has no values at layers 6: a mean over the late layers needs all of them"):
        level_trend(*partly, quantity="mine")


def test_entries_are_numbered_from_0() -> None:
    table = level_trend(*made(growing, n=24, level=lambda i: i % 3), resamples=50)
    assert table.index.tolist() == list(range(len(table)))


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
