"""The final norm as numbers, read off whatever module computes it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tl_l2norm.core.errors import Unsupported

_LARGE = 4096.0  # of a probe: eps vanishes beside its square; a power of two, so that its mean is exact
_ERROR = {torch.float32: 1e-4, torch.float64: 1e-4}  # of the closed form; half precision may be rounded inside the module
_HALF_ERROR = 0.02


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FinalNorm:
    """`gain * h / sqrt(mean(h^2) + eps) + bias`; LayerNorm takes the mean out of h first; "none" leaves h as it is."""

    kind: Literal["rms", "layer", "none"]
    gain: Float[Tensor, " d_model"]
    """Float32; where the module multiplies by 1 + w, that sum."""
    bias: Float[Tensor, " d_model"]
    eps: float

    def __call__(self, stream: Float[Tensor, "*axes d_model"]) -> Float[Tensor, "*axes d_model"]:
        """The norm of float32 states."""
        if self.kind == "none":
            return stream
        unit, _ = self._unit(stream)
        return unit * self.gain + self.bias

    def pull_back(
        self, stream: Float[Tensor, "*axes d_model"], gradient: Float[Tensor, "*axes d_model"]
    ) -> Float[Tensor, "*axes d_model"]:
        """Gradient with respect to the states, from that with respect to the norm's output."""
        if self.kind == "none":
            return gradient
        unit, rms = self._unit(stream)
        inner = gradient * self.gain
        outer = inner - unit * (unit * inner).mean(-1, keepdim=True)
        if self.kind == "layer":
            outer = outer - inner.mean(-1, keepdim=True)
        return outer / rms

    def _unit(self, stream: Tensor) -> tuple[Tensor, Tensor]:
        """States divided by their root mean square, and that."""
        if self.kind == "layer":
            stream = stream - stream.mean(-1, keepdim=True)
        rms = (stream.pow(2).mean(-1, keepdim=True) + self.eps).sqrt()
        return stream / rms, rms


def read_final_norm(module: nn.Module | None, d_model: int, device: torch.device) -> FinalNorm:
    """Find out what a norm computes by what it answers, whatever it calls its weights. Its hooks are the caller's to mute.

    Args:
        module: takes [1, n, d_model]; None where the model has no final norm.
        d_model: width of the stream.
        device: of the module.

    Raises:
        NotImplementedError: it computes neither RMSNorm nor LayerNorm, nor nothing.
    """
    signs = torch.ones(d_model, device=device)
    signs[1::2] = -((d_model + 1) // 2) / max(1, d_model // 2)  # mean 0 for an odd width too
    zeros = torch.zeros_like(signs)
    if module is None:
        return FinalNorm(kind="none", gain=torch.ones_like(signs), bias=zeros, eps=0.0)
    call = _in_float32(module)
    bias = call(zeros)
    spread, double, flat = (call(_LARGE * x) - bias for x in (signs, 2 * signs, torch.ones_like(signs)))
    if double.norm() > 1.5 * spread.norm():
        norm = FinalNorm(kind="none", gain=torch.ones_like(signs), bias=zeros, eps=0.0)
    else:
        unit = signs / signs.pow(2).mean().sqrt()
        kind: Literal["rms", "layer"] = "rms" if flat.norm() > 0.5 * spread.norm() else "layer"
        eps = _eps(lambda size: call(size * unit) - bias, spread)
        norm = FinalNorm(kind=kind, gain=spread / unit, bias=bias, eps=eps)
    _verify(norm, module, call)
    return norm


def _in_float32(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """The module with its weights in float32, on one state or several [n, d_model]."""
    weights = {name: weight.detach().float() for name, weight in module.named_parameters()}

    def call(states: Tensor) -> Tensor:
        batch = states.reshape(1, -1, states.shape[-1])
        with torch.no_grad():
            answer: Tensor = torch.func.functional_call(module, weights, (batch,))
        return answer.float().reshape(states.shape)

    return call


def _eps(respond: Callable[[float], Tensor], spread: Tensor) -> float:
    """What is added to the mean square: a state of root mean square r comes out at r / sqrt(r^2 + eps) of a huge one's size."""
    size, eps = 1e-3, 0.0
    for _ in range(3):  # sharpest where size^2 is about eps
        shrunk = float(spread @ spread) / float(spread @ respond(size))
        eps = size**2 * (shrunk**2 - 1)
        if not eps > 0:
            return 0.0
        size = math.sqrt(eps)
    return eps


def _verify(norm: FinalNorm, module: nn.Module, call: Callable[[Tensor], Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(24, len(norm.gain), generator=generator) + 0.5
    states *= torch.logspace(-2, 3, len(states))[:, None]
    states = states.to(norm.gain.device)
    truth = call(states)
    off = (norm(states) - truth).abs().amax() / truth.abs().amax()
    dtypes = {weight.dtype for weight in module.parameters()} or {torch.float32}
    if not off <= max(_ERROR.get(dtype, _HALF_ERROR) for dtype in dtypes):
        name = type(getattr(module, "original_component", None) or module).__name__
        raise Unsupported(f"the model's final norm ({name}) is neither RMSNorm nor LayerNorm: its gradient isn't known")
