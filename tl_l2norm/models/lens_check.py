"""Whether logits come of the last state by the final norm and the unembedding alone, as the logit lens takes it."""

from __future__ import annotations

import weakref
from typing import Any

import torch

from tl_l2norm.core.errors import Unsupported
from tl_l2norm.models.agreement import probe_tokens
from tl_l2norm.models.backend import Backend
from tl_l2norm.models.hooks import hook_points, silenced

_ROUNDING = {torch.float32: 1e-3, torch.float64: 1e-3}
"""Of logits, relative to their spread; anything coarser has `_COARSE`."""
_COARSE = 0.1
_N_TOKENS = 8
_checked: weakref.WeakSet[Any] = weakref.WeakSet()


def require_lens(backend: Backend) -> None:
    """Refuse a model whose logits come another way, as BERT's, which transforms states once more. Once for each model.

    Raises:
        NotImplementedError: with how far logits are off.
    """
    if backend.model in _checked:
        return
    last = backend.n_layers - 1
    ids = probe_tokens(backend.d_vocab, _N_TOKENS)[None].to(backend.device)
    with torch.no_grad(), silenced(hook_points(backend.model)), backend.capture_stream(last) as streams:
        logits, _ = backend.forward(ids, torch.ones_like(ids), logits="all")
        assert logits is not None
        lens, truth = backend.unembed(streams[0]).float(), logits.float()
    possible = truth.abs() < 1e30  # some models shut tokens out by the lowest number there is
    off = float((lens - truth)[possible].norm() / (truth - truth[possible].mean())[possible].norm())
    coarse = torch.is_autocast_enabled(backend.device.type) or torch.get_float32_matmul_precision() != "highest"
    if not off <= (_COARSE if coarse else _ROUNDING.get(backend.dtype, _COARSE)):
        raise Unsupported(
            f"logits of this model are not the unembedding of its normed last state (off by {off:.2g} of their spread): "
            "something stands between, so there is no logit lens and no output_entropy"
        )
    _checked.add(backend.model)
