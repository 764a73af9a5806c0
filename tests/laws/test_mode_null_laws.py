"""Modes alike but for what stands where: where prompts end, how responses end, what is repeated and what stands before.

Thinking does nothing in any of these worlds. The covariates before these had them say so in 10 to 40 of 40 runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.laws.test_deconfounding_laws import FLIPS, allowed
from tests.traces import Array, response
from tests.worlds import Modes
from tl_l2norm.analysis.attribution import attribute
from tl_l2norm.analysis.deconfounding import mode_effects
from tl_l2norm.analysis.high_norm import high_norm_effect
from tl_l2norm.core.trace import Trace

Integers = NDArray[np.int64]

_LAYERS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A response's tokens, before they have norms."""

    ids: Integers
    position: Integers
    """In the sequence."""
    other: Array
    """[layer, type] loudness that has nothing to do with that of the types."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Nuisance:
    """Types, prompts and skewed noise act on norms, and what `act` [layer or 1, token] says."""

    act: Callable[[Drawn], Array]
    n: int = 32
    vocabulary: int = 40
    direct: tuple[int, int] = (15, 45)
    prompts: tuple[int, int] = (1, 2)
    """Tokens of a thinking prompt, from and to."""
    shorter: int = 0
    """By so many tokens that of the same problem in direct mode."""
    loops: float = 0.0
    """Share of thoughts of which the last two thirds are a few tokens again and again, and of direct answers 0.3 of that."""
    order: float = 0.0
    """Share of tokens whose type the one before says, in each mode another."""

    def make(self, seed: int) -> Modes:
        """Traces of both modes."""
        rng = np.random.default_rng([seed, 29])
        loud, other = 3 * rng.normal(size=(2, _LAYERS, self.vocabulary))
        next_of = np.stack([rng.permutation(self.vocabulary) for _ in range(2)])
        frequency = np.exp(rng.normal(size=self.vocabulary))
        sides: Modes = ([], [])
        for prompt in range(self.n):
            own, start = 200 + 5 * rng.normal(size=(_LAYERS, 1)), int(rng.integers(*self.prompts))
            for mode, name in enumerate(("think", "direct")):
                k, begin = int(rng.integers(*((20, 60), self.direct)[mode])), start - mode * self.shorter
                ids = rng.choice(self.vocabulary, size=k, p=frequency / frequency.sum())
                for i in np.flatnonzero(rng.random(k) < self.order):
                    ids[i] = next_of[mode, ids[i - 1]] if i else ids[i]
                if rng.random() < self.loops * (1.0, 0.3)[mode]:
                    ids[k // 3 :] = np.resize(ids[k // 3 : k // 3 + rng.integers(2, 6)], k - k // 3)
                drawn = Drawn(ids=ids, position=begin + np.arange(k), other=other)
                norms = own + loud[:, ids] + self.act(drawn) + 2 * (rng.exponential(size=(_LAYERS, k)) - 1)
                trace = response(norms, prompt=f"p{prompt:03}", mode=name, tokens=ids, prompt_len=begin)
                sides[mode].append(untagged(trace))
        return sides


def untagged(trace: Trace) -> Trace:
    """The whole response thinks."""
    return replace(trace, segments=tuple("prompt" if i < trace.prompt_len else "answer" for i in range(len(trace))))


def last(drawn: Drawn, n: int = 3, lift: float = -8.0) -> Array:
    return lift * (np.arange(len(drawn.ids)) >= len(drawn.ids) - n)[None]


def repeated(drawn: Drawn) -> Array:
    return 3 * np.log1p([(drawn.ids[:i] == token).sum() for i, token in enumerate(drawn.ids)])[None]


def behind(drawn: Drawn) -> Array:
    return np.concatenate([np.zeros((_LAYERS, 1)), drawn.other[:, drawn.ids[:-1]]], axis=1)


DRIFT = Nuisance(act=lambda drawn: 0.5 * drawn.position[None] ** 0.7, prompts=(60, 160), shorter=20)
NUISANCES = {
    "norms drift over the sequence, direct prompts are shorter by 20": DRIFT,
    "the same by 6": replace(DRIFT, shorter=6),
    "and fall, direct prompts are longer": replace(DRIFT, act=lambda d: -0.5 * d.position[None] ** 0.7, shorter=-6),
    "thoughts loop, repeated tokens are loud": Nuisance(act=repeated, vocabulary=200, loops=0.5),
    "the last 3 tokens are quiet, direct answers are shorter": Nuisance(act=last, direct=(10, 40)),
    "the last 6": Nuisance(act=lambda drawn: last(drawn, 6), direct=(12, 45)),
    "the last alone": Nuisance(act=lambda drawn: last(drawn, 1, -20.0), direct=(10, 40)),
    "pairs of types differ, and the type before counts": Nuisance(act=behind, order=0.8, vocabulary=20, n=100),
}


RUNS = 20


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if w.n > 50 else ()) for name, w in NUISANCES.items()]
)
def test_what_stands_where_is_not_taken_for_thinking(name: str) -> None:
    tables = [mode_effects(*NUISANCES[name].make(seed), layers=-1, seed=seed, flips=FLIPS) for seed in range(RUNS)]
    assert sum(table["p"].iloc[0] <= 0.05 for table in tables) <= allowed(runs=RUNS)


@pytest.mark.slow
@pytest.mark.parametrize("name", NUISANCES)
def test_nor_is_a_difference_said_to_stay(name: str) -> None:
    said = [attribute(*NUISANCES[name].make(seed), seed=seed, resamples=FLIPS).stays for seed in range(RUNS)]
    assert sum(said) <= allowed(runs=RUNS)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NUISANCES if not name.startswith("pairs")])
def test_nor_are_high_norms_said_to_be_of_thinking(name: str) -> None:
    """But where pairs differ: whether a sum of two is high is no sum of two."""
    late = [high_norm_effect(*NUISANCES[name].make(seed), seed=seed, flips=FLIPS).iloc[0] for seed in range(RUNS)]
    assert sum(entry["p"] <= 0.05 and entry["effect"] > 0 for entry in late) <= allowed(runs=RUNS)


@pytest.mark.parametrize("of", ["the thought", "the response"])
def test_the_end_of_a_thought_or_of_its_answer_is_not_taken_for_thinking(of: str) -> None:
    """Thoughts between tags with an answer of 6 tokens behind them; of either the last 3 are quiet, as of direct answers."""
    said = 0
    for seed in range(RUNS):
        think, direct = Nuisance(act=lambda drawn: np.zeros((1, 1)), direct=(10, 40)).make(seed)
        ended = (
            [quiet(tagged(trace), 6 if of == "the thought" else 0) for trace in think],
            [quiet(trace, 0) for trace in direct],
        )
        said += int(mode_effects(*ended, layers=-1, seed=seed, flips=FLIPS)["p"].iloc[0] <= 0.05)
    assert said <= allowed(runs=RUNS)


def tagged(trace: Trace) -> Trace:
    """Of the response all but the last 6 tokens is a thought."""
    at, n = range(len(trace)), len(trace) - 6
    return replace(trace, segments=tuple("prompt" if i < trace.prompt_len else "think" if i < n else "answer" for i in at))


def quiet(trace: Trace, behind: int) -> Trace:
    """The 3 tokens before the last `behind` are quieter by 8."""
    norms, end = trace.l2_norms.clone(), len(trace) - behind
    norms[:, end - 3 : end] -= 8.0
    return replace(trace, l2_norms=norms)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["norms drift over the sequence, direct prompts are shorter by 20", "pairs of types differ, and the type before counts"],
)
def test_a_planted_effect_is_found_beside_them(name: str) -> None:
    """Of 3, one and a half times a token's noise."""
    said = 0
    for seed in range(RUNS):
        think, direct = replace(NUISANCES[name], n=64).make(seed)
        loud = [replace(trace, l2_norms=trace.l2_norms + 3 * (torch.arange(len(trace)) >= trace.prompt_len)) for trace in think]
        entry = mode_effects(loud, direct, layers=-1, seed=seed, flips=FLIPS).iloc[0]
        said += int(entry["p"] <= 0.05 and entry["effect"] > 0)
    assert said >= 0.9 * RUNS
