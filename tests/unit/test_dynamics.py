import dataclasses
import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import rankdata, spearmanr

from tests.planted import Array, both_modes, response
from tl_l2norm.analysis.dynamics import describe_rise, dynamics, family_separation, level_trend, onset, sharpness
from tl_l2norm.analysis.resampling import Estimate
from tl_l2norm.trace import Trace

FLAT_THEN_STEEP = np.array([10.0, 10, 10, 10, 10, 10, 20, 30])
STRAIGHT = np.arange(8.0)
FALLING = STRAIGHT[::-1].copy()
LATE = np.arange(8) >= 6


def made(
    value: Callable[[int, str], Array],
    n: int = 12,
    lengths: Callable[[int, str], int] | None = None,
    **labels: Callable[[int], object],
) -> tuple[list[Trace], list[Trace]]:
    """Responses with the norms value(prompt, mode) [layer] at each token; labels are functions of the prompt."""

    def make(i: int, mode: str) -> Trace:
        k = 2 if lengths is None else lengths(i, mode)
        named = {name: of(i) for name, of in labels.items()}
        return response(np.tile(value(i, mode)[:, None], (1, k)), prompt=str(i), mode=mode, labels=named)

    return both_modes(n, make)


def test_the_onset_is_where_a_flat_curve_gets_steep() -> None:
    assert onset(FLAT_THEN_STEEP) == 5
    assert onset(np.array([0.0, 1, 2, 3, 13, 23, 33, 43])) == 3, "from a slope to a steeper one"
    assert np.isnan(onset(STRAIGHT)), "a straight line has no bend"
    assert np.isnan(onset(np.full(8, 3.0)))
    assert np.isnan(onset(np.minimum(STRAIGHT, 4))), "nor one that flattens"
    stacked = onset(np.stack([FLAT_THEN_STEEP, STRAIGHT]))
    assert stacked[0] == 5 and np.isnan(stacked[1])


def test_the_onset_is_that_of_a_search_over_all_two_piece_fits() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        curve = np.cumsum(rng.exponential(size=10)) + np.maximum(0, np.arange(10) - rng.integers(2, 8)) * 3
        best, at = np.inf, np.nan
        for knot in range(1, 9):
            design = np.stack([np.ones(10), np.arange(10), np.maximum(0, np.arange(10) - knot)], axis=1)
            weights, residual, *_ = np.linalg.lstsq(design, curve, rcond=None)
            if weights[2] > 1e-9 and residual[0] < best:
                best, at = residual[0], knot
        assert onset(curve) == at


def test_sharpness_is_the_share_of_the_rise_in_the_late_layers() -> None:
    assert sharpness(FLAT_THEN_STEEP, LATE) == 1.0
    assert sharpness(STRAIGHT, LATE) == pytest.approx(2 / 7)
    assert sharpness(np.minimum(STRAIGHT, 5), LATE) == 0
    assert sharpness(np.array([0.0, 5, 5, 5, 5, 5, 3, 4]), LATE) == -0.25, "a fall in the late layers is one"
    assert np.isnan(sharpness(FALLING, LATE)) and np.isnan(sharpness(np.ones(8), LATE))
    np.testing.assert_allclose(sharpness(np.stack([STRAIGHT, FLAT_THEN_STEEP]), LATE), [2 / 7, 1])


def test_sharpness_and_onset_do_not_depend_on_the_unit() -> None:
    rng = np.random.default_rng(1)
    curve = np.cumsum(rng.exponential(size=8))
    assert sharpness(3 * curve + 7, LATE) == pytest.approx(sharpness(curve, LATE))
    np.testing.assert_array_equal(onset(3 * curve + 7), onset(curve))


@pytest.mark.parametrize(
    ("mean", "low", "high", "n", "words"),
    [
        (0.9, 0.8, 0.95, 20, "sharp late spike: 90% [80%, 95%] of the rise in the last quarter of the layers, bend at layer 6"),
        (0.3, 0.2, 0.4, 20, "gradual build-up: 30% [20%, 40%]"),
        (0.5, 0.4, 0.6, 20, "between a gradual build-up and a sharp late spike: 50% [40%, 60%]"),
        (0.9, 0.8, 0.95, 7, "too few prompts to say (90% of the rise in the last quarter)"),
        (np.nan, np.nan, np.nan, 20, "no rise over the layers"),
    ],
)
def test_the_shape_is_said_in_words(mean: float, low: float, high: float, n: int, words: str) -> None:
    bend = Estimate(mean=6.0, low=5.0, high=6.0, n=n)
    assert describe_rise(Estimate(mean=mean, low=low, high=high, n=n), bend).startswith(words)


def test_without_a_bend_none_is_mentioned() -> None:
    share = Estimate(mean=0.3, low=0.2, high=0.4, n=20)
    nothing = Estimate(mean=np.nan, low=np.nan, high=np.nan, n=20)
    assert "bend" not in describe_rise(share, nothing)


