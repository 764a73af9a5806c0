"""Suppress tokens by their norm: the paper's causal test, and its controls."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from typing_extensions import override

from tl_l2norm.core.arguments import as_integer, check_choice, check_finite, check_share
from tl_l2norm.core.batch import Rows, RowTensors
from tl_l2norm.core.errors import InputError, InputTypeError
from tl_l2norm.core.norms import l2_norms
from tl_l2norm.core.random_draws import hash_keys, uniform
from tl_l2norm.core.thresholds import ThresholdLike
from tl_l2norm.interventions.base import Intervention
from tl_l2norm.interventions.log import Log
from tl_l2norm.interventions.rule import Decision, Effect, Visit

_SUPPRESSED, _NO_EARLIER = 1, 2
_RESERVOIR = 0x53574150  # "SWAP": keeps its draws apart from those of mode="random"


class _Unmatched(Enum):
    """No log to match: another thing than None, the log of a run without interventions."""

    UNMATCHED = "not matched"


@dataclass(frozen=True, eq=False, repr=False)
class HighNormSuppression(Intervention):
    """Scale down the states whose norm is high, or exchange their content; or low, or random ones, as controls.

    Most blocks read the stream through RMSNorm or LayerNorm: a state that is scaled by 0.1 keeps its direction, which is all
    that the next block reads, and everything that later blocks add to it weighs ten times as much. The action "swap" is the
    other half of the test: it keeps the norm and changes the direction to that of an earlier state. What breaks by "swap" and
    not by "scale" hangs on the content of these states, not on their norm.

    The earlier state is that of a token drawn uniformly among all earlier live tokens of the sequence at that layer, as this
    intervention met it (reservoir sampling, Vitter's algorithm R with one place). One float32 state [d_model] is kept for each
    sequence and layer; no gradient flows through a swapped state. Where there is no earlier live token, or the one drawn has
    norm 0, nothing is changed and the log says "no earlier token", not fired; random matched tokens are never drawn there.
    """

    thresholds: ThresholdLike | None = None
    mode: Literal["high", "low", "random"] = "high"
    """Norms over the threshold, norms under it, or random ones."""
    action: Literal["scale", "clamp", "swap"] = "scale"
    """`h * scale`, `h * min(1, (tau / 4) / ||h||)`, or `||h|| * v / ||v||`, v the state of a random earlier token."""
    scale: float = 0.1
    p: float = 0.05
    """Mode "random": probability of each token and layer."""
    match: Log | _Unmatched = _Unmatched.UNMATCHED
    """Mode "random": as many tokens of each sequence and layer as in this log of another run, none of them high."""
    seed: int = 0

    DECISIONS: ClassVar = (Decision("suppressed", True), Decision("no earlier token", False))

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("mode", self.mode, ("high", "low", "random"))
        check_choice("action", self.action, ("scale", "clamp", "swap"))
        check_finite("scale", self.scale, least=0.0)
        check_share("p", self.p)
        as_integer("seed", self.seed)
        matched = self.match is not _Unmatched.UNMATCHED
        needs = "mode" if self.mode != "random" else "action" if self.action == "clamp" else "match" if matched else ""
        if self.thresholds is None and needs:
            given = "a dict {layer: value}, iqr_thresholds(traces) or AdaptiveIQR()"
            raise InputError(f"{needs}={getattr(self, needs)!r} needs thresholds: {given}")
        if matched and self.mode != "random":
            raise InputError(f"match is for mode='random', not for mode={self.mode!r}")
        if matched:
            _matched(self.match)

    @override
    def made_with(self) -> dict[str, float | None]:
        return super().made_with() | {"matched counts": self.match.sink_ratio if isinstance(self.match, Log) else None}

    @override
    def new_state(self, layer: int, rows: Rows, d_model: int) -> RowTensors | None:
        swaps = self.action == "swap"
        if self.mode != "random" and not swaps:
            return None
        draws = hash_keys(self.seed, rows.key, layer)
        choice = _Quota.of(self.match, layer, rows, draws, skipped=int(swaps)) if isinstance(self.match, Log) else _Draws(draws)
        return _Swap.of(choice, d_model) if swaps else choice

    @override
    def act(self, state: Any, visit: Visit) -> Effect:
        if self.action == "swap":
            return self._swap(state, visit)
        hit = self._hits(state, visit, visit.live)
        if self.action == "scale":
            changed = visit.stream * self.scale
        else:
            factor = (visit.tau / 4 / visit.norms.clamp_min(1e-30)).clamp_max(1.0)
            changed = (visit.stream.float() * factor[..., None]).to(visit.stream.dtype)
        return Effect(torch.where(hit[..., None], changed, visit.stream), hit.to(torch.int8))

    def _swap(self, state: _Swap, visit: Visit) -> Effect:
        v = state.draw(visit)
        v_norms = l2_norms(v)
        has_source = v_norms > 0
        hit = self._hits(state.choice, visit, visit.live & has_source)
        swapped = hit & has_source
        changed = (v * (visit.norms / v_norms)[..., None]).to(visit.stream.dtype)  # NaN without a source, and not taken
        decision = torch.where(swapped, _SUPPRESSED, hit * _NO_EARLIER).to(torch.int8)
        return Effect(torch.where(swapped[..., None], changed, visit.stream), decision)

    def _hits(self, state: Any, visit: Visit, able: Bool[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
        """Which tokens are chosen; `able`: live ones that can be changed, among which a quota is drawn."""
        if self.mode == "high":
            return visit.live & (visit.norms > visit.tau)
        if self.mode == "low":
            return visit.live & (visit.norms < visit.tau)
        draws = uniform(visit.places.positions, start=state.draws[:, None])
        if not isinstance(state, _Quota):
            return visit.live & (draws < self.p)
        ordinary = able & (visit.norms <= visit.tau)
        columns = zip(draws.unbind(1), ordinary.unbind(1), able.unbind(1), strict=True)
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
    def of(cls, log: Log, layer: int, rows: Rows, draws: Int[Tensor, " batch"], *, skipped: int = 0) -> _Quota:
        """For as many tokens as the log says; `skipped`: how many live ones are passed over at the start."""
        index = _matched(log)
        fired, live = log.fired(index), log.live(index)
        numbers = rows.number.tolist()
        for number, key in zip(numbers, rows.key.tolist(), strict=True):
            if log.keys.get(number) != key:
                raise InputError(
                    f"match: sequence {number} of this run has seed {key}, in the log it has {log.keys.get(number, 'none')}: "
                    "give the same prompts in the same order with the same seed"
                )
        wanted = torch.tensor([fired.get((number, layer), 0) for number in numbers], device=rows.device)
        left = torch.tensor([live.get((number, layer), 0) for number in numbers], device=rows.device)
        left = (left - skipped).clamp_min(0)
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


@dataclass(slots=True, eq=False)
class _Swap(RowTensors):
    """A reservoir of one: a state drawn uniformly among those of the live tokens so far."""

    kept: Float[Tensor, "batch d_model"]
    """All zero before there is one."""
    n_live: Int[Tensor, " batch"]
    draws: Int[Tensor, " batch"]
    choice: _Draws | _Quota
    """What mode "random" remembers."""

    @classmethod
    def of(cls, choice: _Draws | _Quota, d_model: int) -> _Swap:
        draws = hash_keys(_RESERVOIR, start=choice.draws)
        return cls(torch.zeros(len(draws), d_model, device=draws.device), torch.zeros_like(draws), draws, choice)

    def draw(self, visit: Visit) -> Float[Tensor, "batch pos d_model"]:
        """For each token the state that was kept before it, float32; each live one is kept in its turn with probability 1/k."""
        states = torch.cat([self.kept[:, None], visit.stream.detach().float()], dim=1)
        k = self.n_live[:, None] + visit.live.cumsum(1)
        draws = uniform(visit.places.positions, start=self.draws[:, None])
        enters = visit.live & (draws * k <= 1)  # the first always: a float32 draw may be 1
        columns = torch.arange(1, states.shape[1], device=states.device)
        newest = torch.nn.functional.pad((enters * columns).cummax(1).values, (1, 0))  # 0 is what was kept before this pass
        rows = torch.arange(len(states), device=states.device)[:, None]
        found = states[rows, newest]
        self.kept, self.n_live = found[:, -1].clone(), k[:, -1]
        return found[:, :-1]


def _matched(log: Any) -> int:
    """Which intervention of the log is matched: its only suppression."""
    if log is None:
        raise InputTypeError(
            "match=None is the log of a run without interventions: give that of one with a HighNormSuppression, or leave match "
            "out to draw each token with probability p"
        )
    if not isinstance(log, Log):
        raise InputTypeError(f"match is the log of another run, such as out.log, got {log!r:.80}")
    found = [i for i, x in enumerate(log.interventions) if isinstance(x, HighNormSuppression)]
    if len(found) != 1:
        raise InputError(f"match needs the log of a run with one HighNormSuppression, this one has {len(found)}")
    return found[0]
