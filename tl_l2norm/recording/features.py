"""Record SAE feature activations while a model runs, without attaching the SAE to it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from typing_extensions import override

from tl_l2norm.core.batch import Pass
from tl_l2norm.core.features import FeatureActs
from tl_l2norm.core.protocols import SparseAutoencoder
from tl_l2norm.models.backend import Backend
from tl_l2norm.models.hooks import attached, hook_points, silenced
from tl_l2norm.models.observer import Observer, Recorded
from tl_l2norm.saes.checks import check_saes, describe_sae

FEATURES = "features"
_ENCODED_AT_ONCE = 1 << 24  # activations: 64 MB in float32
_STATES_KEPT = 1 << 20  # numbers of a layer's states that wait to be encoded together: 4 MB in float32


class FeatureEncoder:
    """Encodes states of the stream as they come, layer by layer, in the order in which they are noted.

    States are kept until there are enough of them, and encoded together: at a step of decoding that costs less. Hooks that a
    user has on an SAE don't fire.
    """

    def __init__(self, saes: Mapping[int, SparseAutoencoder]) -> None:
        self.saes = dict(saes)
        self._points = {layer: hook_points(sae) for layer, sae in self.saes.items()}  # type: ignore[arg-type]
        self._names = {layer: describe_sae(sae) for layer, sae in self.saes.items()}
        self._states: dict[int, list[Float[Tensor, "real d_model"]]] = {layer: [] for layer in self.saes}
        self._waiting = dict.fromkeys(self.saes, 0)  # numbers in them
        self._parts: dict[int, list[FeatureActs]] = {layer: [] for layer in self.saes}

    def note(self, layer: int, states: Float[Tensor, "real d_model"]) -> None:
        """States of a pass, in memory that nobody else writes to."""
        self._states[layer].append(states)
        self._waiting[layer] += states.numel()
        if self._waiting[layer] > _STATES_KEPT:
            self._encode(layer)

    def _encode(self, layer: int) -> None:
        waiting, self._states[layer], self._waiting[layer] = self._states[layer], [], 0
        if not waiting:
            return
        sae = self.saes[layer]
        states = torch.cat([s.to(waiting[0].device) for s in waiting]).to(sae.device)
        with torch.no_grad(), silenced(self._points[layer]):
            for part in torch.split(states, max(1, _ENCODED_AT_ONCE // sae.cfg.d_sae)):
                acts = sae.encode(part)
                acts = acts.to_dense() if acts.is_sparse else acts
                sparse = FeatureActs.of_dense(acts, self._names[layer])
                _check_finite(sparse, layer, part)
                self._parts[layer].append(sparse)

    def take(self, n_states: int) -> dict[int, FeatureActs]:
        """Activations of all states since the last call, by layer; {} where there were none.

        Args:
            n_states: how many of each layer there should be.

        Raises:
            RuntimeError: a layer has others.
        """
        taken = {}
        for layer in self.saes:
            self._encode(layer)
            parts, self._parts[layer] = self._parts[layer], []
            if sum(map(len, parts)) != n_states:
                raise RuntimeError(
                    f"features of layer {layer} were not recorded in every pass: the hooks are gone (model.reset_hooks() "
                    "removes everybody's) or that part of the model didn't run"
                )
            if parts:
                taken[layer] = FeatureActs.join(parts)
        return taken


class FeatureRecorder(Observer):
    """Feature activations of `resid_post` at each SAE's layer, of tokens but not of padding."""

    def __init__(self, backend: Backend, saes: Mapping[int, SparseAutoencoder]) -> None:
        self._encoder = FeatureEncoder(check_saes(backend, saes))
        self._hooks = [(backend.resid_post(layer), partial(self._note, layer)) for layer in self._encoder.saes]
        self._owners: list[Int[Tensor, " real"]] = []
        self._real: Bool[Tensor, "batch pos"] | None = None

    @override
    def attached(self) -> AbstractContextManager[None]:
        return attached(self._hooks)

    @override
    def next_pass(self, now: Pass) -> None:
        self._real = now.places().real if now.padded else None  # at a step of decoding a look would wait for a GPU
        self._owners.append(torch.arange(len(now.batch.rows)) if self._real is None else self._real.nonzero()[:, 0].cpu())

    def _note(self, layer: int, stream: Float[Tensor, "batch pos d_model"], hook: Any) -> None:
        assert self._real is not None or stream.shape[1] == 1, "next_pass was not called"
        stream = stream.detach()
        states = stream[:, 0].clone() if self._real is None else stream[self._real.to(stream.device)]  # either is a copy
        self._encoder.note(layer, states)

    @override
    def take(self, n_rows: int) -> list[Recorded]:
        """For each row what was recorded since the last call, as (FEATURES, layer).

        Raises:
            RuntimeError: a hook point didn't fire, for instance after `model.reset_hooks()` inside the context.
        """
        owners = torch.cat(self._owners) if self._owners else torch.empty(0, dtype=torch.long)
        self._owners = []
        acts = self._encoder.take(len(owners))
        places = [(owners == row).nonzero()[:, 0] for row in range(n_rows)]
        return [{(FEATURES, layer): own.select(place) for layer, own in acts.items()} for place in places]


def _check_finite(acts: FeatureActs, layer: int, states: Float[Tensor, "n d_model"]) -> None:
    """Stop where an SAE makes NaN or infinity of finite states; states that aren't finite are refused with their norms.

    Raises:
        FloatingPointError: with layer and latent.
    """
    if bool((finite := acts.values.isfinite()).all()) or not bool(states.isfinite().all()):
        return
    latent, value = int(acts.latents[~finite][0]), float(acts.values[~finite][0])
    raise FloatingPointError(
        f"the activation of latent {latent} at layer {layer} is {value}: weights of that SAE, or its arithmetic (its dtype), "
        "are broken"
    )
