"""The sequences of a batch and what one forward pass reads of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Positions = Literal["decode", "all"] | int
"""Where an intervention may act: on tokens that the model generated, everywhere, or from a position on."""


T = TypeVar("T", bound="RowTensors")  # typing.Self is not for functions that beartype checks


class RowTensors:
    """Base of dataclasses that hold tensors with one row per sequence, or others of their kind."""

    def select(self: T, rows: Int[Tensor, " rows"]) -> T:
        """These sequences, in this order; one may be taken several times."""

        def chosen(name: str) -> Tensor | RowTensors:
            mine = getattr(self, name)
            return mine.select(rows) if isinstance(mine, RowTensors) else mine[rows.to(mine.device)]

        return self._map(chosen)

    def join(self: T, other: T) -> T:
        """The sequences of both."""

        def both(name: str) -> Tensor | RowTensors:
            mine, its = getattr(self, name), getattr(other, name)
            return mine.join(its) if isinstance(mine, RowTensors) else torch.cat([mine, its])

        return self._map(both)

    def to(self: T, device: torch.device) -> T:
        """On another device."""
        return self._map(lambda name: getattr(self, name).to(device))

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        found: torch.device = getattr(self, dataclasses.fields(self)[0].name).device  # type: ignore[arg-type]
        return found

    def _map(self: T, make: Callable[[str], Tensor | RowTensors]) -> T:
        names = [field.name for field in dataclasses.fields(self)]  # type: ignore[arg-type]
        return type(self)(**{name: make(name) for name in names})


@dataclass(slots=True, eq=False)
class Rows(RowTensors):
    """The sequences of a batch."""

    number: Int[Tensor, " batch"]
    """Which sequence of the run."""
    key: Int[Tensor, " batch"]
    """Of its random draws."""
    prompt_len: Int[Tensor, " batch"]
    position: Int[Tensor, " batch"]
    """Of the next column that is read; below 0 is padding."""
    finished: Bool[Tensor, " batch"]

    @classmethod
    def of(
        cls,
        *,
        number: Int[Tensor, " batch"],
        key: Int[Tensor, " batch"],
        prompt_len: Int[Tensor, " batch"],
        padding: Int[Tensor, " batch"],
    ) -> Rows:
        """Sequences of which nothing was read yet, with this many columns of padding on their left."""
        finished = torch.zeros_like(number, dtype=torch.bool)
        return cls(number=number, key=key, prompt_len=prompt_len, position=-padding, finished=finished)


@dataclass(slots=True, eq=False)
class Places:
    """The positions of one forward pass."""

    rows: Rows
    positions: Int[Tensor, "batch pos"]
    real: Bool[Tensor, "batch pos"]
    """Neither padding nor of a finished row."""
    _eligible: dict[Positions, Bool[Tensor, "batch pos"]] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: Rows, n_pos: int, real: Bool[Tensor, "batch pos"] | None = None) -> Places:
        """The next columns of these rows."""
        positions = rows.position[:, None] + torch.arange(n_pos, device=rows.position.device)
        found = (positions >= 0) & ~rows.finished[:, None]
        return cls(rows, positions, found if real is None else found & real)

    def to(self, device: torch.device) -> Places:
        """On another device."""
        if self.positions.device == device:
            return self
        return Places(self.rows.to(device), self.positions.to(device), self.real.to(device))

    def eligible(self, where: Positions) -> Bool[Tensor, "batch pos"]:
        """Where an intervention may act, sinks aside."""
        if where not in self._eligible:
            first = 0 if where == "all" else self.rows.prompt_len[:, None] if where == "decode" else where
            self._eligible[where] = self.real & (self.positions >= first)
        return self._eligible[where]

    def prompt_bounds(self, norms: Float[Tensor, "batch pos"], ratio: float) -> Float[Tensor, " batch"]:
        """Norm over which a token is an attention sink: `norms.sink_bounds` for a padded batch, row by row."""
        inside = self.real & (self.positions > 0) & (self.positions < self.rows.prompt_len[:, None])
        ordered = torch.where(inside, norms, torch.inf).sort(dim=1).values
        middle = (inside.sum(1) - 1).clamp_min(0).div(2, rounding_mode="floor")  # the lower median, as torch's
        return ratio * ordered.gather(1, middle[:, None])[:, 0]
