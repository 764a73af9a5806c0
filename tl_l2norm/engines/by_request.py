"""Norms of passes that read tokens of many requests at once, sorted by request and position."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

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


class ByRequest:
    """What was recorded, by request and position.

    A token that is read again, after a preemption, overwrites what was there: that is what later tokens attend to.
    """

    def __init__(self) -> None:
        self._passes: list[tuple[Read, Float[Tensor, "place token"]]] = []
        self._waiting = 0
        self._parts: dict[int, list[tuple[Int[np.ndarray, " token"], Float[np.ndarray, "place token"]]]] = {}

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
        order = np.argsort(owners, kind="stable")
        which, starts = np.unique(owners[order], return_index=True)
        for owner, index in zip(which.tolist(), np.split(order, starts[1:]), strict=True):
            self._parts.setdefault(owner, []).append((positions[index], values[:, index]))
        self._passes, self._waiting = [], 0

    def take(self, owner: int, n_tokens: int) -> Float[Tensor, "place pos"]:
        """Values at a request's first positions; they are forgotten here.

        Raises:
            RuntimeError: one of them was never read.
        """
        self._sort()
        parts = self._parts.pop(owner)
        taken = np.full((len(parts[0][1]), n_tokens), np.nan, np.float32)
        read = np.zeros(n_tokens, bool)
        for positions, values in parts:
            inside = positions < n_tokens
            taken[:, positions[inside]] = values[:, inside]  # of a position that is there twice the last stays
            read[positions[inside]] = True
        if not read.all():
            raise RuntimeError(f"no pass read position {int((~read).argmax())} of request {owner}, of {n_tokens}")
        return torch.from_numpy(taken)
