"""A response ends where the model's turn ends, on both backends, by whatever source says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import tl_l2norm as l2
from tests import models
from tests.chat_templates import FAMILIES, tokenizer_of
from tests.tiny_gguf import TOKENS, write_gguf
from tl_l2norm.models.backends import backend_of
from tl_l2norm.models.hooks import attached

BACKENDS = ["bridge", "hooked"] if models.HAS_HOOKED else ["bridge"]


def saved(place: Path, tokenizer: Any, eos: int | list[int] | None) -> Path:
    """A folder of a tiny random Llama with this tokenizer and generation config."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=None,
        initializer_range=0.15,
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.generation_config = transformers.GenerationConfig(eos_token_id=eos)
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


def said(model: Any, script: list[int], **options: Any) -> l2.recording.Completion:
    """The response of a model that is made to write this."""
    at = iter(range(len(script)))

    def dictate(logits: torch.Tensor, hook: Any) -> torch.Tensor:
        forced = torch.zeros_like(logits)
        forced[..., script[next(at)]] = 20.0
        return forced

    with attached([(model.unembed.hook_out, dictate)]):
        return l2.generate(model, "Where is it?", max_new_tokens=len(script), progress=False, **options)[0]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["llama 3", "gemma", "chatml on a base eos", "phi 3", "phi 4 mini", "gpt-oss"])
def test_a_response_ends_where_the_template_closes_a_turn(name: str, backend: Any, tmp_path: Path) -> None:
    tokenizer, family = tokenizer_of(name), FAMILIES[name]
    model = l2.load_model(saved(tmp_path / "model", tokenizer, None), backend=backend, device="cpu")
    words, more = tokenizer(" over there").input_ids, tokenizer(" and so on").input_ids
    for end in tokenizer.convert_tokens_to_ids([family.eos, *family.ends]):
        out = said(model, [*words, end, *more])
        assert (out.finish_reason, out.tokens, out.text) == ("stop", (*words, end), " over there")
        assert len(said(model, [*words, end, *more], ignore_eos=True).tokens) == len(words) + 1 + len(more)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_end_of_a_channel_ends_nothing(backend: Any, tmp_path: Path) -> None:
    tokenizer = tokenizer_of("gpt-oss")
    model = l2.load_model(saved(tmp_path / "model", tokenizer, None), backend=backend, device="cpu")
    text = "<|channel|>analysis<|message|>North?<|end|><|start|>assistant<|channel|>final<|message|>North.<|return|>"
    script = tokenizer(text, add_special_tokens=False).input_ids
    assert said(model, [*script, 5, 6]).tokens == tuple(script)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("eos", [[3, 40, 41], 40, [40]])
def test_a_response_ends_at_each_token_of_the_generation_config(eos: Any, backend: Any, tmp_path: Path) -> None:
    tokenizer = tokenizer_of("plain words")
    model = l2.load_model(saved(tmp_path / "model", tokenizer, eos), backend=backend, device="cpu")
    assert backend_of(model).eos_token_ids() == {tokenizer.eos_token_id, *(eos if isinstance(eos, list) else [eos])}
    assert said(model, [50, 51, 40, 52]).tokens == (50, 51, 40)
    assert backend_of(l2.models.random_twin(model)).eos_token_ids() == backend_of(model).eos_token_ids()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_response_ends_at_the_end_of_turn_of_a_gguf_file(backend: Any, tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", bos="<|begin|>", eos="<|endoftext|>", eot="<|eot|>", eom="<|eom|>")
    model = l2.load_model(tmp_path / "a.gguf", backend=backend, device="cpu")
    for token in ("<|endoftext|>", "<|eot|>", "<|eom|>"):
        end = TOKENS.index(token)
        assert said(model, [5, 6, end, 7]).tokens == (5, 6, end)


@pytest.mark.parametrize("backend", BACKENDS)
def test_interventions_in_the_models_own_generate_leave_a_row_alone_whose_turn_has_ended(backend: Any, tmp_path: Path) -> None:
    tokenizer = tokenizer_of("chatml on a base eos")
    model = l2.load_model(saved(tmp_path / "model", tokenizer, None), backend=backend, device="cpu")
    if not backend_of(model).decodes_without_us:
        pytest.skip("refused: the model's own generate doesn't see its cache")
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    script = iter([60, 61, end, 62, 63])

    def dictate(logits: torch.Tensor, hook: Any) -> torch.Tensor:
        forced = torch.zeros_like(logits)
        forced[..., next(script)] = 20.0
        return forced

    everything = l2.Suppression({0: 0.0, 1: 0.0})
    with everything.hooks(model) as log, attached([(model.unembed.hook_out, dictate)]):
        model.generate(torch.tensor([[7, 8, 9]]), max_new_tokens=5, do_sample=False, stop_at_eos=False, verbose=False)
    assert set(log.events()["position"]) == {3, 4}, "what was read back before the end, and neither it nor what follows"
