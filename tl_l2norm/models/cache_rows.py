"""Rows of a batch in the KV caches of both kinds of model: taken, joined, trimmed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from typing_extensions import override

Cache = Any
"""A model's own KV cache; handle it through its backend alone."""


class CacheRows(ABC):
    """What is done to the rows of a cache. A cache that goes in is used up."""

    @abstractmethod
    def select(self, cache: Cache, rows: Int[Tensor, " rows"]) -> Cache:
        """The cache of these rows of the batch, in this order; a row may be taken several times."""

    @abstractmethod
    def trim_left(self, cache: Cache, columns: int) -> Cache:
        """The cache without its first positions, which are padding in every row."""

    @abstractmethod
    def join(self, first: Cache, second: Cache) -> Cache:
        """One cache with the rows of both, the shorter padded on the left (masked by the caller)."""

    @abstractmethod
    def can_select(self, cache: Cache) -> bool:
        """Whether `select` knows this kind of cache."""

    @abstractmethod
    def can_join(self, cache: Cache) -> bool:
        """Whether `join` and `trim_left` know this kind of cache: it holds keys and values alone."""


class LensCacheRows(CacheRows):
    """Of TransformerLens' `TransformerLensKeyValueCache`."""

    @override
    def select(self, cache: Cache, rows: Int[Tensor, " rows"]) -> Cache:
        for entry in cache.entries:
            entry.past_keys = entry.past_keys[rows.to(entry.past_keys.device)]
            entry.past_values = entry.past_values[rows.to(entry.past_values.device)]
        cache.previous_attention_mask = cache.previous_attention_mask[rows.to(cache.previous_attention_mask.device)]
        return cache

    @override
    def trim_left(self, cache: Cache, columns: int) -> Cache:
        for entry in cache.entries:
            entry.past_keys, entry.past_values = entry.past_keys[:, columns:], entry.past_values[:, columns:]
        cache.previous_attention_mask = cache.previous_attention_mask[:, columns:]
        return cache

    @override
    def can_select(self, cache: Cache) -> bool:
        return True

    @override
    def can_join(self, cache: Cache) -> bool:
        return True

    @override
    def join(self, first: Cache, second: Cache) -> Cache:
        for mine, other in zip(first.entries, second.entries, strict=True):
            mine.past_keys = _cat_rows(mine.past_keys, other.past_keys, dim=1)
            mine.past_values = _cat_rows(mine.past_values, other.past_values, dim=1)
        first.previous_attention_mask = _cat_rows(first.previous_attention_mask, second.previous_attention_mask, dim=1)
        return first


class DynamicCacheRows(CacheRows):
    """Of transformers' `DynamicCache`; others can be selected from at the most."""

    @override
    def select(self, cache: Cache, rows: Int[Tensor, " rows"]) -> Cache:
        cache.reorder_cache(rows)  # recurrent layers have no batch_select_indices
        return cache

    @override
    def trim_left(self, cache: Cache, columns: int) -> Cache:
        # A sliding layer keeps its last window - 1 keys: only what reaches past the new length goes.
        for layer in cache.layers:
            kept = min(layer.get_seq_length() - columns, layer.keys.shape[2])
            layer.keys, layer.values = layer.keys[:, :, -kept:], layer.values[:, :, -kept:]
            if hasattr(layer, "cumulative_length"):
                layer.cumulative_length -= columns
        return cache

    @override
    def can_select(self, cache: Cache) -> bool:
        return hasattr(cache, "reorder_cache")

    @override
    def can_join(self, cache: Cache) -> bool:
        from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

        layers = getattr(cache, "layers", None) or ()
        return bool(layers) and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)

    @override
    def join(self, first: Cache, second: Cache) -> Cache:
        # Keys are aligned on the right in sliding layers too: padding on the left is all that both kinds need.
        for mine, other in zip(first.layers, second.layers, strict=True):
            mine.keys, mine.values = _cat_rows(mine.keys, other.keys, 2), _cat_rows(mine.values, other.values, 2)
            if hasattr(mine, "cumulative_length"):
                mine.cumulative_length = max(mine.cumulative_length, other.cumulative_length)
        return first


def _cat_rows(first: Tensor, second: Tensor, dim: int) -> Tensor:
    length = max(first.shape[dim], second.shape[dim])
    return torch.cat([_pad_left(first, length, dim), _pad_left(second, length, dim)])


def _pad_left(tensor: Tensor, length: int, dim: int) -> Tensor:
    missing = length - tensor.shape[dim]
    if missing == 0:
        return tensor
    shape = [*tensor.shape[:dim], missing, *tensor.shape[dim + 1 :]]
    return torch.cat([tensor.new_zeros(shape), tensor], dim)
