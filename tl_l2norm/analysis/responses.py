"""Norms of responses against what goes with them anyway: length, place in the response, right or wrong, the token itself."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import SupportsIndex

import numpy as np
import pandas as pd

from tl_l2norm.analysis.curves import response_means
from tl_l2norm.analysis.sinks import norms_without_sinks
from tl_l2norm.core.arguments import as_integer
from tl_l2norm.core.errors import InputError, Unmeasurable
from tl_l2norm.core.layers import Layers
from tl_l2norm.core.resampling import MIN_PROMPTS, RESAMPLES, Array, bootstrap_mean
from tl_l2norm.core.schema import MODEL, SEED, Column, N, Schema, ends
from tl_l2norm.core.trace import Trace, require_comparable
from tl_l2norm.tasks.results import Result, results_of

BINS = 60
"""Most places along a response that are told apart."""

_MODE = Column("mode", str, '"think" or "direct"')

RESPONSES = Schema(
    "responses",
    "response_table",
    (
        Column("prompt", str, "id of the problem"),
        Column("family", str, "of the problem"),
        Column("level", int, "of the problem"),
        _MODE,
        Column("correct", object, "True, False, or None where the answer is not known"),
        Column("length", int, "tokens of the response"),
        Column("l2_norm", float, "mean norm over its tokens and the layers, sinks left out; NaN where none was read back"),
        MODEL,
    ),
)
PLACES = Schema(
    "places",
    "norms_by_position",
    (
        _MODE,
        Column("position", int, "first of the places that are taken together, counted from the response's start"),
        Column("mean", float, "norm there, over the layers, then over prompts"),
        *ends("mean"),
        N,
        SEED,
        MODEL,
    ),
)
BY_CORRECTNESS = Schema(
    "right and wrong responses",
    "norms_by_correctness",
    (
        _MODE,
        Column("correct", bool, "whether the responses are right"),
        Column("mean", float, "norm over the layers and a response's tokens, then over prompts"),
        *ends("mean"),
        N,
        Column("n_responses", int, "of those prompts"),
        SEED,
        MODEL,
    ),
)
TOKEN_TYPES = Schema(
    "tokens",
    "highest_norm_tokens",
    (
        Column("token", str, "its text"),
        Column("part", str, '"thought", "answer" (what follows a thought) or "direct"'),
        Column("mean", float, "norm at the layer, over all times"),
        Column("ratio", float, "that mean over the median of all these tokens"),
        Column("max", float, "greatest norm"),
        Column("times", int, "how often it was written"),
        Column("prompts", int, "to how many prompts"),
        Column("layer", int, "whose norms these are"),
        MODEL,
    ),
)


def response_table(results: Result | Sequence[Result], *, layers: Layers = "late") -> pd.DataFrame:
    """One entry per response: what it is, how long it is and its mean norm.

    Columns: prompt, family, level, mode, correct (None where the answer is not known), length (tokens), l2_norm (mean over its
    tokens and the layers, sinks left out; NaN where no token was read back), model.

    Raises:
        ValueError: no results, traces that are not comparable, or layers that were not recorded.

    Examples:
        >>> l2.analysis.response_table(results).groupby("mode")["length"].max().to_dict()
        {'direct': ..., 'think': ...}
    """
    return RESPONSES.frame(
        {
            "prompt": result.problem.id,
            "family": result.problem.family,
            "level": result.problem.level,
            "mode": result.mode,
            "correct": result.correct,
            "length": len(result.trace) - result.trace.prompt_len + 1,
            "l2_norm": _mean(trace),
            "model": trace.provenance.model,
        }
        for result, trace in _chosen(results, layers)
    )


def norms_by_position(
    results: Result | Sequence[Result], *, layers: Layers = "late", seed: int = 0, resamples: int = RESAMPLES
) -> pd.DataFrame:
    """Mean norm along the response in each mode, with 95% intervals over prompts.

    Places are taken together so that there are at most 60. A place that fewer than 8 prompts' responses reach is left out,
    unless fewer were asked: far out only the long responses are left.

    Returns:
        One entry per mode and place: mode, position (the first of those taken together, from the response's start), mean, low,
        high, n (prompts), seed, model.

    Raises:
        ValueError: no results, traces that are not comparable, or layers that were not recorded.

    Examples:
        >>> table = l2.analysis.norms_by_position(results)
        >>> table[table["position"] == 0][["mode", "n"]].values.tolist()
        [['think', 12], ['direct', 12]]
    """
    chosen = _chosen(results, layers)
    longest = max(len(trace) - trace.prompt_len for _, trace in chosen)
    width = max(1, -(-longest // BINS))
    frames = []
    for mode in dict.fromkeys(result.mode for result, _ in chosen):
        places = _by_prompt(chosen, mode, lambda trace: _places(trace, width, -(-longest // width)))
        counts = (~np.isnan(places)).sum(0)
        kept = counts >= min(MIN_PROMPTS, len(places), max(1, counts.max(initial=0)))
        if kept.any():
            mean, low, high = bootstrap_mean(places[:, kept], seed=seed, resamples=resamples)
            by_place = {"position": width * np.flatnonzero(kept), "mean": mean, "low": low, "high": high, "n": counts[kept]}
            frames.append(PLACES.frame(by_place, mode=mode, seed=seed, model=chosen[0][1].provenance.model))
    return pd.concat(frames, ignore_index=True) if frames else PLACES.frame([])


def norms_by_correctness(
    results: Result | Sequence[Result], *, layers: Layers = "late", seed: int = 0, resamples: int = RESAMPLES
) -> pd.DataFrame:
    """Mean norm of right and of wrong responses in each mode, with 95% intervals over prompts; unknown answers are left out.

    Hard problems are the ones that are got wrong: a difference may be theirs. `l2.analysis.correctness_effect` compares right
    and wrong responses to one problem.

    Returns:
        One entry per mode and correctness: mode, correct, mean, low, high, n (prompts), n_responses, seed, model.

    Raises:
        ValueError: no results, traces that are not comparable, or layers that were not recorded.

    Examples:
        >>> table = l2.analysis.norms_by_correctness(results)
        >>> table.groupby("mode")["n"].sum().to_dict()
        {'direct': 12, 'think': 12}
    """
    chosen = _chosen(results, layers)
    entries = []
    for mode in dict.fromkeys(result.mode for result, _ in chosen):
        for correct in (True, False):
            own = [(r, t) for r, t in chosen if r.correct is correct and r.mode == mode and not np.isnan(_mean(t))]
            if own:
                mean, low, high = bootstrap_mean(_by_prompt(own, mode, _mean), seed=seed, resamples=resamples)
                n = len({result.problem.id for result, _ in own})
                counts = {"n": n, "n_responses": len(own)}
                entries.append(
                    {"mode": mode, "correct": correct, "mean": float(mean), "low": float(low), "high": float(high)} | counts
                )
    return BY_CORRECTNESS.frame(entries, seed=seed, model=chosen[0][1].provenance.model)


def highest_norm_tokens(results: Result | Sequence[Result], *, layer: SupportsIndex = -1, n: int = 20) -> pd.DataFrame:
    """Which tokens of responses have the highest norm at a layer, sinks left out: one entry per token and part, highest first.

    Columns: token, part ("thought", "answer", which is what follows one, or "direct"), mean (norm), ratio (that mean over the
    median of all these tokens), max, times (how often it was written), prompts (to how many), layer, model.

    Raises:
        ValueError: no results, traces that are not comparable, a layer that was not recorded, or no token of a response.

    Examples:
        >>> table = l2.analysis.highest_norm_tokens(results, n=5)
        >>> len(table), bool(table["mean"].is_monotonic_decreasing)
        (5, True)
    """
    n = as_integer("n", n, least=1)
    found: dict[tuple[str, str], list[tuple[float, str]]] = defaultdict(list)
    chosen = _chosen(results, None)
    layer = chosen[0][1].layers[chosen[0][1].index_of(layer)]
    for result, trace in chosen:
        norms = norms_without_sinks(trace.select(layer))[0]
        for position in range(trace.prompt_len, len(trace)):
            if not np.isnan(norms[position]):
                key = trace.str_tokens[position], _part(result, trace.segments[position])
                found[key].append((float(norms[position]), result.problem.id))
    if not found:
        raise Unmeasurable("no response has a token that was read back and is no sink: ask for longer responses")
    median = float(np.median([norm for own in found.values() for norm, _ in own]))
    entries = [_type(key, own, median) for key, own in found.items()]
    table = TOKEN_TYPES.frame(entries, layer=layer, model=chosen[0][1].provenance.model)
    return table.sort_values(["mean", "token", "part"], ascending=[False, True, True], ignore_index=True).head(n)


def _part(result: Result, segment: str) -> str:
    """What of a response a token belongs to."""
    return "direct" if result.mode == "direct" else "thought" if segment == "think" else "answer"


def _type(key: tuple[str, str], own: Sequence[tuple[float, str]], median: float) -> dict[str, object]:
    norms = [norm for norm, _ in own]
    mean = float(np.mean(norms))
    counts = {"times": len(own), "prompts": len({prompt for _, prompt in own})}
    return {"token": key[0], "part": key[1], "mean": mean, "ratio": mean / median, "max": max(norms), **counts}


def _chosen(results: Result | Sequence[Result], layers: Layers) -> list[tuple[Result, Trace]]:
    """Results with their traces at these layers."""
    results = results_of(results)
    if not results:
        raise InputError("no results given")
    traces = [result.trace for result in results]
    require_comparable(traces)
    return [(result, trace if layers is None else trace.select(layers)) for result, trace in zip(results, traces, strict=True)]


def _mean(trace: Trace) -> float:
    """Over response tokens, then over layers."""
    return float(response_means(trace).double().mean())


def _places(trace: Trace, width: int, n: int) -> Array:
    """[place] mean over layers and over `width` tokens of the response; NaN where it has ended or all are sinks."""
    norms = norms_without_sinks(trace)[:, trace.prompt_len :].mean(0)
    padded = np.full(width * n, np.nan)
    padded[: len(norms)] = norms
    held = ~np.isnan(padded.reshape(n, width))
    sums, counts = np.where(held, padded.reshape(n, width), 0).sum(1), held.sum(1)
    means: Array = np.divide(sums, counts, out=np.full(n, np.nan), where=counts > 0)
    return means


def _by_prompt(chosen: Sequence[tuple[Result, Trace]], mode: str, value: Callable[[Trace], float | Array]) -> Array:
    """[prompt, ...] mean of a value over each prompt's responses of a mode, those without one left out."""
    values: dict[str, list[Array]] = defaultdict(list)
    for result, trace in chosen:
        if result.mode == mode:
            values[result.problem.id].append(np.asarray(value(trace), dtype=np.float64))
    means = []
    for own in values.values():
        held = ~np.isnan(own)
        count = held.sum(0)
        total = np.where(held, own, 0).sum(0)
        means.append(np.where(count > 0, total / np.maximum(count, 1), np.nan))
    return np.stack(means)
