"""What features, late norms and their shapes say where modes are alike but for the number of tokens, and where they differ."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

import tl_l2norm as l2
from tests.planted import both_modes
from tests.traces import response
from tests.worlds import Modes
from tl_l2norm.analysis.pairing import Match
from tl_l2norm.analysis.reasoning import ReasoningFeatures, find_reasoning_features
from tl_l2norm.analysis.split import split_thinking
from tl_l2norm.core.trace import Trace

RUNS = 24
FEW = {"resamples": 300}
_STREAM = 11


def most(runs: int, rate: float = 0.07) -> int:
    """False ones of so many runs that a rate of at most 7% goes over in one of a hundred cases."""
    from scipy.stats import binom

    return int(binom.ppf(0.99, runs, rate))


def alike(seed: int, n: int = 24, short: tuple[int, int] = (1, 3), effect: float = 0.0, latents: int = 30) -> Modes:
    """Tokens all alike, sparse skewed activations: 20 to 40 of them in thinking, 1 or 2 in direct answers."""
    rng = np.random.default_rng([seed, _STREAM])
    rates = rng.uniform(0.05, 0.6, latents)

    def make(i: int, mode: str) -> Trace:
        k = int(rng.integers(20, 41)) if mode == "think" else int(rng.integers(*short))
        acts = rng.exponential(size=(k, latents)) * (rng.random((k, latents)) < rates)
        acts[:, 0] += effect * (mode == "think")
        return response(np.ones((4, k)), prompt=f"p{i:02}", mode=mode, acts=acts)

    return both_modes(n, make)


def chosen(modes: Sequence[Sequence[Trace]], seed: int, match: Match) -> ReasoningFeatures:
    return find_reasoning_features(*modes, match=match, seed=seed)


def replicated(features: ReasoningFeatures, modes: Sequence[Sequence[Trace]], seed: int) -> int:
    held_out = (features.held_out(traces) for traces in modes)
    return int(features.evaluate(*held_out, seed=seed, **FEW)["replicated"].sum())


def test_features_are_not_found_by_numbers_of_tokens() -> None:
    """Of all tokens some feature is found in nearly every run; of as many in hardly any."""
    runs: dict[Match, list[bool]] = {"none": [], "length": [], "count": []}
    for seed in range(RUNS):
        modes = alike(seed, n=32)
        for match, any_found in runs.items():
            any_found.append(len(chosen(modes, seed, match)) > 0)
    assert np.mean(runs["none"]) > 0.8, "the artefact that the default avoids"
    assert sum(runs["count"]) <= most(RUNS) and sum(runs["length"]) <= most(RUNS)


@pytest.mark.parametrize("match", ["count", "length"])
def test_features_are_not_found_by_sinks(match: Match) -> None:
    """The first of two direct tokens is an attention sink, which means leave out: one token is compared with one."""
    runs = [with_sinks(alike(seed, n=80, short=(2, 3), latents=200)) for seed in range(RUNS)]
    assert sum(len(chosen(modes, seed, match)) > 0 for seed, modes in enumerate(runs)) <= most(RUNS)


def with_sinks(modes: Modes) -> Modes:
    """The same, each direct response's first token being a sink at all layers."""
    direct = []
    for trace in modes[1]:
        is_sink = trace.is_sink.clone()
        is_sink[:, trace.prompt_len] = True
        direct.append(dataclasses.replace(trace, is_sink=is_sink))
    return modes[0], direct


def test_a_latent_of_thinking_is_found_by_count() -> None:
    """Of 1.5 more at every thinking token, 40 prompts, direct answers of one or two tokens."""
    first = [0 in chosen(alike(seed, n=40, effect=1.5), seed, "count").latents[3] for seed in range(RUNS)]
    assert np.mean(first) >= 0.9


