"""Responses that are read again for their signals, kept as each batch ends: who goes on reads only what isn't there."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from tl_l2norm.core.storage import content_key
from tl_l2norm.models.backends import backend_of
from tl_l2norm.models.decode_check import batches
from tl_l2norm.recording.completions import Completion
from tl_l2norm.recording.reading_signals import read_signals
from tl_l2norm.recording.saved import Journal
from tl_l2norm.recording.signals import Signals
from tl_l2norm.text.sequences import tokenize


def read_kept(
    place: Path | None,
    model: Any,
    completions: Sequence[Completion],
    *,
    segment_tokens: int,
    divergence: bool,
    batch_size: int,
    progress: bool,
) -> list[Completion]:
    """`read_signals`, with what it read in `signals.jsonl` of the folder `place`; in memory alone without one.

    Responses of the same tokens are read once. Batches are those of one call, of which one is read again as a whole where
    something of it isn't there: the numbers are the same, bit for bit, whether the run was interrupted or not.
    """
    journal, backend = Journal(place / "signals.jsonl" if place else None), backend_of(model)
    items = tokenize(backend, completions)
    keys = [content_key([item.tokens, item.prompt_len, segment_tokens, divergence]) for item in items]
    first = sorted({key: i for i, key in reversed([*enumerate(keys)])}.values())
    how: dict[str, Any] = {"segment_tokens": segment_tokens, "divergence": divergence, "progress": False}
    with tqdm(total=len(first), desc="signals", unit="response", disable=not progress, delay=2) as bar:
        for own in batches(backend, [items[i] for i in first], batch_size):
            numbers = [first[k] for k in own]
            if any(keys[i] not in journal.entries for i in numbers):
                read = read_signals(model, [completions[i] for i in numbers], batch_size=len(numbers), **how)
                journal.add({keys[i]: _entry(one) for i, one in zip(numbers, read, strict=True)})
            bar.update(len(numbers))
    return [
        dataclasses.replace(one, signals=_signals(journal.entries[key])) for one, key in zip(completions, keys, strict=True)
    ]


def _entry(completion: Completion) -> dict[str, str]:
    """Its signals as one line holds them: numbers as safetensors write them, to the last bit."""
    from safetensors.torch import save

    assert completion.signals is not None
    fields = {f.name: getattr(completion.signals, f.name) for f in dataclasses.fields(Signals)}
    tensors = {name: torch.as_tensor(value).contiguous() for name, value in fields.items() if value is not None}
    return {"safetensors": base64.b64encode(save(tensors)).decode()}


def _signals(entry: dict[str, str]) -> Signals:
    from safetensors.torch import load

    fields: dict[str, Any] = {"divergence": None, **load(base64.b64decode(entry["safetensors"]))}
    whole = {name: tuple(fields[name].tolist()) for name in ("layers", "state_layers")}
    return Signals(**(fields | whole | {"segment_tokens": int(fields["segment_tokens"])}))
