"""Layer arithmetic and the canonical names of hook points."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Iterable, Sequence
from typing import Any, Literal, SupportsIndex

from tl_l2norm.core.errors import InputError, InputTypeError
from tl_l2norm.core.protocols import is_several

Layers = SupportsIndex | slice | Sequence[SupportsIndex] | Literal["all", "late"] | None
"""Which layers: an index (negatives count from the end), several, a slice, `"late"` (the last quarter) or all of them."""


LATE, BUT_LAST = "late", "late but the last"


def resid_post(layer: int) -> str:
    """Canonical name of the residual stream after block `layer`, the same on both backends."""
    return f"blocks.{layer}.hook_resid_post"


def late_layers(n_layers: int) -> tuple[int, ...]:
    """The last quarter of the layers, rounded up: 22 to 29 of 30."""
    return tuple(range(n_layers - -(-n_layers // 4), n_layers))


def late_groups(layers: Sequence[int], n_layers: int) -> dict[str, list[int]]:
    """Rows of the late layers among these, and without the model's last block, whose output the unembedding alone reads.

    A group of which no layer is there is left out.

    Examples:
        >>> late_groups([0, 9, 10, 11], 12)
        {'late': [1, 2, 3], 'late but the last': [1, 2]}
    """
    late = [row for row, layer in enumerate(layers) if layer in late_layers(n_layers)]
    groups = {LATE: late, BUT_LAST: [row for row in late if layers[row] < n_layers - 1]}
    return {name: rows for name, rows in groups.items() if rows}


def resolve_layers(layers: Layers, n_layers: int) -> tuple[int, ...]:
    """Turn any way of naming layers into sorted, distinct, non-negative indices.

    Raises:
        ValueError: a layer outside the model, no layer at all, or an unknown word.
        TypeError: something that is not a layer.

    Examples:
        >>> resolve_layers("late", 12), resolve_layers([-1, 0], 12), resolve_layers(slice(2, 4), 12)
        ((9, 10, 11), (0, 11), (2, 3))
    """
    if isinstance(layers, str) and layers not in ("all", "late"):
        raise InputError(_unknown_layers(layers))
    if layers is None or isinstance(layers, str):
        return late_layers(n_layers) if layers == "late" else tuple(range(n_layers))
    if isinstance(layers, slice):
        chosen: Iterable[Any] = range(n_layers)[layers]
    elif is_several(layers):
        chosen = layers
    else:
        chosen = (layers,)
    indices = sorted({_resolve(layer, n_layers) for layer in chosen})
    if not indices:
        raise InputError(f"{layers!r} selects no layer of {n_layers}")
    return tuple(indices)


def check_layers(layers: Any) -> None:
    """Refuse what can't name layers of any model, before there is one."""
    if isinstance(layers, str) and layers not in ("all", "late"):
        raise InputError(_unknown_layers(layers))
    if layers is None or isinstance(layers, str | slice):
        return
    for layer in layers if is_several(layers) else (layers,):
        as_layer(layer)


def as_layer(layer: Any) -> int:
    """One layer as an integer, of NumPy or torch too."""
    try:
        if not isinstance(layer, bool):
            return operator.index(layer)
    except TypeError:
        pass
    raise InputTypeError(f"a layer is an integer, got {layer!r:.80}")


def _resolve(layer: Any, n_layers: int) -> int:
    index = as_layer(layer)
    if not -n_layers <= index < n_layers:
        raise InputError(f"layer {index} is outside this model: it has layers 0 to {n_layers - 1} (or -1 to {-n_layers})")
    return index % n_layers


def _unknown_layers(layers: str) -> str:
    return f"unknown layers {layers!r}: give 'late', 'all', integers or a slice"


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
