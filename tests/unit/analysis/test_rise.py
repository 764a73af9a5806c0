import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from tests.planted import Array, made, response
from tl_l2norm.analysis.late import compare_late
from tl_l2norm.analysis.rise import amplification, describe_rise, dynamics, even_share, onset, sharpness
from tl_l2norm.analysis.shape import rise_shape
from tl_l2norm.core.errors import Unmeasurable
from tl_l2norm.core.features import FeatureActs
from tl_l2norm.core.layers import late_layers
from tl_l2norm.core.resampling import Estimate
from tl_l2norm.core.trace import Trace

FLAT_THEN_STEEP = np.array([10.0, 10, 10, 10, 10, 10, 20, 30])
STRAIGHT = np.arange(8.0)
FALLING = STRAIGHT[::-1].copy()
LATE = np.arange(8) >= 6


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


def test_the_rise_without_the_last_block_is_that_of_a_model_without_it() -> None:
    """All of the rise is the last block's, or none of it."""
    jump = np.array([10.0, 11, 12, 13, 14, 15, 16, 40])
    for curve, share in ((jump, 1 / 6), (FLAT_THEN_STEEP, 1.0)):
        entry = dynamics(*made(lambda i, mode, curve=curve: curve)).iloc[0]
        assert entry["sharpness_but_last"] == pytest.approx(share) == pytest.approx(sharpness(curve[:-1], LATE[:-1]))
        assert entry["sharpness"] == pytest.approx((curve[7] - curve[5]) / (curve[7] - curve[0]))


def test_sharpness_is_the_share_of_the_rise_in_the_late_layers() -> None:
    assert sharpness(FLAT_THEN_STEEP, LATE) == 1.0
    assert sharpness(STRAIGHT, LATE) == pytest.approx(2 / 7)
    assert sharpness(np.minimum(STRAIGHT, 5), LATE) == 0
    assert sharpness(np.array([0.0, 5, 5, 5, 5, 5, 3, 4]), LATE) == -0.25, "a fall in the late layers is one"
    assert np.isnan(sharpness(FALLING, LATE)) and np.isnan(sharpness(np.ones(8), LATE))
    np.testing.assert_allclose(sharpness(np.stack([STRAIGHT, FLAT_THEN_STEEP]), LATE), [2 / 7, 1])


@pytest.mark.parametrize("n", [4, 8, 12, 28, 30])
def test_an_even_rise_has_the_even_share(n: int) -> None:
    late = np.isin(np.arange(n), late_layers(n))
    assert even_share(n) == pytest.approx(sharpness(np.arange(n) * 3.0 + 5, late)) and even_share(n) > 0.25


def test_sharpness_and_onset_do_not_depend_on_the_unit() -> None:
    rng = np.random.default_rng(1)
    curve = np.cumsum(rng.exponential(size=8))
    assert sharpness(3 * curve + 7, LATE) == pytest.approx(sharpness(curve, LATE))
    np.testing.assert_array_equal(onset(3 * curve + 7), onset(curve))


@pytest.mark.parametrize(
    ("mean", "low", "high", "n", "words"),
    [
        (
            0.9,
            0.8,
            0.95,
            20,
            "sharp late spike: 90% [80%, 95%] of the rise in the last quarter of the layers, over the 28.6% of an even rise",
        ),
        (
            0.3,
            0.2,
            0.4,
            20,
            "gradual build-up: 30% [20%, 40%] of the rise in the last quarter of the layers, not told from the 28.6% of an",
        ),
        (0.2, 0.1, 0.25, 20, "gradual build-up: 20% [10%, 25%] of the rise in the last quarter of the layers, under the 28.6%"),
        (0.5, 0.4, 0.6, 20, "between a gradual build-up and a sharp late spike: 50% [40%, 60%]"),
        (0.9, 0.8, 0.95, 7, "too few prompts to say (90% of the rise in the last quarter)"),
        (np.nan, np.nan, np.nan, 20, "no rise over the layers"),
    ],
)
def test_the_shape_is_said_in_words(mean: float, low: float, high: float, n: int, words: str) -> None:
    bend = Estimate(mean=6.0, low=5.0, high=6.0, n=n)
    said = describe_rise(Estimate(mean=mean, low=low, high=high, n=n), bend, 2 / 7)
    assert said.startswith(words) and (said.endswith(", bend at layer 6") or np.isnan(mean) or n < 8)


