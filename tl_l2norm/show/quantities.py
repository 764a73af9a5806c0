"""What tokens can be coloured by: the norm, other metrics, SAE features, log-probabilities, each as rows of layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray

from tl_l2norm.core.arguments import as_integer, as_integers, as_names, check_choice
from tl_l2norm.core.errors import InputError, InputTypeError
from tl_l2norm.core.trace import Trace
from tl_l2norm.show.shown import Shown

NORM, RATIO, CHANGE, SURPRISE = "norm", "ratio", "change", "surprise"
"""`ratio` is the norm over its layer's median, `change` over that of the same token in the first sequence beside it; a page
works them out."""


class Quantity(NamedTuple):
    """Values of all sequences of a widget, one after the other."""

    name: str
    label: str
    layers: tuple[int, ...]
    """[row] which layer each row is of; () where the one row is of no layer."""
    values: Float[np.ndarray, "row value"]


def quantities_of(
    shown: Sequence[Shown], *, features: Mapping[Any, Any] | None = None, only: Sequence[str] | None = None
) -> tuple[Quantity, ...]:
    """The norm, then every metric that all traces have, features, and the surprise of responses.

    Args:
        shown: sequences of the same layers.
        features: latents to show by themselves, `{layer: latents}`.
        only: names of those to keep beside the norm.

    Raises:
        ValueError: names that there aren't, features that were not recorded.
    """
    traces = [one.trace for one in shown]
    layers = traces[0].layers
    found = [Quantity(NORM, "L2 norm", layers, _joined([trace.l2_norms for trace in traces]))]
    found += [_metric(name, traces) for name in _common(trace.metrics for trace in traces)]
    found += [*_feature_sums(traces), *_latents(traces, features)]
    if all(one.logprobs is not None for one in shown):
        found.append(Quantity(SURPRISE, "surprise, −log p, nats", (), np.concatenate([_surprise(s) for s in shown], axis=1)))
    if only is None:
        return tuple(found)
    names = as_names("quantities", only)
    for name in names:
        check_choice("quantities", name, [RATIO, CHANGE, *(quantity.name for quantity in found)])
    return tuple(quantity for quantity in found if quantity.name in (NORM, *names))


def medians(norms: Float[np.ndarray, "row value"], sinks: NDArray[np.bool_]) -> list[float]:
    """[row] median of the tokens that are no sinks, of which the ratio is taken; NaN becomes 0, which has no ratio."""
    kept = [row[~sink & np.isfinite(row)] for row, sink in zip(norms, sinks, strict=True)]
    return [float(np.median(row)) if len(row) else 0.0 for row in kept]


def _joined(parts: Sequence[torch.Tensor]) -> Float[np.ndarray, "row value"]:
    return torch.cat([part.float() for part in parts], dim=-1).numpy()


def _common(named: Any) -> list[str]:
    """Names that are in all mappings, in the order of the first."""
    first, *others = [list(names) for names in named]
    return [name for name in first if all(name in other for other in others)]


def _metric(name: str, traces: Sequence[Trace]) -> Quantity:
    """One with heads is shown as their mean."""
    values = [trace.metrics[name] for trace in traces]
    heads = values[0].ndim == 3
    label = name.replace("_", " ") + (", mean over heads" if heads else "")
    return Quantity(name, label, traces[0].layers, _joined([v.mean(dim=1) if heads else v for v in values]))


def _feature_sums(traces: Sequence[Trace]) -> list[Quantity]:
    """Summed activation and number of active latents, at the layers where all traces have an SAE."""
    layers = tuple(layer for layer in traces[0].layers if all(layer in trace.features for trace in traces))
    if not layers:
        return []
    sums = [torch.stack([trace.features[layer].total() for layer in layers]) for trace in traces]
    active = [torch.stack([trace.features[layer].l0 for layer in layers]) for trace in traces]
    return [
        Quantity("feature_sum", "SAE features, summed activation", layers, _joined(sums)),
        Quantity("feature_l0", "SAE features, number active", layers, _joined(active)),
    ]


def _latents(traces: Sequence[Trace], features: Any) -> list[Quantity]:
    if features is None:
        return []
    if not isinstance(features, Mapping):
        raise InputTypeError(f"features are latents by layer, as in {{9: [12, 40]}}, got {features!r:.80}")
    found = []
    for layer, latents in features.items():
        layer = as_integer("layer of features", layer)
        if any(layer not in trace.features for trace in traces):
            have = sorted(set.intersection(*(set(trace.features) for trace in traces)))
            there = f"these traces have those of layers {have}" if have else "collect or generate with saes=..."
            raise InputError(f"features of layer {layer} were not recorded: {there}")
        for latent in as_integers("features", latents):
            values = _joined([trace.features[layer].total([_checked(latent, layer, trace)])[None] for trace in traces])
            found.append(Quantity(f"feature {layer}/{latent}", f"SAE feature {latent} of layer {layer}", (layer,), values))
    return found


def _checked(latent: int, layer: int, trace: Trace) -> int:
    return as_integer(f"a latent of layer {layer}", latent, least=0, most=trace.features[layer].d_sae - 1)


def _surprise(one: Shown) -> Float[np.ndarray, "row value"]:
    """[1, pos] minus the log-probability of each token of the response; NaN in the prompt."""
    values = np.full((1, len(one.trace)), np.nan, dtype=np.float32)
    n = len(one.trace) - one.trace.prompt_len
    values[0, one.trace.prompt_len :] = -one.logprobs[:n].float().numpy()  # type: ignore[index]
    return values
