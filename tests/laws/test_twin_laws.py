"""A twin is the same model but for its weights, and is never taken for it."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tl_l2norm as l2
from tests import models
from tl_l2norm.core.trace import require_comparable
from tl_l2norm.experiments.selfcheck import count_hooks
from tl_l2norm.models.backends import backend_of

TOKENS = [5, 290, 17, 3, 3, 250]


def weights(model: Any) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def test_same_shapes_and_settings_other_weights(tiny: Any) -> None:
    before = weights(tiny)
    twin = l2.models.random_twin(tiny, seed=1)  # the tests' models were drawn with seed 0 themselves
    mine, other = weights(tiny), weights(twin)
    assert all(torch.equal(before[name], mine[name]) for name in before)
    assert {name: weight.shape for name, weight in mine.items()} == {name: weight.shape for name, weight in other.items()}
    drawn = [name for name in mine if mine[name].std() > 0]  # gains and biases start at one and zero
    assert len(drawn) >= 6 * 6 and not any(torch.equal(mine[name], other[name]) for name in drawn)
    assert type(twin) is type(tiny) and twin is not tiny
    ours, its = backend_of(tiny), backend_of(twin)
    for name in ("n_layers", "d_model", "n_ctx", "device", "dtype", "logit_cap"):
        assert getattr(ours, name) == getattr(its, name), name
    assert ours.eos_token_ids() == its.eos_token_ids()
    assert count_hooks(twin) == 0
    for name in mine:  # as spread out as the original, which is random too
        assert float(mine[name].std()) == pytest.approx(float(other[name].std()), rel=0.3, abs=1e-6), name


def test_the_seed_decides(tiny: Any) -> None:
    first, again, second = (weights(l2.models.random_twin(tiny, seed=seed)) for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_global_random_states_stay(tiny: Any) -> None:
    torch.manual_seed(11), random.seed(11), np.random.seed(11)
    expected = torch.randn(3), random.random(), np.random.rand()
    torch.manual_seed(11), random.seed(11), np.random.seed(11)
    l2.models.random_twin(tiny)
    assert torch.equal(torch.randn(3), expected[0])
    assert (random.random(), np.random.rand()) == expected[1:]


def test_its_norms_are_not_the_models(tiny: Any) -> None:
    twin = l2.models.random_twin(tiny, seed=7)
    assert twin.cfg.model_name == f"{tiny.cfg.model_name} (random weights, seed 7)"
    assert l2.models.random_twin(twin, seed=8).cfg.model_name == f"{tiny.cfg.model_name} (random weights, seed 8)"
    trace, other = l2.collect(tiny, [TOKENS])[0], l2.collect(twin, [TOKENS])[0]
    assert other.l2_norms.shape == trace.l2_norms.shape
    assert torch.isfinite(other.l2_norms).all()
    with pytest.raises(ValueError, match="random weights"):
        require_comparable([trace, other])


def test_it_reads_texts_as_the_model_does(tiny: Any) -> None:
    twin = l2.models.random_twin(tiny)
    for prompt in ("Hello there", [{"role": "user", "content": "Hi"}]):
        tokens = [l2.collect(model, [prompt])[0].tokens.tolist() for model in (tiny, twin)]
        assert tokens[0] == tokens[1]
    assert twin.tokenizer.padding_side == tiny.tokenizer.padding_side
    assert twin.tokenizer.init_kwargs == tiny.tokenizer.init_kwargs
    assert len(l2.generate(twin, ["Hello there"], max_new_tokens=3)[0].tokens) >= 1


@pytest.mark.skipif(not models.HAS_HOOKED, reason="needs HookedTransformer")
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_both_backends_draw_the_same_weights(architecture: str) -> None:
    twins = [l2.models.random_twin(models.use(models.Case(architecture, name)), seed=2) for name in ("bridge", "hooked")]
    bridge, hooked = (l2.collect(twin, [TOKENS])[0].l2_norms for twin in twins)
    assert ((bridge - hooked).abs() / bridge).max() < 1e-4
    assert torch.equal(twins[0].W_U, twins[1].W_U)


@pytest.mark.parametrize("backend", ["bridge", *(["hooked"] if models.HAS_HOOKED else [])])
def test_the_tiny_reasoners_twin(backend: Any) -> None:
    model = l2.load_model("tiny-reasoner", backend=backend, device="cpu")
    twin = l2.models.random_twin(model)
    assert twin.cfg.model_name == "tiny-reasoner (random weights, seed 0)"
    prompt = "12+3"
    tokens = [l2.collect(m, [prompt])[0].tokens.tolist() for m in (model, twin)]
    assert tokens[0] == tokens[1]
    assert backend_of(twin).eos_token_ids() == backend_of(model).eos_token_ids()
    assert len(l2.recording.optimisation_pressure(twin, [tokens[0]])) == len(tokens[0]) - 1
    assert torch.equal(twin.W_U.T, twin.W_E)  # tied, as the model's are


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(tiny_case: models.Case, dtype: torch.dtype) -> None:
    full = l2.models.random_twin(models.use(tiny_case))
    model = l2.load_model(models.folder(tiny_case.architecture), backend=tiny_case.backend, dtype=dtype, device="cpu")
    twin = l2.models.random_twin(model)
    assert backend_of(twin).dtype == dtype
    assert torch.equal(twin.W_U, full.W_U.to(dtype))
    if tiny_case == models.Case("llama", "bridge"):
        rotary = [m.original_model.model.rotary_emb.inv_freq.dtype for m in (model, twin)]
        assert rotary == [torch.float32] * 2


@pytest.mark.skipif(not models.HAS_HOOKED, reason="needs HookedTransformer")
def test_a_hooked_transformer_of_ones_own_is_drawn_from_its_configuration() -> None:
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    cfg = HookedTransformerConfig(
        n_layers=2,
        d_model=16,
        n_ctx=32,
        d_head=8,
        n_heads=2,
        d_vocab=30,
        act_fn="gelu",
        model_name="mine",
        seed=5,
        device="cpu",
    )
    model = HookedTransformer(cfg)
    before = torch.random.get_rng_state()
    twin, again = l2.models.random_twin(model, seed=1), l2.models.random_twin(model, seed=1)
    assert torch.equal(before, torch.random.get_rng_state())
    assert (model.cfg.model_name, twin.cfg.model_name) == ("mine", "mine (random weights, seed 1)")
    assert not torch.equal(model.W_U, twin.W_U) and torch.equal(twin.W_U, again.W_U)
    assert twin.tokenizer is None
    l2.collect(twin, [[1, 2, 3]])


def test_what_has_no_twin() -> None:
    with pytest.raises(TypeError, match="TransformerBridge or HookedTransformer"):
        l2.models.random_twin(models.hugging_face("llama"))
    model = l2.load_model(models.folder("llama"), device="cpu")
    model.tokenizer = None
    with pytest.raises(ValueError, match="no tokenizer"):
        l2.models.random_twin(model)
