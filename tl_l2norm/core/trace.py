"""The value that everything downstream reads: one sequence and the norms of its residual stream."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, SupportsIndex, runtime_checkable

import numpy as np
import pandas as pd
import torch
from einops import repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_l2norm.core.arguments import plain_labels
from tl_l2norm.core.errors import InputError, InputTypeError
from tl_l2norm.core.features import FeatureActs
from tl_l2norm.core.layers import Layers, as_layer, late_layers, layer_ranges, resolve_layers
from tl_l2norm.core.protocols import is_several
from tl_l2norm.core.provenance import Provenance

SEGMENTS = ("prompt", "think", "answer")
"""What a position belongs to: the prompt, the thinking from opening to closing tag, or the rest of the response."""

FRAME_COLUMNS = (
    *("sequence", "layer", "position", "token_id", "token", "segment", "is_prompt", "l2_norm", "is_sink", "model", "weights"),
    *("feature_l0", "feature_sum"),
)
"""The columns that `to_frame` has of its own; metrics and labels are called otherwise."""

Label = str | int | float | bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trace:
    """One unpadded sequence on the CPU, with the L2 norm of the residual stream at every recorded layer and position.

    A trace of a generated sequence covers the tokens that the model read back: the last sampled token was never read, so it
    has no norm and is not in the trace.

    Attributes:
        tokens: [pos] token ids.
        str_tokens: [pos] text of each; empty where it ends no character.
        segments: [pos] "prompt", "think" or "answer" for each.
        prompt_len: how many tokens the prompt has.
        layers: [layer] the blocks that were recorded.
        l2_norms: [layer, pos] `||resid_post||`, float32.
        embed_l2_norms: [pos] of the embedding output, which block 0 reads.
        is_sink: [layer, pos] attention sinks, left out of aggregates.
        sink_bounds: [layer] norms over which a token is one.
        provenance: of which model, and how it was run.
        features: SAE feature activations by layer; empty without SAEs.
        metrics: other metrics by name, [layer, pos] or [layer, head, pos]; entropies in nats.
        labels: what the caller says of the sequence.

    Examples:
        >>> trace = think[0]
        >>> trace
        Trace(12 layers x 30 tokens (18 prompt), tiny-reasoner on bridge, mode='think', ...)
        >>> trace.l2_norms.shape, trace.select("late").layers
        (torch.Size([12, 30]), (9, 10, 11))
        >>> trace.at(-1)[trace.in_segment("think")].shape  # the last layer's norms while it thinks
        torch.Size([10])
    """

    tokens: Int[Tensor, " pos"]
    str_tokens: tuple[str, ...]
    """[pos] the text of each token; a token that ends no character (part of an emoji) has an empty text."""
    segments: tuple[str, ...]
    """[pos] one of `SEGMENTS` for each token."""
    prompt_len: int
    layers: tuple[int, ...]
    """[layer] the blocks that the first axis of `l2_norms` stands for."""
    l2_norms: Float[Tensor, "layer pos"]
    """`||resid_post||`, float32."""
    embed_l2_norms: Float[Tensor, " pos"]
    """Norms of the embedding output (what block 0 reads), float32."""
    is_sink: Bool[Tensor, "layer pos"]
    """Attention sinks, by position and by bound; left out of aggregates."""
    sink_bounds: Float[Tensor, " layer"]
    provenance: Provenance
    features: Mapping[int, FeatureActs] = field(default_factory=dict)
    """SAE feature activations by layer, on the same positions; empty without SAEs."""
    metrics: Mapping[str, Float[Tensor, ...]] = field(default_factory=dict)
    """Layer metrics other than the norm by name, each [layer, pos] or [layer, head, pos]; in nats where it is an entropy."""
    labels: Mapping[str, Label] = field(default_factory=dict)
    """What the caller says of the sequence, such as `{"mode": "think", "family": "swaps", "level": 2}`."""

    def __post_init__(self) -> None:
        n_layers, n_pos = len(self.layers), len(self.tokens)
        expected = {
            "l2_norms": (n_layers, n_pos),
            "is_sink": (n_layers, n_pos),
            "embed_l2_norms": (n_pos,),
            "sink_bounds": (n_layers,),
            "str_tokens": (n_pos,),
            "segments": (n_pos,),
        }
        for name, shape in expected.items():
            value = getattr(self, name)
            actual = tuple(value.shape) if isinstance(value, Tensor) else (len(value),)
            if actual != shape:
                raise InputError(f"Trace.{name} has shape {actual}, expected {shape} for {n_layers} layers, {n_pos} tokens")
        for layer, acts in self.features.items():
            if len(acts) != n_pos:
                raise InputError(f"Trace.features[{layer}] has {len(acts)} positions, expected {n_pos}")
        for name, values in self.metrics.items():
            if values.ndim not in (2, 3) or (len(values), values.shape[-1]) != (n_layers, n_pos):
                expected_shape = f"({n_layers}, {n_pos}) or ({n_layers}, heads, {n_pos})"
                raise InputError(f"Trace.metrics[{name!r}] has shape {tuple(values.shape)}, expected {expected_shape}")
        if not 1 <= self.prompt_len <= n_pos:
            raise InputError(f"Trace.prompt_len is {self.prompt_len}, expected 1 to {n_pos}")
        if unknown := set(self.segments) - set(SEGMENTS):
            raise InputError(f"Trace.segments holds {sorted(unknown)}, expected only {SEGMENTS}")

    def __len__(self) -> int:
        """Number of positions."""
        return len(self.tokens)

    def __repr__(self) -> str:
        """One line: what was recorded, of what."""
        shape = f"{len(self.layers)} layers x {len(self)} tokens ({self.prompt_len} prompt)"
        return f"Trace({shape}, {self.provenance.model} on {self.provenance.backend}{self._labels_text()})"

    def _labels_text(self) -> str:
        return "".join(f", {key}={value!r}" for key, value in self.labels.items())

    def index_of(self, layer: SupportsIndex) -> int:
        """Place of a layer on the first axis of `l2_norms`; negative layers count from the last recorded one.

        Raises:
            ValueError: a layer that was not recorded.
            TypeError: something that is not a layer.
        """
        layer = as_layer(layer)
        if layer < 0 and -layer <= len(self.layers):
            return len(self.layers) + layer
        if layer not in self.layers:
            raise InputError(f"layer {layer} was not recorded: this trace has layers {layer_ranges(self.layers)}")
        return self.layers.index(layer)

    def at(self, layer: SupportsIndex) -> Float[Tensor, " pos"]:
        """Norms of one layer, found as by `index_of`."""
        return self.l2_norms[self.index_of(layer)]

    def select(self, layers: Layers) -> Trace:
        """The same trace with fewer layers: by number as in `at`; of `"late"` and of slices, which are the model's, those that
        were recorded.

        Raises:
            ValueError: a layer that was not recorded, or none.
        """
        if not (layers is None or isinstance(layers, str | slice)):
            places = [self.index_of(layer) for layer in (layers if is_several(layers) else (layers,))]  # type: ignore[arg-type]
        else:
            wanted = resolve_layers(layers, self.provenance.n_layers)
            places = [i for i, layer in enumerate(self.layers) if layer in wanted]
            if not places:
                names = f"layers {layer_ranges(wanted)} of the model ({layers!r})"
                raise InputError(f"{names} were not recorded: this trace has layers {layer_ranges(self.layers)}")
        if not places:
            raise InputError("no layers given")
        index, kept = torch.tensor(places), tuple(self.layers[i] for i in places)
        return dataclasses.replace(
            self,
            layers=kept,
            features={layer: acts for layer, acts in self.features.items() if layer in kept},
            metrics={name: values[index] for name, values in self.metrics.items()},
            l2_norms=self.l2_norms[index],
            is_sink=self.is_sink[index],
            sink_bounds=self.sink_bounds[index],
        )

    def with_labels(self, **labels: Label) -> Trace:
        """The same trace with these labels added."""
        return dataclasses.replace(self, labels={**self.labels, **plain_labels(labels)})

    def in_segment(self, *segments: str) -> Bool[Tensor, " pos"]:
        """Whether each position belongs to any of these segments.

        Raises:
            ValueError: a segment that there isn't.
        """
        if unknown := set(segments) - set(SEGMENTS):
            raise InputError(f"unknown segments {sorted(unknown)}: expected {SEGMENTS}")
        return torch.tensor([segment in segments for segment in self.segments], dtype=torch.bool)

    @property
    def late_layers(self) -> tuple[int, ...]:
        """The recorded ones among the last quarter of the model's layers."""
        late = late_layers(self.provenance.n_layers)
        return tuple(layer for layer in self.layers if layer in late)

    @property
    def is_response(self) -> Bool[Tensor, " pos"]:
        """Decode positions: tokens that the model generated and read back."""
        return torch.arange(len(self)) >= self.prompt_len


