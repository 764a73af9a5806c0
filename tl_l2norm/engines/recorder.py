"""What is recorded of passes that read tokens of many requests at once: norms, features, what observers measure."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from tl_l2norm.core.norms import l2_norms
from tl_l2norm.core.protocols import SparseAutoencoder
from tl_l2norm.engines.by_request import ByRequest, Read
from tl_l2norm.interventions.intervener import JUDGED
from tl_l2norm.models.hooks import counting_writes
from tl_l2norm.models.observer import Recorded
from tl_l2norm.recording.features import FEATURES, FeatureEncoder
from tl_l2norm.recording.stream import NORM, StreamObserver, measured


class Recorder:
    """Reduces the stream in the hook, each token of a pass a row of its own, as at a step of decoding elsewhere.

    It reads and changes nothing, so an error in an SAE or an observer needn't end the pass: it is kept in `failure`, and
    nothing is recorded from then on.
    """

    def __init__(
        self, layers: Sequence[int], observers: Sequence[StreamObserver], saes: Mapping[int, SparseAutoencoder]
    ) -> None:
        self.layers, self.observers = tuple(layers), tuple(observers)
        self.encoder = FeatureEncoder(saes)
        self.watched = sorted({*layers, *saes})
        """Layers whose stream it reads."""
        self.failure: Exception | None = None
        self._kept = ByRequest(self.encoder.take if saes else None)
        self._sizes: dict[Hashable, int] = {}

    def begin(self, read: Read, embedded: Float[Tensor, "token d_model"]) -> None:
        """A pass starts: over these tokens, of which this is the embedding output."""
        self._read = read
        self._now: dict[Hashable, list[Float[Tensor, " token"]]] = {NORM: [l2_norms(embedded)]}

    def visit(self, layer: int, stream: Float[Tensor, "token d_model"]) -> None:
        """The stream that the next layer reads."""
        if self.failure is None:
            with self._apart():
                self._visit(layer, stream)

    @contextmanager
    def _apart(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.failure = error

    def _visit(self, layer: int, stream: Float[Tensor, "token d_model"]) -> None:
        if layer in self.layers:
            self._now[NORM].append(l2_norms(stream))
            shown = counting_writes(stream.detach()[:, None]) if self.observers else stream
            for observer in self.observers:
                values = measured(observer, observer.name, shown, layer)[:, 0]
                self._now.setdefault(observer.name, []).append(values.to(stream.device))
        if layer in self.encoder.saes:
            self.encoder.note(layer, stream.detach().clone())

    def end(self, judged: Mapping[int, Float[Tensor, " token"]]) -> None:
        """The pass is over; `judged`: norms by which interventions decided, by layer."""
        if self.failure is None:
            rows = self._now | {(JUDGED, layer): [own] for layer, own in judged.items()}
            self._sizes = {name: len(own) for name, own in rows.items()}
            with self._apart():
                self._kept.note(self._read, torch.stack([row for own in rows.values() for row in own]))

    def take(self, owner: int, n_tokens: int) -> Recorded:
        """What was recorded of a request's first tokens; it is forgotten here."""
        taken = self._kept.take(owner, n_tokens)
        parts = zip(self._sizes, torch.split(taken.values, list(self._sizes.values())), strict=True)
        rows = {name: own[0] if isinstance(name, tuple) else own for name, own in parts}
        return rows | {(FEATURES, layer): acts for layer, acts in taken.features.items()}
