"""What a call asks a model to write, checked before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any, SupportsIndex

from tl_l2norm.core.arguments import (
    OnePerRow,
    as_integer,
    as_integers,
    as_labels,
    check_flag,
    check_listed,
    one_or_several,
)
from tl_l2norm.core.errors import InputError, Unsupported
from tl_l2norm.core.layers import Layers, resolve_layers
from tl_l2norm.core.presets import batch_size_of, sink_ratio_of
from tl_l2norm.core.protocols import SparseAutoencoder, is_several
from tl_l2norm.core.random_draws import sequence_key
from tl_l2norm.core.trace import Label
from tl_l2norm.interventions.base import Intervention
from tl_l2norm.models.backend import Backend
from tl_l2norm.models.decode_check import check_decoding, decodes_rows_together, reads_rows_together, telling_tokens
from tl_l2norm.models.described import Described
from tl_l2norm.models.generation_config import warn_of_ignored
from tl_l2norm.recording.decoder import Decoder, Growing
from tl_l2norm.recording.ending import Ending
from tl_l2norm.recording.engine import Decoding, Engine, generator_of
from tl_l2norm.recording.metrics import METRICS
from tl_l2norm.recording.sampling import Sampling
from tl_l2norm.recording.steps import Steps, check_steps
from tl_l2norm.recording.stops import Stops
from tl_l2norm.recording.stream import StreamObserver, check_observers
from tl_l2norm.recording.traces import Recording
from tl_l2norm.text.boundaries import Boundaries
from tl_l2norm.text.inputs import SequenceLike
from tl_l2norm.text.sequences import TokenSequence, tokenize

_MOST_SAMPLES = 1_000_000  # of a prompt


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """Responses that are to be written: of which rows, by whom, and what becomes of each."""

    decoding: Decoding
    rows: Sequence[Growing]
    rows_at_once: int
    ending: Ending

    @classmethod
    def of(
        cls,
        model: Any,
        prompts: SequenceLike | Iterable[SequenceLike],
        *,
        sampling: Sampling,
        max_new_tokens: int,
        n: int,
        stop: Iterable[str | SupportsIndex] | str | SupportsIndex | None,
        ignore_eos: bool,
        seed: OnePerRow,
        interventions: Intervention | Sequence[Intervention] | None,
        saes: Mapping[int, SparseAutoencoder] | None,
        record: bool,
        observers: StreamObserver | Sequence[StreamObserver],
        layers: Layers,
        labels: Mapping[str, Label] | Sequence[Mapping[str, Label]] | None,
        batch_size: int | None,
        prepend_bos: bool | None,
        sink_ratio: float | None,
        steps: Steps,
    ) -> Plan:
        """Of what a user asks for, as in `generate`.

        Raises:
            ValueError: bad input; the message says what to do.
            NotImplementedError: what this model, or this engine, can't do.
        """
        backend = generator_of(model)
        max_new_tokens = as_integer("max_new_tokens", max_new_tokens, least=1)
        n = as_integer("n", n, least=1, most=_MOST_SAMPLES)
        check_flag("ignore_eos", ignore_eos)
        check_listed("stop", stop, "texts or token ids")
        recording = Recording.of(
            backend,
            layers=resolve_layers(layers, backend.n_layers),
            sink_ratio=sink_ratio_of(model, sink_ratio),
            records=record,
            observers=check_observers(observers, METRICS),
            saes=saes,
            interventions=one_or_several(interventions, Intervention),
        )
        check_steps(steps, recording.backend, acts=bool(recording.interventions), watches=saes is not None or bool(observers))
        stops = Stops.of(backend, stop, ignore_eos)
        decoding = _decoding(backend, recording, sampling, stops, max_new_tokens, steps)
        items = tokenize(backend, prompts, prepend_bos=prepend_bos, continues=True)
        warn_of_ignored(model, backend.generation_config)
        rows = make_rows(items, n, _seeds(seed, len(items), n))
        _check_lengths(backend, items, max_new_tokens)
        own_labels = as_labels(labels, len(items), "prompts")
        ending = Ending(Boundaries(backend.tokenizer), stops, recording, float(sampling.temperature), own_labels)
        if isinstance(backend, Engine):
            at_once = backend.rows_at_once(batch_size)
        else:
            at_once = _rows_at_once(recording.here, items, n, batch_size_of(model, batch_size), max_new_tokens)
        return cls(decoding=decoding, rows=rows, rows_at_once=at_once, ending=ending)


def _decoding(
    backend: Backend | Engine, recording: Recording, sampling: Sampling, stops: Stops, max_new_tokens: int, steps: Steps
) -> Decoding:
    if sampling.think_on is not None:
        sampling.think_on.check(stops.ids, backend.d_vocab)
    if not isinstance(backend, Engine):
        return Decoder(recording, recording.run(), sampling, stops, max_new_tokens, steps)
    return backend.decoding(recording, sampling, stops, max_new_tokens)


def make_rows(items: Sequence[TokenSequence], n: int, seeds: Sequence[int]) -> list[Growing]:
    """`n` rows of each item, with their numbers and seeds."""
    owners = [(prompt, item, sample) for prompt, item in enumerate(items) for sample in range(n)]
    return [Growing(i, item, prompt, sample, seeds[i]) for i, (prompt, item, sample) in enumerate(owners)]


def _seeds(seed: OnePerRow, prompts: int, n: int) -> list[int]:
    seeds = as_integers("seed", seed)
    if not is_several(seed):
        return [sequence_key(seeds[0], i, j) for i in range(prompts) for j in range(n)]
    if len(seeds) != prompts * n:
        raise InputError(
            f"seed has {len(seeds)} entries for {prompts} prompts with n = {n}: give {prompts * n}, or one integer"
        )
    return seeds


def _check_lengths(backend: Described, items: Sequence[TokenSequence], max_new_tokens: int) -> None:
    """Refuse responses that the model can't write to their end."""
    check_context(backend, items, max_new_tokens)
    if isinstance(backend, Backend):
        _check_longrope(backend, items, max_new_tokens)


