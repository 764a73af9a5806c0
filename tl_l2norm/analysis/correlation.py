"""Rank correlation of the norm, and of its rivals, with the activation of reasoning features."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from einops import einsum, reduce
from numpy.typing import NDArray
from scipy.stats import rankdata

from tl_l2norm.analysis.pairing import Tokens, by_prompt, meant, require_one_mode, require_prompts, weighted_mean
from tl_l2norm.analysis.quantities import Latents, as_quantities, values
from tl_l2norm.core.errors import Unmeasurable
from tl_l2norm.core.layers import layer_ranges
from tl_l2norm.core.resampling import RESAMPLES, Array, Estimate, estimate, interval, prompt_weights
from tl_l2norm.core.schema import MODEL, QUANTITY, SEED, Column, N, Schema, ends
from tl_l2norm.core.trace import Trace, TracesLike, require_comparable, traces_of

METRIC_NAMES = ("l2_norm", "hidden_entropy", "output_entropy", "attention_entropy")

MIN_TOKENS = 8
"""A rank correlation over fewer tokens of a sequence says nothing."""

PAPER_RHO = {"norm": (84.1, 87.6), "best entropy": (52.1, 66.7)}
"""Per cent, the range over the paper's four models: norm 86.5, 85.2, 87.6, 84.1; best entropy 63.5, 63.3, 66.7, 52.1."""

_TARGET = "reasoning_sum"

CORRELATIONS = Schema(
    "correlations",
    "correlation_table",
    (
        QUANTITY,
        Column("scope", str, '"layers", "tokens" or "partial"'),
        Column("layer", object, 'a number, "late" for the mean over late layers, "all" for scope "layers"'),
        Column("rho", float, "Spearman's, with the summed activation of reasoning features"),
        *ends("rho"),
        N,
        SEED,
        MODEL,
    ),
)


