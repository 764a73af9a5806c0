"""What can be read off a trace at every layer and position."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from tl_l2norm.core.arguments import as_names, check_text
from tl_l2norm.core.errors import InputError, InputTypeError
from tl_l2norm.core.layers import did_you_mean
from tl_l2norm.core.trace import Trace

QUANTITIES = {
    "l2_norm": "L2 norm",
    "feature_sum": "summed SAE activation",
    "reasoning_sum": "summed activation of reasoning features",
    "hidden_entropy": "hidden entropy (nats)",
    "output_entropy": "output entropy (nats)",
    "attention_entropy": "attention entropy (nats)",
}
"""What they are called in figures."""


@runtime_checkable
class Latents(Protocol):
    """Chosen latents, such as `ReasoningFeatures`."""

    def total(self, trace: Trace) -> Float[Tensor, "layer pos"]:
        """Their summed activation."""


def as_quantities(given: Any) -> tuple[str, ...]:
    """Names of quantities, one or several, each once.

    Raises:
        ValueError: none.
    """
    if not (names := as_names("quantities", given)):
        raise InputError("quantities is empty: name at least one, such as 'l2_norm'")
    return names


def values(trace: Trace, quantity: str, reasoning: Latents | None = None) -> Float[Tensor, "layer pos"]:
    """A quantity of a trace: the norm, a recorded metric, or the summed activation of all latents or of the reasoning ones.

    NaN at layers without an SAE.

    Raises:
        ValueError: a quantity that is not known or was not recorded, or "reasoning_sum" without features.
    """
    check_text("quantity", quantity)
    if not (reasoning is None or isinstance(reasoning, Latents)):
        raise InputTypeError(f"features must be what find_reasoning_features(think, direct) returns, got {reasoning!r:.80}")
    if quantity == "l2_norm":
        return trace.l2_norms
    if quantity == "reasoning_sum":
        if reasoning is None:
            raise InputError("'reasoning_sum' needs features=find_reasoning_features(think, direct)")
        return reasoning.total(trace)
    if quantity == "feature_sum":
        if not trace.features:
            raise InputError(
                "some traces have no SAE features: record them with collect(..., saes=...) or generate(..., saes=...)"
            )
        missing = torch.full((len(trace),), torch.nan)
        return torch.stack([trace.features[layer].total() if layer in trace.features else missing for layer in trace.layers])
    recorded = {name: metric for name, metric in trace.metrics.items() if metric.ndim == 2}
    if quantity not in recorded:
        known = {*QUANTITIES, *recorded}
        why = "was not recorded: collect(..., metrics=[...])" if quantity in QUANTITIES else "is not known"
        raise InputError(f"{quantity!r} {why}{'' if quantity in QUANTITIES else did_you_mean(quantity, known)}")
    return recorded[quantity]
