"""Plain Hugging Face computations that share no code with the library."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def layers_of(model: Any) -> Any:
    return model.transformer.h if hasattr(model, "transformer") else model.model.layers


def hidden_norms(model: Any, tokens: list[int]) -> Tensor:
    """[1 + layer, pos] norms of the embedding output and of every block's output, by `output_hidden_states` and, for the last
    block (whose entry there is behind the final norm), by a plain forward hook."""
    last: list[Tensor] = []
    handle = layers_of(model)[-1].register_forward_hook(
        lambda _m, _a, out: last.append(out if isinstance(out, Tensor) else out[0])
    )
    try:
        with torch.no_grad():
            out = model(torch.tensor([tokens]), output_hidden_states=True, use_cache=False)
    finally:
        handle.remove()
    states = [*out.hidden_states[:-1], last[0]]
    return torch.stack([state[0].double().pow(2).sum(-1).sqrt() for state in states])


def greedy(model: Any, tokens: list[int], n: int, *, eos: bool = True) -> list[int]:
    """The response of `model.generate`, greedy, one prompt alone."""
    ids = torch.tensor([tokens])
    extra = {} if eos else {"min_new_tokens": n}
    with torch.no_grad():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=n, do_sample=False, **extra)
    return out[0, len(tokens) :].tolist()