def test_the_table_by_hand() -> None:
    found = dynamics(*made(lambda i, mode: (FLAT_THEN_STEEP if mode == "think" else STRAIGHT + 1) * (1.0 + i)))
    assert len(found) == 1
    row = found.iloc[0]
    assert (row["onset"], row["onset_low"], row["onset_high"]) == (5, 5, 5)
    assert row["sharpness"] == row["sharpness_low"] == pytest.approx(1)
    assert row["spike"] == pytest.approx((25 - 7.5) * 6.5) and row["amplification"] == pytest.approx(25 / 7.5)
    assert row["spike_low"] < row["spike"] < row["spike_high"]
    assert row["amplification_low"] == pytest.approx(row["amplification_high"]), "the ratio is the same for every prompt"
    assert row["n"] == 12 and row["description"].startswith("sharp late spike: 100%")


def test_amplification_is_a_ratio_of_means_not_a_mean_of_ratios() -> None:
    """One prompt of tiny direct norm must not decide."""

    def value(i: int, mode: str) -> Array:
        return STRAIGHT + 1 + (100 if i else 0.0) if mode == "direct" else np.full(8, 100.0) + STRAIGHT

    found = dynamics(*made(value, n=8)).iloc[0]
    late = [value(i, mode)[6:].mean() for mode in ("think", "direct") for i in range(8)]
    assert found["amplification"] == pytest.approx(sum(late[:8]) / sum(late[8:]))


def test_groups_stand_in_the_order_of_their_labels_and_small_ones_have_no_interval() -> None:
    found = dynamics(
        *made(
            lambda i, mode: STRAIGHT + i + (mode == "think"),
            n=22,
            family=lambda i: "b" if i < 10 else "a",
            level=lambda i: 10 if i % 2 else 2,
        ),
        by=("family", "level"),
    )
    assert found[["family", "level"]].to_numpy().tolist() == [["a", 2], ["a", 10], ["b", 2], ["b", 10]]
    assert found["n"].tolist() == [6, 6, 5, 5] and found["spike_low"].isna().all()
    np.testing.assert_allclose(found["spike"], 1)
    assert found["description"].str.startswith("too few prompts to say").all()
    whole = dynamics(*made(lambda i, mode: STRAIGHT + (mode == "think"), n=22, family=lambda i: "ab"[i % 2]), by=("family",))
    assert whole["n"].tolist() == [11, 11] and whole["spike_low"].notna().all()


def test_a_prompt_without_a_response_counts_in_neither_mode() -> None:
    think, direct = made(lambda i, mode: STRAIGHT + 5 + 100 * (i == 0), n=10)
    direct[0] = response(np.ones((8, 0)), prompt="0", mode="direct")
    row = dynamics(think, direct).iloc[0]
    assert row["n"] == 9 and row["spike"] == pytest.approx(0)


def test_what_can_not_be_told_is_refused() -> None:
    think, direct = made(lambda i, mode: STRAIGHT, level=lambda i: 1)
    with pytest.raises(ValueError, match="needs all of them"):
        dynamics([t.select("late") for t in think], [t.select("late") for t in direct])
    with pytest.raises(ValueError, match="at least 4"):
        dynamics(*made(lambda i, mode: np.arange(3.0)))
    with pytest.raises(ValueError, match=r"can't group by \['mode'\]: give any of family, level"):
        dynamics(think, direct, by=("mode",))
    with pytest.raises(ValueError, match=r"lacks the label 'family'.*with_labels\(family="):
        dynamics(think, direct, by=("family",))
    with pytest.raises(ValueError, match="all prompts are of one level"):
        level_trend(think, direct)
    with pytest.raises(ValueError, match="lacks the label 'level'"):
        level_trend(*made(lambda i, mode: STRAIGHT))
    with pytest.raises(ValueError, match="at least two families of 8 prompts"):
        family_separation(*made(lambda i, mode: STRAIGHT, n=16, family=lambda i: "ab"[i < 7]))
    with pytest.raises(ValueError, match="needs features="):
        dynamics(think, direct, quantity="reasoning_sum")
    with pytest.raises(ValueError, match="7 prompts: at least 8"):
        dynamics(think[:7], direct[:7])


def growing(i: int, mode: str) -> Array:
    rng = np.random.default_rng([i, 0])
    return STRAIGHT + 10 + (rng.normal() + 0.8 * (i % 3)) * (mode == "think")


def ratios(value: Callable[[int, str], Array], n: int) -> Array:
    return np.array([value(i, "think")[6:].mean() / value(i, "direct")[6:].mean() for i in range(n)])