def test_without_a_bend_none_is_mentioned() -> None:
    share = Estimate(mean=0.3, low=0.2, high=0.4, n=20)
    nothing = Estimate(mean=np.nan, low=np.nan, high=np.nan, n=20)
    assert "bend" not in describe_rise(share, nothing, 0.25)


def test_the_table_by_hand() -> None:
    shape = dynamics(*made(lambda i, mode: (FLAT_THEN_STEEP if mode == "think" else STRAIGHT + 1) * (1.0 + i)))
    assert len(shape) == 1
    entry = shape.iloc[0]
    assert (entry["onset"], entry["onset_low"], entry["onset_high"]) == (5, 5, 5)
    assert entry["sharpness"] == entry["sharpness_low"] == pytest.approx(1)
    assert entry["spike"] == pytest.approx((25 - 7.5) * 6.5) and entry["amplification"] == pytest.approx(25 / 7.5)
    assert entry["spike_low"] < entry["spike"] < entry["spike_high"]
    assert entry["amplification_low"] == pytest.approx(entry["amplification_high"]), "the ratio is the same for every prompt"
    assert entry["n"] == 12 and entry["description"].startswith("sharp late spike: 100%")


def test_amplification_is_a_ratio_of_means_not_a_mean_of_ratios() -> None:
    """One prompt of tiny direct norm must not decide."""

    def value(i: int, mode: str) -> Array:
        return STRAIGHT + 1 + (100 if i else 0.0) if mode == "direct" else np.full(8, 100.0) + STRAIGHT

    shape = dynamics(*made(value, n=8)).iloc[0]
    late = [value(i, mode)[6:].mean() for mode in ("think", "direct") for i in range(8)]
    assert shape["amplification"] == pytest.approx(sum(late[:8]) / sum(late[8:]))


def test_groups_stand_in_the_order_of_their_labels_and_small_ones_have_no_interval() -> None:
    shape = dynamics(
        *made(
            lambda i, mode: STRAIGHT + i + (mode == "think"),
            n=22,
            family=lambda i: "b" if i < 10 else "a",
            level=lambda i: 10 if i % 2 else 2,
        ),
        by=("family", "level"),
    )
    assert shape[["family", "level"]].to_numpy().tolist() == [["a", 2], ["a", 10], ["b", 2], ["b", 10]]
    assert shape["n"].tolist() == [6, 6, 5, 5] and shape["spike_low"].isna().all()
    np.testing.assert_allclose(shape["spike"], 1)
    assert shape["description"].str.startswith("too few prompts to say").all()
    whole = dynamics(*made(lambda i, mode: STRAIGHT + (mode == "think"), n=22, family=lambda i: "ab"[i % 2]), by=("family",))
    assert whole["n"].tolist() == [11, 11] and whole["spike_low"].notna().all()


def test_a_prompt_without_a_response_counts_in_neither_mode() -> None:
    think, direct = made(lambda i, mode: STRAIGHT + 5 + 100 * (i == 0), n=10)
    direct[0] = response(np.ones((8, 0)), prompt="0", mode="direct")
    entry = dynamics(think, direct).iloc[0]
    assert entry["n"] == 9 and entry["spike"] == pytest.approx(0)


def test_another_quantity_has_dynamics_too() -> None:
    think, direct = made(lambda i, mode: STRAIGHT + 1)
    think = [dataclasses.replace(t, metrics={"hidden_entropy": 2 * t.l2_norms}) for t in think]
    direct = [dataclasses.replace(t, metrics={"hidden_entropy": t.l2_norms}) for t in direct]
    entry = dynamics(think, direct, quantity="hidden_entropy").iloc[0]
    assert entry["quantity"] == "hidden_entropy" and entry["amplification"] == pytest.approx(2)
    assert not torch.equal(think[0].metrics["hidden_entropy"], direct[0].metrics["hidden_entropy"])


