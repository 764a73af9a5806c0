"""Directions to steer to: the difference of mean states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tl_l2norm.core.errors import InputError, Unmeasurable
from tl_l2norm.core.layers import Layers, layer_ranges, resolve_layers
from tl_l2norm.core.presets import batch_size_of
from tl_l2norm.core.thresholds import AdaptiveIQR, as_thresholds
from tl_l2norm.core.trace import Trace, TracesLike, require_comparable, traces_of
from tl_l2norm.models.backend import Backend
from tl_l2norm.models.backends import backend_of
from tl_l2norm.models.decode_check import batches
from tl_l2norm.models.hooks import attached
from tl_l2norm.models.provenance import provenance
from tl_l2norm.text.sequences import pad_left, tokenize

_Masks = Bool[Tensor, "side layer _"]


def mean_difference(
    model: Any,
    traces: TracesLike,
    against: TracesLike | None = None,
    *,
    thresholds: Mapping[int, float] | None = None,
    layers: Layers = None,
    batch_size: int | None = None,
) -> dict[int, Tensor]:
    """Mean state of some tokens minus mean state of others, at each layer: a vector to steer to, as in contrastive activation
    addition (Rimsky et al., arXiv 2312.06681).

    Tokens are those of the responses, sinks left out, each with the same weight. The model reads every sequence again, plain;
    one sum of states is kept for each layer and side, no state.

    Args:
        model: a `HookedTransformer` or `TransformerBridge`, which the traces are of.
        traces: whose tokens are on one side.
        against: whose tokens are on the other, such as direct answers beside thinking.
        thresholds: instead of `against`, {layer: value} or `quantile_thresholds(...)`: tokens of `traces` over their layer's
            threshold on one side, those not over it on the other.
        layers: which blocks; by default those of the thresholds, or all that the traces have.
        batch_size: sequences in one pass, 8 by default (100 for tiny-reasoner).

    Returns:
        {layer: vector [d_model]}, float32, on the CPU.

    Raises:
        InputError: neither or both of `against` and `thresholds`, traces of another model or recorded under interventions.
        Unmeasurable: no token on one side, at the layers that are named.

    Examples:
        >>> tau = l2.quantile_thresholds(think, 0.9)
        >>> vectors = l2.interventions.mean_difference(model, think, thresholds=tau, layers=[9])
        >>> vectors[9].shape
        torch.Size([128])
        >>> steer = l2.ERSS(tau, layers=[9], towards="vectors", vectors=vectors)
    """
    if (against is None) == (thresholds is None):
        raise InputError("a difference has two sides: give either against=, other traces, or thresholds=")
    one, other = list(traces_of(traces)), list(traces_of(() if against is None else against))
    backend = backend_of(model)
    _require_of(backend, [*one, *other])
    if thresholds is None:
        chosen = resolve_layers(one[0].layers if layers is None else layers, backend.n_layers)
        sides = [_all(trace, chosen, side) for side, group in enumerate((one, other)) for trace in group]
    else:
        tau = as_thresholds(thresholds)
        if isinstance(tau, AdaptiveIQR):
            raise InputError("thresholds that adapt are of a run: give quantile_thresholds(traces) or {layer: value}")
        chosen = resolve_layers(sorted(tau) if layers is None else layers, backend.n_layers)
        if lacking := sorted(set(chosen) - set(tau)):
            raise InputError(f"thresholds lack layers {layer_ranges(lacking)}, they have {layer_ranges(sorted(tau))}")
        sides = [_by_norm(trace, {layer: tau[layer] for layer in chosen}) for trace in one]
    sums = _summed(backend, [*one, *other], sides, chosen, batch_size_of(model, batch_size))
    n = torch.stack([side.sum(-1) for side in sides]).sum(0)
    if empty := [layer for row, layer in enumerate(chosen) if not n[:, row].all()]:
        raise Unmeasurable(f"no token on one side at layers {layer_ranges(empty)}: there is no difference of means")
    first, second = sums / n[..., None]
    return {layer: (first[row] - second[row]).float() for row, layer in enumerate(chosen)}


def _require_of(backend: Backend, traces: Sequence[Trace]) -> None:
    """Refuse traces that aren't of this model's plain stream."""
    require_comparable(traces)
    source = traces[0].provenance
    here = provenance(backend, backend.identity(), sink_ratio=source.sink_ratio)
    if not source.same_model(here):
        raise InputError(f"the traces are of {source.describe()} but the model is {here.describe()}: give traces of this model")
    if acted := next((trace for trace in traces if trace.provenance.interventions), None):
        raise InputError(
            f"a trace was recorded under {acted.provenance.interventions[0]}: the states that are read again are those of the "
            "plain model; give traces without interventions"
        )


def _usable(trace: Trace, layers: Sequence[int]) -> Bool[Tensor, "layer pos"]:
    return trace.is_response & ~trace.is_sink[[trace.index_of(layer) for layer in layers]]


def _all(trace: Trace, layers: Sequence[int], side: int) -> _Masks:
    usable = _usable(trace, layers)
    return torch.stack([usable & (side == 0), usable & (side == 1)])


def _by_norm(trace: Trace, tau: Mapping[int, float]) -> _Masks:
    usable = _usable(trace, list(tau))
    high = torch.stack([trace.at(layer) > value for layer, value in tau.items()])
    return torch.stack([usable & high, usable & ~high])


def _summed(
    backend: Backend, traces: Sequence[Trace], sides: Sequence[_Masks], layers: Sequence[int], batch_size: int
) -> Float[Tensor, "side layer d_model"]:
    """Sums of states over the tokens of either side, float64."""
    sums = torch.zeros(2, len(layers), backend.d_model, dtype=torch.float64)
    items = tokenize(backend, traces)
    for numbers in batches(backend, items, batch_size):
        tokens, mask = pad_left([items[i].tokens for i in numbers], backend.device)
        width = tokens.shape[1]
        taken = torch.stack([torch.nn.functional.pad(sides[i], (width - len(items[i]), 0)) for i in numbers], dim=2)
        points = [(backend.resid_post(layer), partial(_add, sums[:, row], taken[:, row])) for row, layer in enumerate(layers)]
        with torch.no_grad(), attached(points):
            backend.forward(tokens, mask)
    return sums


def _add(
    sums: Float[Tensor, "side d_model"],
    taken: Bool[Tensor, "side batch pos"],
    stream: Float[Tensor, "batch pos d_model"],
    hook: Any,
) -> None:
    for own, places in zip(sums, taken, strict=True):
        own += stream.detach()[places.to(stream.device)].float().sum(0).cpu()
