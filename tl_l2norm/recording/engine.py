"""What `generate` asks of an engine: a model that runs elsewhere and writes whole responses there."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

import torch

from tl_l2norm.interventions.log import Log
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
