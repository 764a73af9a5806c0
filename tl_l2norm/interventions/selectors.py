"""Which tokens a suppression takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_l2norm.core.batch import Rows, RowTensors
from tl_l2norm.core.errors import InputError
from tl_l2norm.core.random_draws import uniform
from tl_l2norm.interventions.log import Log
from tl_l2norm.interventions.rule import Visit


@runtime_checkable
class Selector(Protocol):
    """A choice among the live tokens of a visit."""

    def begin(self, layer: int, rows: Rows, draws: Int[Tensor, " batch"], skipped: int) -> RowTensors | None:
        """What it remembers of these sequences.

        Args:
            layer: at which it chooses.
            rows: the sequences.
            draws: hash of seed, sequence and layer: a position's draw starts from it.
            skipped: how many live tokens can't be changed at the start.
        """

    def choose(self, memory: Any, visit: Visit, able: Bool[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
        """Which tokens are taken; `able`: live ones that can be changed, among which a quota is drawn."""


@dataclass(frozen=True)
class Over:
    """Norms over the threshold, or under it."""

    under: bool = False

    def begin(self, layer: int, rows: Rows, draws: Int[Tensor, " batch"], skipped: int) -> None:
        """It remembers nothing."""

    def choose(self, memory: None, visit: Visit, able: Bool[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
        """Every live token on that side of the threshold, also one that can't be changed."""
        return visit.live & ((visit.norms < visit.tau) if self.under else (visit.norms > visit.tau))


@dataclass(slots=True, eq=False)
class Draws(RowTensors):
    """Where the draws of each sequence start."""

    draws: Int[Tensor, " batch"]


@dataclass(frozen=True)
class Random:
    """Each token with the same probability."""

    p: float

    def begin(self, layer: int, rows: Rows, draws: Int[Tensor, " batch"], skipped: int) -> Draws:
        """Where the draws start."""
        return Draws(draws)

    def choose(self, memory: Draws, visit: Visit, able: Bool[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
        """Live tokens as they are drawn, whatever their norm."""
        return visit.live & (uniform(visit.places.positions, start=memory.draws[:, None]) < self.p)


@dataclass(frozen=True, eq=False)
class Matched:
    """As many tokens of each sequence and layer as fired in the log of another run, none of them high."""

    log: Log
    index: int
    """Which intervention of the log."""

    def begin(self, layer: int, rows: Rows, draws: Int[Tensor, " batch"], skipped: int) -> Quota:
        """As many as the log says, among as many live tokens less those that are skipped."""
        fired, live = self.log.fired(self.index), self.log.live(self.index)
        numbers = rows.number.tolist()
        for number, key in zip(numbers, rows.key.tolist(), strict=True):
            if self.log.keys.get(number) != key:
                raise InputError(
                    f"match: sequence {number} of this run has seed {key}, in the log it has "
                    f"{self.log.keys.get(number, 'none')}: give the same prompts in the same order with the same seed"
                )
        wanted = torch.tensor([fired.get((number, layer), 0) for number in numbers], device=rows.device)
        left = torch.tensor([live.get((number, layer), 0) for number in numbers], device=rows.device)
        left = (left - skipped).clamp_min(0)
        return Quota(wanted, left, torch.zeros_like(left), torch.zeros_like(left), draws)

    def choose(self, memory: Quota, visit: Visit, able: Bool[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
        """Tokens drawn one after the other until the quota is used up, none of them over the threshold."""
        draws = uniform(visit.places.positions, start=memory.draws[:, None])
        ordinary = able & (visit.norms <= visit.tau)
        columns = zip(draws.unbind(1), ordinary.unbind(1), able.unbind(1), strict=True)
        return torch.stack([memory.draw(*column) for column in columns], dim=1)


@dataclass(slots=True, eq=False)
class Quota(RowTensors):
    """Selection sampling (Knuth, algorithm S): `wanted` of the candidates among the next `left` tokens, each in its turn.

    How many of those will be candidates is not known while decoding; it is taken to be their share so far.
    """

    wanted: Int[Tensor, " batch"]
    left: Int[Tensor, " batch"]
    seen: Int[Tensor, " batch"]
    candidates: Int[Tensor, " batch"]
    draws: Int[Tensor, " batch"]

    def draw(
        self, draws: Float[Tensor, " batch"], candidate: Bool[Tensor, " batch"], live: Bool[Tensor, " batch"]
    ) -> Bool[Tensor, " batch"]:
        """Take a candidate with probability wanted / candidates left; where fewer are left than wanted, take all."""
        expected = self.left * (self.candidates + 1) / (self.seen + 1)
        hit = candidate & (draws * torch.maximum(expected, self.wanted) < self.wanted)
        self.wanted = self.wanted - hit.long()
        self.left, self.seen = self.left - live.long(), self.seen + live.long()
        self.candidates = self.candidates + candidate.long()
        return hit
