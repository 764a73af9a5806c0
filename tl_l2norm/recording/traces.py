"""What a run records, and the traces that are made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_l2norm.core.errors import InputError
from tl_l2norm.core.features import FeatureActs
from tl_l2norm.core.identity import Identity
from tl_l2norm.core.norms import find_sinks, sink_bounds
from tl_l2norm.core.protocols import SparseAutoencoder
from tl_l2norm.core.trace import Label, Trace
from tl_l2norm.interventions.base import Intervention
from tl_l2norm.interventions.intervener import JUDGED, Intervener
from tl_l2norm.models.backend import Backend
from tl_l2norm.models.described import Described
from tl_l2norm.models.lean import lean
from tl_l2norm.models.observer import Observers, Recorded
from tl_l2norm.models.provenance import provenance
from tl_l2norm.recording.features import FeatureRecorder
from tl_l2norm.recording.metrics import MetricRecorder, check_finite_metrics
from tl_l2norm.recording.stream import EMBED_INDEX, NORM, StreamObserver, StreamRecorder, check_finite
from tl_l2norm.text.sequences import TokenSequence, token_texts


@dataclass(frozen=True, kw_only=True, eq=False)
class Recording:
    """What a run records, and of which model."""

    backend: Described
    identity: Identity
    """Who the model was before anything of the run was attached."""
    layers: tuple[int, ...]
    sink_ratio: float
    records: bool = True
    """Whether anything is: the norm always, and beside it what the next three name."""
    metrics: tuple[str, ...] = ()
    observers: tuple[StreamObserver, ...] = ()
    saes: Mapping[int, SparseAutoencoder] | None = None
    interventions: tuple[Intervention, ...] = ()

    @classmethod
    def of(cls, backend: Described, **what: Any) -> Recording:
        """Of a model; a bridge's hook points inside of blocks are there only where the run needs them, or others are heard."""
        identity = backend.identity()
        inside = what.get("metrics") or any(getattr(x, "needs_resid_mid", False) for x in what.get("interventions", ()))
        runs = lean(backend, identity) if isinstance(backend, Backend) and not inside else backend
        return cls(backend=runs, identity=identity, **what)

    def __post_init__(self) -> None:
        for name, what, given in (("saes", "features", self.saes is not None), ("observers", "observers", self.observers)):
            if given and not self.records:
                raise InputError(f"{what} are recorded beside the norms: with {name}= leave record as it is")

    @property
    def here(self) -> Backend:
        """The backend of a model that runs in this process."""
        assert isinstance(self.backend, Backend), self.backend
        return self.backend

    def run(self) -> Intervener | None:
        """The interventions at work; None without any."""
        if not self.interventions:
            return None
        return Intervener(self.here, self.interventions, sink_ratio=self.sink_ratio, records=self.records)

    def watching(self, run: Intervener | None) -> Observers:
        """Interventions, and behind them what records: it sees what the next block reads."""
        return Observers(
            [
                *([run] if run else ()),
                *([StreamRecorder(self.here, self.layers, self.observers)] if self.records else ()),
                *([FeatureRecorder(self.here, self.saes)] if self.saes is not None else ()),
                *([MetricRecorder(self.here, self.layers, self.metrics)] if self.metrics else ()),
            ]
        )

    def check(self, recorded: Recorded, sequence: int, *, first: int = 0) -> int:
        """Stop at what is NaN or infinite.

        Args:
            recorded: of one sequence.
            sequence: its number, for the message.
            first: position of the first value.

        Returns:
            How many positions were recorded.

        Raises:
            FloatingPointError: with layer, sequence and position.
        """
        norms = recorded[NORM]
        assert isinstance(norms, Tensor)
        check_finite(norms, self.layers, sequence, first=first)
        metrics = {name: values for name, values in recorded.items() if isinstance(name, str) and name != NORM}
        check_finite_metrics(metrics, self.layers, sequence, first=first, of_model=self.metrics)  # type: ignore[arg-type]
        return norms.shape[1]

    def judged(self, recorded: Recorded) -> Float[Tensor, "layer pos"]:
        """Norms as they were before interventions changed them at a layer, by which a token is taken for a sink."""
        norms = recorded[NORM]
        assert isinstance(norms, Tensor)
        if not any((JUDGED, layer) in recorded for layer in self.layers):
            return norms[EMBED_INDEX + 1 :]
        own = zip(self.layers, norms[EMBED_INDEX + 1 :], strict=True)
        return torch.stack([recorded.get((JUDGED, layer), norm) for layer, norm in own])  # type: ignore[misc]

    def trace(
        self,
        sequence: TokenSequence,
        recorded: Recorded,
        *,
        seed: int | None = None,
        temperature: float | None = None,
        labels: Mapping[str, Label] | None = None,
    ) -> Trace:
        """The trace of a sequence, of what was recorded of it."""
        norms = recorded[NORM]
        assert isinstance(norms, Tensor)
        embed, by_layer = norms[EMBED_INDEX], norms[EMBED_INDEX + 1 :]
        judged = self.judged(recorded)
        bounds = sink_bounds(judged, prompt_len=sequence.prompt_len, ratio=self.sink_ratio)
        mine = {"seed": seed, "temperature": temperature, "interventions": self.interventions}
        return Trace(
            tokens=torch.tensor(sequence.tokens),
            str_tokens=sequence.texts or token_texts(self.backend.tokenizer, sequence.tokens),
            segments=sequence.segments,
            prompt_len=sequence.prompt_len,
            layers=self.layers,
            l2_norms=by_layer.clone(),  # a view would keep the whole batch alive
            embed_l2_norms=embed.clone(),
            is_sink=find_sinks(judged, bounds),
            sink_bounds=bounds,
            provenance=provenance(self.backend, self.identity, sink_ratio=self.sink_ratio, **mine),  # type: ignore[arg-type]
            features={key[1]: x for key, x in recorded.items() if isinstance(key, tuple) and isinstance(x, FeatureActs)},
            metrics={
                key: x.clone() for key, x in recorded.items() if isinstance(key, str) and isinstance(x, Tensor) and key != NORM
            },
            labels=labels or {},
        )
