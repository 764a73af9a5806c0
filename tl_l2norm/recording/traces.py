"""Put what was recorded of a sequence together."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tl_l2norm.core.features import FeatureActs
from tl_l2norm.core.identity import Identity
from tl_l2norm.core.norms import find_sinks, sink_bounds
from tl_l2norm.core.trace import Label, Trace
from tl_l2norm.models.backend import Backend
from tl_l2norm.models.observer import Recorded
from tl_l2norm.models.provenance import provenance
from tl_l2norm.recording.stream import EMBED_ROW, NORM
from tl_l2norm.text.sequences import TokenSequence, token_texts


def make_trace(
    backend: Backend,
    sequence: TokenSequence,
    recorded: Recorded,
    *,
    identity: Identity,
    layers: tuple[int, ...],
    sink_ratio: float,
    seed: int | None = None,
    temperature: float | None = None,
    interventions: Sequence[object] = (),
    labels: dict[str, Label] | None = None,
) -> Trace:
    """The trace of a sequence, of what observers recorded of it."""
    norms = recorded[NORM]
    assert isinstance(norms, torch.Tensor)
    embed, by_layer = norms[EMBED_ROW], norms[EMBED_ROW + 1 :]
    bounds = sink_bounds(by_layer, prompt_len=sequence.prompt_len, ratio=sink_ratio)
    return Trace(
        tokens=torch.tensor(sequence.tokens),
        str_tokens=sequence.texts or token_texts(backend.tokenizer, sequence.tokens),
        segments=sequence.segments,
        prompt_len=sequence.prompt_len,
        layers=layers,
        l2_norms=by_layer.clone(),  # a view would keep the whole batch alive
        embed_l2_norms=embed.clone(),
        is_sink=find_sinks(by_layer, bounds),
        sink_bounds=bounds,
        provenance=provenance(
            backend,
            identity,
            sink_ratio=sink_ratio,
            seed=seed,
            temperature=temperature,
            interventions=interventions,
        ),
        features={key[1]: acts for key, acts in recorded.items() if isinstance(key, tuple) and isinstance(acts, FeatureActs)},
        metrics={str(key): x.clone() for key, x in recorded.items() if isinstance(x, torch.Tensor) and key != NORM},
        labels=labels or {},
    )