def correlation_table(
    traces: TracesLike,
    features: Latents,
    *,
    quantities: str | Sequence[str] = METRIC_NAMES,
    tokens: Tokens = "read",
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> pd.DataFrame:
    """Spearman's rho of each quantity with the summed activation of reasoning features.

    - "layers": over layers, of the means over tokens and prompts; only layers with chosen latents. Its interval speaks of other
      prompts, not of other models: two profiles over a dozen layers that have nothing to do with each other seldom have rho 0.
    - "tokens": over the tokens of a response within one layer, then the mean over prompts; a response needs 8 tokens.
    - "partial": the same, with what rank of position and rank of the token's frequency (in these traces) predict linearly
      taken out of the ranks of both.

    Args:
        traces: of one mode, the thinking one as a rule, on prompts that the features were not chosen on; label "prompt".
        features: from `find_reasoning_features`.
        quantities: the norm and recorded metrics.
        tokens: "read", the response's own, or "chosen", those from which they were chosen.
        seed: of the resampling of prompts.
        resamples: how many.

    Returns:
        One entry per quantity, scope and layer: quantity, scope, layer (a number, "late" for the mean over late layers, "all"
        for scope "layers"), rho, low, high, n (prompts), seed, model. rho is NaN at a layer where no feature was chosen.

    Raises:
        ValueError: traces that can't be compared or are of several modes, one prompt under two labels, fewer than 8 prompts, or
            a quantity that is the same at every token of a layer.
        Unmeasurable: no features, or none that is ever active.

    Examples:
        >>> class Squares:  # in place of features: what has total(trace) [layer, pos]
        ...     def total(self, trace):
        ...         return trace.l2_norms**2
        >>> correlation_table(think, Squares(), quantities="l2_norm").query("layer == 'late'")[["scope", "rho", "n"]]
              scope  rho   n
        13   tokens  1.0  12
        26  partial  1.0  12
    """
    traces, quantities = traces_of(traces), as_quantities(quantities)
    require_comparable(traces)
    require_one_mode(traces)
    groups = by_prompt(traces)
    require_prompts(len(groups))
    _require_variation(traces, quantities, tokens)
    _require_features(traces, features)
    names = [*quantities, _TARGET]
    read = {id(t): torch.stack([values(t, name, features) for name in names]).double().numpy() for t in traces}
    entries = _over_layers(groups.values(), read, quantities, tokens, seed, resamples)
    log_frequency = _log_frequency(traces, tokens)
    by_token = [
        np.stack([_within(t, read[id(t)], log_frequency, tokens) for t in group]) for group in groups.values()
    ]  # of each prompt [sample, scope, quantity, layer]
    rhos = np.stack([present_mean(samples) for samples in by_token])
    layers, late = traces[0].layers, [traces[0].index_of(layer) for layer in traces[0].late_layers]
    for s, scope in enumerate(("tokens", "partial")):
        for q, quantity in enumerate(quantities):
            by_layer = rhos[:, s, q].T
            for layer, column in [*zip(layers, by_layer, strict=True), ("late", present_mean(by_layer[late]))]:
                rho = estimate(column, seed=seed, resamples=resamples)
                entries.append({"quantity": quantity, "scope": scope, "layer": layer, **_rho(rho)})
    return CORRELATIONS.frame(entries, seed=seed, model=traces[0].provenance.model)


def _require_features(traces: Sequence[Trace], features: Latents) -> None:
    """Refuse features that are active nowhere: there is nothing to correlate with."""
    if not any(bool(features.total(trace).nan_to_num().any()) for trace in traces):
        raise Unmeasurable("no reasoning feature is active in these traces, or none was found: there is nothing to go with")


def _rho(rho: Estimate) -> dict[str, object]:
    return {"rho": rho.mean, "low": rho.low, "high": rho.high, "n": rho.n}


def _over_layers(
    groups: Iterable[list[Trace]],
    read: dict[int, Array],
    quantities: Sequence[str],
    tokens: Tokens,
    seed: int,
    resamples: int,
) -> list[dict[str, object]]:
    means = np.stack([present_mean(np.stack([_token_means(t, read[id(t)], tokens) for t in group])) for group in groups])
    present = ~np.isnan(means[:, -1]).all(0)  # layers with an SAE
    present &= np.nan_to_num(means[:, -1]).any(0)  # and a feature that is ever active
    means = means[:, :, present]
    means = means[~reduce(np.isnan(means), "prompt quantity layer -> prompt", "any")]
    entries: list[dict[str, object]] = []
    for q, quantity in enumerate(quantities):
        rho = Estimate(mean=np.nan, low=np.nan, high=np.nan, n=len(means))
        if present.sum() >= 3 and len(means):
            pair, weights = means[:, [q, -1]], prompt_weights(len(means), seed=seed, resamples=resamples)
            draws = einsum(weights, pair, "resample prompt, prompt side layer -> resample side layer")
            whole = _rank_correlation(pair.mean(0)[None])
            rho = interval(float(whole[0]), _rank_correlation(draws), len(pair))
        entries.append({"quantity": quantity, "scope": "layers", "layer": "all", **_rho(rho)})
    return entries


def _rank_correlation(pairs: Array) -> Array:
    """Spearman's rho of each pair of rows: [..., 2, n] to [...]."""
    ranks = rankdata(pairs, axis=-1)
    return pearson(ranks[..., 0, :], ranks[..., 1, :])


def pearson(first: Array, second: Array) -> Array:
    """Pearson's correlation over the last axis of two arrays [..., n], as [...]; NaN where a side is constant."""
    first, second = (x - x.mean(-1, keepdims=True) for x in (first, second))
    scale = np.sqrt((first**2).sum(-1) * (second**2).sum(-1))
    with np.errstate(divide="ignore", invalid="ignore"):
        rho: Array = np.where(scale > 1e-9, (first * second).sum(-1) / scale, np.nan)
    return rho


def unexplained(ranks: Array, covariates: Array) -> Array:
    """Residuals of ranks [..., n] after a linear fit on covariates [k, n]."""
    left: Array = ranks - ranks @ np.linalg.pinv(covariates) @ covariates
    return left


def _within(trace: Trace, read: Array, log_frequency: dict[int, float], tokens: Tokens) -> Array:
    """Rho and partial rho [scope, quantity, layer] over the tokens of one response."""
    rhos = np.full((2, len(read) - 1, len(trace.layers)), np.nan)
    for rows, columns in _kept(trace, tokens):
        if len(columns) < MIN_TOKENS:
            continue
        ranks = rankdata(read[:, rows][:, :, columns], axis=-1)  # [quantity and target, layer, token]
        known = np.array([log_frequency[token] for token in trace.tokens[columns].tolist()])
        covariates = np.stack([np.ones(len(columns)), columns, rankdata(known)])
        for scope, values_ in enumerate((ranks, unexplained(ranks, covariates))):
            rhos[scope][:, rows] = pearson(values_[:-1], values_[-1:])
    return rhos


def _kept(trace: Trace, tokens: Tokens) -> Iterator[tuple[list[int], NDArray[np.intp]]]:
    """Rows of layers, and the positions of the response that are no sinks there; layers with the same positions together."""
    keep = (meant(trace, tokens)[None] & ~trace.is_sink).numpy()
    masks, owner = np.unique(keep, axis=0, return_inverse=True)
    for i, mask in enumerate(masks):
        yield np.flatnonzero(owner.reshape(-1) == i).tolist(), np.flatnonzero(mask)


def _token_means(trace: Trace, read: Array, tokens: Tokens) -> Array:
    means: Array = weighted_mean(trace, torch.from_numpy(read), meant(trace, tokens).float()).numpy()
    return means


def present_mean(values_: Array) -> Array:
    """Mean over the first axis, NaN left out."""
    counts = (~np.isnan(values_)).sum(0)
    with np.errstate(invalid="ignore"):
        mean: Array = np.where(counts > 0, np.nansum(values_, axis=0) / np.maximum(counts, 1), np.nan)
    return mean


def _log_frequency(traces: Sequence[Trace], tokens: Tokens) -> dict[int, float]:
    counts = Counter(token for trace in traces for token in trace.tokens[meant(trace, tokens)].tolist())
    return {token: float(np.log(count)) for token, count in counts.items()}


def _require_variation(traces: Sequence[Trace], quantities: Sequence[str], tokens: Tokens) -> None:
    for quantity in quantities:
        kept = [torch.where(meant(t, tokens)[None] & ~t.is_sink, values(t, quantity), torch.nan).numpy() for t in traces]
        everything = np.concatenate(kept, axis=1)
        has_value = ~np.isnan(everything).all(1)
        spread = np.zeros(len(everything))
        spread[has_value] = np.nanmax(everything[has_value], axis=1) - np.nanmin(everything[has_value], axis=1)
        constant = [layer for layer, s, has in zip(traces[0].layers, spread, has_value, strict=True) if has and s == 0]
        if constant:
            raise Unmeasurable(
                f"{quantity} is the same at every token of layers {layer_ranges(constant)}: a rank correlation is not defined "
                "there; leave it out of quantities, or trace.select(layers)"
            )
