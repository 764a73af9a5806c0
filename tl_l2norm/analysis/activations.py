"""Mean activation of every latent of an SAE in both modes, prompt by prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse import csr_array, vstack
from torch import Tensor

from tl_l2norm.analysis.pairing import Match, Pair, Tokens, meant, weighted_pairs
from tl_l2norm.core.resampling import Array
from tl_l2norm.core.trace import Trace


def activation_means(
    pairs: Mapping[str, Sequence[Pair]],
    layer: int,
    match: Match = "count",
    tokens: Tokens = "read",
    *,
    seed: int = 0,
) -> tuple[Array, Array]:
    """Mean activation of every latent over each prompt's thinking and direct tokens: two arrays [prompt, d_sae].

    The seed is that of match="count".
    """
    d_sae = next(iter(pairs.values()))[0][0].features[layer].d_sae
    means = np.full((2, len(pairs), d_sae), np.nan)
    for i, members in enumerate(pairs.values()):
        weighted = weighted_pairs(members, match, tokens, seed=seed)
        for mode in (0, 1):
            sums = [_mean_acts(pair[mode], layer, w[mode]) for pair, w in weighted]
            if sums:
                means[mode, i] = torch.stack(sums).mean(0).numpy()
    return means[0], means[1]


def _mean_acts(trace: Trace, layer: int, weights: Float[Tensor, " pos"]) -> Float[Tensor, " d_sae"]:
    """Weighted mean over positions, attention sinks left out; NaN if there is nothing else."""
    kept = torch.where(trace.is_sink[trace.index_of(layer)], 0.0, weights)
    return trace.features[layer].weighted_sum(kept) / kept.sum()


def paired_effect(differences: Array) -> Array:
    """Mean difference over its standard deviation, of each column [prompt, latent] (Cohen's d_z); 0 where all are 0."""
    mean, spread = np.nanmean(differences, axis=0), np.nanstd(differences, axis=0, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        effect: Array = np.where(mean == 0, 0.0, mean / spread)
    return effect


def response_acts(pairs: Mapping[str, Sequence[Pair]], layer: int, tokens: Tokens) -> csr_array:
    """[token, latent] of all responses in both modes."""
    parts = []
    for trace in {id(trace): trace for members in pairs.values() for pair in members for trace in pair}.values():
        acts = trace.features[layer].select((meant(trace, tokens) & ~trace.is_sink[trace.index_of(layer)]).nonzero()[:, 0])
        shape = (len(acts), acts.d_sae)
        parts.append(csr_array((acts.values.numpy(), acts.latents.numpy(), acts.starts.numpy()), shape=shape))
    return csr_array(vstack(parts, format="csr"))
