"""The sequences of a batch, what is remembered of each, and what one forward pass reads of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Positions = Literal["decode", "all"] | int
"""Where an intervention may act: on tokens that the model generated, everywhere, or from a position on."""


T = TypeVar("T", bound="RowTensors")  # typing.Self is not for functions that beartype checks


class RowTensors:
    """Base of dataclasses whose fields are tensors with one row per sequence, other `RowValue`s, or None."""

    def select(self: T, rows: Int[Tensor, " rows"]) -> T:
        """These sequences, in this order; one may be taken several times."""
        return self._map(lambda name: _select(getattr(self, name), rows))

    def join(self: T, other: T) -> T:
        """The sequences of both."""
        return self._map(lambda name: _join(getattr(self, name), getattr(other, name)))

    def to(self: T, device: torch.device) -> T:
        """On another device."""
        return self._map(lambda name: getattr(self, name).to(device))

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        device: torch.device = getattr(self, dataclasses.fields(self)[0].name).device  # type: ignore[arg-type]
        return device

    def _map(self: T, make: Callable[[str], Remembered]) -> T:
        names = [field.name for field in dataclasses.fields(self)]  # type: ignore[arg-type]
        return type(self)(**{name: make(name) for name in names})


@dataclass(slots=True, eq=False)
class Rows(RowTensors):
    """The sequences of a batch."""

    number: Int[Tensor, " batch"]
    """Which sequence of the run."""
    key: Int[Tensor, " batch"]
    """Key of its random draws."""
    prompt_len: Int[Tensor, " batch"]
    position: Int[Tensor, " batch"]
    """Position of the next token that is read; below 0 it is padding."""
    finished: Bool[Tensor, " batch"]

    def __len__(self) -> int:
        """Number of sequences."""
        return len(self.number)

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
    def of(cls, rows: Rows, start: Int[Tensor, " batch"], n_pos: int, real: Bool[Tensor, "batch pos"] | None = None) -> Places:
        """`n_pos` positions of each row from its `start` on; `real` says which are tokens where the padding alone doesn't."""
        positions = start[:, None] + torch.arange(n_pos, device=start.device)
        read = (positions >= 0) & ~rows.finished[:, None]
        return cls(rows, positions, read if real is None else read & real)

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


@runtime_checkable
class RowValue(Protocol):
    """Something that holds a value for each sequence: a tensor with one row per sequence is another."""

    def select(self, rows: Int[Tensor, " rows"]) -> RowValue:
        """The values of these sequences, in this order."""

    def join(self, other: RowValue) -> RowValue:
        """The values of the sequences of both."""


Remembered = Tensor | RowValue | None
V = TypeVar("V")
Make = Callable[[Rows, torch.device], V]
"""How a value begins, for these sequences on this device."""


class Batch:
    """The sequences that are read together, and what is remembered of each from one forward pass to the next.

    Whoever runs the model says which rows it keeps and which batches it joins; what watches the model finds its memory in step.
    """

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self._memory: dict[Hashable, tuple[Remembered, torch.device, Make[Remembered]]] = {}

    def remember(self, key: Hashable, device: torch.device, make: Make[V]) -> V:
        """What is remembered under this key; `make` begins it, also for sequences that join later without."""
        if key not in self._memory:
            self._memory[key] = (make(self.rows.to(device), device), device, make)  # type: ignore[assignment, arg-type]
        return self._memory[key][0]  # type: ignore[return-value]

    def keep(self, key: Hashable, value: Tensor | RowValue) -> None:
        """Remember this value; two batches can be joined only where both keep one under this key."""
        self._memory[key] = (value, value.device if isinstance(value, Tensor) else self.rows.device, _never)

    def recall(self, key: Hashable) -> Any:
        """What was kept under this key."""
        return self._memory[key][0]

    def __contains__(self, key: Hashable) -> bool:
        """Whether something is remembered under this key."""
        return key in self._memory

    def remembered(self) -> dict[Hashable, Any]:
        """All that is remembered, by its key."""
        return {key: value for key, (value, _, _) in self._memory.items()}

    def next_pass(self, n_pos: int, real: Bool[Tensor, "batch pos"] | None = None, *, padded: bool = True) -> Pass:
        """Begin a forward pass over the next columns: each sequence's position moves behind them.

        Args:
            n_pos: how many columns.
            real: which of them are tokens, where a mask says more than padding on the left.
            padded: False where it is known that no column is padding, as at a step of decoding.
        """
        started = Pass(self, n_pos, real, padded)
        self.rows.position = self.rows.position + n_pos
        return started

    def select(self, rows: Int[Tensor, " rows"]) -> Batch:
        """These sequences, in this order; one may be taken several times."""
        selected = Batch(self.rows.select(rows))
        for key, (value, device, make) in self._memory.items():
            selected._memory[key] = (_select(value, rows), device, make)
        return selected

    def join(self, other: Batch) -> Batch:
        """These sequences, and behind them those of another batch."""
        joined = Batch(self.rows.join(other.rows))
        for key in {**self._memory, **other._memory}:
            _, device, make = self._memory.get(key) or other._memory[key]
            mine, its = self.remember(key, device, make), other.remember(key, device, make)
            joined._memory[key] = (_join(mine, its), device, make)
        return joined


def _select(value: Remembered, rows: Int[Tensor, " rows"]) -> Remembered:
    if value is None:
        return None
    return value[rows.to(value.device)] if isinstance(value, Tensor) else value.select(rows)


def _join(first: Remembered, second: Remembered) -> Remembered:
    if first is None or second is None:
        return None
    return torch.cat([first, second]) if isinstance(first, Tensor) else first.join(second)  # type: ignore[list-item, arg-type]


def _never(rows: Rows, device: torch.device) -> Tensor:
    raise RuntimeError("a batch was joined before it was read")


class Pass:
    """One forward pass over a batch."""

    def __init__(self, batch: Batch, n_pos: int, real: Bool[Tensor, "batch pos"] | None, padded: bool) -> None:
        self.batch, self.n_pos, self.padded = batch, n_pos, padded
        self._start, self._given = batch.rows.position, real
        self._places: dict[torch.device, Places] = {}

    def places(self, device: torch.device | None = None) -> Places:
        """Its positions; computed when they are first asked for, which most decode steps don't."""
        rows = self.batch.rows
        if not self._places:
            self._places[rows.device] = Places.of(rows, self._start, self.n_pos, self._given)
        if device is None or device in self._places:
            return self._places[rows.device if device is None else device]
        return self._places.setdefault(device, self._places[rows.device].to(device))
