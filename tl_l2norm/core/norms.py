"""L2 norms and attention sinks: pure kernels on tensors."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tl_l2norm.core.errors import InputError, InputTypeError

SINK_RATIO = 5.0
"""A norm over this many times its layer's median is a massive activation (SmolLM2-135M: ordinary tokens stay under 2.5,
massive ones start at 5.6)."""

_CHUNK = 1 << 22  # elements: half precision is copied to float32 before it is reduced, on CPU as a whole


def l2_norms(stream: Float[Tensor, "*axes d_model"]) -> Float[Tensor, "*axes"]:
    """`||h||` over the last axis in float32 whatever the dtype: a float16 stream of norm 76,800 doesn't overflow.

    Examples:
        >>> l2_norms(torch.tensor([[3.0, 4.0], [300.0, 400.0]], dtype=torch.float16))
        tensor([  5., 500.])
    """
    if not isinstance(stream, Tensor):
        raise InputTypeError(f"l2_norms takes a tensor, got {type(stream).__name__}: torch.as_tensor(...) makes one")
    if stream.requires_grad:
        stream = stream.detach()
    if stream.dtype == torch.float32 or stream.numel() <= _CHUNK:
        return _reduce(stream)
    parts = torch.split(stream.reshape(-1, stream.shape[-1]), max(1, _CHUNK // stream.shape[-1]))
    return torch.cat([_reduce(part) for part in parts]).reshape(stream.shape[:-1])


def _reduce(stream: Tensor) -> Tensor:
    if stream.dtype == torch.float64:  # which torch doesn't narrow by itself
        stream = stream.float()
    norms: Tensor = torch.linalg.vector_norm(stream, dim=-1, dtype=torch.float32)
    return norms


def sink_bounds(norms: Float[Tensor, "layer pos"], *, prompt_len: int, ratio: float = SINK_RATIO) -> Float[Tensor, " layer"]:
    """Norm above which a token counts as an attention sink: `ratio` times the median over the prompt, first token left out.

    The bound rests on the prompt alone, so it is the same while decoding and in one pass over the finished text. A prompt
    of one token gives no bound (infinity).
    """
    if not ratio > 1:
        raise InputError(f"sink_ratio must be over 1 (times the median norm), got {ratio}")
    prompt = norms[:, 1:prompt_len]
    if prompt.shape[1] == 0:
        return torch.full((norms.shape[0],), torch.inf)
    return ratio * prompt.median(dim=1).values


def find_sinks(norms: Float[Tensor, "layer pos"], bounds: Float[Tensor, " layer"]) -> Bool[Tensor, "layer pos"]:
    """Attention sinks by position (the first token, at every layer) and by bound (a massive activation, layer by layer)."""
    sinks = norms > bounds[:, None]
    sinks[:, 0] = True
    return sinks


def mean_without_sinks(norms: Float[Tensor, "layer pos"], is_sink: Bool[Tensor, "layer pos"]) -> Float[Tensor, " pos"]:
    """Mean norm of each token over layers, those left out at which it is an attention sink; NaN where it is one at all.

    Examples:
        >>> mean_without_sinks(torch.tensor([[3.0, 9.0], [5.0, 9.0]]), torch.tensor([[False, True], [False, True]]))
        tensor([4., nan])
    """
    return norms.masked_fill(is_sink, torch.nan).nanmean(0)
