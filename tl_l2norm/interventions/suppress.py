"""Suppress tokens by their norm: the paper's causal test, and its controls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from typing_extensions import override

from tl_l2norm.draws import hash_keys, uniform
from tl_l2norm.interventions.base import Effect, Intervention, Visit, check_choice, check_finite, check_share
from tl_l2norm.interventions.events import Decision, Log
from tl_l2norm.interventions.rows import Rows, RowTensors
from tl_l2norm.thresholds import ThresholdLike


@dataclass(frozen=True, eq=False, repr=False)
class HighNormSuppression(Intervention):
    """Scale down the states whose norm is high; or low, or random ones, as controls.

    Most blocks read the stream through RMSNorm or LayerNorm: a state that is scaled by 0.1 looks the same to the next block,
    and everything that later blocks add to it weighs ten times as much.
    """

    thresholds: ThresholdLike | None = None
    mode: Literal["high", "low", "random"] = "high"
    """Norms over the threshold, norms under it, or random ones."""
    action: Literal["scale", "clamp"] = "scale"
    """`h * scale`, or `h * min(1, (tau / 4) / ||h||)`."""
    scale: float = 0.1
    p: float = 0.05
    """Mode "random": probability of each token and layer."""
    match: Log | None = None
    """Mode "random": as many tokens of each sequence and layer as in this log of another run, none of them high."""
    seed: int = 0

    DECISIONS: ClassVar = (Decision("suppressed", True),)

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("mode", self.mode, ("high", "low", "random"))
        check_choice("action", self.action, ("scale", "clamp"))
        check_finite("scale", self.scale, least=0.0)
        check_share("p", self.p)
        matched = self.match is not None
        needs = "mode" if self.mode != "random" else "action" if self.action == "clamp" else "match" if matched else ""
        if self.thresholds is None and needs:
            given = "a dict {layer: value}, iqr_thresholds(traces) or AdaptiveIQR()"
            raise ValueError(f"{needs}={getattr(self, needs)!r} needs thresholds: {given}")
        if matched and self.mode != "random":
            raise ValueError(f"match is for mode='random', not for mode={self.mode!r}")
        if self.match is not None:
            _matched(self.match)

    @override
    def new_state(self, layer: int, rows: Rows, d_model: int) -> RowTensors | None:
        if self.mode != "random":
            return None
        draws = hash_keys(self.seed, rows.key, layer)
        return _Draws(draws) if self.match is None else _Quota.of(self.match, layer, rows, draws)

    @override
    def act(self, state: Any, visit: Visit) -> Effect:
        hit = self._hits(state, visit)
        if self.action == "scale":
            changed = visit.stream * self.scale
        else:
            factor = (visit.tau / 4 / visit.norms.clamp_min(1e-30)).clamp_max(1.0)
            changed = (visit.stream.float() * factor[..., None]).to(visit.stream.dtype)
        return Effect(torch.where(hit[..., None], changed, visit.stream), hit.to(torch.int8))

    def _hits(self, state: Any, visit: Visit) -> Bool[Tensor, "batch pos"]:
        if self.mode == "high":
            return visit.live & (visit.norms > visit.tau)
        if self.mode == "low":
            return visit.live & (visit.norms < visit.tau)
        draws = uniform(visit.places.positions, start=state.draws[:, None])
        if not isinstance(state, _Quota):
            return visit.live & (draws < self.p)
        ordinary = visit.live & (visit.norms <= visit.tau)
        columns = zip(draws.unbind(1), ordinary.unbind(1), visit.live.unbind(1), strict=True)
        return torch.stack([state.draw(*column) for column in columns], dim=1)


@dataclass(slots=True, eq=False)
class _Draws(RowTensors):
    """Hash of seed, sequence and layer: a position's draw starts from it."""

    draws: Int[Tensor, " batch"]


@dataclass(slots=True, eq=False)
class _Quota(RowTensors):
    """Selection sampling (Knuth, algorithm S): `wanted` of the candidates among the next `left` tokens, each in its turn.

    How many of those will be candidates is not known while decoding; it is taken to be their share so far.
    """

    wanted: Int[Tensor, " batch"]
    left: Int[Tensor, " batch"]
    seen: Int[Tensor, " batch"]
    candidates: Int[Tensor, " batch"]
    draws: Int[Tensor, " batch"]

    @classmethod
    def of(cls, log: Log, layer: int, rows: Rows, draws: Int[Tensor, " batch"]) -> _Quota:
        index = _matched(log)
        fired, live = log.fired(index), log.live(index)
        numbers = rows.number.tolist()
        for number, key in zip(numbers, rows.key.tolist(), strict=True):
            if log.keys.get(number) != key:
                raise ValueError(
                    f"match: sequence {number} of this run has seed {key}, in the log it has {log.keys.get(number, 'none')}: "
                    "give the same prompts in the same order with the same seed"
                )
        wanted = torch.tensor([fired.get((number, layer), 0) for number in numbers], device=rows.device)
        left = torch.tensor([live.get((number, layer), 0) for number in numbers], device=rows.device)
        return cls(wanted, left, torch.zeros_like(left), torch.zeros_like(left), draws)

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


def _matched(log: Log) -> int:
    """Which intervention of the log is matched: its only suppression."""
    found = [i for i, x in enumerate(log.interventions) if isinstance(x, HighNormSuppression)]
    if len(found) != 1:
        raise ValueError(f"match needs the log of a run with one HighNormSuppression, this one has {len(found)}")
    return found[0]
