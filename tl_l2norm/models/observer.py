"""What watches a model's forward passes, one protocol for all of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from typing_extensions import override

from tl_l2norm.core.batch import Batch, Pass
from tl_l2norm.core.errors import Unsupported
from tl_l2norm.core.features import FeatureActs

Recorded = Mapping[Hashable, Tensor | FeatureActs]
"""What was recorded of one sequence, by name: tensors [..., pos], and feature activations at as many positions."""


class Observer(ABC):
    """Watches, or changes, what a model computes, by hooks of its own. Its memory of sequences lies in their `Batch`."""

    @abstractmethod
    def attached(self) -> AbstractContextManager[object]:
        """Keep its hooks on the model inside the context."""

    def resumed(self) -> AbstractContextManager[object]:
        """Keep its hooks on the model for some passes of a run, which goes on in another such context until `finish`."""
        return self.attached()

    def finish(self) -> None:  # noqa: B027 (most need no end)
        """The run is over, which was resumed until now."""

    def begin(self, batch: Batch) -> None:  # noqa: B027 (most need no beginning)
        """These sequences are read from now on."""

    @abstractmethod
    def next_pass(self, now: Pass) -> None:
        """A forward pass starts."""

    @abstractmethod
    def take(self, n_rows: int) -> Sequence[Recorded]:
        """For each row of the batch what was recorded since the last call, at its real positions, on the CPU."""

    def leave(self, batch: Batch) -> None:  # noqa: B027 (most need no end)
        """These sequences have ended."""

    def held(self) -> object:
        """The tensors that its hooks filled in the pass that was run last, and that a replay of that pass fills again.

        Raises:
            NotImplementedError: its hooks do more than that.
        """
        raise Unsupported(f"{type(self).__name__} has hooks that a replay leaves out")

    def replayed(self, held: Any, n_rows: int) -> None:
        """A pass was replayed: in place of its hooks, `held` has what they record, of which the first rows count."""
        raise Unsupported(f"{type(self).__name__} has hooks that a replay leaves out")


class Observers(Observer):
    """Several as one, in this order: the last of them sees what the others made of the stream."""

    def __init__(self, members: Sequence[Observer]) -> None:
        self.members = tuple(members)

    @override
    @contextmanager
    def attached(self) -> Iterator[None]:
        with ExitStack() as stack:
            for member in self.members:
                stack.enter_context(member.attached())
            yield

    @override
    @contextmanager
    def resumed(self) -> Iterator[None]:
        with ExitStack() as stack:
            for member in self.members:
                stack.enter_context(member.resumed())
            yield

    @override
    def finish(self) -> None:
        for member in self.members:
            member.finish()

    @override
    def begin(self, batch: Batch) -> None:
        for member in self.members:
            member.begin(batch)

    @override
    def next_pass(self, now: Pass) -> None:
        for member in self.members:
            member.next_pass(now)

    @override
    def take(self, n_rows: int) -> list[Recorded]:
        parts = [member.take(n_rows) for member in self.members]
        return [{name: value for part in parts for name, value in part[row].items()} for row in range(n_rows)]

    @override
    def leave(self, batch: Batch) -> None:
        for member in self.members:
            member.leave(batch)

    @override
    def held(self) -> list[object]:
        return [member.held() for member in self.members]

    @override
    def replayed(self, held: Any, n_rows: int) -> None:
        for member, mine in zip(self.members, held, strict=True):
            member.replayed(mine, n_rows)


class Ledger:
    """Tensors [..., batch, pos] of several passes, handed out row by row at their real positions."""

    def __init__(self) -> None:
        self._real: list[Bool[Tensor, "batch pos"] | None] = []
        self._values: dict[Hashable, list[Float[Tensor, "... batch pos"]]] = {}

    def next_pass(self, now: Pass) -> None:
        """A forward pass starts."""
        self._real.append(now.places().real if now.padded else None)

    def note(self, name: Hashable, values: Float[Tensor, "... batch pos"]) -> None:
        """What was recorded in this pass."""
        self._values.setdefault(name, []).append(values)

    def take(self, n_rows: int) -> list[Recorded]:
        """For each row [..., pos] of every name since the last call, on the CPU."""
        real, values = self._real, {name: torch.cat(parts, dim=-1).cpu() for name, parts in self._values.items()}
        self._real, self._values = [], {}
        if all(mask is None for mask in real):
            return [{name: value[..., row, :] for name, value in values.items()} for row in range(n_rows)]
        masks = [torch.ones(n_rows, 1, dtype=torch.bool) if mask is None else mask.cpu() for mask in real]
        mask = torch.cat(masks, dim=1)
        return [{name: value[..., row, :][..., mask[row]] for name, value in values.items()} for row in range(n_rows)]


def joined(parts: Sequence[Recorded]) -> dict[Hashable, Tensor | FeatureActs]:
    """One sequence's recordings, one after the other in the order of positions."""
    whole: dict[Hashable, Tensor | FeatureActs] = {}
    for name in parts[0] if parts else ():
        values = [part[name] for part in parts]
        whole[name] = FeatureActs.join(values) if isinstance(values[0], FeatureActs) else torch.cat(values, dim=-1)  # type: ignore[arg-type]
    return whole
