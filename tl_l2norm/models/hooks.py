"""Put hooks on hook points and take exactly those off again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

HookFn = Callable[..., Any]
"""`fn(tensor, hook=hook_point)`, returning a new tensor or None, as everywhere in TransformerLens."""

_LIBRARIES = ("transformers", "accelerate", "transformer_lens")


@contextmanager
def attached(hooks: Sequence[tuple[HookPoint, HookFn]]) -> Iterator[None]:
    """Keep these hooks on these hook points inside the context, in this order, after those that are there already.

    Works on the `HookPoint` objects and keeps its own handles. `model.hooks` removes by context level instead, and takes
    the wrong hooks away when contexts don't nest.
    """
    with ExitStack() as stack:
        for point, fn in hooks:
            point.add_hook(fn)
            stack.callback(_detach, point, point.fwd_hooks[-1])
        yield


def _detach(point: HookPoint, handle: Any) -> None:
    handle.hook.remove()
    point.fwd_hooks = [other for other in point.fwd_hooks if other is not handle]


@contextmanager
def muted(*modules: nn.Module) -> Iterator[None]:
    """Silence every hook inside these modules, for a computation that is none of the forward pass's business."""
    with silenced([point for module in modules for point in hook_points(module)]):
        yield


def hook_points(module: nn.Module) -> list[HookPoint]:
    """Every hook point inside a module."""
    return [point for point in module.modules() if isinstance(point, HookPoint)]


@contextmanager
def silenced(points: Sequence[HookPoint]) -> Iterator[None]:
    """Silence every hook at these points."""
    heard = [(point, point._forward_hooks) for point in points if point._forward_hooks]
    for point, hooks in heard:
        point._forward_hooks = type(hooks)()
    try:
        yield
    finally:
        for point, hooks in heard:
            point._forward_hooks = hooks


def foreign_hooks(*models: nn.Module) -> int:
    """Hooks on these modules and all inside them, and SAEs in a hook point's place.

    Before a run attaches its own, these are the user's. What libraries attach for themselves, beside hook points, is left out.
    """
    modules = {id(module): module for model in models for module in model.modules()}.values()
    hooks = sum(len(list(_hooks(module))) for module in modules)
    return hooks + sum(hasattr(module, "W_dec") and hasattr(module, "encode") for module in modules)


def _hooks(module: nn.Module) -> Iterator[Any]:
    for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()):
        owner = (getattr(hook, "__module__", None) or "").partition(".")[0]
        if isinstance(module, HookPoint) or owner not in _LIBRARIES:
            yield hook


def counting_writes(stream: Tensor) -> Tensor:
    """The same memory as a tensor whose `_version` counts writes into it, which tensors of inference mode don't."""
    if not stream.is_inference():
        return stream
    with torch.inference_mode(False):
        same = torch.empty(0, dtype=stream.dtype, device=stream.device)
        return same.set_(stream.untyped_storage(), stream.storage_offset(), stream.shape, stream.stride())
