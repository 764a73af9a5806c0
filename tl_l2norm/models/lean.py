"""A bridge's model without the bridge around its layers: the same weights, run by Hugging Face's own code."""

from __future__ import annotations

import inspect
import logging
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from types import MethodType
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from typing_extensions import override

from tl_l2norm.core.errors import Unsupported
from tl_l2norm.core.identity import Identity
from tl_l2norm.core.layers import resid_post
from tl_l2norm.models.agreement import lens_pass, probe_tokens, require_agreement
from tl_l2norm.models.backend import Backend
from tl_l2norm.models.block_calls import BlockRuns
from tl_l2norm.models.bridge_backend import BridgeBackend
from tl_l2norm.models.cache import Renamings, cache_name
from tl_l2norm.models.cache_rows import Cache
from tl_l2norm.models.hooks import silenced

_logger = logging.getLogger(__name__)
_HOOKS = [name for name in vars(nn.Module()) if name.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called"))]
_WRAPPED = "_original_component"
_CAPTURING = "transformers.utils.output_capturing"
"""Whose hooks stay on a model that was once asked for hidden states, and do nothing unless it is asked again."""


def lean(backend: Backend, identity: Identity) -> Backend:
    """The same model without the bridge's wrappers where that is sure to be the same, else `backend` itself.

    For passes in which only the embedding output and `resid_post` are watched or changed, and that on the backend that is
    returned: nothing of it is put into the user's model. It is built anew for each run, of the modules as they are then, and
    shares their parameters and buffers. Why it is not taken is in the log of `tl_l2norm.models.lean`.

    Args:
        backend: of the user's model.
        identity: of the model as it is; hooks of others are heard in the bridge alone.
    """
    if not isinstance(backend, BridgeBackend) or isinstance(backend, LeanBackend):
        return backend
    try:
        return _lean(backend, identity)
    except Unsupported as reason:
        _logger.info("%s runs through the bridge: %s", backend.model_name, reason)
        return backend


def why_not_lean(backend: Backend) -> str:
    """Why `lean` leaves a backend as it is."""
    if not isinstance(backend, BridgeBackend):
        return "this is no bridge; load_model(..., backend='bridge') makes one"
    try:
        _lean(backend, backend.identity())
    except Unsupported as reason:
        return str(reason)
    return "metrics, or interventions that act inside of blocks, are heard in the bridge alone"


def _lean(backend: BridgeBackend, identity: Identity) -> LeanBackend:
    if identity.foreign_hooks:
        raise Unsupported(f"{identity.foreign_hooks} hooks are on it")
    twin = LeanBackend(backend.model)
    _require_agreement(backend, twin, identity.weights)
    return twin


class LeanBackend(BridgeBackend):
    """A `TransformerBridge` whose forward passes go through a second tree of modules, with hook points at `resid_post` alone.

    Raises:
        NotImplementedError: somebody's hooks or code are inside the model, or weights that the bridge keeps beside its model's.
    """

    is_ours: ClassVar = True

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        copies = _Copies()
        self._runs: Any = copies.of(model.original_model)
        blocks = [copies.of(block) for block in model.blocks]
        _require_same_weights(model.original_model, self._runs)
        self._blocks = blocks
        self._embedded = _named("blocks.0.hook_in")
        self._posts = [_named(resid_post(layer)) for layer in range(len(blocks))]
        blocks[0].register_forward_pre_hook(self._through_embedded, with_kwargs=True)
        for block, point in zip(blocks, self._posts, strict=True):
            block.register_forward_hook(_Through(point))
        self._takes_positions = _takes_positions(self._runs)
        self._cache_name = cache_name(self._runs)

    def _through_embedded(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self._embedded._forward_hooks:
            return None
        if args:
            return (self._embedded(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": self._embedded(kwargs["hidden_states"])}

    @property
    @override
    def checked_as(self) -> object:
        return self.model.original_model

    @property
    @override
    def points(self) -> Sequence[HookPoint]:
        return [self._embedded, *self._posts]

    @property
    @override
    def cache_renamings(self) -> Renamings:  # type: ignore[override]
        return ()  # Hugging Face's layers find their cache

    @override
    def embed_out(self) -> HookPoint:
        return self._embedded

    @override
    def resid_post(self, layer: int) -> HookPoint:
        return self._posts[layer]

    @override
    def block_runs(self, layers: tuple[int, ...]) -> BlockRuns:
        return BlockRuns({layer: self._blocks[layer] for layer in layers})

    def step(
        self,
        tokens: Int[Tensor, "batch 1"],
        mask: Float[Tensor, "batch 1 1 total"],
        positions: Int[Tensor, "batch 1"],
        cache: Any,
    ) -> Float[Tensor, "batch 1 d_vocab"]:
        """Logits of a step that reads no tensor's value, so that it can be captured or compiled; the mask is added to scores.

        Raises:
            NotImplementedError: the model counts positions by itself.
        """
        if not self._takes_positions:
            raise Unsupported(f"{type(self._runs).__name__} counts positions by itself")
        call = {"attention_mask": mask, "position_ids": positions, "use_cache": True, self._cache_name: cache}
        return self._runs(tokens, **call).logits  # type: ignore[no-any-return]

    @override
    def _run(self, tokens: Int[Tensor, "batch pos"], call: dict[str, Any]) -> tuple[Tensor, Cache | None]:
        if self._takes_positions:
            call["position_ids"] = (call["attention_mask"].cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        if (cache := call.pop("past_key_values", None)) is not None:
            call[self._cache_name] = cache
        out = self._runs(tokens, **call)
        return out.logits, getattr(out, "past_key_values", None) if call["use_cache"] else None


class _Through:
    """Sends a block's output through a hook point."""

    def __init__(self, point: HookPoint) -> None:
        self._point = point

    def __call__(self, _: nn.Module, args: Any, out: Any) -> Any:
        if not self._point._forward_hooks:
            return None
        return self._point(out) if isinstance(out, Tensor) else (self._point(out[0]), *out[1:])


def _named(name: str) -> HookPoint:
    point = HookPoint()
    point.name = name
    return point


class _Copies:
    """Copies of modules that share their parameters and buffers, what a bridge's component wraps in that component's place."""

    def __init__(self) -> None:
        self._known: dict[int, nn.Module] = {}

    def of(self, module: nn.Module) -> nn.Module:
        """The copy of a module and of all inside it; the same one each time."""
        if id(module) not in self._known:
            self._known[id(module)] = self._made(module)
        return self._known[id(module)]

    def _made(self, module: nn.Module) -> nn.Module:
        _require_plain(module)
        if isinstance(module, GeneralizedComponent):
            wrapped = module._modules.get(_WRAPPED)
            if wrapped is None:
                raise Unsupported(f"its {type(module).__name__} wraps no module of the model's own")
            return self.of(wrapped)
        copy: nn.Module = object.__new__(type(module))
        copy.__dict__.update(module.__dict__)
        copy.__dict__.update({name: OrderedDict() for name in _HOOKS})
        copy.__dict__["_buffers"] = dict(module._buffers)  # which RoPE may replace, and remember for which length
        self._known[id(module)] = copy  # before what is inside, which may point back
        copy.__dict__["_modules"] = {n: None if inner is None else self.of(inner) for n, inner in module._modules.items()}
        for name, value in module.__dict__.items():
            if isinstance(value, nn.Module):
                copy.__dict__[name] = self.of(value)
            elif isinstance(value, MethodType) and isinstance(value.__self__, nn.Module):
                raise Unsupported(f"its {type(module).__name__} keeps a method as {name}")
        return copy


def _require_plain(module: nn.Module) -> None:
    """Refuse what a copy would leave out."""
    if "forward" in vars(module) or getattr(module, "_compiled_call_impl", None) is not None:
        raise Unsupported(f"the forward of its {type(module).__name__} was replaced")
    if isinstance(module, GeneralizedComponent):
        return  # hooks on a component send states to its hook points
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    if any(getattr(hook, "__module__", "") != _CAPTURING for hook in hooks):
        raise Unsupported(f"hooks are on its {type(module).__name__}")


def _require_same_weights(model: nn.Module, copy: nn.Module) -> None:
    """Refuse a bridge that computes with weights of its own, such as the parts of a joint projection."""
    own = {id(parameter) for parameter in copy.parameters()}
    if beside := [name for name, parameter in model.named_parameters() if id(parameter) not in own]:
        raise Unsupported(f"the bridge keeps weights beside the model's own: {beside[0].replace(f'.{_WRAPPED}', '')}")


def _takes_positions(model: nn.Module) -> bool:
    """Whether the model reads positions that it is given; those that make several of their own are left to do so."""
    parameters: Mapping[str, Any] = inspect.signature(type(model).forward).parameters
    return "position_ids" in parameters and not any(hasattr(module, "get_rope_index") for module in model.modules())


_agrees: weakref.WeakKeyDictionary[Any, tuple[str, str]] = weakref.WeakKeyDictionary()
"""By bridge: for which weights, and why its model alone computes otherwise, or nothing."""


def _require_agreement(backend: BridgeBackend, twin: LeanBackend, weights: str) -> None:
    """Once for each model and its weights: norms behind every block, and logits, are those that the bridge computes."""
    model = backend.model
    if model not in _agrees or _agrees[model][0] != weights:
        why, tokens = "", probe_tokens(backend.d_vocab, backend.n_ctx)
        with silenced([point for one in (backend, twin) for point in one.points]), torch.no_grad():
            truth = lens_pass(backend, tokens)
            try:
                require_agreement(twin, truth, tokens, "it has code of its own")
            except Unsupported as reason:
                why = str(reason)
        _agrees[model] = (weights, why)
    if why := _agrees[model][1]:
        raise Unsupported(why)
