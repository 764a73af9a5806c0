"""What watches a model's forward passes, one protocol for all of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager

from torch import Tensor
from typing_extensions import override

from tl_l2norm.core.batch import Batch, Pass
from tl_l2norm.core.features import FeatureActs

Recorded = Mapping[Hashable, Tensor | FeatureActs]
"""Of one sequence, by name: tensors [..., pos] and feature activations of so many positions."""


class Observer(ABC):
    """Watches, or changes, what a model computes, by hooks of its own. Its memory of sequences lies in their `Batch`."""

    @abstractmethod
    def attached(self) -> AbstractContextManager[object]:
        """Keep its hooks on the model inside the context."""

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


def joined(parts: Sequence[Recorded]) -> dict[Hashable, Tensor | FeatureActs]:
    """One sequence's recordings, one after the other in the order of positions."""
    from torch import cat

    found: dict[Hashable, Tensor | FeatureActs] = {}
    for name in parts[0] if parts else ():
        values = [part[name] for part in parts]
        found[name] = FeatureActs.join(values) if isinstance(values[0], FeatureActs) else cat(values, dim=-1)  # type: ignore[arg-type]
    return found