@runtime_checkable
class HasTrace(Protocol):
    """What carries a trace: a `Completion`, a `Result`."""

    @property
    def trace(self) -> Trace | None:
        """Its trace, None if nothing was recorded."""


TracesLike = Trace | HasTrace | Iterable[Trace | HasTrace]
"""One trace or several, or what carries them: completions, the `Generations` of a run, results."""


def traces_of(given: TracesLike) -> tuple[Trace, ...]:
    """The traces of whatever holds them.

    Raises:
        TypeError: something else.
        ValueError: a completion without trace.
    """
    alone = isinstance(given, Trace | HasTrace) and not _is_array(given)
    if not alone and (_is_array(given) or isinstance(given, str | Mapping) or not isinstance(given, Iterable)):
        raise InputTypeError(f"expected traces, or completions that carry them, got {given!r:.80}")
    return tuple(_trace_of(i, one) for i, one in enumerate([given] if alone else given))  # type: ignore[arg-type]


def trace_of(given: TracesLike) -> Trace:
    """The one trace that is given, by itself, in a list of one or by what carries it."""
    traces = traces_of(given)
    if len(traces) != 1:
        raise InputError(f"expected one trace, got {len(traces)}: choose one, such as traces[0]")
    return traces[0]


def _trace_of(index: int, one: Any) -> Trace:
    if isinstance(one, Trace):
        return one
    if _is_array(one) or not isinstance(one, HasTrace):
        raise InputTypeError(f"expected traces, or completions that carry them, got {one!r:.80} at place {index}")
    if not isinstance(one.trace, Trace):
        raise InputError(f"completion {index} has no trace: generate with record=True, which is the default")
    return one.trace