def test_what_can_not_be_told_is_refused() -> None:
    think, direct = made(lambda i, mode: STRAIGHT)
    with pytest.raises(ValueError, match="needs all of them"):
        dynamics([t.select("late") for t in think], [t.select("late") for t in direct])
    with pytest.raises(ValueError, match="at least 4"):
        dynamics(*made(lambda i, mode: np.arange(3.0)))
    with pytest.raises(ValueError, match=r"can't group by \['mode'\]: give any of family, level"):
        dynamics(think, direct, by=("mode",))
    with pytest.raises(ValueError, match=r"lacks the label 'family'.*with_labels\(family="):
        dynamics(think, direct, by=("family",))
    with pytest.raises(ValueError, match="needs features="):
        dynamics(think, direct, quantity="reasoning_sum")
    with pytest.raises(ValueError, match="7 prompts: at least 8"):
        dynamics(think[:7], direct[:7])


def growing(i: int, mode: str) -> Array:
    rng = np.random.default_rng([i, 0])
    return STRAIGHT + 10 + (rng.normal() + 0.8 * (i % 3)) * (mode == "think")


def test_the_order_of_prompts_only_changes_the_resampling() -> None:
    think, direct = made(growing, n=20)
    first, again = dynamics(think, direct).iloc[0], dynamics(think[::-1], direct).iloc[0]
    assert first["spike"] == pytest.approx(again["spike"]) and first["spike_low"] == pytest.approx(again["spike_low"], abs=0.15)


def test_scaling_norms_scales_the_spike_and_nothing_else() -> None:
    once = dynamics(*made(growing)).iloc[0]
    twice = dynamics(*made(lambda i, mode: 2 * growing(i, mode))).iloc[0]
    for name in ("spike", "spike_low", "spike_high"):
        assert twice[name] == pytest.approx(2 * once[name], rel=1e-4)
    for name in ("amplification", "amplification_low", "sharpness", "sharpness_high"):
        assert twice[name] == pytest.approx(once[name], rel=1e-4)


def test_amplification_is_one_statistic_wherever_it_is_said() -> None:
    """Half of the prompts go from 4 to 8, half from 1 to 3: the means 2.5 and 5.5, and not the mean of 2 and 3."""
    sizes = {"think": (8.0, 3.0), "direct": (4.0, 1.0)}
    think, direct = made(lambda i, mode: np.full(8, sizes[mode][i % 2]), n=8)
    assert dynamics(think, direct).iloc[0]["amplification"] == pytest.approx(5.5 / 2.5)
    late = compare_late(think, direct)
    assert late.ratio.mean == pytest.approx(5.5 / 2.5) and late.ratio.low < 2.2 < late.ratio.high
    assert late.difference.mean == pytest.approx(5.5 - 2.5) and late.ratio.n == late.difference.n == 8
    own = amplification(np.stack([[[8.0], [4.0]], [[3.0], [1.0]]]))
    assert own.tolist() == [2.0, 3.0], "of single prompts, each one's own"
    assert np.isnan(amplification(np.array([[1.0], [0.0]])))


def with_saes(trace: Trace, layers: Sequence[int]) -> Trace:
    acts = FeatureActs.of_dense(torch.rand(len(trace), 3, generator=torch.Generator().manual_seed(0)))
    return dataclasses.replace(trace, features=dict.fromkeys(layers, acts))


def test_layers_without_an_sae_have_no_shape() -> None:
    modes = made(lambda i, mode: STRAIGHT + 1.0 * i, lengths=lambda i, mode: 2 + i % 3)
    early, late = ([[with_saes(t, at) for t in traces] for traces in modes] for at in ((0, 7), (6, 7)))
    with pytest.raises(Unmeasurable, match=r"needs all of them: layers 1-6 have no value of feature_sum, as .* no SAE"):
        dynamics(*early, quantity="feature_sum")
    entry = dynamics(*late, quantity="feature_sum", resamples=99).iloc[0]
    assert entry["description"].startswith("no shape can be told: layers 0-5 have no value of feature_sum")
    assert np.isnan(entry["sharpness"]) and np.isfinite(entry["spike"])


def test_prompts_without_tokens_have_no_rise() -> None:
    modes = made(lambda i, mode: STRAIGHT, lengths=lambda i, mode: 0)
    with pytest.raises(Unmeasurable, match="no prompt has a value of l2_norm in thinking"):
        dynamics(*modes)
    with pytest.raises(Unmeasurable, match=r"0 prompts have a curve of l2_norm \(think\): at least 8"):
        rise_shape(*modes)
