import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.polynomial import Polynomial

from tests.planted import Array, both_modes, response
from tests.worlds import World
from tl_l2norm.analysis.attribution import Attribution, attribute
from tl_l2norm.analysis.curves import mode_differences
from tl_l2norm.analysis.deconfounding import mode_effects
from tl_l2norm.analysis.high_norm import high_norm_effect
from tl_l2norm.analysis.late import compare_late
from tl_l2norm.analysis.pairing import MATCHES
from tl_l2norm.analysis.rise import dynamics
from tl_l2norm.analysis.shape import rise_shape
from tl_l2norm.core.errors import InputError, Unmeasurable
from tl_l2norm.core.trace import Trace

WAYS = (*MATCHES, "length, by regression", "jointly")


def differences_of(attribution: Attribution) -> dict[str, float]:
    return dict(zip(attribution.table["match"], attribution.table["difference"], strict=True))


def made(
    value: Callable[[int, str, int], float], lengths: Callable[[int, str], int], n: int = 12
) -> tuple[list[Trace], list[Trace]]:
    """Responses whose tokens have the norms value(prompt, mode, index) at every layer."""

    def make(i: int, mode: str) -> Trace:
        k = lengths(i, mode)
        return response(np.tile([value(i, mode, j) for j in range(k)], (4, 1)), prompt=str(i), mode=mode)

    return both_modes(n, make)


def test_each_way_of_matching_by_hand() -> None:
    """Thinking 10, 20, 30, 40, direct 1, 2: ids and positions are the indices, the answer is thinking's last, direct's
    first."""

    def value(i: int, mode: str, j: int) -> float:
        return 10.0 * (j + 1) if mode == "think" else j + 1.0

    attribution = attribute(*made(value, lambda i, mode: 4 if mode == "think" else 2))
    assert attribution.table["match"].tolist() == list(WAYS)
    differences = differences_of(attribution)
    assert differences["none"] == 25 - 1.5
    assert 15 < differences["count"] + 1.5 < 35, "two of the four"
    assert differences["length"] == differences["position"] == differences["token"] == 15 - 1.5
    assert differences["answer"] == 40 - 1
    assert np.isnan(differences["length, by regression"]), "all lengths differ by the same"
    assert attribution.table["n"].tolist() == [12] * 6 + [0, 0]
    assert "Not tested for lack of such tokens: length, by regression." in attribution.verdict
    assert "Whether all together leave it so can't be told: mode can't be told from length" in attribution.verdict
    assert not attribution.stays, "modes whose lengths are always these can't be told from their lengths"


def test_at_equal_length_it_is_the_intercept_of_a_regression_over_prompts() -> None:
    rng = np.random.default_rng(0)
    noise, lengths = rng.normal(size=12), rng.integers(3, 9, 12)
    attribution = attribute(
        *made(
            lambda i, mode, j: 100 + (2 * lengths[i] + noise[i]) * (mode == "think"),
            lambda i, mode: lengths[i] if mode == "think" else 2,
        )
    )
    x, y = lengths - 2.0, 2 * lengths + noise
    assert differences_of(attribution)["length, by regression"] == pytest.approx(
        Polynomial.fit(x, y, 1).convert().coef[0], abs=1e-4
    )


def test_a_prompts_samples_count_once_also_in_the_regression() -> None:
    lengths = dict(enumerate([3, 5, 4, 7, 6, 8, 3, 4, 9, 6, 5, 7]))
    think, direct = made(lambda i, mode, j: 10 + 3.0 * (mode == "think"), lambda i, mode: lengths[i] if mode == "think" else 2)
    attribution = attribute([*think, think[0], think[0]], direct)
    assert attribution.table["n"].tolist() == [12] * 7 + [0]
    differences = differences_of(attribution)
    assert np.isnan(differences.pop("jointly")), "all thinking responses are longer"
    assert differences == pytest.approx(dict.fromkeys(WAYS[:-1], 3.0), abs=1e-5)


