"""Layer arithmetic and the canonical names of hook points."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Literal

from tl_l2norm.errors import InputError, InputTypeError

Layers = int | slice | Sequence[int] | Literal["all", "late"] | None
"""Which layers: an index (negatives count from the end), several, a slice, `"late"` (the last quarter) or all of them."""


def resid_post(layer: int) -> str:
    """Canonical name of the residual stream after block `layer`, the same on both backends."""
    return f"blocks.{layer}.hook_resid_post"


def late_layers(n_layers: int) -> tuple[int, ...]:
    """The last quarter of the layers, rounded up: 22 to 29 of 30."""
    return tuple(range(n_layers - -(-n_layers // 4), n_layers))


def resolve_layers(layers: Layers, n_layers: int) -> tuple[int, ...]:
    """Turn any way of naming layers into sorted, distinct, non-negative indices.

    Raises:
        ValueError: a layer outside the model, no layer at all, or an unknown word.
        TypeError: something that is not a layer.
    """
    if layers is None or layers == "all":
        return tuple(range(n_layers))
    if isinstance(layers, str):
        if layers == "late":
            return late_layers(n_layers)
        raise InputError(f"unknown layers {layers!r}: give 'late', 'all', integers or a slice")
    if isinstance(layers, slice):
        chosen: Iterable[int] = range(n_layers)[layers]
    elif isinstance(layers, int):
        chosen = (layers,)
    else:
        chosen = layers
    found = sorted({_resolve(layer, n_layers) for layer in chosen})
    if not found:
        raise InputError(f"{layers!r} selects no layer of {n_layers}")
    return tuple(found)


def _resolve(layer: int, n_layers: int) -> int:
    if isinstance(layer, bool) or not hasattr(layer, "__index__"):
        raise InputTypeError(f"a layer is an integer, got {layer!r}")
    index = layer.__index__()
    if not -n_layers <= index < n_layers:
        raise InputError(f"layer {index} is outside this model: it has layers 0 to {n_layers - 1} (or -1 to {-n_layers})")
    return index % n_layers


def layer_ranges(layers: Sequence[int]) -> str:
    """Layers in few words: `0-3, 7` for (0, 1, 2, 3, 7)."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def unknown_name(name: str, known: Iterable[str]) -> str:
    """The message for a hook name that the model doesn't have, with the closest that it has."""
    return f"the model has no hook point {name!r}{did_you_mean(name, known)}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the closest that are known, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
