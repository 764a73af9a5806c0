"""Runs without the bridge's wrappers: the bridge's tokens and norms, on the weights as they are now, and nobody unheard."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tl_l2norm as l2
from tests import models
from tl_l2norm.models.backends import backend_of
from tl_l2norm.models.hooks import attached, hook_points
from tl_l2norm.models.lean import LeanBackend, lean
from tl_l2norm.recording.completions import Generations

PROMPTS = ["The capital of France is", "One, two, three, four, five, six, seven,", "Why?"]
LEAN = [case for case in models.CASES if case.backend == "bridge" and case.architecture != "gpt2"]


@pytest.fixture(params=LEAN, ids=str)
def bridged(request: pytest.FixtureRequest) -> Any:
    return models.use(request.param)


@pytest.fixture
def own() -> Any:
    """A model that a test may change."""
    return l2.load_model(models.folder("llama"), device="cpu")


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.INFO, logger="tl_l2norm.models.lean"):
        yield caplog


def heard(stream: Tensor, hook: Any) -> None:
    """A hook of somebody else's, which changes nothing."""


def through_the_bridge(model: Any, **options: Any) -> Generations:
    """The same run with a hook of somebody else's on the model."""
    with attached([(model.blocks[0].hook_in, heard)]):
        return generated(model, **options)


def generated(model: Any, **options: Any) -> Generations:
    return l2.generate(model, PROMPTS, max_new_tokens=12, ignore_eos=True, progress=False, **options)


def is_lean(model: Any) -> bool:
    backend = backend_of(model)
    return isinstance(lean(backend, backend.identity()), LeanBackend)


def assert_same(runs: Generations, truth: Generations) -> None:
    assert len(runs) == len(truth)
    for one, other in zip(runs, truth, strict=True):
        assert one.tokens == other.tokens
        assert one.trace is not None and other.trace is not None
        torch.testing.assert_close(one.trace.l2_norms, other.trace.l2_norms, rtol=1e-5, atol=0)
        torch.testing.assert_close(one.logprobs, other.logprobs, rtol=1e-4, atol=1e-4)


def test_tokens_and_norms_are_those_of_the_bridge(bridged: Any) -> None:
    assert is_lean(bridged)
    assert_same(generated(bridged, n=2, temperature=0.8), through_the_bridge(bridged, n=2, temperature=0.8))


def test_interventions_decide_and_do_the_same(bridged: Any) -> None:
    tau = l2.quantile_thresholds(generated(bridged), q=0.6)
    interventions: list[Any] = [
        l2.Suppression(tau, how="clamp"),
        l2.ALRR(tau, growth_eps=0.0, blowup=10.0),
        l2.ALRR(tau, growth_eps=0.0, blowup=10.0, kv="fresh"),
        l2.ERSS(tau, patience=1, cos_min=-1.0, p=1.0, cooldown=0),
    ]
    for one in interventions:
        runs, truth = (run(bridged, interventions=one) for run in (generated, through_the_bridge))
        assert_same(runs, truth)
        decided, expected = (run.events()[["sequence", "position", "layer", "fired"]] for run in (runs, truth))
        assert decided.equals(expected) and decided["fired"].any()


def test_collect_reads_the_same(bridged: Any) -> None:
    sae_free = l2.collect(bridged, PROMPTS, progress=False)
    with attached([(bridged.blocks[0].hook_in, heard)]):
        truth = l2.collect(bridged, PROMPTS, progress=False)
    for one, other in zip(sae_free, truth, strict=True):
        torch.testing.assert_close(one.l2_norms, other.l2_norms, rtol=1e-5, atol=0)


def test_the_embedding_output_is_seen_and_can_be_changed() -> None:
    bridge = models.use(models.Case("llama", "bridge"))
    backend = lean(backend_of(bridge), backend_of(bridge).identity())
    tokens = torch.tensor([[5, 6, 7]])
    states: list[Tensor] = []
    with torch.no_grad(), attached([(backend.embed_out(), lambda stream, hook: states.append(stream.clone()))]):
        plain, _ = backend.forward(tokens, torch.ones_like(tokens), logits="all")
    with torch.no_grad(), attached([(backend.embed_out(), lambda stream, hook: stream.roll(1, 1))]):
        rolled, _ = backend.forward(tokens, torch.ones_like(tokens), logits="all")
    with torch.no_grad():
        truth, _ = backend.forward(tokens.roll(1, 1), torch.ones_like(tokens), logits="all")
    torch.testing.assert_close(states[0], bridge.W_E[tokens])
    torch.testing.assert_close(rolled, truth)
    assert plain is not None and not torch.allclose(plain, truth)  # type: ignore[arg-type]


