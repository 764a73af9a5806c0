"""What single latents of an SAE are active on."""

from __future__ import annotations

import pandas as pd
import torch

from tl_l2norm.analysis.reasoning import LATENT
from tl_l2norm.core.arguments import as_integer
from tl_l2norm.core.errors import InputError
from tl_l2norm.core.layers import as_layer
from tl_l2norm.core.schema import LAYER, Column, Schema
from tl_l2norm.core.trace import TracesLike, traces_of

TOP_TOKENS = Schema(
    "top tokens",
    "top_tokens",
    (
        LAYER,
        LATENT,
        Column("activation", float, "in the SAE's units"),
        Column("before", str, "text of the tokens before"),
        Column("token", str, "its text"),
        Column("after", str, "text of the tokens after"),
        Column("mode", str, "label of the trace, or the token's segment where it has none"),
        Column("prompt", object, "label of the trace, or its number where it has none"),
        Column("sequence", int, "number of the trace"),
        Column("position", int, "in the sequence, from 0"),
    ),
)


def top_tokens(traces: TracesLike, layer: int, latent: int, *, k: int = 10, context: int = 6) -> pd.DataFrame:
    """The tokens on which a latent is most active, attention sinks left out.

    Args:
        traces: with SAE features.
        layer: of the SAE.
        latent: its number.
        k: how many tokens.
        context: tokens shown before and after.

    Returns:
        One entry per token, the strongest first; fewer than k where it is active on fewer: layer, latent, activation, before,
        token, after, mode, prompt, sequence, position.

    Raises:
        InputError: a trace without features at this layer, a latent that its SAE doesn't have, or k below 1.

    Examples:
        >>> read = l2.collect(model, think[:2], saes={11: l2.load_saes("tiny-reasoner")[11]}, progress=False)
        >>> top_tokens(read, layer=11, latent=5, k=2, context=2)[["before", "token", "sequence"]]
          before token  sequence
        0     e3     :         1
        1     1d     2         1
    """
    traces, hits = traces_of(traces), []
    layer, latent = as_layer(layer), as_integer("latent", latent, least=0)
    k, context = as_integer("k", k, least=1), as_integer("context", context, least=0)
    for sequence, trace in enumerate(traces):
        if layer not in trace.features:
            raise InputError(f"trace {sequence} has no SAE features at layer {layer}: it has {sorted(trace.features)}")
        if latent >= (n_latents := trace.features[layer].d_sae):
            raise InputError(f"latent {latent} is outside the SAE of layer {layer}: it has latents 0 to {n_latents - 1}")
        acts = trace.features[layer].total([latent])
        acts = torch.where(trace.is_sink[trace.index_of(layer)], 0.0, acts)
        strongest = acts.topk(min(k, len(acts)))
        hits += [(a, sequence, p) for a, p in zip(strongest.values.tolist(), strongest.indices.tolist(), strict=True) if a > 0]
    entries = []
    for activation, sequence, position in sorted(hits, key=lambda hit: -hit[0])[:k]:
        trace = traces[sequence]
        texts = trace.str_tokens
        entries.append(
            {
                "layer": layer,
                "latent": latent,
                "activation": activation,
                "before": "".join(texts[max(0, position - context) : position]),
                "token": texts[position],
                "after": "".join(texts[position + 1 : position + 1 + context]),
                "mode": trace.labels.get("mode", trace.segments[position]),
                "prompt": trace.labels.get("prompt", sequence),
                "sequence": sequence,
                "position": position,
            }
        )
    return TOP_TOKENS.frame(entries)
