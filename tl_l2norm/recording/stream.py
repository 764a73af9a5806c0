"""Record scalars of the residual stream while a model runs: its norm, and what a user measures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from tl_l2norm.core.arguments import one_or_several
from tl_l2norm.core.batch import Pass
from tl_l2norm.core.errors import InputError, InputTypeError
from tl_l2norm.core.norms import l2_norms
from tl_l2norm.core.trace import FRAME_COLUMNS
from tl_l2norm.models.backend import Backend
from tl_l2norm.models.hooks import attached, counting_writes
from tl_l2norm.models.observer import Ledger, Observer, Recorded

NORM = "l2_norm"
EMBED_INDEX = 0
"""Where recorded norms, [1 + layer, pos], hold the embedding output; the layers follow."""


class StreamObserver(ABC):
    """A scalar of the residual stream at each layer and position, reduced inside the hook, so that no state is kept.

    Give one to `collect` or `generate` as `observers=[...]`; it is then `trace.metrics[name]`, [layer, pos]. It sees what the
    next block reads, after all interventions.

    Example:
        >>> class LargestCoordinate(StreamObserver):
        ...     name = "largest_coordinate"
        ...
        ...     def measure(self, stream, layer):
        ...         return stream.abs().amax(-1)
    """

    name: str
    """Of the metric; none that `to_frame` has a column of, such as "layer"."""

    @abstractmethod
    def measure(self, stream: Float[Tensor, "batch pos d_model"], layer: int) -> Float[Tensor, "batch pos"]:
        """The scalar of each state; padding is among them, and what is returned there is dropped.

        It is of that state alone: which sequences and positions stand beside it differs from pass to pass, and at a step of
        decoding pos is 1.

        Args:
            stream: `resid_post`, in the model's dtype and on the layer's device; a write into it is refused.
            layer: which block it comes from.

        Returns:
            Real and finite numbers of any dtype; they are copied as float32.
        """


class StreamRecorder(Observer):
    """Norms, and other scalars, of every layer. Nothing of size d_model outlives its hook."""

    def __init__(self, backend: Backend, layers: Sequence[int], observers: Sequence[StreamObserver] = ()) -> None:
        self.layers = tuple(layers)
        self._others = {observer.name: observer for observer in observers}
        points = [backend.embed_out(), *(backend.resid_post(layer) for layer in self.layers)]
        self._places = ["the embedding output", *(f"layer {layer}" for layer in self.layers)]
        self._hooks = [(point, partial(self._record, index)) for index, point in enumerate(points)]
        self._now = self._nothing()
        self._begun = False
        self._ledger = Ledger()

    def _nothing(self) -> dict[str, list[Tensor | None]]:
        n = len(self.layers)
        return {NORM: [None] * (n + 1), **{name: [None] * n for name in self._others}}

    def _record(self, index: int, stream: Float[Tensor, "batch pos d_model"], hook: Any) -> None:
        self._now[NORM][index] = l2_norms(stream)
        if index != EMBED_INDEX and self._others:
            layer, shown = self.layers[index - 1], counting_writes(stream.detach())
            for name, observer in self._others.items():
                self._now[name][index - 1] = measured(observer, name, shown, layer)

    @override
    def attached(self) -> AbstractContextManager[None]:
        return attached(self._hooks)

    @override
    def next_pass(self, now: Pass) -> None:
        self._end_pass()
        self._begun = True
        self._ledger.next_pass(now)

    @override
    def held(self) -> Float[Tensor, "place batch pos"]:
        if self._others:
            super().held()
        return self._together(self._now[NORM])

    @override
    def replayed(self, held: Float[Tensor, "place batch pos"], n_rows: int) -> None:
        self._now, self._begun = self._nothing(), False
        self._ledger.note(NORM, held[:, :n_rows].clone())

    def _end_pass(self) -> None:
        """Put the layers of the pass that has just ended together, on its first device."""
        if not self._begun:
            return
        now, self._now, self._begun = self._now, self._nothing(), False
        for name, values in now.items():
            if values:
                self._ledger.note(name, self._together(values))

    def _together(self, values: Sequence[Tensor | None]) -> Float[Tensor, "place batch pos"]:
        """Every place of a pass, on the first one's device."""
        if silent := [place for place, value in zip(self._places, values, strict=False) if value is None]:
            raise RuntimeError(
                f"no norm was recorded at {', '.join(silent)}: the hooks are gone (model.reset_hooks() removes everybody's) "
                "or that part of the model didn't run"
            )
        return torch.stack([value.to(values[0].device) for value in values])  # type: ignore[union-attr]

    @override
    def take(self, n_rows: int) -> list[Recorded]:
        """For each row "l2_norm", [1 + layer, pos], the embedding output first, and the others by name, [layer, pos].

        Raises:
            RuntimeError: a hook point didn't fire, for instance after `model.reset_hooks()` inside the context.
        """
        self._end_pass()
        return self._ledger.take(n_rows)


