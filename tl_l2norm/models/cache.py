"""Whether a KV cache is used: handed over under the name that is looked for, and longer by what was read.

Since transformers 5.24 layers hand it on as `cache`, which was `past_key_values` for attention and `cache_params` for recurrent
mixers. TransformerLens up to 4.3 looks for the old names alone, finds none, and computes as if nothing had been read before.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache, partial
from inspect import signature
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from tl_l2norm.core.errors import Unsupported

_OLD, _NEW = "past_key_values", "cache"

Renamings = Sequence[tuple[nn.Module, Callable[..., Any]]]
"""Modules, each with the pre-hook that renames the cache in what it is called with."""


def positions_held(cache: Any) -> int | None:
    """Number of positions in a cache, read off shapes; None where it counts none (recurrent states, static buffers)."""
    if cache is None:
        return 0
    if (entries := getattr(cache, "entries", None)) is not None:  # HookedTransformer's, a block's is an entry
        cache = entries[0]
    if hasattr(cache, "past_keys"):
        return int(cache.past_keys.shape[1])
    try:
        held = cache.get_seq_length()
    except (AttributeError, ValueError):  # a kind that we don't know; one with recurrent layers alone
        return None
    return held if isinstance(held, int) else None


def check_grown(before: int | None, cache: Any, n_pos: int) -> None:
    """Refuse to go on with a cache that doesn't hold `n_pos` positions more than before.

    Raises:
        NotImplementedError: with the versions that work together.
    """
    after = positions_held(cache)
    if cache is not None and (before is None or after is None or after - before == n_pos):
        return
    growth = "the model returned no KV cache" if cache is None else f"the KV cache went from {before} to {after} positions"
    raise Unsupported(
        f"{growth} when the model read {n_pos}: decoding, it would not see what it has read, and its responses would be wrong. "
        f"{known_versions()}"
    )


def longrope_boundary(config: Any) -> int | None:
    """Positions up to which LongRoPE uses its short factors; None for any other RoPE.

    Factors are chosen by the largest position in a batch and turn the new keys alone: those in a cache keep what they had.
    (That of "dynamic" RoPE is the context itself.)
    """
    parameters = getattr(config, "rope_parameters", None) or {}
    kinds = [parameters, *(kind for kind in parameters.values() if isinstance(kind, Mapping))]  # one for each type of layer
    lengths = [kind["original_max_position_embeddings"] for kind in kinds if kind.get("rope_type") == "longrope"]
    return min(lengths, default=None)


def known_versions() -> str:
    """Which versions are here, which are known to be right, and what needs no cache."""
    here = " with ".join(f"{name} {importlib.metadata.version(name)}" for name in ("transformers", "transformer-lens"))
    return (
        f"This is {here}; models whose layers all attend are known to decode right on transformers 5.23 and 5.24 with "
        "transformer-lens 3.9 and 4.3 by tl_l2norm.generate, on 5.23 also by the model's own; which of those with recurrent "
        "layers do, docs/families.md lists. tl_l2norm.collect reads texts without a cache"
    )


def cache_renamings(bridge: Any) -> Renamings:
    """What `handed_over` puts on a bridge; empty where the two libraries agree on a name."""
    from transformer_lens.model_bridge.generalized_components.attention import AttentionBridge

    model = bridge.original_model
    renamings = [(model, partial(_rename, _OLD, _NEW))] if cache_name(model) == _NEW else []
    for component in (inner for block in bridge.blocks for inner in block.modules() if inner is not block):
        original = getattr(component, "original_component", None)
        if original is None or not _takes_new_name(type(original).forward):
            continue
        old = _OLD if isinstance(component, AttentionBridge) else "cache_params"
        # What the component doesn't compute itself it hands on, to a layer that knows the new name.
        renamings += [(component, partial(_rename, _NEW, old)), (original, partial(_rename, old, _NEW))]
    return renamings


@contextmanager
def handed_over(renamings: Renamings) -> Iterator[None]:
    """Inside the context the bridge's components find the cache."""
    with ExitStack() as stack:
        for module, hook in renamings:
            stack.callback(put_on(module, hook).remove)
        yield


def put_on(module: nn.Module, renaming: Callable[..., Any]) -> RemovableHandle:
    """Register a renaming on its module; the handle removes it."""
    return module.register_forward_pre_hook(renaming, with_kwargs=True)


def _rename(old: str, new: str, module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> Any:
    if old not in kwargs or new in kwargs:
        return None
    return args, {new if name == old else name: value for name, value in kwargs.items()}


def cache_name(model: nn.Module) -> str:
    """Under which name a Hugging Face model takes its cache."""
    return _NEW if _takes_new_name(type(model).forward) else _OLD


@lru_cache(maxsize=64)
def _takes_new_name(forward: Callable[..., Any]) -> bool:
    return _NEW in signature(forward).parameters
