"""Which tokens are taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_l2norm.core.batch import Rows, RowTensors
from tl_l2norm.core.errors import InputError, InputTypeError
from tl_l2norm.core.layers import layer_ranges
from tl_l2norm.core.random_draws import uniform
from tl_l2norm.interventions.log import Log
from tl_l2norm.interventions.rule import Rule, Visit
from tl_l2norm.models.described import Described


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


Count = Literal["fired", "reruns"]
"""What of a log is matched: how many tokens it changed, or how often it ran a block again."""


@dataclass(frozen=True, eq=False)
class Matched:
    """As many tokens of each sequence and layer as fired in the log of another run, none of them high."""

    log: Log
    index: int
    """Which intervention of the log."""
    count: Count = "fired"
    layers: Mapping[int, int] = field(default_factory=dict)
    """The log's layer whose number a layer takes; its own where nothing is said."""

    @cached_property
    def _counted(self) -> tuple[dict[tuple[int, int], int], dict[tuple[int, int], int]]:
        """What the log's run took, and among how many live tokens, by sequence and layer: its events are counted once."""
        taken = self.log.reruns(self.index) if self.count == "reruns" else self.log.fired(self.index)
        return taken, self.log.live(self.index)

    def acted_at(self, backend: Described) -> tuple[int, ...]:
        """The layers of the log's run."""
        return self.log.interventions[self.index].resolve(backend)

    def require(self, layers: Sequence[int], backend: Described) -> None:
        """Refuse layers at which the log's run didn't act.

        Raises:
            InputError: with the layers.
        """
        if unused := sorted(set(self.layers) - set(layers)):
            raise InputError(f"match_layers has layers {layer_ranges(unused)}, this run acts at {layer_ranges(layers)}")
        known = self.acted_at(backend)
        if lacking := sorted({self.layers.get(layer, layer) for layer in layers} - set(known)):
            raise InputError(
                f"match: its run acted at layers {layer_ranges(known)}, this one is to at {layer_ranges(lacking)} too: "
                "give both the same layers"
            )

    def begin(self, layer: int, rows: Rows, draws: Int[Tensor, " batch"], skipped: int) -> Quota:
        """As many as the log says, among as many live tokens less those that are skipped."""
        taken, live = self._counted
        numbers, layer = rows.number.tolist(), self.layers.get(layer, layer)
        require_same_sequences(self.log.keys, rows)
        wanted = torch.tensor([taken.get((number, layer), 0) for number in numbers], device=rows.device)
        left = torch.tensor([live.get((number, layer), 0) for number in numbers], device=rows.device)
        left = (left - skipped).clamp_min(0)
        return Quota(wanted, left, torch.zeros_like(left), torch.zeros_like(left), draws)

    def choose(self, memory: Quota, visit: Visit, able: Bool[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
        """Tokens drawn one after the other until the quota is used up, none of them over the threshold."""
        return memory.take(visit.places.positions, able & (visit.norms <= visit.tau), able)


def only_of(log: Any, kinds: tuple[type[Rule], ...]) -> int:
    """Which intervention of a log is matched: the only one of these kinds.

    Raises:
        InputTypeError: no log.
        InputError: none of them, or several.
    """
    what = " or ".join(kind.__name__ for kind in kinds)
    if not isinstance(log, Log):
        raise InputTypeError(f"match is the log of another run with one {what}, such as out.log, got {log!r:.80}")
    found = [i for i, x in enumerate(log.interventions) if isinstance(x, kinds)]
    if len(found) != 1:
        raise InputError(f"match needs the log of a run with one {what}, this one has {len(found)}")
    return found[0]


def read_tokens(visit: Visit, option: str) -> Int[Tensor, "batch pos"]:
    """The ids of a visit's tokens.

    Raises:
        InputError: whoever runs the model doesn't say them.
    """
    if visit.places.tokens is None:
        raise InputError(f"{option}: which tokens are read isn't seen here: use generate, collect or `with x.hooks(model)`")
    return visit.places.tokens


def require_same_sequences(keys: Mapping[int, int], rows: Rows) -> None:
    """Refuse sequences that are not those of the log that is matched."""
    for number, key in zip(rows.number.tolist(), rows.key.tolist(), strict=True):
        if keys.get(number) != key:
            raise InputError(
                f"match: sequence {number} of this run has seed {key}, in the log it has {keys.get(number, 'none')}: give the "
                "same prompts in the same order with the same seed"
            )


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

    def take(
        self, positions: Int[Tensor, "batch pos"], candidates: Bool[Tensor, "batch pos"], live: Bool[Tensor, "batch pos"]
    ) -> Bool[Tensor, "batch pos"]:
        """Which of a pass' tokens are taken, each in its turn."""
        draws = uniform(positions, start=self.draws[:, None])
        columns = zip(draws.unbind(1), candidates.unbind(1), live.unbind(1), strict=True)
        return torch.stack([self.draw(*column) for column in columns], dim=1)

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
