"""Record norms of the residual stream while a model runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_l2norm.core.features import FeatureActs
from tl_l2norm.core.identity import Identity
from tl_l2norm.core.norms import find_sinks, l2_norms, sink_bounds
from tl_l2norm.core.trace import Label, Trace
from tl_l2norm.models.backend import Backend
from tl_l2norm.models.hooks import attached
from tl_l2norm.models.provenance import provenance
from tl_l2norm.text.sequences import TokenSequence, token_texts

EMBED_ROW = 0
"""Row of a recording that holds the embedding output; the layers follow."""


class NormRecorder:
    """Norms of one forward pass at a time. Nothing of size d_model outlives its hook."""

    def __init__(self, backend: Backend, layers: Sequence[int]) -> None:
        self.layers = tuple(layers)
        points = [backend.embed_out(), *(backend.resid_post(layer) for layer in self.layers)]
        self._names = ["the embedding output", *(f"layer {layer}" for layer in self.layers)]
        self._hooks = [(point, partial(self._record, row)) for row, point in enumerate(points)]
        self._norms: list[Float[Tensor, "batch pos"] | None] = [None] * len(points)

    def _record(self, row: int, stream: Float[Tensor, "batch pos d_model"], hook: Any) -> None:
        self._norms[row] = l2_norms(stream)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Keep the hooks on the model inside the context."""
        with attached(self._hooks):
            yield

    def take(self) -> Float[Tensor, "row batch pos"]:
        """Norms of the forward pass that has just ended, on its first device: the embedding output, then each layer.

        Raises:
            RuntimeError: a hook point didn't fire, for instance after `model.reset_hooks()` inside the context.
        """
        norms, self._norms = self._norms, [None] * len(self._norms)
        silent = [name for name, found in zip(self._names, norms, strict=True) if found is None]
        if silent:
            raise RuntimeError(
                f"no norm was recorded at {', '.join(silent)}: the hooks are gone (model.reset_hooks() removes everybody's) "
                "or that part of the model didn't run"
            )
        return torch.stack([found.to(norms[0].device) for found in norms])  # type: ignore[union-attr]


def check_finite(norms: Float[Tensor, "row pos"], layers: Sequence[int], sequence: int, first: int = 0) -> None:
    """Stop at the first norm that is NaN or infinite.

    Args:
        norms: of real positions, embedding output first.
        layers: what the rows after it are.
        sequence: number of the sequence, for the message.
        first: position of the first column.

    Raises:
        FloatingPointError: with layer, sequence and position.
    """
    if bool(torch.isfinite(norms).all()):
        return
    position = int((~torch.isfinite(norms)).any(0).nonzero()[0, 0])
    row = int((~torch.isfinite(norms[:, position])).nonzero()[0, 0])
    where = "the embedding output" if row == EMBED_ROW else f"layer {layers[row - 1]}"
    raise FloatingPointError(
        f"the norm is {norms[row, position].item()} at {where}, sequence {sequence}, position {first + position}: the model's "
        "weights or its arithmetic (try dtype=torch.float32) are broken there"
    )


def make_trace(
    backend: Backend,
    sequence: TokenSequence,
    norms: Float[Tensor, "row pos"],
    *,
    identity: Identity,
    layers: tuple[int, ...],
    sink_ratio: float,
    seed: int | None = None,
    temperature: float | None = None,
    interventions: Sequence[object] = (),
    features: Mapping[int, FeatureActs] | None = None,
    metrics: Mapping[str, Float[Tensor, "layer ... pos"]] | None = None,
    labels: dict[str, Label] | None = None,
) -> Trace:
    """Put one sequence's recording together."""
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
        features=features or {},
        metrics=metrics or {},
        labels=labels or {},
    )
