"""Put what was recorded of a sequence together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tl_l2norm.core.features import FeatureActs
from tl_l2norm.core.identity import Identity
from tl_l2norm.core.norms import find_sinks, sink_bounds
from tl_l2norm.core.trace import Label, Trace
from tl_l2norm.interventions.run import JUDGED
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
    sinks, bounds = _sinks(by_layer, recorded, layers, prompt_len=sequence.prompt_len, ratio=sink_ratio)
    return Trace(
        tokens=torch.tensor(sequence.tokens),
        str_tokens=sequence.texts or token_texts(backend.tokenizer, sequence.tokens),
        segments=sequence.segments,
        prompt_len=sequence.prompt_len,
        layers=layers,
        l2_norms=by_layer.clone(),  # a view would keep the whole batch alive
        embed_l2_norms=embed.clone(),
        is_sink=sinks,
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
        metrics={
            key: found.clone()
            for key, found in recorded.items()
            if isinstance(key, str) and isinstance(found, Tensor) and key != NORM
        },
        labels=labels or {},
    )


def _sinks(
    norms: Float[Tensor, "layer pos"], recorded: Recorded, layers: Sequence[int], *, prompt_len: int, ratio: float
) -> tuple[Bool[Tensor, "layer pos"], Float[Tensor, " layer"]]:
    """Attention sinks and their bounds, as the run judged them: where interventions act, by the norms before they did."""
    judged = norms.clone()
    for row, layer in enumerate(layers):
        judged[row] = recorded.get((JUDGED, layer), judged[row])  # type: ignore[assignment]
    bounds = sink_bounds(judged, prompt_len=prompt_len, ratio=ratio)
    return find_sinks(judged, bounds), bounds
