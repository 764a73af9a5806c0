"""How far decoder directions of an SAE are from orthogonal, and how far random ones are."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_l2norm.analysis.pairing import Tokens, by_prompt, meant
from tl_l2norm.core.resampling import Estimate, estimate, generator
from tl_l2norm.core.trace import Trace, TracesLike

MOST_DIRECTIONS = 1 << 13
"""All pairs of more would take minutes."""

_PAIRS_AT_ONCE = 1 << 24
_MOST_TOKENS = 32  # of a response, evenly spread, for pairs of co-active directions


def decoder_cosine(directions: Float[Tensor, "d_sae d_model"], *, seed: int = 0) -> float:
    """Mean absolute cosine between different decoder directions (A1); over 8,192 drawn ones where there are more.

    Examples:
        >>> decoder_cosine(torch.eye(3))
        0.0
    """
    n = len(directions)
    if n > MOST_DIRECTIONS:
        chosen = torch.from_numpy(generator(seed).choice(n, MOST_DIRECTIONS, replace=False))
        directions, n = directions[chosen.to(directions.device)], MOST_DIRECTIONS
    if n < 2:
        return float("nan")
    unit = torch.nn.functional.normalize(directions.detach().float(), dim=1)
    total = sum(float((part @ unit.T).abs().sum()) for part in torch.split(unit, max(1, _PAIRS_AT_ONCE // n)))
    return (total - float((unit**2).sum())) / (n * (n - 1))


def random_cosine(d_model: int) -> float:
    """Mean absolute cosine between random directions, `Gamma(d / 2) / (sqrt(pi) Gamma((d + 1) / 2))`.

    Examples:
        >>> round(random_cosine(1024), 3)
        0.025
    """
    from scipy.special import gammaln

    return float(np.exp(gammaln(d_model / 2) - gammaln((d_model + 1) / 2)) / np.sqrt(np.pi))


def random_cosine_spread(d_model: int, pairs: int) -> float:
    """Standard deviation of the mean absolute cosine over so many pairs of random directions.

    Any two pairs of them are independent, also where they share a direction, so that variances add.

    Examples:
        >>> round(random_cosine_spread(1024, pairs=1), 3)
        0.019
    """
    return float(np.sqrt(max(1 / d_model - random_cosine(d_model) ** 2, 0) / pairs))


def coactive_cosine(
    traces: TracesLike, layer: int, decoder: Float[Tensor, "d_sae d_model"], *, tokens: Tokens = "read", seed: int = 0
) -> tuple[Estimate, int]:
    """Mean absolute cosine between decoder directions that are active on the same token (A1), each pair as often as it is; over
    32 tokens of each response at most. Mean over prompts, and how many different pairs there are.
    """
    unit = torch.nn.functional.normalize(decoder.detach().float(), dim=1)
    means, pairs = [], set[int]()
    for group in by_prompt(traces).values():
        total, count = 0.0, 0
        for trace in group:
            at = positions(trace, layer, tokens)
            at = at[torch.linspace(0, len(at) - 1, min(_MOST_TOKENS, len(at))).round().long()]
            acts = trace.features[layer].select(at)
            for latents in torch.tensor_split(acts.latents.long(), acts.starts[1:-1].long()):
                upper = torch.triu_indices(len(latents), len(latents), offset=1)
                total += float((unit[latents] @ unit[latents].T).abs()[upper[0], upper[1]].sum())
                count += upper.shape[1]
                pairs.update((latents[upper[0]] * len(unit) + latents[upper[1]]).tolist())
        means.append(total / count if count else np.nan)
    if np.isnan(means).all():
        return Estimate(mean=np.nan, low=np.nan, high=np.nan, n=0), 0
    return estimate(np.array(means), seed=seed), len(pairs)


def positions(trace: Trace, layer: int, tokens: Tokens) -> Int[Tensor, " chosen"]:
    """Of the tokens that stand for a response and are no sink at a layer."""
    return (meant(trace, tokens) & ~trace.is_sink[trace.index_of(layer)]).nonzero()[:, 0]
