"""What `generate` asks of an engine: a model that runs elsewhere and writes whole responses there."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import torch

from tl_l2norm.core.presets import batch_size_of
from tl_l2norm.interventions.log import Log
from tl_l2norm.models.backend import Backend
from tl_l2norm.models.backends import backend_of
from tl_l2norm.models.described import Described
from tl_l2norm.recording.decoder import Growing
from tl_l2norm.recording.sampling import Sampling
from tl_l2norm.recording.stops import Stops
from tl_l2norm.recording.traces import Recording


@runtime_checkable
class Decoding(Protocol):
    """Sequences on their way to their ends: a `Decoder` here, or an engine's own loop."""

    @property
    def log(self) -> Log | None:
        """What interventions decide; None without any."""

    def attached(self) -> AbstractContextManager[object]:
        """Keep hooks on the model inside the context."""

    def run(self, rows: Sequence[Growing], batch_size: int, progress: bool | str) -> Iterator[list[Growing]]:
        """Decode every row to its end; yields those that end together, with what was recorded of them."""


class Engine(Described):
    """A model that runs elsewhere and writes whole responses there; `generate` takes one in a model's place."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where it runs the model."""

    @abstractmethod
    def decoding(self, recording: Recording, sampling: Sampling, stops: Stops, max_new_tokens: int) -> Decoding:
        """A run of it.

        Raises:
            NotImplementedError: it can't do, or can't record, what is asked for; the message names it.
        """

    @abstractmethod
    def rows_at_once(self, batch_size: int | None) -> int:
        """How many responses it writes at once, where a call asks for `batch_size`.

        Raises:
            ValueError: it was loaded for another number.
        """


def generator_of(model: Any) -> Backend | Engine:
    """What a call generates with: an engine as it is given, or the backend of a model.

    Raises:
        TypeError: neither.
    """
    return model if isinstance(model, Engine) else backend_of(model)


def model_of(backend: Backend | Engine) -> Any:
    """What calls take as their model."""
    return backend if isinstance(backend, Engine) else backend.model


def must_record(backend: Backend | Engine) -> bool:
    """Whether norms are those of decoding and can't be read off finished responses: an engine reads none, and somebody's hooks
    on a model may act while decoding in another way than in one pass.
    """
    return isinstance(backend, Engine) or backend.foreign_hooks() > 0


def rows_at_once(model: Any, batch_size: int | None) -> int:
    """How many responses are written at once: what is given or suits the model; an engine's own.

    Raises:
        ValueError: a number that isn't the engine's.
    """
    return model.rows_at_once(batch_size) if isinstance(model, Engine) else batch_size_of(model, batch_size)