def _is_array(given: object) -> bool:
    return isinstance(given, Tensor | np.ndarray)  # whose .trace is the sum of a diagonal


def require_comparable(traces: Sequence[Trace]) -> None:
    """Refuse traces whose norms can't be put side by side: other model, dtype, centring, sinks or layers."""
    if not traces:
        raise InputError("no traces given")
    first = traces[0]
    for i, trace in enumerate(traces):
        if not first.provenance.comparable(trace.provenance):
            raise InputError(
                f"trace {i} is of {trace.provenance.describe()} but trace 0 is of {first.provenance.describe()}: "
                "norms of different models, dtypes or weight processing are not comparable"
                + _why(first.provenance, trace.provenance)
            )
        if trace.provenance.sink_ratio != first.provenance.sink_ratio:
            raise InputError(
                f"trace {i} was recorded with sink_ratio={trace.provenance.sink_ratio:g} but trace 0 with "
                f"{first.provenance.sink_ratio:g}: other tokens are left out as sinks; record all of them with the same"
            )
        if trace.layers != first.layers:
            raise InputError(
                f"trace {i} has layers {layer_ranges(trace.layers)} but trace 0 has {layer_ranges(first.layers)}: "
                "use trace.select(layers) to give all of them the same"
            )


def _why(first: Provenance, other: Provenance) -> str:
    if first.same_model(other) and dict(first.options) != dict(other.options):
        return ", nor those of an engine with other options: load it with the same"
    if first.same_model(other):
        return ", nor those with other numbers of foreign hooks (model.reset_hooks() removes hooks)"
    if first.backend != other.backend:
        return f"; they are of the backends {first.backend} and {other.backend}: record both on one if it is the same model"
    return ""