def test_layers_are_averaged_and_the_late_ones_by_default() -> None:
    def make(i: int, mode: str) -> Trace:
        lift = np.array([[1.0], [2], [4], [8]]) * (mode == "think")
        return response(np.ones((4, 2)) + lift, prompt=str(i), mode=mode)

    think, direct = both_modes(8, make)
    assert differences_of(attribute(think, direct))["none"] == 8
    assert differences_of(attribute(think, direct, layers="all"))["none"] == 15 / 4
    assert differences_of(attribute(think, direct, layers=[1, 2]))["none"] == 3
    assert (attribute(think, direct, layers=[0, 1, 3]).table["layers"] == "0-1, 3").all()


def test_another_quantity_is_attributed_like_the_norm() -> None:
    def make(i: int, mode: str) -> Trace:
        k = 4 + i * (5 if mode == "think" else 3) % 7  # neither this nor a thought's length, one less, tells the mode
        trace = response(np.ones((4, k)), prompt=str(i), mode=mode)
        value = 2.0 - (mode == "think") + 0.01 * (i % 3) * (mode == "think")  # 0.0112 on average for 8 prompts
        return dataclasses.replace(trace, metrics={"hidden_entropy": torch.full((4, k + 1), value)})

    attribution = attribute(*both_modes(8, make), quantity="hidden_entropy")
    assert differences_of(attribution)["none"] == pytest.approx(-1 + 0.07 / 8) and attribution.quantity == "hidden_entropy"
    start = "Thinking is lower, and stays so however the modes are matched, also jointly given all: -0.9913 ["
    assert attribution.stays and attribution.verdict.startswith(start)
    with pytest.raises(ValueError, match="'output_entropy' was not recorded"):
        attribute(*both_modes(8, make), quantity="output_entropy")
    with pytest.raises(ValueError, match="needs features="):
        attribute(*both_modes(8, make), quantity="reasoning_sum")


def test_the_verdict_names_what_the_difference_goes_away_with() -> None:
    """Norms rise along the response: thinking, being longer, is higher on average but not over its first tokens."""
    noise = np.random.default_rng(1).normal(size=(2, 16, 9))

    def value(i: int, mode: str, j: int) -> float:
        return 10.0 + 5 * j + noise[int(mode == "think"), i, j]

    attribution = attribute(*made(value, lambda i, mode: 6 + i % 3 if mode == "think" else 3, n=16))
    assert attribution.is_there and "length" in attribution.goes_away and "answer" not in attribution.goes_away
    assert attribution.verdict.startswith("Thinking is higher (") and "but not when matched by length" in attribution.verdict
    turned = attribute(*made(lambda i, m, j: -value(i, m, j), lambda i, mode: 6 + i % 3 if mode == "think" else 3, n=16))
    assert turned.goes_away == attribution.goes_away and turned.verdict.startswith("Thinking is lower (")


def test_what_turns_its_sign_when_matched_has_gone_away() -> None:
    attribution = attribute(
        *made(lambda i, mode, j: 100.0 * j - (mode == "think"), lambda i, mode: 5 if mode == "think" else 2)
    )
    assert differences_of(attribution)["none"] > 0 > differences_of(attribution)["length"]
    assert set(attribution.goes_away) == {"length", "position", "token"}


def test_without_a_difference_nothing_is_attributed() -> None:
    noise = np.random.default_rng(3).normal(size=(2, 12, 3))
    attribution = attribute(*made(lambda i, mode, j: 10 + noise[int(mode == "think"), i, j], lambda i, mode: 3))
    assert not attribution.is_there
    assert attribution.verdict.startswith("No difference between the modes: ")


def test_a_match_that_few_prompts_allow_is_said_to_be_untested() -> None:
    think, direct = made(lambda i, mode, j: 1.0 + (mode == "think"), lambda i, mode: 3 + i % 2)
    silent = [dataclasses.replace(t, segments=("prompt",) + ("think",) * (len(t) - 1)) for t in think[:5]]
    attribution = attribute([*silent, *think[5:]], direct)
    assert attribution.table.set_index("match").loc["answer", "n"] == 7
    assert (
        "answer" not in attribution.goes_away
        and "answer" in attribution.verdict.partition("Not tested for lack of such tokens:")[2]
    )


