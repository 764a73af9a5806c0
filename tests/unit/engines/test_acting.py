"""Interventions on made-up passes over requests that come, go and are read again, against one pass over each sequence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import tl_l2norm as l2
from tl_l2norm.core.batch import Batch
from tl_l2norm.core.errors import InputError, Unsupported
from tl_l2norm.engines.acting import Acting
from tl_l2norm.engines.parts import Asked, rows_of
from tl_l2norm.interventions.intervener import Intervener
from tl_l2norm.models.backends import backend_of

LAYERS = (0, 1)
TAU = {0: 6.9, 1: 7.1}
LENGTHS = [(5, 17), (1, 14), (9, 22), (6, 7), (12, 30), (3, 25)]
"""Of a prompt, and of all that is read of its sequence."""

Made = Callable[..., list[Any]]
RULES: dict[str, Made] = {
    "high": lambda **where: [l2.Suppression(TAU, **where)],
    "random": lambda **where: [l2.Suppression(which="random", p=0.4, layers=[0, 1], **where)],
    "swap": lambda **where: [l2.Suppression(TAU, how="swap", **where)],
    "low by sequence": lambda **where: [
        l2.Suppression(l2.AdaptiveIQR(warmup=3, scope="sequence"), which="low", layers=[0, 1], **where)
    ],
    "erss": lambda **where: [l2.ERSS(TAU, patience=1, p=0.8, cos_min=-1.0, cooldown=1, bank_size=2, keep_banks=True, **where)],
    "erss elsewhere": lambda **where: [
        l2.ERSS(TAU, patience=1, p=0.8, cos_min=-1.0, cooldown=1, bank_size=2, towards=towards, keep_banks=True, **where)
        for towards in ("random", "direction")
    ],
    "two": lambda **where: [l2.Suppression(TAU, layers=[0]), l2.ERSS(TAU, patience=1, p=1.0, cos_min=-1.0, **where)],
}


@pytest.fixture(scope="module")
def backend() -> Any:
    return backend_of(l2.load_model("tiny-reasoner", device="cpu"))


class World:
    """Streams that are given by sequence, layer and position; a block's write doesn't hang on what was changed before it."""

    def __init__(self, d_model: int) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = (len(LENGTHS), len(LAYERS), max(n for _, n in LENGTHS), d_model)
        sizes = 7.0 / d_model**0.5 * (0.9 + 0.2 * torch.rand(shape[:3], generator=generator))
        self.streams = torch.randn(shape, generator=generator) * sizes[..., None]
        self.tokens = torch.randint(100, shape[:1] + shape[2:3], generator=generator).numpy()


def one_pass(backend: Any, world: World, rules: list[Any]) -> tuple[Intervener, list[torch.Tensor]]:
    """What becomes of each sequence [layer, pos, d_model] in one pass over it."""
    intervener, changed = Intervener(backend, rules, sink_ratio=5.0), []
    for number, (prompt_len, n) in enumerate(LENGTHS):
        rows = rows_of([Asked(number, 70 + number, prompt_len)], np.zeros(1, dtype=np.int64), torch.device("cpu"))
        batch = Batch(rows)
        intervener.begin(batch)
        intervener.next_pass(batch.next_pass(n, tokens=torch.from_numpy(world.tokens[number][None, :n])))
        streams = world.streams[number, :, None, :n]
        made = [intervener.visit(layer, stream, None) for layer, stream in enumerate(streams)]
        changed.append(torch.stack([(old if new is None else new)[0] for old, new in zip(streams, made, strict=True)]))
        intervener.leave(batch)
    return intervener, changed


Pass = tuple[list[int], list[int], list[int]]


def passes(rng: np.random.Generator, *, whole: bool) -> Iterator[Pass]:
    """Requests, where each goes on, and how many of its tokens are read: in any order, in parts, and at times anew."""
    start, known = dict.fromkeys(range(len(LENGTHS)), 0), {i: prompt for i, (prompt, _) in enumerate(LENGTHS)}
    while start:
        chosen = [int(i) for i in rng.permutation(list(start)) if rng.random() < 0.7]
        left = [known[i] - start[i] for i in chosen]
        first = [whole and start[i] < LENGTHS[i][0] for i in chosen]
        lengths = [n if all_of_it else int(rng.integers(1, n + 1)) for n, all_of_it in zip(left, first, strict=True)]
        if chosen:
            yield chosen, [start[i] for i in chosen], lengths
        for i, n in zip(chosen, lengths, strict=True):
            start[i] += n
            known[i] += start[i] == known[i]
            if start[i] == LENGTHS[i][1]:
                del start[i]
            elif rng.random() < 0.1:
                start[i] = 0


def require_the_same_as_in_one_pass(backend: Any, rules: list[Any], seed: int, *, whole: bool) -> None:
    world = World(backend.d_model)
    reference, expected = one_pass(backend, world, rules)
    acting = Acting(backend, rules, sink_ratio=5.0, whole_prompts=whole)
    for number, (prompt_len, _) in enumerate(LENGTHS):
        acting.expect(f"r{number}", number, 70 + number, prompt_len)
    read = [0] * len(LENGTHS)
    for chosen, starts, lengths in passes(np.random.default_rng(seed), whole=whole):
        at = [(i, start + k) for i, start, n in zip(chosen, starts, lengths, strict=True) for k in range(n)]
        owners, positions = np.array(at).T
        again = np.array([position < read[i] for i, position in at])
        tokens = world.tokens[owners, positions].astype(np.int32)
        acting.begin([f"r{i}" for i in chosen], np.array(lengths, dtype=np.int32), positions, tokens, torch.device("cpu"))
        for layer in LAYERS:
            stream = world.streams[owners, layer, positions].clone()
            goal = torch.stack([expected[i][layer, position] for i, position in at])
            if acting.keeps:  # not what it was, to show that nothing hangs on it
                hit = (goal != stream).any(-1)
                stream[again] *= 1.5
                goal = torch.where(hit[:, None] | ~torch.from_numpy(again)[:, None], goal, stream)
            made = acting.visit(layer, stream)
            torch.testing.assert_close(stream if made is None else made, goal, rtol=1e-5, atol=1e-5)
        assert acting.end().shape == (len(LAYERS), len(at))
        for i, start, n in zip(chosen, starts, lengths, strict=True):
            read[i] = max(read[i], start + n)
            if read[i] == start + n == LENGTHS[i][1]:
                acting.leave(f"r{i}")
    require_same_log(acting.first.log, reference.log)


def require_same_log(ours: Any, theirs: Any) -> None:
    pd.testing.assert_frame_equal(ours.events(), theirs.events(), rtol=1e-5, atol=1e-6)  # a cosine may be near 0
    assert len(ours.events()) > 5 and ours.keys == theirs.keys and ours.prompt_lens == theirs.prompt_lens
    for index in range(len(ours.interventions)):
        assert ours.live(index) == {key: n for key, n in theirs.live(index).items() if n}
    order = ["intervention", "layer", "owner"]
    finals = [log.thresholds().query("n_samples > 0").sort_values(order, ignore_index=True) for log in (ours, theirs)]
    pd.testing.assert_frame_equal(*finals)
    for kept, expected in zip(ours.kept, theirs.kept, strict=True):
        for number, layers in kept.items():
            for layer, states in layers.items():
                torch.testing.assert_close(states, expected[number][layer])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rule", RULES)
def test_responses_in_any_order_are_those_of_one_pass(backend: Any, rule: str, seed: int) -> None:
    require_the_same_as_in_one_pass(backend, RULES[rule](), seed, whole=False)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rule", RULES)
def test_prompts_too_where_they_are_read_whole(backend: Any, rule: str, seed: int) -> None:
    require_the_same_as_in_one_pass(backend, RULES[rule](positions="all" if seed else 4), seed, whole=True)


def test_what_it_cannot_do_exactly_is_refused(backend: Any) -> None:
    refused = {
        l2.Suppression(TAU, positions="all"): r"enable_chunked_prefill=False for Suppression\(",
        l2.ERSS(TAU, mix="authors"): r"doesn't see the stream before the MLP's write: ERSS\(.*a model of load_model",
        l2.Suppression(
            l2.AdaptiveIQR(), layers=[0]
        ): r"AdaptiveIQR\(scope='run'\) counts .* Suppression\(.* needs scope='sequence'",
    }
    for x, message in refused.items():
        with pytest.raises(Unsupported, match=message):
            Acting(backend, [x], sink_ratio=5.0)
    Acting(backend, list(refused)[:1], sink_ratio=5.0, whole_prompts=True)


def test_what_an_intervention_cannot_begin_with_shows_before_a_pass(backend: Any) -> None:
    bank = {0: torch.ones(2, backend.d_model)}
    acting = Acting(backend, [l2.ERSS(TAU, bank=bank)], sink_ratio=5.0)
    with pytest.raises(InputError, match="bank has no states for layer 1"):
        acting.expect("r", 0, 1, 3)


def test_a_prompt_that_is_split_after_all_is_an_error(backend: Any) -> None:
    acting = Acting(backend, [l2.Suppression(TAU, positions="all")], sink_ratio=5.0, whole_prompts=True)
    acting.expect("r", 0, 1, 3)
    with pytest.raises(RuntimeError, match="2 of 3 tokens of prompt 0 were read, from 0 on"):
        acting.begin(["r"], np.array([2]), np.arange(2), np.arange(2), torch.device("cpu"))
