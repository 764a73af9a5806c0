"""A KV cache in tensors that keep their places, into which each step writes at one column."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import Cache as LayersCache
from transformers.cache_utils import DynamicCache, DynamicLayer, StaticLayer
from typing_extensions import override

_LEAST = 256
_ROOM = 64  # columns to grow into, at least


class _Slot(StaticLayer):  # type: ignore[misc]
    """Keys and values of one layer; its neighbours share the column that is written to."""

    def __init__(self, keys: Tensor, values: Tensor, column: Int[Tensor, 1]) -> None:
        super().__init__(max_cache_len=keys.shape[2])
        self.keys, self.values, self.column = keys, values, column
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    @override
    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.keys.index_copy_(2, self.column, key_states)
        self.values.index_copy_(2, self.column, value_states)
        return self.keys, self.values

    @override
    def get_seq_length(self) -> Any:
        return self.column


class Slots:
    """The cache and the inputs of steps for a number of rows, the first of which are in use; all layers attend to everything.

    Idle rows attend to what they themselves write, so that nothing of theirs is NaN.
    """

    def __init__(self, like: DynamicCache, rows: int, columns: int) -> None:
        first = like.layers[0].keys
        self.columns = columns
        self.column = torch.zeros(1, dtype=torch.long, device=first.device)
        self.tokens = torch.zeros(rows, 1, dtype=torch.long, device=first.device)
        self.positions = torch.zeros(rows, 1, dtype=torch.long, device=first.device)
        self.mask = first.new_zeros(rows, 1, 1, columns)
        self._layers = [tuple(_room(kept, rows, columns) for kept in (layer.keys, layer.values)) for layer in like.layers]

    @property
    def rows(self) -> int:
        """How many there is room for."""
        return self.tokens.shape[0]

    def fits(self, rows: int, columns: int) -> bool:
        """Whether that many rows and columns have their places here."""
        return rows <= self.rows and columns <= self.columns

    def take(self, cache: DynamicCache) -> None:
        """Copy what a cache holds into the first rows."""
        for mine, theirs in zip(self._layers, cache.layers, strict=True):
            for place, kept in zip(mine, (theirs.keys, theirs.values), strict=True):
                place[: kept.shape[0], :, : kept.shape[2]] = kept

    def dynamic(self, rows: int, columns: int) -> DynamicCache:
        """The first rows and columns in a cache that grows; it shares no memory with this one."""
        cache = DynamicCache()
        for i, (keys, values) in enumerate(self._layers):
            cache.update(keys[:rows, :, :columns].clone(), values[:rows, :, :columns].clone(), i)
        return cache

    def view(self, rows: int) -> LayersCache:
        """The first rows as a model takes its cache."""
        cache = LayersCache(layers=[_Slot(keys[:rows], values[:rows], self.column) for keys, values in self._layers])
        cache.column = self.column  # for who runs a block again
        return cache

    def write(self, tokens: Int[Tensor, "batch 1"], mask: Int[Tensor, "batch total"], rows: int) -> None:
        """What the next step of so many rows reads; it is written behind what the mask covers."""
        n, total = mask.shape
        self.tokens[:n] = tokens
        self.column.fill_(total - 1)
        self.positions[:n] = mask.sum(1, keepdim=True) - 1
        self.mask.fill_(torch.finfo(self.mask.dtype).min)
        self.mask[:n, 0, 0, :total].masked_fill_(mask.bool(), 0)
        self.mask[n:rows, 0, 0, total - 1] = 0


def columns_for(total: int) -> int:
    """Room for a sequence that goes on: a power of two."""
    return max(_LEAST, 1 << (total + _ROOM - 1).bit_length())


def takes(cache: Any) -> bool:
    """Whether every layer of a cache keeps the keys and values of all positions."""
    layers = getattr(cache, "layers", None) or ()
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def _room(kept: Float[Tensor, "batch head pos d"], rows: int, columns: int) -> Tensor:
    return kept.new_zeros(rows, kept.shape[1], columns, kept.shape[3])
