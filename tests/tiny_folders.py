"""Hugging Face folders of tiny random models, with their tokenizer, made where a test wants them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM

from tests import models

SMALL: dict[str, Any] = {
    "vocab_size": models.VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "initializer_range": 0.15,
}


def save(config: Any, place: Path, make: Any = AutoModelForCausalLM) -> Path:
    """Write the folder. Gains and biases get values of their own: as made they are ones and zeros, and would hide a mistake."""
    torch.manual_seed(0)
    model = make.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape))
    model.save_pretrained(place)
    models.tokenizer().save_pretrained(place)
    return place


def llama(place: Path, **options: Any) -> Path:
    return save(transformers.LlamaConfig(**SMALL | options), place)


def plain(place: Path, make: Any = AutoModelForCausalLM) -> Any:
    """The folder as Hugging Face itself loads it."""
    return make.from_pretrained(place, dtype=torch.float32, attn_implementation="eager").eval()


def norms_and_logits(model: Any, blocks: Any, tokens: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """[layer, pos] norms of what each block returns, in float64, and [pos, d_vocab] logits."""
    states: list[torch.Tensor] = []
    handles = [
        block.register_forward_hook(lambda _m, _a, out: states.append(out if isinstance(out, torch.Tensor) else out[0]))
        for block in blocks
    ]
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0]
    for handle in handles:
        handle.remove()
    return torch.stack([state[0].double().pow(2).sum(-1).sqrt() for state in states]), logits


def edit_config(place: Path, **entries: Any) -> None:
    file = place / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))
