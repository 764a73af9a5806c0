"""Steer towards states of high norm that the model itself went through."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal

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
from tl_l2norm.interventions.base import Intervention
from tl_l2norm.interventions.rule import Decision, Effect, Visit

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
        keep_banks: whether the log keeps the banks, as `log.kept[i][sequence][layer]`.
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
    """{layer: states} to start every sequence's bank with, such as `log.kept` of another run holds."""
    own_states: bool = True
    """Whether a sequence's own states join the bank."""
    keep_banks: bool = False
    """Whether the log keeps each sequence's bank, on the CPU, as `log.kept[i][sequence][layer]`."""

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
        check_flag("own_states", self.own_states)
        check_flag("keep_banks", self.keep_banks)
        if self.bank is not None and not isinstance(self.bank, Mapping):
            raise InputTypeError(f"bank is given by layer, {{layer: states}}, got {self.bank!r:.80}")
        if self.bank is not None:
            object.__setattr__(self, "bank", MappingProxyType({layer: _check_bank(layer, s) for layer, s in self.bank.items()}))
        elif not self.own_states:
            raise InputError("own_states=False needs a bank to steer from: bank={layer: states}")

    @property
    @override
    def needs_resid_mid(self) -> bool:
        return self.mix == "authors"

    @override
    def new_state(self, layer: int, rows: Rows, d_model: int) -> RowTensors | None:
        n, device = len(rows.number), rows.device
        given = None if self.bank is None else self.bank.get(layer)
        if self.bank is not None and given is None:
            raise InputError(f"bank has no states for layer {layer}: it has layers {sorted(self.bank)}")
        if given is not None and given.shape[-1] != d_model:
            raise InputError(f"bank has states of width {given.shape[-1]} at layer {layer}, the stream has {d_model}")
        states = torch.zeros(n, self.bank_size, d_model, device=device)
        norms = torch.full((n, self.bank_size), -torch.inf, device=device)
        if given is not None:
            kept = given.to(device, torch.float32)
            kept = kept[l2_norms(kept).topk(min(len(kept), self.bank_size)).indices]
            states[:, : len(kept)], norms[:, : len(kept)] = kept, l2_norms(kept)
        zeros = torch.zeros(n, dtype=torch.long, device=device)
        return _Steering(states, norms, zeros, zeros.clone(), hash_keys(self.seed, rows.key, layer))

    @override
    def act(self, state: Any, visit: Visit) -> Effect:
        steps = [self._token(state, visit, column) for column in range(visit.norms.shape[1])]
        streams, decisions, cosines = zip(*steps, strict=True)
        return Effect(torch.stack(streams, 1), torch.stack(decisions, 1), {"cosine": torch.stack(cosines, 1)})

    def _token(self, state: _Steering, visit: Visit, column: int) -> tuple[Tensor, Tensor, Tensor]:
        stream, norms, live = visit.stream[:, column], visit.norms[:, column], visit.live[:, column]
        tau = visit.tau[:, column] if isinstance(visit.tau, Tensor) else visit.tau
        h = stream.detach().float()
        state.cool(live)
        if self.own_states:
            state.store(h, norms, live & (norms > tau))
        state.count(live, norms < self.gamma * tau)
        due = live & (state.streak >= self.patience)
        if due.device.type == "cpu" and not due.any():  # elsewhere asking costs more than computing
            return stream, torch.zeros_like(due, dtype=torch.int8), torch.full_like(norms, torch.nan)
        closest, cosine = state.closest(h, norms)
        drawn = due
        if self.p < 1:
            drawn = uniform(visit.places.positions[:, column], start=state.draws) < self.p
        reasons = torch.where(cosine < self.cos_min, _FAR, _STEERED)
        reasons = torch.where(drawn, reasons, _NOT_DRAWN)
        reasons = torch.where(torch.isnan(cosine), _EMPTY, reasons)
        reasons = torch.where(state.cooldown > 0, _COOLDOWN, reasons)
        decision = torch.where(due, reasons, 0)
        steered = decision == _STEERED
        state.rest(steered, self.cooldown)
        mixed = self._mix(stream.float(), closest, visit, column).to(stream.dtype)
        tried = (decision == _STEERED) | (decision == _FAR)
        return torch.where(steered[:, None], mixed, stream), decision.to(torch.int8), torch.where(tried, cosine, torch.nan)

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


@dataclass(slots=True, eq=False)
class _Steering(RowTensors):
    """What is remembered of each sequence at one layer."""

    bank: Float[Tensor, "batch states d_model"]
    bank_norms: Float[Tensor, "batch states"]
    """-inf where there is no state yet."""
    streak: Int[Tensor, " batch"]
    cooldown: Int[Tensor, " batch"]
    draws: Int[Tensor, " batch"]
    """Hash of seed, sequence and layer: a position's draw starts from it."""

    def cool(self, live: Bool[Tensor, " batch"]) -> None:
        self.cooldown = torch.where(live, (self.cooldown - 1).clamp_min(0), self.cooldown)

    def store(self, h: Float[Tensor, "batch d_model"], norms: Float[Tensor, " batch"], high: Bool[Tensor, " batch"]) -> None:
        """Put high states in the place of the smallest, if they are larger."""
        smallest, slot = self.bank_norms.min(dim=1)
        taken, rows = high & (norms > smallest), torch.arange(len(slot), device=slot.device)
        self.bank[rows, slot] = torch.where(taken[:, None], h, self.bank[rows, slot])
        self.bank_norms[rows, slot] = torch.where(taken, norms, smallest)

    def count(self, live: Bool[Tensor, " batch"], low: Bool[Tensor, " batch"]) -> None:
        self.streak = torch.where(live, torch.where(low, self.streak + 1, 0), self.streak)

    def closest(self, h: Float[Tensor, "batch d_model"], norms: Float[Tensor, " batch"]) -> tuple[Tensor, Tensor]:
        """The state of highest cosine to h, and that cosine; NaN where the bank is empty."""
        filled = torch.isfinite(self.bank_norms)
        scale = torch.where(filled, self.bank_norms, 1.0) * norms[:, None]
        cosines = torch.where(filled, (self.bank @ h[..., None])[..., 0] / scale.clamp_min(1e-30), -torch.inf)
        best, slot = cosines.max(dim=1)
        v = self.bank[torch.arange(len(slot), device=slot.device), slot]
        return v, torch.where(torch.isfinite(best), best, torch.nan)

    def rest(self, steered: Bool[Tensor, " batch"], cooldown: int) -> None:
        self.streak = torch.where(steered, 0, self.streak)
        self.cooldown = torch.where(steered, cooldown, self.cooldown)


def _check_bank(layer: int, states: Float[Tensor, "states d_model"]) -> Float[Tensor, "states d_model"]:
    if not isinstance(states, Tensor):
        raise InputTypeError(f"bank holds a tensor [states, d_model] for each layer, got {states!r:.80} for layer {layer}")
    if states.ndim != 2 or not len(states):
        raise InputError(f"bank holds [states, d_model] for each layer, got {tuple(states.shape)} for layer {layer}")
    return states.detach()