def test_split_thinking_shows_what_numbers_of_tokens_find() -> None:
    """Where thinking does act the split still says what is made by numbers alone."""
    split, by_count, again = [], [], 0
    for seed in range(RUNS // 2):
        parts = split_thinking(*alike(seed, n=32, effect=1.5), seed=seed)
        features = chosen(parts, seed, "none")
        split.append(len(features) > 0)
        again += replicated(features, parts, seed) if len(features) else 0
        by_count.append(len(chosen(parts, seed, "count")) > 0)
    assert np.mean(split) > 0.8 and sum(by_count) <= most(len(by_count))
    assert again > 0, "and some of them replicate"


def loud(seed: int, n: int, effect: float = 0.0, short: tuple[int, int] = (1, 3), layers: int = 8) -> Modes:
    """5% of tokens are loud; direct answers are of one or two tokens."""
    rng = np.random.default_rng([seed, _STREAM])
    own = 100 + 3 * rng.normal(size=n)

    def make(i: int, mode: str) -> Trace:
        k = int(rng.integers(20, 41)) if mode == "think" else int(rng.integers(*short))
        norms = own[i] + rng.normal(size=(layers, k)) + 100 * (rng.random(k) < 0.05) + effect * (mode == "think")
        return response(norms, prompt=f"p{i:02}", mode=mode)

    return both_modes(n, make)


def said(make: Callable[[int], Modes], runs: int, **options: Any) -> list[Any]:
    return [l2.analysis.compare_late(*make(seed), seed=seed, **options, **FEW) for seed in range(runs)]


@pytest.mark.parametrize("n", [8, 20, 48])
def test_loud_tokens_and_short_answers_make_no_difference(n: int) -> None:
    late = said(lambda seed: loud(seed, n), RUNS)
    assert sum("neither" not in one.verdict for one in late) <= most(RUNS)
    assert sum((one.table["p_max"] <= 0.05).any() for one in late) <= most(RUNS, 0.05)
    assert sum(one.ratio.low > 1 or one.ratio.high < 1 for one in late) <= most(RUNS)
    if n == 8:
        everything = said(lambda seed: loud(seed, n), RUNS, match="none")
        assert np.mean(["higher than" in one.verdict for one in everything]) > 0.3, "of all tokens"


@pytest.mark.parametrize("n", [8, 48])
def test_loud_tokens_and_short_answers_are_attributed_to_nothing(n: int) -> None:
    said = [l2.analysis.attribute(*loud(seed, n), seed=seed, **FEW).verdict for seed in range(RUNS)]
    assert sum(not verdict.startswith("No difference between the modes: ") for verdict in said) <= most(RUNS)


def test_equal_norms_make_no_difference() -> None:
    """Of float32: sums of 20 or 40 of them are rounded unlike."""

    def make(seed: int) -> Modes:
        rng = np.random.default_rng([seed, _STREAM])
        return both_modes(12, lambda i, mode: response(np.full((8, int(rng.integers(8, 60))), 57.3), prompt=str(i), mode=mode))

    for seed in range(5):
        modes = make(seed)
        late = l2.analysis.compare_late(*modes, seed=seed, **FEW)
        assert (late.difference.mean, late.difference.low, late.difference.high) == (0, 0, 0)
        assert (late.table["p"] == 1).all() and (late.table["ratio"] == 1).all() and "neither" in late.verdict
        assert not l2.analysis.mode_differences(*modes, match="none", **FEW)["difference"].any()
        assert l2.analysis.layer_curve(modes[0], mode="think", **FEW).mean.tolist() == [np.float32(57.3)] * 8
        effects = l2.analysis.mode_effects(*modes, flips=99)
        assert not effects["effect"].any() and (effects["p"] == 1).all()


def test_a_difference_at_the_last_block_alone_is_said_to_be_of_it() -> None:
    """As on a model whose thinking is higher in the late layers, and lower after the last block."""

    def make(i: int, mode: str) -> Trace:
        rng = np.random.default_rng([i, mode == "think", _STREAM])
        lift = np.array([0.0] * 5 + [5, 5, -30]) * (mode == "think")
        return response(100 + lift[:, None] + rng.normal(size=(8, 6)), prompt=str(i), mode=mode)

    late = l2.analysis.compare_late(*both_modes(16, make))
    assert late.verdict.startswith(
        "Thinking norms are lower than direct ones in the late layers (layers 6 to 7, as many tokens"
    )
    assert "; without the last block (layer 6) they are higher, difference 4.955 [" in late.verdict
    table = late.table.set_index("layer")
    assert list(table.index) == [6, 7, "late", "late but the last"]
    assert table.loc[6, "difference"] > 0 > table.loc[7, "difference"] and (table["p_max"] <= 0.01).all()