def check_context(backend: Described, items: Sequence[Sized], max_new_tokens: int) -> None:
    """Refuse responses that are longer than the model's context has room for, each prompt by its number of tokens."""
    for i, item in enumerate(items):
        if len(item) + max_new_tokens - 1 > backend.n_ctx:
            raise InputError(
                f"prompt {i} has {len(item)} tokens: with max_new_tokens={max_new_tokens} it runs past the model's context of "
                f"{backend.n_ctx}; shorten it or generate at most {max(0, backend.n_ctx - len(item) + 1)}"
            )


def _check_longrope(backend: Backend, items: Sequence[TokenSequence], max_new_tokens: int) -> None:
    boundary = backend.longrope_boundary
    for i, item in enumerate(items):
        if boundary is not None and len(item) <= boundary < len(item) + max_new_tokens - 1:
            raise Unsupported(
                f"prompt {i} ({len(item)} tokens) with max_new_tokens={max_new_tokens} runs past position {boundary}, where "
                "this model's LongRoPE changes its factors while keys in the cache keep the old: what follows would not be "
                f"what one pass gives; generate at most {boundary - len(item) + 1}, or begin with more than {boundary} tokens"
            )


def _rows_at_once(backend: Backend, items: Sequence[TokenSequence], n: int, batch_size: int, max_new_tokens: int) -> int:
    """`batch_size`, or 1 where rows of a batch would not be what they are alone. Refuses a model that doesn't decode."""
    if not items:
        return batch_size
    tokens = telling_tokens(items)
    several = min(len(items) * n, batch_size) > 1
    if max_new_tokens > 1:
        check_decoding(backend, tokens)
        return batch_size if not several or decodes_rows_together(backend, tokens) else 1
    return batch_size if not several or reads_rows_together(backend, tokens) else 1
