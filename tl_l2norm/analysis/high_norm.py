"""Which kinds of tokens have the highest norms."""

from __future__ import annotations

import numpy as np
import pandas as pd

from tl_l2norm.analysis.pairing import pair_modes
from tl_l2norm.core.arguments import as_share
from tl_l2norm.core.layers import Layers
from tl_l2norm.core.resampling import RESAMPLES, Array, estimate
from tl_l2norm.core.trace import Trace, TracesLike, traces_of

TOP_SHARE = 0.1
"""High-norm tokens are this share of all."""

_KINDS = ("prompt", "thinking", "answer", "direct")


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
    thinking.

    Returns:
        One row per kind: kind, among_top (its share of the top tokens), overall (its share of all), excess (the difference),
        low, high (of the excess), n (prompts), seed, model.

    Raises:
        ValueError: modes with different prompts, or fewer than 8.
    """
    think, direct, share = traces_of(think), traces_of(direct), as_share("share", share)
    pairs = pair_modes([t.select(layers) for t in think], [t.select(layers) for t in direct])
    found = np.array([np.mean([_shares(pair, share) for pair in members], axis=0) for members in pairs.values()])
    rows = []
    for k, kind in enumerate(_KINDS):
        top, overall = found[:, 0, k], found[:, 1, k]
        excess = estimate(top - overall, seed=seed, resamples=resamples)
        shares = {"among_top": float(np.mean(top)), "overall": float(np.mean(overall))}
        rows.append({"kind": kind, **shares, "excess": excess.mean, "low": excess.low, "high": excess.high, "n": excess.n})
    return pd.DataFrame(rows).assign(seed=seed, model=think[0].provenance.model)


def _shares(pair: tuple[Trace, Trace], share: float) -> Array:
    """[top or all, kind] mean over layers."""
    kinds = np.concatenate([_kind(pair[0], ("thinking", "answer")), _kind(pair[1], ("direct", "direct"))])
    norms = np.concatenate([t.l2_norms.double().numpy() for t in pair], axis=1)
    sinks = np.concatenate([t.is_sink.numpy() for t in pair], axis=1)
    by_layer = []
    for row, is_sink in zip(norms, sinks, strict=True):
        kept, own = row[~is_sink], kinds[~is_sink]
        top = own[np.argsort(-kept, kind="stable")[: max(1, round(share * len(kept)))]]
        by_layer.append([np.bincount(x, minlength=len(_KINDS)) / len(x) for x in (top, own)])
    mean: Array = np.mean(by_layer, axis=0)
    return mean


def _kind(trace: Trace, names: tuple[str, str]) -> np.ndarray:
    answer = names[1] if "think" in trace.segments else names[0]  # without tags the whole response is where it thinks
    known = {"prompt": 0, "think": _KINDS.index(names[0]), "answer": _KINDS.index(answer)}
    return np.array([known[segment] for segment in trace.segments])