def test_the_trend_within_one_family_is_spearmans() -> None:
    found = level_trend(*made(growing, n=20, level=lambda i: i % 3)).set_index("given")
    expected = spearmanr(np.arange(20) % 3, ratios(growing, 20)).statistic
    assert found.loc["nothing", "rho"] == pytest.approx(expected, abs=1e-6)
    assert found.loc["nothing", "low"] < expected < found.loc["nothing", "high"]
    assert (found["levels"] == 3).all() and (found["n"] == 20).all()


def test_the_p_value_is_that_of_all_permutations() -> None:
    """8 prompts of levels 0 and 1: 70 ways to spread them."""
    levels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    noise = np.array([0.3, -1.2, 0.8, 0.1, 1.4, 0.9, 2.2, 0.5])
    value = lambda i, mode: STRAIGHT + 10 + noise[i] * (mode == "think")  # noqa: E731
    found = level_trend(*made(value, n=8, level=lambda i: int(levels[i])), resamples=20_000).iloc[0]
    y = rankdata(ratios(value, 8))
    null = [abs(y[list(chosen)].sum() - 18) for chosen in itertools.combinations(range(8), 4)]
    exact = np.mean([x >= abs(y[levels == 1].sum() - 18) - 1e-9 for x in null])
    assert 0.02 < exact < 0.3
    assert found["p"] == pytest.approx(exact, abs=0.012)


def test_families_of_other_levels_and_other_norms_do_not_make_a_trend() -> None:
    """Family b is harder and louder in thinking; within each there is no trend."""
    noise = np.random.default_rng(2).normal(size=40)
    found = level_trend(
        *made(
            lambda i, mode: STRAIGHT + 10 + (noise[i] + 9 * (i >= 20)) * (mode == "think"),
            n=40,
            family=lambda i: "ab"[i >= 20],
            level=lambda i: i % 3 + 3 * (i >= 20),
        )
    ).iloc[0]
    assert abs(found["rho"]) < 0.3 and found["p"] > 0.05
    plain = spearmanr(np.arange(40) >= 20, ratios(lambda i, m: STRAIGHT + 10 + (noise[i] + 9 * (i >= 20)) * (m == "think"), 40))
    assert plain.statistic > 0.8, "over all of them it would be one"


def test_families_of_unequal_size_count_by_their_prompts() -> None:
    """Ranks are shares of the family's size: otherwise the larger one would also count by its larger ranks."""
    levels, families = np.arange(18) % 3, "a" * 5 + "b" * 13
    found = level_trend(*made(growing, n=18, family=lambda i: families[i], level=lambda i: int(levels[i]))).iloc[0]
    sides = []
    for values in (levels, ratios(growing, 18)):
        parts = [values[:5], values[5:]]
        sides.append(np.concatenate([(rankdata(x) - (len(x) + 1) / 2) / len(x) for x in parts]))
    assert found["rho"] == pytest.approx(sides[0] @ sides[1] / np.linalg.norm(sides[0]) / np.linalg.norm(sides[1]), abs=1e-6)