def test_lengths_that_hardly_vary_leave_the_regression_untested() -> None:
    """One prompt of another length: a third of the resamples lack it and have no slope."""
    noise = np.random.default_rng(6).normal(size=(2, 12, 4))
    think, direct = made(
        lambda i, m, j: 10 + noise[int(m == "think"), i, j] + 9 * (m == "think"), lambda i, m: 3 + (i == 0 and m == "think")
    )
    attribution = attribute(think, direct)
    entry = attribution.table.set_index("match").loc["length, by regression"]
    assert np.isfinite(entry["difference"]) and np.isnan(entry["low"]) and entry["n"] == 12
    assert attribution.goes_away == ()
    assert attribution.verdict.endswith("Not tested for lack of such tokens: length, by regression.")


def test_scaling_norms_scales_differences_and_intervals() -> None:
    noise = np.random.default_rng(4).normal(size=(2, 12, 8))

    def value(i: int, mode: str, j: int) -> float:
        return 10 + noise[int(mode == "think"), i, j] + (mode == "think")

    lengths = lambda i, mode: 3 + (i % 5) * (mode == "think")  # noqa: E731
    once, twice = (attribute(*made(lambda i, m, j, c=c: c * value(i, m, j), lengths)).table for c in (1, 2))
    for name in ("difference", "low", "high"):
        np.testing.assert_allclose(2 * once[name], twice[name], rtol=1e-4, atol=1e-5)


def test_the_order_of_prompts_only_changes_the_resampling() -> None:
    noise = np.random.default_rng(5).normal(size=(2, 16, 8))
    think, direct = made(lambda i, m, j: 10 + noise[int(m == "think"), i, j], lambda i, m: 3 + (i % 5) * (m == "think"), n=16)
    attribution, again = attribute(think, direct).table, attribute(think[::-1], direct[3:] + direct[:3]).table
    np.testing.assert_allclose(attribution["difference"], again["difference"], atol=1e-5)
    width = (attribution["high"] - attribution["low"]).to_numpy()
    assert (np.abs(attribution["low"] - again["low"]) < 0.2 * width).all()


def test_what_can_not_be_paired_is_refused() -> None:
    think, direct = made(lambda i, mode, j: 1.0, lambda i, mode: 2)
    with pytest.raises(ValueError, match="different prompts"):
        attribute(think, direct[:-1])
    with pytest.raises(ValueError, match="7 prompts: at least 8"):
        attribute(think[:7], direct[:7])


def test_too_few_prompts_are_not_taken_for_a_difference_that_went_away() -> None:
    """Thinking is longer by 4 to 9 tokens and louder by 2; what is left at equal lengths, an extrapolation, is wide."""
    rng = np.random.default_rng(5)
    shown = []
    for _ in range(20):
        lengths = rng.integers(6, 12, 10)

        def make(i: int, mode: str, lengths: Array = lengths) -> Trace:
            k = int(lengths[i]) if mode == "think" else 2
            norm = 100 + 2.0 * (mode == "think") + 1.5 * rng.normal()
            return response(np.full((4, k), norm), prompt=str(i), mode=mode)

        attribution = attribute(*both_modes(10, make), resamples=500)
        if attribution.is_there:
            shown.append(attribution)
    named = ["length, by regression" in attribution.goes_away for attribution in shown]
    undecided = ["length, by regression" in attribution.undecided for attribution in shown]
    assert len(shown) > 5 and np.mean(named) <= 0.1 < np.mean(undecided)
    verdicts = [attribution.verdict for attribution in shown if attribution.undecided]
    assert all("Too few prompts to say what is left when matched by" in verdict for verdict in verdicts)


