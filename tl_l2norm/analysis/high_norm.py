"""Which kinds of tokens have the highest norms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from tl_l2norm.analysis.correlation import present_mean
from tl_l2norm.analysis.deconfounding import effects_on
from tl_l2norm.analysis.pairing import Pair, compared, infinite, pair_modes, require_prompts
from tl_l2norm.core.arguments import as_share
from tl_l2norm.core.errors import InputError, Unmeasurable
from tl_l2norm.core.layers import BUT_LAST, LATE, Layers, late_groups
from tl_l2norm.core.resampling import RESAMPLES, Array, estimate
from tl_l2norm.core.schema import MODEL, SEED, Column, N, Schema, ends
from tl_l2norm.core.trace import Trace, TracesLike, traces_of
from tl_l2norm.text.prompts import Mode

TOP_SHARE = 0.1
"""High-norm tokens are this share of all."""

_MODES: tuple[Mode, Mode] = ("think", "direct")
_KINDS = ("prompt", "thinking", "answer", "direct")

HIGH_NORM_KINDS = Schema(
    "kinds of tokens",
    "high_norm_tokens",
    (
        Column("kind", str, '"prompt", "thinking", "answer" or "direct"'),
        Column("among_top", float, "its share of the tokens of the highest norm"),
        Column("overall", float, "its share of all tokens"),
        Column("excess", float, "the first share minus the second"),
        *ends("excess"),
        N,
        SEED,
        MODEL,
    ),
)


def high_norm_tokens(
    think: TracesLike,
    direct: TracesLike,
    *,
    layers: Layers = "late",
    share: float = TOP_SHARE,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> pd.DataFrame:
    """Which kinds of tokens are over-represented among those of the highest norm, layer by layer, then averaged.

    All tokens of both responses to a prompt are ranked together, sinks left out: the prompt's (as read in both modes), those of
    thinking, of the answer after it, and of the direct answer. Of a model that thinks without tags the whole response counts as
    thinking. Tokens of one norm that the top has no room for all share what room there is. A prompt that one of the modes gave
    no token to rank in is left out.

    Returns:
        One entry per kind: kind, among_top (its share of the top tokens), overall (its share of all), excess (the difference),
        low, high (of the excess), n (prompts), seed, model.

    Raises:
        ValueError: modes with different prompts, or fewer than 8 with responses in both.

    Examples:
        >>> high_norm_tokens(think, direct)[["kind", "overall", "n"]].round(2)
               kind  overall   n
        0    prompt     0.71  12
        1  thinking     0.26  12
        2    answer     0.03  12
        3    direct     0.01  12
    """
    think, direct, share = traces_of(think), traces_of(direct), as_share("share", share)
    pairs = pair_modes([t.select(layers) for t in think], [t.select(layers) for t in direct])
    shares = np.array([present_mean(np.stack([_shares(pair, share) for pair in members])) for members in pairs.values()])
    shares = shares[~np.isnan(shares).any((1, 2))]
    if not len(shares):
        raise Unmeasurable(
            "no prompt has tokens in both modes that have a norm and are no sinks at every layer: there is nothing to rank; a "
            "response's last token has none, so a direct answer takes two or more"
        )
    require_prompts(
        len(shares), what="prompts whose responses both have a token that has a norm and is no sink, at every layer"
    )
    entries = []
    for k, kind in enumerate(_KINDS):
        top, overall = shares[:, 0, k], shares[:, 1, k]
        excess = estimate(top - overall, seed=seed, resamples=resamples)
        means = {"among_top": float(np.mean(top)), "overall": float(np.mean(overall))}
        entries.append({"kind": kind, **means, "excess": excess.mean, "low": excess.low, "high": excess.high, "n": excess.n})
    return HIGH_NORM_KINDS.frame(entries, seed=seed, model=think[0].provenance.model)


TOP_EFFECTS = Schema(
    "effects of mode on high-norm tokens",
    "high_norm_effect",
    (
        Column("layer", object, f'"{LATE}", "{BUT_LAST}" or a number'),
        Column("effect", float, "share of high-norm tokens, thinking minus direct with all else equal"),
        *ends("effect"),
        Column("p", float, "two-sided"),
        Column("p_max", float, "over all layers and both means together"),
        Column("tolerance", float, "share of mode's variance that nothing else explains"),
        N,
        Column("n_tokens", int, "tokens that are compared"),
        SEED,
        MODEL,
    ),
)


def high_norm_effect(
    think: TracesLike,
    direct: TracesLike,
    *,
    share: float = TOP_SHARE,
    seed: int = 0,
    flips: int = RESAMPLES,
) -> pd.DataFrame:
    """Whether a thinking token has a high norm more often than a direct one of the same type, place and length of response.

    High is over the layer's quantile 1 - share of both responses to the prompt, each with the same weight: what `mode_effects`
    asks of norms is asked of that, at each late layer and of its mean over them, with all that it takes out. As there, the
    answer behind a thought between tags is left out. Whether a norm is high is no sum of what acts on it: where modes put the
    same types behind others, 6 of 40 worlds of 100 prompts whose norms follow both tokens were said to differ.

    Returns:
        One entry for "late", "late but the last" (without the model's last block) and each late layer: layer, effect, low,
        high, p (two-sided), p_max (over all of them), tolerance, n (prompts), n_tokens, seed, model.

    Raises:
        ValueError: modes with different prompts, or fewer than 8; no late layer was recorded; an infinite norm.
        Unmeasurable: mode can't be told from length, position and type, or there are no responses.

    Examples:
        Thinking against itself:

        >>> same = [trace.with_labels(mode="again") for trace in think]
        >>> high_norm_effect(think, same, flips=200)[["layer", "effect", "n"]].head(2).round(2)
                       layer  effect   n
        0               late     0.0  12
        1  late but the last     0.0  12
    """
    think, direct, share = traces_of(think), traces_of(direct), as_share("share", share)
    pairs = pair_modes([t.select("late") for t in think], [t.select("late") for t in direct])
    first = think[0].select("late")
    groups = late_groups(first.layers, first.provenance.n_layers)
    bounds = {prompt: _bounds(members, share) for prompt, members in pairs.items()}

    def is_high(trace: Trace) -> Float[Tensor, "row pos"]:
        by_layer = (trace.l2_norms > bounds[str(trace.labels["prompt"])][:, None]).float()
        return torch.cat([*(by_layer[rows].mean(0, keepdim=True) for rows in groups.values()), by_layer])

    effects = effects_on(pairs, is_high, seed=seed, flips=flips)
    entries = ({"layer": layer, **effect} for layer, effect in zip([*groups, *first.layers], effects, strict=True))
    return TOP_EFFECTS.frame(entries, seed=seed, model=first.provenance.model)


def _bounds(members: Sequence[Pair], share: float) -> Float[Tensor, " layer"]:
    """Quantile 1 - share of each layer over the compared tokens of both modes, each mode with half of the weight.

    Infinite where neither has any: nothing is higher.
    """
    sides = [
        torch.cat([_norms(t, mode) for t in {id(p[m]): p[m] for p in members}.values()], dim=1) for m, mode in enumerate(_MODES)
    ]
    weights = torch.cat([torch.full((side.shape[1],), 0.5 / max(side.shape[1], 1)) for side in sides])
    norms, order = torch.cat(sides, dim=1).sort(dim=1)
    if not norms.shape[1]:
        return norms.new_full((len(norms),), torch.inf)
    below = (weights[order].cumsum(1) < 1 - share - 1e-6).sum(1, keepdim=True)
    return norms.gather(1, below.clamp_max(norms.shape[1] - 1))[:, 0]


def _norms(trace: Trace, mode: Mode) -> Float[Tensor, "layer compared"]:
    held = compared(trace, mode)
    if bool((trace.l2_norms.isinf() & held & ~trace.is_sink).any()):
        raise InputError(infinite(trace))
    return trace.l2_norms[:, held]


def _shares(pair: tuple[Trace, Trace], share: float) -> Array:
    """Shares [top or all, kind] of the tokens of one pair of responses, mean over layers; NaN where either has none."""
    kinds = np.concatenate([_kind(pair[0], ("thinking", "answer")), _kind(pair[1], ("direct", "direct"))])
    norms = np.concatenate([t.l2_norms.double().numpy() for t in pair], axis=1)
    held = ~np.concatenate([t.is_sink.numpy() for t in pair], axis=1) & ~np.isnan(norms)
    answered = np.concatenate([t.is_response.numpy() for t in pair])
    first = np.arange(len(answered)) < len(pair[0])
    if not all((held & answered & side).any(1).all() for side in (first, ~first)):
        return np.full((2, len(_KINDS)), np.nan)
    by_layer = []
    for of_layer, at in zip(norms, held, strict=True):
        kept, own = of_layer[at], kinds[at]
        weights = _top(kept, max(1, round(share * len(kept)))), np.ones(len(kept))
        by_layer.append([np.bincount(own, weights=w, minlength=len(_KINDS)) / w.sum() for w in weights])
    mean: Array = np.mean(by_layer, axis=0)
    return mean


def _top(norms: Array, k: int) -> Array:
    """How much of each is among the k highest: 1 or 0, and of those that tie for the last places the same share."""
    bound = np.partition(norms, -k)[-k]
    above, ties = norms > bound, norms == bound
    weights: Array = above + ties * ((k - above.sum()) / ties.sum())
    return weights


def _kind(trace: Trace, names: tuple[str, str]) -> np.ndarray:
    answer = names[1] if "think" in trace.segments else names[0]  # without tags the whole response is where it thinks
    known = {"prompt": 0, "think": _KINDS.index(names[0]), "answer": _KINDS.index(answer)}
    return np.array([known[segment] for segment in trace.segments])
