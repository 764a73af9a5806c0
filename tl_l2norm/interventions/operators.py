"""What a suppression makes of a state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_l2norm.core.batch import RowTensors
from tl_l2norm.core.norms import l2_norms
from tl_l2norm.core.random_draws import hash_keys, uniform
from tl_l2norm.interventions.rule import Visit

_RESERVOIR = 0x53574150  # "SWAP": keeps its draws apart from those that choose tokens

Change = tuple[Float[Tensor, "batch pos d_model"], Bool[Tensor, "batch pos"]]


@runtime_checkable
class Operator(Protocol):
    """A change of single states."""

    @property
    def skipped(self) -> int:
        """How many live tokens it can't change at the start of a sequence."""

    def begin(self, draws: Int[Tensor, " batch"], d_model: int) -> RowTensors | None:
        """What it remembers of each sequence; `draws`: hash of seed, sequence and layer."""

    def changed(self, memory: Any, visit: Visit) -> Change:
        """Every state as it would be, in the stream's dtype, and whether it can be changed."""


@dataclass(frozen=True)
class Scale:
    """`h * factor`."""

    factor: float
    skipped: int = 0

    def begin(self, draws: Int[Tensor, " batch"], d_model: int) -> None:
        """It remembers nothing."""

    def changed(self, memory: None, visit: Visit) -> Change:
        """The stream times `factor`; every live token can be changed."""
        return visit.stream * self.factor, visit.live


@dataclass(frozen=True)
class Clamp:
    """`h * min(1, (tau / 4) / ||h||)`."""

    skipped: int = 0

    def begin(self, draws: Int[Tensor, " batch"], d_model: int) -> None:
        """It remembers nothing."""

    def changed(self, memory: None, visit: Visit) -> Change:
        """The stream with norms of at most tau / 4; every live token can be changed."""
        factor = (visit.tau / 4 / visit.norms.clamp_min(1e-30)).clamp_max(1.0)
        return (visit.stream.float() * factor[..., None]).to(visit.stream.dtype), visit.live


@dataclass(frozen=True)
class Swap:
    """`||h|| * v / ||v||`, v being the state of a random earlier token."""

    skipped: int = 1

    def begin(self, draws: Int[Tensor, " batch"], d_model: int) -> Reservoir:
        """An empty reservoir for each sequence."""
        own = hash_keys(_RESERVOIR, start=draws)
        return Reservoir(torch.zeros(len(own), d_model, device=own.device), torch.zeros_like(own), own)

    def changed(self, memory: Reservoir, visit: Visit) -> Change:
        """Earlier states at the norms of these; a live token can be changed if its earlier state isn't zero."""
        v = memory.draw(visit)
        v_norms = l2_norms(v)
        return (v * (visit.norms / v_norms)[..., None]).to(visit.stream.dtype), visit.live & (v_norms > 0)  # NaN elsewhere


@dataclass(slots=True, eq=False)
class Reservoir(RowTensors):
    """A reservoir of one (Vitter's algorithm R): a state drawn uniformly among those of the live tokens so far."""

    kept: Float[Tensor, "batch d_model"]
    """All zero before there is one."""
    n_live: Int[Tensor, " batch"]
    draws: Int[Tensor, " batch"]

    def draw(self, visit: Visit) -> Float[Tensor, "batch pos d_model"]:
        """For each token the state that was kept before it, float32; each live one is kept in its turn with probability 1/k."""
        states = torch.cat([self.kept[:, None], visit.stream.detach().float()], dim=1)
        k = self.n_live[:, None] + visit.live.cumsum(1)
        draws = uniform(visit.places.positions, start=self.draws[:, None])
        enters = visit.live & (draws * k <= 1)  # the first always: a float32 draw may be 1
        columns = torch.arange(1, states.shape[1], device=states.device)
        newest = torch.nn.functional.pad((enters * columns).cummax(1).values, (1, 0))  # 0 is what was kept before this pass
        rows = torch.arange(len(states), device=states.device)[:, None]
        earlier = states[rows, newest]
        self.kept, self.n_live = earlier[:, -1].clone(), k[:, -1]
        return earlier[:, :-1]
