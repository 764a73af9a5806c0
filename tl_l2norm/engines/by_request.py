"""What was recorded of passes that read tokens of many requests at once, sorted by request and position."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_l2norm.core.features import FeatureActs

_SORT_AT = 1 << 16  # tokens whose norms wait on the device


class Read(NamedTuple):
    """Whose tokens a pass reads, and where they stand."""

    owners: Int[np.ndarray, " token"]
    positions: Int[np.ndarray, " token"]

    @classmethod
    def of(cls, owners: Int[np.ndarray, " row"], starts: Int[np.ndarray, " row"], ends: Int[np.ndarray, " fence"]) -> Read:
        """Rows of a batch without padding: row i is `ends[i]` to `ends[i + 1]`, and begins at position `starts[i]`."""
        lengths = np.diff(ends)
        return cls(np.repeat(owners, lengths), np.arange(ends[-1]) + np.repeat(starts - ends[:-1], lengths))


class Recordings(NamedTuple):
    """What was recorded of some tokens."""

    positions: Int[np.ndarray, " token"]
    values: Float[np.ndarray, "place token"]
    features: dict[int, FeatureActs]


class Taken(NamedTuple):
    """What was recorded of a request, at its first positions."""

    values: Float[Tensor, "place pos"]
    features: dict[int, FeatureActs]
    """By layer."""


class ByRequest:
    """What was recorded, by request and position.

    A token that is read again, after a preemption, overwrites what was there: that is what later tokens attend to.
    """

    def __init__(self, features: Callable[[int], dict[int, FeatureActs]] | None = None) -> None:
        """`features`: gives those of as many tokens as were noted since it was last asked, in their order; None without."""
        self._features = features
        self._passes: list[tuple[Read, Float[Tensor, "place token"]]] = []
        self._waiting = 0
        self._parts: dict[int, list[Recordings]] = {}

    def note(self, read: Read, values: Float[Tensor, "place token"]) -> None:
        """Keep what a pass recorded."""
        self._passes.append((read, values))
        self._waiting += len(read.owners)
        if self._waiting > _SORT_AT:
            self._sort()

    def _sort(self) -> None:
        if not self._passes:
            return
        values = torch.cat([values for _, values in self._passes], dim=1).cpu().numpy()
        owners = np.concatenate([read.owners for read, _ in self._passes])
        positions = np.concatenate([read.positions for read, _ in self._passes])
        features = self._features(len(owners)) if self._features else {}
        order = np.argsort(owners, kind="stable")
        which, starts = np.unique(owners[order], return_index=True)
        for owner, index in zip(which.tolist(), np.split(order, starts[1:]), strict=True):
            own = {layer: acts.select(torch.from_numpy(index)) for layer, acts in features.items()}
            self._parts.setdefault(owner, []).append(Recordings(positions[index], values[:, index], own))
        self._passes, self._waiting = [], 0

    def take(self, owner: int, n_tokens: int) -> Taken:
        """What was recorded at a request's first positions; it is forgotten here.

        Raises:
            RuntimeError: one of them was never read.
        """
        self._sort()
        parts = self._parts.pop(owner)
        positions = np.concatenate([part.positions for part in parts])
        inside = np.flatnonzero(positions < n_tokens)
        index = np.full(n_tokens, -1)
        index[positions[inside]] = inside  # of a position that is there twice the last stays
        if (index < 0).any():
            raise RuntimeError(f"no pass read position {int((index < 0).argmax())} of request {owner}, of {n_tokens}")
        values = np.concatenate([part.values for part in parts], axis=1)[:, index]
        layers, chosen = parts[0].features, torch.from_numpy(index)
        features = {layer: FeatureActs.join([part.features[layer] for part in parts]).select(chosen) for layer in layers}
        return Taken(torch.from_numpy(values), features)