def measured(observer: StreamObserver, name: str, stream: Tensor, layer: int) -> Float[Tensor, "batch pos"]:
    """What an observer says of a layer, in memory of our own: it may use its buffer again, or return a view of the stream."""
    before = stream._version
    try:
        values = observer.measure(stream, layer)
    except Exception as error:
        error.add_note(f"in {type(observer).__name__}.measure, the observer {name!r}, at layer {layer}")
        raise
    if stream._version != before:
        raise InputError(
            f"{type(observer).__name__}.measure, the observer {name!r}, wrote into the stream at layer {layer}, which would "
            "change the model: let it compute on a copy, as stream.clone() or stream * 2 instead of stream.mul_(2)"
        )
    if not isinstance(values, Tensor) or values.shape != stream.shape[:2]:
        shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise InputError(
            f"{type(observer).__name__}.measure returned {shape} at layer {layer} for a stream of {tuple(stream.shape)}: it "
            f"gives one number for each state, {tuple(stream.shape[:2])}"
        )
    if values.is_complex() or values.is_quantized or values.is_meta or values.layout != torch.strided:
        kind = f"{values.layout}, {values.dtype} on {values.device}"
        raise InputError(
            f"{type(observer).__name__}.measure returned numbers at layer {layer} that can't be kept as float32 ({kind}): give "
            "real ones in a dense tensor"
        )
    return values.detach().to(torch.float32, copy=True)


def check_observers(observers: Any, taken: Sequence[str]) -> tuple[StreamObserver, ...]:
    """Observers whose names differ from each other's, from `taken` and from the columns of `to_frame`."""
    if isinstance(observers, str | Mapping):
        raise InputTypeError(f"observers are instances of StreamObserver, got {observers!r:.80}")
    given = one_or_several(observers, StreamObserver)
    names = list(taken)
    for observer in given:
        if not isinstance(observer, StreamObserver):
            raise InputTypeError(f"observers are instances of StreamObserver, got {observer!r:.80}")
        name = getattr(observer, "name", None)
        if not isinstance(name, str) or not name:
            raise InputError(f"{type(observer).__name__} needs a name, under which trace.metrics holds it")
        if name in names:
            raise InputError(f"two metrics are called {name!r}: give {type(observer).__name__} another name")
        if name in FRAME_COLUMNS:
            raise InputError(
                f"{type(observer).__name__} can't be called {name!r}: the table of to_frame has a column of this name; give it "
                "another"
            )
        names.append(name)
    return given


def check_finite(norms: Float[Tensor, "place pos"], layers: Sequence[int], sequence: int, first: int = 0) -> None:
    """Stop at the first norm that is NaN or infinite.

    Args:
        norms: of real positions, at the embedding output and then each layer.
        layers: which they are.
        sequence: number of the sequence, for the message.
        first: position of the first column.

    Raises:
        FloatingPointError: with layer, sequence and position.
    """
    if bool(torch.isfinite(norms).all()):
        return
    position = int((~torch.isfinite(norms)).any(0).nonzero()[0, 0])
    index = int((~torch.isfinite(norms[:, position])).nonzero()[0, 0])
    where = "the embedding output" if index == EMBED_INDEX else f"layer {layers[index - 1]}"
    raise FloatingPointError(
        f"the norm is {norms[index, position].item()} at {where}, sequence {sequence}, position {first + position}: the "
        "model's weights or its arithmetic (try dtype=torch.float32) are broken there"
    )
