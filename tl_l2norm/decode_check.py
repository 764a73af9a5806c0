"""Whether decode steps of a model see what its cache holds."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_l2norm.attach import hook_points, silenced
from tl_l2norm.backends import Backend
from tl_l2norm.errors import Unsupported
from tl_l2norm.kv_cache import known_versions

_FEW = 8  # tokens
_ROUNDING = {torch.float64: 1e-3, torch.float32: 1e-3}
"""Of logits, relative to their spread; 0.1 in half precision."""

_checked: weakref.WeakSet[Any] = weakref.WeakSet()


def check_decoding(backend: Backend, tokens: Sequence[int]) -> None:
    """Refuse a model that doesn't decode as it reads in one pass. Once for each model: it costs three short passes.

    A cache that grows can still be one that nobody looks into. So the last of a few tokens is read in one pass with those
    before it, behind a cache of them, and alone: with the cache its logits must be those of the one pass, not those of a token
    alone. Nobody's hooks hear it.

    Raises:
        NotImplementedError: with the versions that work together.
    """
    if backend.model in _checked:
        return
    few = torch.tensor([(*tokens[:_FEW],) if len(tokens) > 1 else (*tokens, *tokens)], device=backend.device)
    with torch.inference_mode(), silenced(hook_points(backend.model)):
        whole, alone = _last(backend, few), _last(backend, few[:, -1:])
        _, cache = backend.forward(few[:, :-1], torch.ones_like(few[:, :-1]), keep_cache=True)
        cached = _last(backend, few, cache)
    error, blind = float((cached - whole).norm()), float((alone - whole).norm())
    rounding = _ROUNDING.get(backend.dtype, 0.1) * float((whole - whole.mean()).norm())
    if error > max(blind / 4, rounding):
        raise Unsupported(
            f"decoding with a cache gives other logits than one pass over the same tokens (off by {error:.2g}, where a token "
            f"that sees nothing before it is off by {blind:.2g}): responses of this model would be wrong. {known_versions()}"
        )
    if blind > 4 * rounding:  # else these tokens couldn't tell
        _checked.add(backend.model)


def _last(backend: Backend, tokens: Int[Tensor, "1 pos"], cache: Any = None) -> Float[Tensor, " d_vocab"]:
    """Logits at the last of these tokens, those before it read now or taken from a cache."""
    new = tokens if cache is None else tokens[:, -1:]
    logits, _ = backend.forward(new, torch.ones_like(tokens), cache=cache, logits="last")
    assert logits is not None
    return logits[0, -1].float()