def double(model: Any, how: str) -> None:
    """Change a model after it was loaded."""
    inner = model.blocks[2].mlp.original_component.down_proj
    linear = inner.original_component
    if how == "in place":
        linear.weight.data.mul_(2)
    elif how == "another parameter":
        linear.weight = nn.Parameter(2 * linear.weight.detach())
    elif how == "through the bridge":
        model.blocks[2].mlp.out.weight.data.mul_(2)
    else:
        other = nn.Linear(linear.in_features, linear.out_features, bias=False)
        other.weight = nn.Parameter(2 * linear.weight.detach())
        inner.set_original_component(other)


@pytest.mark.parametrize("how", ["in place", "another parameter", "through the bridge", "another module"])
def test_what_was_changed_after_loading_is_seen(own: Any, how: str) -> None:
    before = generated(own)
    double(own, how)
    after = generated(own)
    assert is_lean(own)
    assert_same(after, through_the_bridge(own))
    first, changed = before[0].trace, after[0].trace
    assert first is not None and changed is not None and not torch.allclose(first.l2_norms[2], changed.l2_norms[2])


def test_nothing_of_it_is_left_in_the_model(own: Any) -> None:
    def state() -> list[tuple[str, int, int, tuple[int, ...]]]:
        return [
            (
                name,
                id(module),
                len(module._forward_hooks) + len(module._forward_pre_hooks),
                tuple(map(id, module._buffers.values())),
            )
            for name, module in own.named_modules()
        ]

    before = state()
    generated(own, interventions=l2.Suppression({3: 1.0}))
    assert state() == before


def test_hooks_of_others_are_heard_in_the_bridge(own: Any, said: pytest.LogCaptureFixture) -> None:
    seen: list[Tensor] = []
    with attached([(own.blocks[1].attn.hook_out, lambda stream, hook: seen.append(stream))]):
        generated(own)
    assert seen and "1 hooks are on it" in said.text
    said.clear()
    generated(own)
    assert not said.text


def test_code_of_others_runs_in_the_bridge(own: Any, said: pytest.LogCaptureFixture) -> None:
    plain = generated(own)[0].trace
    mlp = own.blocks[1].mlp.original_component
    mlp.forward = lambda x, usual=mlp.forward: 3 * usual(x)
    patched = generated(own)[0].trace
    assert plain is not None and patched is not None and not torch.allclose(plain.l2_norms[1], patched.l2_norms[1])
    assert "the forward of its LlamaMLP was replaced" in said.text


def test_a_model_that_was_asked_for_hidden_states_is_run_without_the_bridge_as_before(own: Any) -> None:
    before = generated(own)
    with torch.no_grad():
        own.original_model(torch.tensor([[1, 2, 3]]), output_hidden_states=True)
    assert is_lean(own)
    assert_same(generated(own), before)


def test_weights_that_the_bridge_keeps_for_itself_run_in_the_bridge(said: pytest.LogCaptureFixture) -> None:
    """GPT-2's joint projection of queries, keys and values: the bridge splits it, and computes with the parts."""
    generated(models.use(models.Case("gpt2", "bridge")))
    assert "the bridge keeps weights beside the model's own: transformer.h.0.attn.q.weight" in said.text


def test_a_bridge_that_computes_otherwise_runs_itself(own: Any, said: pytest.LogCaptureFixture) -> None:
    for block in own.blocks:
        block.ln2.use_native_layernorm_autograd = False
        block.ln2.config.eps = 0.5
    generated(own)
    assert "computes something else" in said.text


def test_metrics_inside_of_blocks_are_recorded_in_the_bridge() -> None:
    bridge = models.use(models.Case("llama", "bridge"))
    (trace,) = l2.collect(bridge, PROMPTS[:1], metrics=["attention_entropy"], progress=False)
    assert trace.metrics["attention_entropy"].isfinite().all()


def test_it_has_no_hook_points_but_those_of_the_stream(own: Any) -> None:
    backend = backend_of(own)
    twin = lean(backend, backend.identity())
    assert isinstance(twin, LeanBackend) and not hook_points(twin._runs)
    assert [point.name for point in twin.points] == ["blocks.0.hook_in", *(f"blocks.{i}.hook_resid_post" for i in range(6))]
