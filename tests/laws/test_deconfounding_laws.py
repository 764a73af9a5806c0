"""How often mode, shape and link are claimed where they do nothing, and how often where they are planted.

Rates of a few dozen worlds; `python -m benchmarks.rates` runs hundreds. A true rate of 7% comes to more than `allowed` in
one test of a thousand.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom

from tests.worlds import World
from tl_l2norm.analysis.attribution import attribute
from tl_l2norm.analysis.deconfounding import mode_effects
from tl_l2norm.analysis.high_norm import high_norm_effect
from tl_l2norm.analysis.link import feature_link
from tl_l2norm.analysis.reasoning import find_reasoning_features
from tl_l2norm.analysis.shape import BROKEN, compare_shapes
from tl_l2norm.core.errors import Unmeasurable

RUNS = 40
FLIPS = 300


def allowed(rate: float = 0.07, runs: int = RUNS) -> int:
    """How many of the runs may say so."""
    return int(binom.ppf(0.999, runs, rate))


def needed(rate: float = 0.9, runs: int = RUNS) -> int:
    """How many of the runs must."""
    return int(binom.ppf(0.001, runs, rate))


def effects(world: World, runs: int = RUNS) -> Iterator[pd.DataFrame]:
    return (mode_effects(*world.make(seed), seed=seed, flips=FLIPS) for seed in range(runs))


@pytest.mark.parametrize("world", [World(), World(types=0, position=0, length=0), World(token=8, response=0)], ids=str)
def test_where_thinking_does_nothing_it_is_rarely_said_to(world: World) -> None:
    tables = list(effects(world))
    assert sum((table["p_max"] <= 0.05).any() for table in tables) <= allowed()
    assert all((table["p_max"] >= table["p"]).all() for table in tables)


def test_a_planted_effect_is_found_and_its_size_is_in_the_interval() -> None:
    """1.5 with 48 prompts: 0.75 standard deviations of a token's noise, half of a type's."""
    tables = list(effects(World(n=48, effect=1.5)))
    late = [table.iloc[-1] for table in tables]
    assert sum(entry["p"] <= 0.05 and entry["effect"] > 0 for entry in late) >= needed()
    assert sum(entry["low"] <= 1.5 <= entry["high"] for entry in late) >= needed()


def test_thinking_against_itself_has_no_effect_and_no_rounding_of_one() -> None:
    think, _ = World().make(0)
    table = mode_effects(think, [trace.with_labels(mode="again") for trace in think], flips=99)
    assert not table["effect"].any() and (table[["p", "p_max"]] == 1).all(axis=None)


def test_lengths_that_do_not_overlap_are_refused() -> None:
    with pytest.raises(Unmeasurable, match="mode can't be told from length"):
        mode_effects(*World(thinking=(40, 60), direct=(2, 8)).make(0))


def test_a_mode_difference_that_token_types_make_is_taken_out() -> None:
    """One type is 10 louder and five times as frequent in thinking: as they are, all prompts differ by over 2."""
    think, direct = World(tilt=3.0, types=6.0, n=24).make(3)
    raw = np.mean([t.l2_norms[-1, t.prompt_len :].mean() for t in think]) - np.mean(
        [t.l2_norms[-1, t.prompt_len :].mean() for t in direct]
    )
    late = mode_effects(think, direct, flips=FLIPS).iloc[-1]
    assert raw > 2 and late["low"] < 0 < late["high"]


@pytest.mark.slow
def test_high_norms_are_rarely_said_to_be_of_thinking_and_found_where_they_are() -> None:
    null = [high_norm_effect(*World().make(seed), seed=seed, flips=FLIPS)["p"].iloc[0] <= 0.05 for seed in range(RUNS)]
    loud = [high_norm_effect(*World(n=48, effect=3).make(seed), seed=seed, flips=FLIPS).iloc[0] for seed in range(RUNS)]
    assert sum(null) <= allowed()
    assert sum(entry["p"] <= 0.05 and entry["effect"] > 0 for entry in loud) >= needed()


# What is behind the thought

BEHIND = World(answers=6, answer=20.0)
"""The answers behind the thoughts are louder than all else, the thoughts are as direct answers are."""


def test_an_answer_behind_the_thought_is_no_thinking() -> None:
    """Of all tokens of the responses each was said in 30 of 30 runs."""
    said = {"mode_effects": 0, "high_norm_effect": 0, "attribute": 0}
    for seed in range(RUNS):
        modes = BEHIND.make(seed)
        said["mode_effects"] += int((mode_effects(*modes, seed=seed, flips=FLIPS)["p_max"] <= 0.05).any())
        said["high_norm_effect"] += int(high_norm_effect(*modes, seed=seed, flips=FLIPS)["p"].iloc[0] <= 0.05)
        said["attribute"] += int(attribute(*modes, seed=seed, resamples=FLIPS).stays)
    assert max(said.values()) <= allowed()


def test_thinking_is_found_whatever_the_answer_behind_it() -> None:
    tables = list(effects(World(n=48, effect=1.5, answers=6, answer=-20.0)))
    assert sum(table["p"].iloc[-1] <= 0.05 and table["low"].iloc[-1] > 0 for table in tables) >= needed()


def test_of_a_response_without_tags_the_whole_is_thinking() -> None:
    think, direct = World(n=48, answers=40, thinking=(40, 41), direct=(20, 45), answer=20.0).make(0)
    assert set(think[0].segments) == {"prompt", "answer"}
    assert mode_effects(think, direct, flips=FLIPS)["p_max"].max() <= 0.05


# Shapes

X = np.linspace(0, 1, 28)
SMOOTH = {
    "even": X,
    "exponential": np.expm1(4 * X) / np.expm1(4),
    "cubic": X**3,
    "logistic": 1 / (1 + np.exp(-10 * (X - 0.8))),
    "exponentials of many rates": np.mean([np.expm1(r * X) / np.expm1(r) for r in (1, 3, 6, 12)], axis=0),
    "soft knee of 1.9 layers": np.logaddexp(0, 14 * (X - 0.7)) / np.logaddexp(0, 4.2),
    "soft knee of 1.4 layers": np.logaddexp(0, 20 * (X - 0.7)) / np.logaddexp(0, 6),
}
"""The last is nearly two straight pieces."""


def curves(shape: np.ndarray, seed: int, bumps: float = 0.0, n: int = 24) -> np.ndarray:
    """[prompt, layer] of different size, with noise that adds up over the layers; each layer's bump is the same for all."""
    rng = np.random.default_rng([seed, 3])
    size = np.exp(0.3 * rng.normal(size=(n, 1)))
    noise = 0.15 * np.cumsum(rng.normal(size=(n, len(shape))), axis=1) / np.sqrt(len(shape))
    return size * (shape + bumps * rng.normal(size=len(shape))) + noise + 0.05 * rng.normal(size=(n, len(shape)))


