"""Steer towards states of high norm that the model itself went through."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, ClassVar, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from typing_extensions import override

from tl_l2norm.core.arguments import as_integer, as_number, check_choice, check_count, check_finite, check_flag, check_share
from tl_l2norm.core.batch import Rows, RowTensors
from tl_l2norm.core.errors import InputError, InputTypeError
from tl_l2norm.core.norms import l2_norms
from tl_l2norm.core.random_draws import hash_keys, uniform
from tl_l2norm.core.thresholds import ThresholdLike
from tl_l2norm.interventions.bank import Steering, as_bank, as_vectors, at_layer
from tl_l2norm.interventions.base import Intervention
from tl_l2norm.interventions.log import Log
from tl_l2norm.interventions.rule import Decision, Effect, Visit
from tl_l2norm.interventions.selectors import Matched, only_of
from tl_l2norm.models.described import Described

Towards = Literal["closest", "random", "direction", "vectors"]

_STEERED, _COOLDOWN, _EMPTY, _NOT_DRAWN, _FAR = range(1, 6)


@dataclass(frozen=True, eq=False, repr=False)
class ERSS(Intervention):
    """Endogenous reasoning state steering (the paper's second method): after many tokens of low norm in a row, add the stored
    high-norm state that points most in the stream's own direction.

    At each token, in this order: the cooldown falls by 1. If `n > tau`, h joins the bank, which keeps the `bank_size` states of
    largest norm. The streak grows if `n < gamma * tau`, otherwise it ends. If it has reached `patience` and no cooldown is
    left, with probability p: v is the bank's state of highest cosine to h, and if that is at least `cos_min`, h is steered to
    it; then the streak begins anew and the cooldown is set. Each sequence and layer has a bank, a streak and a cooldown of its
    own.

    The controls steer to something else (`towards`), or at other times (`match`). Every v is of the closest state's norm, and
    all else is decided as if it were that state: of a stream that nothing has changed yet, all of them steer the same tokens.

    Attributes:
        thresholds: by layer: a dict, `quantile_thresholds(...)`, `iqr_thresholds(...)` or `AdaptiveIQR()`.
        patience: tokens of low norm in a row before it steers.
        beta: weight of the stored state.
        cooldown: tokens for which it rests after it steered.
        bank_size: states that a bank holds.
        cos_min: the least cosine of the stored state to h.
        gamma: a norm under `gamma * tau` is low.
        p: probability of steering where it is due.
        mix: "add", "interpolate" or "authors", as at the field.
        seed: of the draws.
        bank: {layer: states} that every sequence's bank starts with.
        own_states: whether a sequence's own states join its bank.
        keep_banks: whether the log keeps the banks, for `log.bank(layer)`.
        towards: what it steers to in place of that state, when and as long as it would have: the "closest" state of the bank;
            a control: another, "random" one of the bank, a random "direction", or the direction of `vectors`.
        vectors: of towards="vectors": {layer: vector}, such as `mean_difference(...)`.
        match: the log of a run with one ERSS, `out.log`: instead of patience, gamma, cooldown and p, as many tokens of each
            sequence and layer as were steered there, drawn among those of low norm with a stored state that is close enough.
        layers: which blocks; by default those of the thresholds, the late layers without or where they adapt.
        positions: "decode" (tokens that the model generated and reads back), "all", or a position from which on it acts.
        include_sinks: whether attention sinks count and are acted on, as in the authors' code.
        sink_ratio: a norm over this many times its layer's median over the prompt is a sink's; None for the run's.

    Examples:
        >>> steer = l2.ERSS(l2.quantile_thresholds(think, 0.9), layers=[9], patience=4, p=1.0, cos_min=0.0)
        >>> chat = [{"role": "user", "content": "mod 10: 7A-3"}]
        >>> l2.generate(model, [chat], interventions=[steer], progress=False).log
        intervention       decision  fired  n
                ERSS    live tokens  False 12
                ERSS        steered   True  1
                ERSS       cooldown  False  1
                ERSS     empty bank  False  0
                ERSS      not drawn  False  0
                ERSS cosine too low  False  0
    """

    thresholds: ThresholdLike
    patience: int = 40
    beta: float = 0.5
    cooldown: int = 16
    bank_size: int = 32
    cos_min: float = 0.5
    gamma: float = 1.0
    p: float = 0.2
    mix: Literal["add", "interpolate", "authors"] = "add"
    """`h + beta v`, `h + beta (v - h)`, or as in the authors' code `h + beta (v - r)`, r the stream before the MLP's write."""
    seed: int = 0
    bank: Mapping[int, Float[Tensor, "states d_model"]] | None = None
    """{layer: states} to start every sequence's bank with, such as `{9: log.bank(9)}` of another run."""
    own_states: bool = True
    """Whether a sequence's own states join the bank."""
    keep_banks: bool = False
    """Whether the log keeps each sequence's bank, on the CPU, for `log.bank(layer)`; by sequence and layer in `log.kept`."""
    towards: Towards = "closest"
    vectors: Mapping[int, Float[Tensor, " d_model"]] | None = None
    match: Log | None = None

    DECISIONS: ClassVar = (
        Decision("steered", True),
        Decision("cooldown", False),
        Decision("empty bank", False),
        Decision("not drawn", False),
        Decision("cosine too low", False),
    )
    COLUMNS: ClassVar = ("cosine",)
    NEEDS_THRESHOLDS: ClassVar = True

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("patience", self.patience, 1)
        check_finite("beta", self.beta)
        check_count("cooldown", self.cooldown, 0)
        check_count("bank_size", self.bank_size, 1)
        if not -1 <= as_number("cos_min", self.cos_min) <= 1:
            raise InputError(f"cos_min must be between -1 and 1, got {self.cos_min}")
        check_finite("gamma", self.gamma, least=0.0)
        check_share("p", self.p)
        check_choice("mix", self.mix, ("add", "interpolate", "authors"))
        as_integer("seed", self.seed)
        check_choice("towards", self.towards, get_args(Towards))
        check_flag("own_states", self.own_states)
        check_flag("keep_banks", self.keep_banks)
        if self.bank is not None and not isinstance(self.bank, Mapping):
            raise InputTypeError(f"bank is given by layer, {{layer: states}}, got {self.bank!r:.80}")
        if self.bank is not None:
            object.__setattr__(self, "bank", MappingProxyType({layer: as_bank(layer, s) for layer, s in self.bank.items()}))
        elif not self.own_states:
            raise InputError("own_states=False needs a bank to steer from: bank={layer: states}")
        if (self.vectors is None) != (self.towards != "vectors"):
            raise InputError("vectors={layer: vector} is for towards='vectors', which needs it")
        if self.vectors is not None:
            object.__setattr__(self, "vectors", as_vectors(self.vectors))
        self._matched  # noqa: B018 (a log that can't be matched shows here)

    @property
    @override
    def needs_resid_mid(self) -> bool:
        return self.mix == "authors"

    @cached_property
    def _matched(self) -> Matched | None:
        return None if self.match is None else Matched(self.match, only_of(self.match, (ERSS,)))

    @override
    def resolve(self, backend: Described) -> tuple[int, ...]:
        layers = super().resolve(backend)
        if self._matched is not None:
            self._matched.require(layers, backend)
        return layers

    @override
    def made_with(self) -> dict[str, float | None]:
        return super().made_with() | {"matched counts": None if self.match is None else self.match.sink_ratio}

    @override
    def new_state(self, layer: int, rows: Rows, d_model: int) -> RowTensors | None:
        given = at_layer("bank", self.bank, layer, d_model)
        at_layer("vectors", self.vectors, layer, d_model)
        draws = hash_keys(self.seed, rows.key, layer)
        quota = None if self._matched is None else self._matched.begin(layer, rows, draws, 0)
        return Steering.of(rows, draws, self.bank_size, d_model, given, quota)

    @override
    def act(self, state: Any, visit: Visit) -> Effect:
        steps = [self._token(state, visit, column) for column in range(visit.norms.shape[1])]
        streams, decisions, cosines = zip(*steps, strict=True)
        return Effect(torch.stack(streams, 1), torch.stack(decisions, 1), {"cosine": torch.stack(cosines, 1)})

    def _token(self, state: Steering, visit: Visit, column: int) -> tuple[Tensor, Tensor, Tensor]:
        stream, norms, live = visit.stream[:, column], visit.norms[:, column], visit.live[:, column]
        positions, tau = visit.places.positions[:, column], visit.tau
        tau = tau[:, column] if isinstance(tau, Tensor) else tau
        h = stream.detach().float()
        state.cool(live)
        if self.own_states:
            state.store(h, norms, live & (norms > tau))
        state.count(live, norms < self.gamma * tau)
        due = live & (state.streak >= self.patience) if state.quota is None else live
        if due.device.type == "cpu" and not due.any():  # elsewhere asking costs more than computing
            return stream, torch.zeros_like(due, dtype=torch.int8), torch.full_like(norms, torch.nan)
        closest, cosine = state.closest(h, norms)
        if state.quota is None:
            decision = self._on_schedule(state, due, positions, cosine)
        else:
            able = live & (norms <= tau) & (cosine >= self.cos_min)
            decision = state.quota.draw(uniform(positions, start=state.draws), able, live) * _STEERED
        steered = decision == _STEERED
        state.rest(steered, self.cooldown)
        v = self._target(state, closest, positions, visit.layer)
        mixed = self._mix(stream.float(), v, visit, column).to(stream.dtype)
        tried = (decision == _STEERED) | (decision == _FAR)
        return torch.where(steered[:, None], mixed, stream), decision.to(torch.int8), torch.where(tried, cosine, torch.nan)

    def _on_schedule(
        self,
        state: Steering,
        due: Bool[Tensor, " batch"],
        positions: Int[Tensor, " batch"],
        cosine: Float[Tensor, " batch"],
    ) -> Int[Tensor, " batch"]:
        """What becomes of tokens at which patience has run out."""
        drawn = uniform(positions, start=state.draws) < self.p if self.p < 1 else due
        reasons = torch.where(cosine < self.cos_min, _FAR, _STEERED)
        reasons = torch.where(drawn, reasons, _NOT_DRAWN)
        reasons = torch.where(torch.isnan(cosine), _EMPTY, reasons)
        reasons = torch.where(state.cooldown > 0, _COOLDOWN, reasons)
        return torch.where(due, reasons, 0)

    def _target(
        self, state: Steering, closest: Float[Tensor, "batch d_model"], positions: Int[Tensor, " batch"], layer: int
    ) -> Float[Tensor, "batch d_model"]:
        """What is steered to; controls are as long as the closest state."""
        if self.towards == "closest":
            return closest
        if self.towards == "vectors":
            assert self.vectors is not None
            other = self.vectors[layer].to(closest).expand_as(closest)
        else:
            other = state.random_state(positions) if self.towards == "random" else state.random_direction(positions)
        return other * (l2_norms(closest) / l2_norms(other).clamp_min(1e-30))[:, None]

    def _mix(self, h: Tensor, v: Tensor, visit: Visit, column: int) -> Float[Tensor, "batch d_model"]:
        if self.mix == "add":
            return h + self.beta * v
        if self.mix == "interpolate":
            return h + self.beta * (v - h)
        assert visit.resid_mid is not None
        return h + self.beta * (v - visit.resid_mid[:, column].float())

    @override
    def outlives(self, rows: Rows, state: Any) -> Mapping[int, Any]:
        if not self.keep_banks:
            return {}
        filled = torch.isfinite(state.bank_norms)
        return {number: state.bank[row][filled[row]].cpu().clone() for row, number in enumerate(rows.number.tolist())}