def to_frame(traces: TracesLike, *, include_embedding: bool = False) -> pd.DataFrame:
    """One row per sequence, layer and position.

    Examples:
        >>> frame = l2.to_frame(think)
        >>> frame[["sequence", "layer", "position", "token", "segment"]].tail(1)
              sequence  layer  position token segment
        8543        11     11        95     2  answer
        >>> late = frame[(frame.layer >= 9) & ~frame.is_sink].groupby(["layer", "segment"])["l2_norm"].mean().unstack()
        >>> late["answer"] > late["prompt"]
        layer
        9     True
        10    True
        11    True
        dtype: bool

    Columns: sequence, layer (an integer, or "embed" with `include_embedding`), position, token_id, token, segment,
    is_prompt, l2_norm, is_sink, model and weights (its name and the fingerprint of its weights: traces of several models may
    stand in one table, their norms are not comparable), one for each metric that is [layer, pos] (NaN at the embedding output),
    with SAEs feature_l0 and feature_sum (active latents and their summed activation, NaN where a layer has no SAE), then one
    for each label.

    Raises:
        InputError: no traces, or a metric or label that is called like one of the other columns.
    """
    frames = [_frame(i, trace, include_embedding) for i, trace in enumerate(traces_of(traces))]
    if not frames:
        raise InputError("no traces given")
    return pd.concat(frames, ignore_index=True)


def _frame(sequence: int, trace: Trace, include_embedding: bool) -> pd.DataFrame:
    layers: list[Any] = list(trace.layers)
    norms, sinks = trace.l2_norms, trace.is_sink
    if include_embedding:
        layers = ["embed", *layers]
        norms = torch.cat([trace.embed_l2_norms[None], norms])
        sinks = torch.cat([torch.arange(len(trace))[None] == 0, sinks])
    n_layers, n_pos = norms.shape
    if taken := sorted(set(FRAME_COLUMNS) & trace.metrics.keys()):
        raise InputError(f"metrics can't be called {taken}: the table has columns of these names; call them otherwise")
    columns = {
        "sequence": sequence,
        "layer": repeat(np.array(layers, dtype=object if include_embedding else int), "layer -> (layer pos)", pos=n_pos),
        "position": repeat(np.arange(n_pos), "pos -> (layer pos)", layer=n_layers),
        "token_id": repeat(trace.tokens.numpy(), "pos -> (layer pos)", layer=n_layers),
        "token": repeat(np.array(trace.str_tokens, dtype=object), "pos -> (layer pos)", layer=n_layers),
        "segment": repeat(np.array(trace.segments, dtype=object), "pos -> (layer pos)", layer=n_layers),
        "is_prompt": repeat(~trace.is_response.numpy(), "pos -> (layer pos)", layer=n_layers),
        "l2_norm": norms.flatten().numpy(),
        "is_sink": sinks.flatten().numpy(),
        "model": trace.provenance.model,
        "weights": trace.provenance.fingerprint,
    }
    missing = torch.full((n_pos,), torch.nan)
    for name, values in trace.metrics.items():
        if values.ndim == 2:
            columns[name] = torch.cat([missing, values.flatten()] if include_embedding else [values.flatten()]).numpy()
    if trace.features:
        known = [trace.features.get(layer) for layer in layers]
        columns["feature_l0"] = torch.cat([missing if acts is None else acts.l0.float() for acts in known]).numpy()
        columns["feature_sum"] = torch.cat([missing if acts is None else acts.total() for acts in known]).numpy()
    if taken := sorted(columns.keys() & trace.labels.keys()):
        raise InputError(f"labels can't be called {taken}: the table has columns of these names; call them otherwise")
    return pd.DataFrame({**columns, **trace.labels})