def test_given_length_a_trend_that_is_lengths_goes_away() -> None:
    length = lambda i, mode: 2 + 2 * (i % 3) + (i // 3) % 4 if mode == "think" else 2  # noqa: E731
    noise = np.random.default_rng(3).normal(size=48)
    value = lambda i, mode: STRAIGHT + 50 + (3 * length(i, mode) + noise[i]) * (mode == "think")  # noqa: E731
    found = level_trend(*made(value, n=48, lengths=length, level=lambda i: i % 3)).set_index("given")
    assert found.loc["nothing", "rho"] > 0.5 and found.loc["nothing", "p"] < 0.01
    assert abs(found.loc["length", "rho"]) < 0.3 and found.loc["length", "p"] > 0.05


def test_given_length_it_is_the_partial_correlation_of_ranks() -> None:
    length = lambda i, mode: 2 + (7 * i) % 5  # noqa: E731
    found = level_trend(*made(growing, n=20, lengths=length, level=lambda i: i % 3)).set_index("given")
    lengths = rankdata([length(i, "think") for i in range(20)])
    design = np.stack([np.ones(20), lengths], axis=1)
    sides = [rankdata(x) for x in (np.arange(20) % 3, ratios(growing, 20))]
    left = [y - design @ np.linalg.lstsq(design, y, rcond=None)[0] for y in sides]
    assert found.loc["length", "rho"] == pytest.approx(np.corrcoef(*left)[0, 1], abs=1e-6)


def test_where_level_follows_from_length_nothing_is_said_given_it() -> None:
    found = level_trend(*made(growing, n=20, lengths=lambda i, m: 2 + i % 3, level=lambda i: i % 3)).set_index("given")
    assert found.loc["length", ["rho", "low", "high", "p"]].isna().all()
    assert np.isfinite(found.loc["nothing", "rho"])


def separate(n: int, shift: Array, seed: int = 0) -> tuple[list[Trace], list[Trace]]:
    """Two families whose thinking profiles differ by `shift`."""
    noise = np.random.default_rng(seed).normal(size=(n, 2, 8))

    def value(i: int, mode: str) -> Array:
        return 50 + noise[i, int(mode == "think")] + shift * (i % 2) * (mode == "think")

    return made(value, n=n, family=lambda i: "ab"[i % 2])


def test_families_far_apart_are_told_apart_by_the_profile_and_by_the_spike_only_if_late() -> None:
    early = family_separation(*separate(40, 9.0 * (np.arange(8) == 1))).set_index("predictor")
    assert early.loc["profile", "low"] > 0.7 and early.loc["spike", "low"] < 0.5
    late = family_separation(*separate(40, 9.0 * LATE)).set_index("predictor")
    assert late.loc["profile", "accuracy"] == late.loc["spike", "accuracy"] == 1.0
    assert (late["chance"] == 0.5).all() and (late["n"] == 40).all() and (late["families"] == 2).all()


def test_length_is_the_control() -> None:
    """Equal norms are equal: the rounding of their mean, which goes with the length, tells no family apart."""
    found = family_separation(
        *made(lambda i, mode: STRAIGHT + 9, n=20, lengths=lambda i, mode: 2 + 3 * (i % 2), family=lambda i: "ab"[i % 2])
    ).set_index("predictor")
    assert found.loc["length", "accuracy"] == 1.0 and found.loc["profile", "accuracy"] == 0.5


def test_small_families_are_left_out_and_chance_is_the_largest_share() -> None:
    families = "a" * 12 + "b" * 9 + "c" * 7
    noise = np.random.default_rng(1).normal(size=(28, 2, 8))
    found = family_separation(*made(lambda i, m: 50 + noise[i, int(m == "think")], n=28, family=lambda i: families[i]))
    assert (found["n"] == 21).all() and found["chance"].tolist() == [12 / 21] * 3


def test_nearest_mean_by_hand() -> None:
    """Guess each prompt from the other half's means by a plain loop."""
    think, direct = separate(24, np.full(8, 0.6), seed=3)
    found = family_separation(think, direct, seed=5).set_index("predictor")
    x = np.stack([t.l2_norms[:, 1].double().numpy() for t in think])
    names = np.arange(24) % 2
    rng, fold = np.random.default_rng(5), np.zeros(24, dtype=int)
    for family in (0, 1):
        fold[rng.permutation(np.flatnonzero(names == family))[::2]] = 1
    right = 0
    for i in range(24):
        known = [j for j in range(24) if fold[j] != fold[i]]
        scale = x[known].std(0)
        away = [(((x[i] - x[[j for j in known if names[j] == family]].mean(0)) / scale) ** 2).sum() for family in (0, 1)]
        right += int(np.argmin(away) == names[i])
    assert 12 < right < 24
    assert found.loc["profile", "accuracy"] == right / 24


def test_another_quantity_has_dynamics_too() -> None:
    think, direct = made(lambda i, mode: STRAIGHT + 1)
    think = [dataclasses.replace(t, metrics={"hidden_entropy": 2 * t.l2_norms}) for t in think]
    direct = [dataclasses.replace(t, metrics={"hidden_entropy": t.l2_norms}) for t in direct]
    row = dynamics(think, direct, quantity="hidden_entropy").iloc[0]
    assert row["quantity"] == "hidden_entropy" and row["amplification"] == pytest.approx(2)
    assert not torch.equal(think[0].metrics["hidden_entropy"], direct[0].metrics["hidden_entropy"])


def test_the_order_of_prompts_only_changes_the_resampling() -> None:
    think, direct = made(growing, n=20, level=lambda i: i % 3)
    first, again = dynamics(think, direct).iloc[0], dynamics(think[::-1], direct).iloc[0]
    assert first["spike"] == pytest.approx(again["spike"]) and first["spike_low"] == pytest.approx(again["spike_low"], abs=0.15)
    trends = [level_trend(t, direct).iloc[0] for t in (think, think[::-1])]
    assert trends[0]["rho"] == pytest.approx(trends[1]["rho"]) and trends[0]["p"] == pytest.approx(trends[1]["p"], abs=0.03)


def test_scaling_norms_scales_the_spike_and_nothing_else() -> None:
    once = dynamics(*made(growing)).iloc[0]
    twice = dynamics(*made(lambda i, mode: 2 * growing(i, mode))).iloc[0]
    for name in ("spike", "spike_low", "spike_high"):
        assert twice[name] == pytest.approx(2 * once[name], rel=1e-4)
    for name in ("amplification", "amplification_low", "sharpness", "sharpness_high"):
        assert twice[name] == pytest.approx(once[name], rel=1e-4)