def is_broken(values: np.ndarray, seed: int) -> bool:
    return all(max(e["p_prompts"], e["p_layers"]) <= 0.05 for e in compare_shapes(values, seed=seed, flips=FLIPS))  # type: ignore[type-var]


@pytest.mark.parametrize("bumps", [0.0, 0.05])
@pytest.mark.parametrize("shape", SMOOTH)
def test_a_smooth_rise_is_rarely_called_flat_then_sharp(shape: str, bumps: float) -> None:
    assert sum(is_broken(curves(SMOOTH[shape], seed, bumps), seed) for seed in range(20)) <= allowed(runs=20)


def test_two_straight_pieces_over_28_layers_are_found_and_their_knot_too() -> None:
    broken = np.maximum(0, X - 0.75) * 4
    assert sum(is_broken(curves(broken, seed), seed) for seed in range(20)) >= needed(0.85, runs=20)
    entry = next(iter(compare_shapes(curves(broken, 0), flips=FLIPS)))
    assert entry["knot"] == pytest.approx(0.75 * 27, abs=1) and entry["broken_error"] < entry["error"], BROKEN


# Links


def link(world: World, seed: int) -> tuple[bool, bool]:
    """Whether the norm is said to follow the share, and whether there was anything to follow."""
    think, direct = world.make(seed)
    features = find_reasoning_features(think, direct, seed=seed, match="length")
    try:
        table = feature_link(features.held_out(think), features, seed=seed, subsets=199, resamples=200).set_index("layer")
    except Unmeasurable:
        return False, False
    assert table["p_max"].ge(table["p_subsets"] / 2).all(), "over layers it can't be rarer than at one"
    late = table.loc["late"]
    return bool(late["p_subsets"] <= 0.05 and late["low"] > 0), True


@pytest.mark.parametrize(
    "world",
    [World(n=32, latents=160, firing=1.0), World(n=32, latents=160, firing=1.0, gain=0.3), World(n=32, latents=160)],
    ids=["features without norms", "a norm that is a gain", "boring"],
)
def test_a_norm_that_has_nothing_to_do_with_the_features_is_rarely_said_to_follow(world: World) -> None:
    assert sum(link(world, seed)[0] for seed in range(25)) <= allowed(runs=25)


def test_a_norm_that_follows_the_features_is_found() -> None:
    links = [link(World(n=32, latents=160, reasoning=3.0), seed) for seed in range(25)]
    assert all(there for _, there in links) and sum(said for said, _ in links) >= needed(runs=25)
