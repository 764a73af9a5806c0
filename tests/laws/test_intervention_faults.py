"""Whatever breaks, interventions leave no hook, no changed cache and no changed model; nobody else hears a re-run."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

import tl_l2norm as l2
from tests import models
from tests.texts import ids, prompts
from tl_l2norm.experiments.selfcheck import count_hooks
from tl_l2norm.interventions.observing import hooks
from tl_l2norm.models.backends import backend_of
from tl_l2norm.text.sequences import pad_left

N_FAULTS = 50  # on each of four models
STATES = torch.randn(2, 48, generator=torch.Generator().manual_seed(0))


class Fault(Exception):
    pass


def acting() -> list[Any]:
    always = dict.fromkeys(range(1, 5), 1e-3)
    return [
        l2.ALRR(always, growth_eps=-9.0, blowup=1e9),
        l2.ERSS(dict.fromkeys(always, 1e9), patience=1, cooldown=0, p=1.0, cos_min=-1.0, bank=dict.fromkeys(always, STATES)),
        l2.Suppression(always, scale=0.9),
        l2.Suppression(always, how="swap"),
        l2.interventions.Rerun(p=0.5, layers=[1, 4]),
    ]


def raw_hooks(model: nn.Module) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())


@contextmanager
def fault_after(model: Any, calls: int, place: nn.Module) -> Iterator[None]:
    """Raise at the nth call of one part of the model, those of re-runs included."""
    left = [calls]

    def fail(*_: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Fault

    handle = place.register_forward_pre_hook(fail)
    try:
        yield
    finally:
        handle.remove()


def runs(model: Any, tokens: torch.Tensor) -> list[Any]:
    chosen = acting()
    positions = [l2.ALRR(dict.fromkeys(range(1, 5), 1e-3), growth_eps=-9.0, blowup=1e9, positions="all", kv="fresh")]

    def within_hooks() -> None:
        with hooks(model, chosen):
            model.generate(tokens, max_new_tokens=4, do_sample=False, stop_at_eos=False, verbose=False)

    return [
        lambda: l2.generate(model, prompts()[:2], interventions=chosen, max_new_tokens=4, ignore_eos=True, progress=False),
        lambda: l2.collect(model, tokens, prompt_lens=[3], interventions=chosen, progress=False),
        within_hooks,
        lambda: model.run_with_hooks(tokens, fwd_hooks=positions[0].fwd_hooks(model)),
    ]


def test_after_many_faults_the_model_is_as_it_was(tiny: Any) -> None:
    backend = backend_of(tiny)
    tokens, mask = pad_left([ids("The quick brown fox jumps over the lazy dog.")], backend.device)
    with torch.no_grad():
        tiny(tokens)  # the bridge puts hooks of its own on at its first pass
    before, rng, raised = raw_hooks(tiny), random.Random(0), 0
    with torch.no_grad():
        truth, _ = backend.forward(tokens, mask, keep_cache=True, logits="all")
    places = [m for block in tiny.blocks for m in (block, block.attn, block.mlp)]
    kinds = runs(tiny, tokens)
    while raised < N_FAULTS:
        try:
            with torch.no_grad(), fault_after(tiny, rng.randrange(1, 5), rng.choice(places)):
                kinds[rng.randrange(len(kinds))]()
        except Fault:
            raised += 1
        assert raw_hooks(tiny) == before and count_hooks(tiny) == 0
    with torch.no_grad():
        again, _ = backend.forward(tokens, mask, keep_cache=True, logits="all")
    assert torch.equal(again, truth)


@pytest.mark.parametrize("fault", [Fault, KeyboardInterrupt])
def test_a_fault_in_the_users_hook_behind_ours_leaves_only_the_users_hook(tiny: Any, fault: type[BaseException]) -> None:
    point = backend_of(tiny).resid_post(2)
    heard: list[int] = []

    def user(tensor: torch.Tensor, hook: Any) -> None:
        heard.append(1)
        if len(heard) == 4:
            raise fault

    point.add_hook(user)
    try:
        with pytest.raises(fault):
            l2.generate(tiny, prompts()[:1], interventions=acting(), max_new_tokens=9, ignore_eos=True, progress=False)
        assert count_hooks(tiny) == 1
    finally:
        tiny.reset_hooks()


def test_a_fault_inside_an_intervention_leaves_nothing(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = raw_hooks(tiny)
    monkeypatch.setattr(l2.ERSS, "act", lambda *_: (_ for _ in ()).throw(Fault))
    with pytest.raises(Fault):
        l2.generate(tiny, prompts()[:1], interventions=acting(), max_new_tokens=9, ignore_eos=True, progress=False)
    assert (raw_hooks(tiny), count_hooks(tiny)) == (before, 0)


def test_nobody_hears_a_rerun(case: models.Case) -> None:
    """Promise 6: the user's hooks inside the block fire once a pass, and `run_with_cache` keeps the first pass."""
    model = models.use(case)
    backend, layer = backend_of(model), 2
    tokens = torch.tensor([ids("The quick brown fox jumps over the lazy dog.")])
    x = l2.ALRR({layer: 1e-3}, growth_eps=-9.0, blowup=1e9, max_iters=2, positions="all")
    inside = f"blocks.{layer}."
    heard: list[str] = []
    points = [m for m in model.blocks[layer].modules() if hasattr(m, "add_hook")]
    names = [
        f"{inside}{name}"
        for name in ("hook_resid_pre", "attn.hook_pattern", "hook_attn_out", "hook_mlp_out", "hook_resid_post")
    ]

    def pass_once() -> dict[str, torch.Tensor]:
        heard.clear()
        _, cache = model.run_with_cache(tokens, names_filter=names)
        return {name: cache[name] for name in cache}

    with torch.no_grad():
        truth = pass_once()
        for point in points:
            point.add_hook(lambda tensor, hook: heard.append(hook.name))
        try:
            plain = pass_once()
            once = list(heard)
            with x.hooks(model) as log:
                after = pass_once()
            assert heard == once
        finally:
            model.reset_hooks()
    assert log.counts().set_index("decision").loc["rerun", "n"] > 5
    assert after.keys() == plain.keys() == truth.keys()
    changed = [name for name in after if not torch.equal(after[name], truth[name])]
    last = {backend.resid_post(layer).name, f"blocks.{layer}.hook_resid_post"}
    assert changed == [] or set(changed) <= last, "only what the block gives on may differ"


def test_contexts_nest_and_end_in_any_order(tiny: Any) -> None:
    tokens = torch.tensor([ids("The quick brown fox")])
    first, second = acting()[0].hooks(tiny, prompt_lens=[2]), acting()[2].hooks(tiny, prompt_lens=[2])
    with torch.no_grad():
        plain = tiny(tokens)
        first.__enter__()
        second.__enter__()
        both = tiny(tokens)
        first.__exit__(None, None, None)
        one = tiny(tokens)
        second.__exit__(None, None, None)
        assert torch.equal(tiny(tokens), plain)
    with torch.no_grad(), acting()[2].hooks(tiny, prompt_lens=[2]):
        assert torch.equal(tiny(tokens), one)
    assert not torch.equal(both, one)
    assert count_hooks(tiny) == 0