def test_the_joint_entry_is_the_effect_of_mode_given_all() -> None:
    think, direct = World(n=16, effect=5.0).make(0)
    attribution = attribute(think, direct, seed=3, resamples=299)
    effect = mode_effects(think, direct, layers="late", seed=3, flips=299).iloc[0]
    joint = attribution.table.set_index("match").loc["jointly"]
    for name in ("low", "high", "p", "n"):
        assert joint[name] == pytest.approx(effect[name], abs=1e-4)
    assert joint["difference"] == pytest.approx(effect["effect"], abs=1e-4)
    whole = differences_of(attribution)["none"]
    assert (joint["removed_low"], joint["removed_high"]) == pytest.approx((whole - joint["high"], whole - joint["low"]))
    assert attribution.stays and "also jointly given all" in attribution.verdict


@pytest.mark.parametrize(
    ("effect", "low", "high", "p"), [(0.5, -1.0, 2.0, 0.4), (1.0, 0.1, 1.9, 0.06), (-1.0, -2.0, -0.1, 0.01)]
)
def test_what_the_joint_entry_does_not_keep_does_not_stay(effect: float, low: float, high: float, p: float) -> None:
    attribution = attribute(*World(n=16, effect=5.0).make(0), resamples=99)
    table = attribution.table.set_index("match")
    whole = table.loc["none", "difference"]
    columns = ["difference", "low", "high", "p", "removed", "removed_low", "removed_high"]
    table.loc["jointly", columns] = [effect, low, high, p, whole - effect, whole - high, whole - low]
    changed = dataclasses.replace(attribution, table=table.reset_index())
    assert attribution.stays and not changed.stays and "stays so" not in changed.verdict
    assert changed.goes_away == (("jointly",) if low <= 0 else ())


def test_what_can_not_be_compared_is_said_so() -> None:
    think, direct = made(lambda i, mode, j: 1.0, lambda i, mode: 0 if mode == "direct" else 3)
    with pytest.raises(Unmeasurable, match="no prompt has response tokens with a l2_norm in both modes"):
        attribute(think, direct)
    few = made(lambda i, mode, j: 1.0 + (mode == "think"), lambda i, mode: 0 if mode == "direct" and i > 4 else 3)
    attribution = attribute(*few)
    assert attribution.verdict == "With 5 prompts nothing can be said of the modes: give at least 8."


def test_empty_responses_are_left_out_also_of_the_tokens_from_which_they_are_chosen() -> None:
    think, direct = World(n=16, effect=5.0).make(0)
    empty = [t.with_labels() for t in direct]
    for i in (2, 5):
        held = slice(None, t.prompt_len) if (t := direct[i]) else None
        empty[i] = response(np.ones((4, 0)), prompt=str(t.labels["prompt"]), mode="direct")
        assert len(empty[i].tokens[held]) == len(empty[i])
    table = mode_effects(think, empty, tokens="chosen", flips=99)
    assert (table["n"] == 14).all() and table.notna().all(axis=None)
    bare = [response(np.ones((4, 0)), prompt=str(t.labels["prompt"]), mode="direct") for t in direct]
    with pytest.raises(Unmeasurable, match="0 prompts have tokens"):
        mode_effects(think, bare, tokens="chosen")


def test_an_infinite_norm_is_refused() -> None:
    think, direct = World(n=12).make(0)
    norms = think[0].l2_norms.clone()
    norms[-1, 1:] = torch.inf  # by count few of them are drawn
    broken = [dataclasses.replace(think[0], l2_norms=norms), *think[1:]]
    for compare in (mode_effects, attribute, mode_differences, compare_late):
        with pytest.raises(InputError, match="is infinite: the model overflowed"):
            compare(broken, direct)


@pytest.mark.parametrize(
    ("compare", "name"),
    [
        *((f, "resamples") for f in (attribute, mode_differences, compare_late, dynamics)),
        *((f, "flips") for f in (mode_effects, high_norm_effect, rise_shape)),
    ],
)
def test_fewer_draws_than_a_p_of_5_percent_takes_are_refused(compare: Callable[..., object], name: str) -> None:
    modes = World(n=12, layers=8).make(0)
    compare(*modes, **{name: 19})
    for n in (0, 1, 18):
        with pytest.raises(InputError, match=f"{name} must be at least 19, got {n}"):
            compare(*modes, **{name: n})
    with pytest.raises(InputError, match=f"{name} must be at most 1,000,000"):
        compare(*modes, **{name: 1_000_001})
