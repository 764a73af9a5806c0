"""Norms of given sequences, in one pass each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from tqdm.auto import tqdm

from tl_l2norm.core.arguments import OnePerRow, as_integers, as_labels, check_progress, one_or_several
from tl_l2norm.core.batch import Batch, Rows
from tl_l2norm.core.errors import InputError, Unsupported
from tl_l2norm.core.layers import Layers, resolve_layers
from tl_l2norm.core.presets import batch_size_of, sink_ratio_of
from tl_l2norm.core.protocols import SparseAutoencoder
from tl_l2norm.core.random_draws import sequence_key
from tl_l2norm.core.trace import Label, Trace
from tl_l2norm.interventions.base import Intervention
from tl_l2norm.interventions.intervener import Intervener
from tl_l2norm.models.backend import Backend
from tl_l2norm.models.backends import backend_of
from tl_l2norm.models.decode_check import batches, check_decoding
from tl_l2norm.models.observer import Observers, Recorded
from tl_l2norm.recording.metrics import METRICS, check_metrics
from tl_l2norm.recording.stream import NORM, StreamObserver, check_observers
from tl_l2norm.recording.traces import Recording
from tl_l2norm.text.inputs import SequenceLike
from tl_l2norm.text.sequences import TokenSequence, pad_left, tokenize

_SCORES = 1 << 23  # attention scores of a batch at once, of one head


def collect(
    model: Any,
    sequences: SequenceLike | Iterable[SequenceLike],
    *,
    layers: Layers = None,
    prompt_lens: OnePerRow | None = None,
    segments: Sequence[Sequence[str]] | None = None,
    labels: Mapping[str, Label] | Sequence[Mapping[str, Label]] | None = None,
    interventions: Intervention | Sequence[Intervention] | None = (),
    saes: Mapping[int, SparseAutoencoder] | None = None,
    metrics: Sequence[str] = (),
    observers: StreamObserver | Sequence[StreamObserver] = (),
    seeds: OnePerRow | None = None,
    batch_size: int | None = None,
    prepend_bos: bool | None = None,
    sink_ratio: float | None = None,
    progress: bool = True,
) -> tuple[Trace, ...]:
    """Run sequences through a model and record the L2 norm of its residual stream at every layer and position.

    Args:
        model: a `HookedTransformer` or `TransformerBridge`; its own hooks stay and are heard before ours.
        sequences: texts, chats (lists of messages), token ids, or values with `.tokens`; one alone is fine. What a tokenizer
            returns (input_ids with their attention_mask) loses its padding; rows of ids that look padded are refused without.
        layers: which blocks; all by default. The embedding output is always recorded, apart.
        prompt_lens: where each response begins, counted without padding. Found by default: at the last assistant message of a
            chat, or at the tokenizer's own thinking tag; otherwise the whole sequence is prompt.
        segments: for each position one of "prompt", "think", "answer", instead of `prompt_lens` and the tags.
        labels: for each sequence, what to keep with its trace.
        interventions: what acts on the residual stream, in this order; by default on the tokens after each prompt.
        saes: SAEs by layer, whose feature activations are recorded beside the norms, sparse, as `trace.features[layer]`; the
            states are those that the next block reads, and the SAEs are not attached to the model.
        metrics: what to record beside the norm, which always is, as `trace.metrics[name]`: "hidden_entropy", "output_entropy"
            (logit lens), "attention_entropy" (mean over heads), all in nats and [layer, pos], or "attention_entropy_by_head",
            [layer, head, pos]. States are those that the next block reads; attention is that of a block's first run, also where
            an intervention runs it again. "output_entropy" costs an unembedding of every state.
        observers: what else to record of the stream, each a `StreamObserver`, as `trace.metrics[its name]`, [layer, pos].
        seeds: for each sequence the key of the interventions' random draws. By default that of the trace or completion that is
            given, or what `generate` uses for the prompt in this place.
        batch_size: sequences in one pass, grouped by length, 8 by default (100 for tiny-reasoner). What is recorded doesn't
            depend on it; a model that takes padding for tokens reads one at a time.
        prepend_bos: for plain texts: BOS or none; by default what the model's tokenizer adds.
        sink_ratio: a norm over this many times its layer's median over the prompt is marked as an attention sink, and
            interventions leave it alone; 5 by default (20 for tiny-reasoner).
        progress: show a progress bar.

    Returns:
        One trace for each sequence, in their order.

    Raises:
        ValueError: bad input; the message says which sequence and what to do.
        FloatingPointError: a norm or another metric is NaN or infinite; with layer, sequence and position.

    Examples:
        >>> (trace,) = l2.collect(model, "7 times 8 is 56", prompt_lens=[10], metrics=["hidden_entropy"], progress=False)
        >>> trace
        Trace(12 layers x 15 tokens (10 prompt), tiny-reasoner on bridge)
        >>> trace.l2_norms.shape, trace.metrics["hidden_entropy"].shape  # [layer, pos]
        (torch.Size([12, 15]), torch.Size([12, 15]))
        >>> bool(trace.is_sink[:, 0].all())  # the first token
        True
    """
    backend = backend_of(model)
    check_progress(progress)
    items = tokenize(backend, sequences, prepend_bos=prepend_bos, prompt_lens=prompt_lens, segments=segments)
    own_labels, keys = as_labels(labels, len(items)), _keys(items, seeds)
    recording = Recording.of(
        backend,
        layers=resolve_layers(layers, backend.n_layers),
        sink_ratio=sink_ratio_of(model, sink_ratio, of=[item.sink_ratio for item in items]),
        metrics=tuple(name for name in check_metrics(metrics) if name != NORM),
        observers=check_observers(observers, METRICS),
        saes=saes,
        interventions=one_or_several(interventions, Intervention),
    )
    backend, run = recording.here, recording.run()
    _require_responses(run, items)
    watching = recording.watching(run)
    planned = batches(backend, items, batch_size_of(model, batch_size))  # it may try the model: nothing of this run hears that
    recorded: dict[int, Recorded] = {}
    with torch.no_grad(), watching.attached(), _bar(len(items), progress) as bar:
        for numbers in planned:
            recorded.update(_read(recording, watching, items, keys, numbers))
            bar.update(len(numbers))
    return tuple(
        recording.trace(item, recorded[i], labels=own_labels[i] if own_labels else None) for i, item in enumerate(items)
    )


def _bar(total: int, progress: bool) -> tqdm[Any]:
    return tqdm(total=total, desc="collect", unit="seq", disable=not progress, delay=2)


def _require_responses(run: Intervener | None, items: Sequence[TokenSequence]) -> None:
    """Refuse interventions that find no token to act on."""
    if run and not run.acts_on_prompts and all(len(item) == item.prompt_len for item in items):
        raise InputError(
            "interventions act after the prompt, and no sequence has a response: give prompt_lens=[...] or positions='all'"
        )


def _keys(items: Sequence[TokenSequence], seeds: OnePerRow | None) -> list[int]:
    if seeds is None:
        return [sequence_key(0, i, 0) if item.seed is None else item.seed for i, item in enumerate(items)]
    keys = as_integers("seeds", seeds)
    if len(keys) != len(items):
        raise InputError(f"seeds has {len(keys)} entries for {len(items)} sequences")
    return keys


def _read(
    recording: Recording,
    watching: Observers,
    items: Sequence[TokenSequence],
    keys: Sequence[int],
    numbers: Sequence[int],
) -> dict[int, Recorded]:
    """Read a batch; in parts where it is long, so that memory grows with its length and not with the square of it."""
    backend = recording.here
    tokens, mask = pad_left([items[i].tokens for i in numbers], backend.device)
    batch = _batch(items, keys, numbers, mask)
    step = max(1, _SCORES // mask.numel())
    # interventions, other metrics and the user's own hooks know whole sequences only
    in_one_pass = recording.interventions or recording.metrics or recording.identity.foreign_hooks
    if step < tokens.shape[1] and (in_one_pass or not _reads_in_parts(backend, items[numbers[0]])):
        step = tokens.shape[1]
    watching.begin(batch)
    cache, seen = None, 0
    for part in torch.split(tokens, step, dim=1):
        seen += part.shape[1]
        watching.next_pass(batch.next_pass(part.shape[1], tokens=part))
        _, cache = backend.forward(part, mask[:, :seen], cache=cache, keep_cache=step < tokens.shape[1], logits="none")
    recorded = dict(zip(numbers, watching.take(len(numbers)), strict=True))
    watching.leave(batch)
    for number, own in recorded.items():
        recording.check(own, number)
    return recorded


def _batch(
    items: Sequence[TokenSequence], keys: Sequence[int], numbers: Sequence[int], mask: Int[Tensor, "batch pos"]
) -> Batch:
    device = mask.device
    rows = Rows.of(
        number=torch.tensor(numbers, device=device),
        key=torch.tensor([keys[i] for i in numbers], device=device),
        prompt_len=torch.tensor([items[i].prompt_len for i in numbers], device=device),
        padding=torch.tensor([mask.shape[1] - len(items[i]) for i in numbers], device=device),
    )
    return Batch(rows)


def _reads_in_parts(backend: Backend, longest: TokenSequence) -> bool:
    boundary = backend.longrope_boundary
    if boundary is not None and len(longest) > boundary:
        return False  # its first part would be read as a short text
    try:
        return check_decoding(backend, longest.tokens)
    except Unsupported:
        return False
