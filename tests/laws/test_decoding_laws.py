"""A model decodes as it reads in one pass, or is refused before a response is taken from it."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import nn
from transformer_lens.model_bridge.generalized_components.attention import AttentionBridge
from transformers.cache_utils import DynamicLayer

import tl_l2norm as l2
from tests import models
from tests.chat_templates import tokenizer_of
from tests.decoders import CONFIGS, PROMPTS, RECURRENT, bridge, hugging_face
from tests.oracles import greedy
from tl_l2norm.experiments.selfcheck import count_hooks
from tl_l2norm.models import decode_check
from tl_l2norm.models.backend import Backend
from tl_l2norm.models.backends import backend_of
from tl_l2norm.models.decode_check import check_decoding
from tl_l2norm.models.hooks import attached

BACKENDS = ["bridge", "hooked"] if models.HAS_HOOKED else ["bridge"]


def tiny_llama(backend: str) -> Any:
    from tl_l2norm.models.hooked import make_hooked

    model = hugging_face(CONFIGS["llama"]())
    if backend == "bridge":
        return bridge(model)
    return make_hooked(model, tokenizer_of("plain words"), "tiny", torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_that_decodes_right_is_not_refused(name: str) -> None:
    plain = hugging_face(CONFIGS[name]())
    model = bridge(hugging_face(CONFIGS[name]()))
    check_decoding(backend_of(model), PROMPTS[0])
    assert model in decode_check._checked, "these tokens could tell"
    out = l2.generate(model, PROMPTS, max_new_tokens=10, ignore_eos=True, progress=False)
    for prompt, completion in zip(PROMPTS, out, strict=True):
        tokens = torch.tensor([[*prompt, *completion.tokens]])
        with torch.no_grad():
            best = plain(tokens, use_cache=False).logits[0].argmax(-1)
        assert completion.tokens == tuple(best[len(prompt) - 1 : -1].tolist())


def stores_nothing(monkeypatch: pytest.MonkeyPatch, model: Any, backend: str) -> None:
    kind, name = _cache_kind(backend)
    monkeypatch.setattr(kind, name, lambda self, keys, values, *args, **kwargs: (keys, values))


def _cache_kind(backend: str) -> tuple[Any, str]:
    if backend == "bridge":
        return DynamicLayer, "update"
    from transformer_lens.cache.key_value_cache_entry import TransformerLensKeyValueCacheEntry

    return TransformerLensKeyValueCacheEntry, "append"


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_cache_that_stores_nothing_is_refused(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama(backend)
    stores_nothing(monkeypatch, model, backend)
    with pytest.raises(l2.errors.Unsupported, match=r"from 0 to 0 positions .* transformers 5\.23"):
        l2.generate(model, PROMPTS, max_new_tokens=4, progress=False)
    assert l2.collect(model, PROMPTS, progress=False), "one pass needs no cache"
    assert count_hooks(model) == 0


def test_a_cache_that_grows_and_is_not_looked_into_is_refused() -> None:
    model = tiny_llama("bridge")
    handles = [
        component.register_forward_pre_hook(_window_of_one, with_kwargs=True)
        for component in model.modules()
        if isinstance(component, AttentionBridge)
    ]
    with pytest.raises(l2.errors.Unsupported, match="other logits than one pass"):
        l2.generate(model, PROMPTS, max_new_tokens=4, progress=False)
    for handle in handles:
        handle.remove()
    assert l2.generate(model, PROMPTS, max_new_tokens=4, progress=False)


@pytest.mark.skipif(not models.HAS_HOOKED, reason="TransformerLens 4 has no HookedTransformer")
def test_a_cache_of_a_hooked_transformer_that_is_not_looked_into_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformer_lens.components.abstract_attention import AbstractAttention

    model, mask = tiny_llama("hooked"), AbstractAttention.apply_causal_mask

    def blind(self: Any, scores: torch.Tensor, offset: int = 0, attention_mask: Any = None) -> Any:
        scores = mask(self, scores, offset, attention_mask)
        return scores.index_fill(3, torch.arange(offset), -torch.inf) if offset else scores

    monkeypatch.setattr(AbstractAttention, "apply_causal_mask", blind)
    with pytest.raises(l2.errors.Unsupported, match="other logits than one pass"):
        l2.generate(model, PROMPTS, max_new_tokens=4, progress=False)


def _sees_itself_alone(module: nn.Module, args: Any, kwargs: Any) -> Any:
    if (stream := args[0] if args else kwargs["hidden_states"]).shape[1] > 1:
        return None
    past = kwargs["cache" if "cache" in kwargs else "past_key_values"].get_seq_length()  # its name since transformers 5.24
    blind = torch.full((len(stream), 1, 1, past + 1), torch.finfo(torch.float32).min)
    blind[..., -1] = 0.0
    return args, {**kwargs, "attention_mask": blind}


def _one_further(module: nn.Module, args: Any, kwargs: Any) -> Any:
    """Each position of a decode step takes the place of the next."""
    if kwargs["position_ids"].shape[1] > 1:
        return None
    return args, {**kwargs, "position_ids": kwargs["position_ids"] + 1}


@pytest.mark.parametrize("fault", ["layer 0", "layer 1", "layer 3", "positions"])
def test_a_cache_of_which_a_part_is_used_wrong_is_refused(fault: str) -> None:
    model = tiny_llama("bridge")
    at = model.original_model.model.rotary_emb if fault == "positions" else model.blocks[int(fault[-1])]
    at.register_forward_pre_hook(_one_further if fault == "positions" else _sees_itself_alone, with_kwargs=True)
    with pytest.raises(l2.errors.Unsupported, match="other logits than one pass"):
        l2.generate(model, PROMPTS, max_new_tokens=4, progress=False)


def _window_of_one(module: nn.Module, args: Any, kwargs: Any) -> Any:
    """Each position of a decode step sees itself alone."""
    mask = kwargs["attention_mask"]
    if mask is None or mask.shape[2] > 1:
        return None
    blind = torch.full_like(mask, torch.finfo(torch.float32).min)
    blind[..., -1] = 0.0
    return args, {**kwargs, "attention_mask": blind}


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_cache_that_stops_growing_within_a_run_is_refused(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama(backend)
    l2.generate(model, PROMPTS, max_new_tokens=4, progress=False)
    steps = []

    def stop(stream: torch.Tensor, hook: Any) -> None:
        steps.append(1)
        if len(steps) == 5:
            stores_nothing(monkeypatch, model, backend)

    with attached([(backend_of(model).resid_post(3), stop)]), pytest.raises((l2.errors.Unsupported, RuntimeError)):
        l2.generate(model, [PROMPTS[0]], max_new_tokens=20, ignore_eos=True, progress=False)
    assert len(steps) <= 6


def test_a_model_that_returns_no_cache_is_refused() -> None:
    model = tiny_llama("bridge")

    def forget(module: nn.Module, args: Any, out: Any) -> Any:
        out.past_key_values = None
        return out

    handle = model.original_model.register_forward_hook(forget)
    with pytest.raises(l2.errors.Unsupported, match="no KV cache"):
        l2.generate(model, PROMPTS, max_new_tokens=4, progress=False)
    handle.remove()


@pytest.mark.filterwarnings("ignore:this model:UserWarning")
@pytest.mark.parametrize("name", RECURRENT)
def test_a_recurrent_model_decodes_right_or_is_refused(name: str) -> None:
    plain, model = hugging_face(RECURRENT[name]()), bridge(hugging_face(RECURRENT[name]()))
    for prompts in ([PROMPTS[0]], PROMPTS):
        try:
            out = l2.generate(model, prompts, max_new_tokens=8, ignore_eos=True, progress=False)
        except l2.errors.Unsupported:
            return
        for prompt, completion in zip(prompts, out, strict=True):
            assert list(completion.tokens) == greedy(plain, prompt, 8, eos=False)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_check_wakes_nobodys_hooks_and_is_made_once(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama(backend)
    heard: list[int] = []
    with attached([(backend_of(model).resid_post(1), lambda stream, hook: heard.append(stream.shape[1]))]):
        check_decoding(backend_of(model), PROMPTS[0])
        assert not heard and model in decode_check._checked
        monkeypatch.setattr(Backend, "forward", None)
        check_decoding(backend_of(model), PROMPTS[0])


def test_tokens_that_cannot_tell_leave_the_check_to_the_next_run() -> None:
    model = tiny_llama("bridge")
    check_decoding(backend_of(model), [7])  # the same token again: it reads the same whatever it sees
    assert model not in decode_check._checked


@pytest.mark.filterwarnings("ignore:nothing was changed by")
@pytest.mark.parametrize("acting", ["suppression", "alrr"])
def test_the_models_own_generate_on_a_cache_that_stays_empty_is_refused(acting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama("bridge")
    chosen = l2.Suppression({1: 0.0}) if acting == "suppression" else l2.ALRR({1: 0.0}, blowup=100.0)
    stores_nothing(monkeypatch, model, "bridge")
    with pytest.raises(l2.errors.Unsupported, match="don't look into"), chosen.hooks(model) as log:
        model.generate(torch.tensor([PROMPTS[0]]), max_new_tokens=4, do_sample=False, stop_at_eos=False, verbose=False)
    assert log.events().empty
    with chosen.hooks(model, prompt_lens=[4]):  # one pass after the other is right
        for _ in range(2):
            model(torch.tensor([PROMPTS[0]]))
    assert count_hooks(model) == 0


@pytest.mark.filterwarnings("ignore:nothing was changed by")
def test_no_module_keeps_a_hook_that_hands_a_cache_over() -> None:
    model, chosen = tiny_llama("bridge"), l2.ALRR({1: 0.0, 2: 0.0}, blowup=100.0)
    tokens = torch.tensor([PROMPTS[0]])

    def pre_hooks() -> int:
        return sum(len(module._forward_pre_hooks) for module in model.modules())

    model(tokens)  # TransformerLens puts some of its own on at its first pass
    before = pre_hooks()
    l2.generate(model, PROMPTS, max_new_tokens=3, interventions=[chosen], progress=False)
    with chosen.hooks(model, prompt_lens=[4]) as inside:
        logits = model(tokens)
    outside = chosen.fwd_hooks(model, prompt_lens=[4])
    for _ in range(2):
        assert torch.equal(model.run_with_hooks(tokens, fwd_hooks=outside), logits)
    with pytest.raises(RuntimeError, match="in the middle"), attached([(backend_of(model).resid_post(1), _fail)]):
        model.run_with_hooks(tokens, fwd_hooks=chosen.fwd_hooks(model, prompt_lens=[4]))
    gc.collect()
    assert pre_hooks() == before
    assert len(inside.events()) and len(outside.log.events())


def _fail(stream: torch.Tensor, hook: Any) -> None:
    raise RuntimeError("in the middle")
