"""States that a sequence went through, and what a state is steered to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_l2norm.core.batch import Rows, RowTensors
from tl_l2norm.core.errors import InputError, InputTypeError
from tl_l2norm.core.norms import l2_norms
from tl_l2norm.core.random_draws import hash_keys, uniform
from tl_l2norm.interventions.selectors import Quota

_STATE, _DIRECTION = 0x42414E4B, 0x44495245  # "BANK", "DIRE": keep their draws apart from those that say when
_MOST = 1 - 1e-6  # the normal distribution is cut at 4.9 standard deviations


@dataclass(slots=True, eq=False)
class Steering(RowTensors):
    """What is remembered of each sequence at one layer."""

    bank: Float[Tensor, "batch states d_model"]
    bank_norms: Float[Tensor, "batch states"]
    """-inf where there is no state yet."""
    streak: Int[Tensor, " batch"]
    cooldown: Int[Tensor, " batch"]
    draws: Int[Tensor, " batch"]
    """Hash of seed, sequence and layer: a position's draw starts from it."""
    quota: Quota | None
    """How many are still to be steered, where another run's log says."""

    @classmethod
    def of(
        cls,
        rows: Rows,
        draws: Int[Tensor, " batch"],
        bank_size: int,
        d_model: int,
        given: Float[Tensor, "states d_model"] | None,
        quota: Quota | None,
    ) -> Steering:
        """Before the first token; banks hold the longest of the given states."""
        n, device = len(rows), rows.device
        states = torch.zeros(n, bank_size, d_model, device=device)
        norms = torch.full((n, bank_size), -torch.inf, device=device)
        if given is not None:
            kept = given.to(device, torch.float32)
            kept = kept[l2_norms(kept).topk(min(len(kept), bank_size)).indices]
            states[:, : len(kept)], norms[:, : len(kept)] = kept, l2_norms(kept)
        zeros = torch.zeros(n, dtype=torch.long, device=device)
        return cls(states, norms, zeros, zeros.clone(), draws, quota)

    def cool(self, live: Bool[Tensor, " batch"]) -> None:
        """A live token less to rest for."""
        self.cooldown = torch.where(live, (self.cooldown - 1).clamp_min(0), self.cooldown)

    def store(self, h: Float[Tensor, "batch d_model"], norms: Float[Tensor, " batch"], high: Bool[Tensor, " batch"]) -> None:
        """Put high states in the place of the smallest, if they are larger."""
        smallest, slot = self.bank_norms.min(dim=1)
        taken, rows = high & (norms > smallest), torch.arange(len(slot), device=slot.device)
        self.bank[rows, slot] = torch.where(taken[:, None], h, self.bank[rows, slot])
        self.bank_norms[rows, slot] = torch.where(taken, norms, smallest)

    def count(self, live: Bool[Tensor, " batch"], low: Bool[Tensor, " batch"]) -> None:
        """Tokens of low norm in a row."""
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
        """Begin anew after steering."""
        self.streak = torch.where(steered, 0, self.streak)
        self.cooldown = torch.where(steered, cooldown, self.cooldown)

    def random_state(self, positions: Int[Tensor, " batch"]) -> Float[Tensor, "batch d_model"]:
        """A state of the bank, each with the same probability; zeros where the bank is empty."""
        n = torch.isfinite(self.bank_norms).sum(1)  # the first slots are filled first
        draws = uniform(positions, start=hash_keys(_STATE, start=self.draws))
        slot = torch.minimum((draws * n).long(), (n - 1).clamp_min(0))
        return self.bank[torch.arange(len(slot), device=slot.device), slot]

    def random_direction(self, positions: Int[Tensor, " batch"]) -> Float[Tensor, "batch d_model"]:
        """Of any direction with the same density: normally distributed coordinates, by the inverse of their distribution."""
        coordinates = torch.arange(self.bank.shape[-1], device=positions.device)
        start = hash_keys(_DIRECTION, start=self.draws)[:, None]
        draws = uniform(positions[:, None], coordinates, start=start)
        return torch.erfinv((2 * draws - 1).clamp(-_MOST, _MOST)).float()


def as_bank(layer: int, states: Any) -> Float[Tensor, "states d_model"]:
    """States of a layer, without gradients."""
    if not isinstance(states, Tensor):
        raise InputTypeError(f"bank holds a tensor [states, d_model] for each layer, got {states!r:.80} for layer {layer}")
    if states.ndim != 2 or not len(states):
        raise InputError(f"bank holds [states, d_model] for each layer, got {tuple(states.shape)} for layer {layer}")
    return states.detach()


def as_vectors(vectors: Any) -> Mapping[int, Float[Tensor, " d_model"]]:
    """A direction for each layer, without gradients."""
    if not isinstance(vectors, Mapping):
        raise InputTypeError(f"vectors are given by layer, {{layer: vector}}, got {vectors!r:.80}")
    for layer, vector in vectors.items():
        if not isinstance(vector, Tensor) or vector.ndim != 1:
            shape = tuple(vector.shape) if isinstance(vector, Tensor) else type(vector).__name__
            raise InputError(f"vectors hold a tensor [d_model] for each layer, got {shape} for layer {layer}")
        if not (torch.isfinite(vector).all() and vector.any()):
            raise InputError(f"the vector of layer {layer} has no direction: it is zero or not finite")
    return MappingProxyType({layer: vector.detach().float() for layer, vector in vectors.items()})


def at_layer(name: str, given: Mapping[int, Tensor] | None, layer: int, d_model: int) -> Tensor | None:
    """What is given for a layer, None where nothing is given at all.

    Raises:
        InputError: nothing for this layer, or something of another width.
    """
    if given is None:
        return None
    if layer not in given:
        raise InputError(f"{name} has no states for layer {layer}: it has layers {sorted(given)}")
    if given[layer].shape[-1] != d_model:
        raise InputError(f"{name} has states of width {given[layer].shape[-1]} at layer {layer}, the stream has {d_model}")
    return given[layer]
