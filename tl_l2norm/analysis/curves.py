"""Norm per layer and mode, and thinking minus direct at each layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from tl_l2norm.analysis.pairing import Match, Tokens, by_own_prompt, meant, mode_means, pair_modes, require_mode, weighted_mean
from tl_l2norm.analysis.quantities import Latents, values
from tl_l2norm.core.arguments import check_text
from tl_l2norm.core.errors import Unmeasurable
from tl_l2norm.core.resampling import RESAMPLES, bootstrap_mean
from tl_l2norm.core.schema import LAYER, MODEL, QUANTITY, SEED, Column, N, Schema, ends
from tl_l2norm.core.sign_flips import sign_flips
from tl_l2norm.core.trace import Trace, TracesLike, require_comparable, traces_of

P_VALUES = (
    Column("p", float, "two-sided, by flipping the signs of prompts' differences"),
    Column("p_max", float, "two-sided, over all entries together"),
)

CURVES = Schema(
    "curves",
    "layer_curve(...).to_frame()",
    (
        Column("mode", str, '"think", "direct" or a name of one\'s own'),
        QUANTITY,
        LAYER,
        Column("mean", float, "over response tokens, then over prompts, in units of the quantity"),
        *ends("mean"),
        N,
        Column("n_tokens", int, "response tokens of all traces"),
        SEED,
        MODEL,
    ),
)

DIFFERENCES = Schema(
    "differences by layer",
    "mode_differences",
    (
        LAYER,
        QUANTITY,
        Column("difference", float, "thinking minus direct, mean over prompts, in units of the quantity"),
        *ends("difference"),
        *P_VALUES,
        Column("match", str, "how the modes are matched"),
        N,
        SEED,
        MODEL,
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerCurve:
    """Mean of response tokens per layer, with a 95% interval over prompts."""

    mode: str
    quantity: str = "l2_norm"
    layers: tuple[int, ...]
    late: tuple[int, ...]
    """Those of them that are late layers of the model."""
    mean: NDArray[np.float64]
    """[layer]"""
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    n: int
    """Prompts."""
    n_tokens: int
    seed: int
    model: str

    def to_frame(self) -> pd.DataFrame:
        """One entry per layer: mode, quantity, layer, mean, low, high, n, n_tokens, seed, model."""
        by_layer = {"layer": self.layers, "mean": self.mean, "low": self.low, "high": self.high}
        constants = {name: getattr(self, name) for name in ("mode", "quantity", "n", "n_tokens", "seed", "model")}
        return CURVES.frame(by_layer, **constants)


def response_means(
    trace: Trace, quantity: str = "l2_norm", tokens: Tokens = "read", features: Latents | None = None
) -> Float[Tensor, " layer"]:
    """Mean of a quantity over a response's tokens, sinks left out, at each layer; NaN where there is no token, or no SAE."""
    return weighted_mean(trace, values(trace, quantity, features), meant(trace, tokens).float())


def layer_curve(
    traces: TracesLike,
    *,
    mode: str,
    quantity: str = "l2_norm",
    features: Latents | None = None,
    tokens: Tokens = "read",
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> LayerCurve:
    """The curve of one mode. Several traces of one prompt (label "prompt") are averaged first: prompts are what is resampled.

    Args:
        traces: of one mode.
        mode: its name.
        quantity: "l2_norm", a recorded metric, "feature_sum" (all latents of the SAE) or "reasoning_sum".
        features: for "reasoning_sum", from `find_reasoning_features`.
        tokens: "read", the response's own, or "chosen", those from which they were chosen.
        seed: of the resampling.
        resamples: how many.

    Raises:
        ValueError: no traces, traces that are not comparable or labelled as of the other mode, none with a response, a
            quantity that was not recorded, one prompt under two labels, or prompts that the features were chosen on.

    Examples:
        >>> curve = layer_curve(think, mode="think")
        >>> curve.to_frame()[["layer", "mean", "low", "high", "n"]].tail(2).round()
            layer   mean    low   high   n
        10     10  266.0  251.0  280.0  12
        11     11  312.0  294.0  332.0  12
    """
    check_text("mode", mode)
    chosen = traces_of(traces)
    require_comparable(chosen)
    require_mode(chosen, mode, f"the curve of mode={mode!r}", "give those of one mode, and its name")
    if quantity in ("feature_sum", "reasoning_sum") and all(trace.features for trace in chosen):
        chosen = tuple(trace.select([layer for layer in trace.layers if layer in trace.features]) for trace in chosen)
        require_comparable(chosen)
    means = np.stack(list(_by_prompt(chosen, quantity, tokens, features).values()))
    if np.isnan(means).all():
        raise Unmeasurable(f"no {mode!r} trace has a response token: collect over prompts with responses, or use generate")
    mean, low, high = bootstrap_mean(means, seed=seed, resamples=resamples)
    return LayerCurve(
        mode=mode,
        quantity=quantity,
        layers=chosen[0].layers,
        late=chosen[0].late_layers,
        mean=mean,
        low=low,
        high=high,
        n=int((~np.isnan(means).all(1)).sum()),
        n_tokens=int(sum(int(meant(trace, tokens).sum()) for trace in chosen)),
        seed=seed,
        model=chosen[0].provenance.model,
    )


def mode_differences(
    think: TracesLike,
    direct: TracesLike,
    *,
    quantity: str = "l2_norm",
    features: Latents | None = None,
    match: Match = "count",
    tokens: Tokens = "read",
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> pd.DataFrame:
    """Thinking minus direct at each layer, paired by prompt, over as many tokens of both responses by default.

    Args:
        think: thinking traces; the label "prompt" pairs them.
        direct: direct ones.
        quantity: "l2_norm", a recorded metric, "feature_sum" or "reasoning_sum".
        features: for "reasoning_sum".
        match: which tokens of the two modes are compared, as in `find_reasoning_features`.
        tokens: "read", the response's own, or "chosen", those from which they were chosen.
        seed: of the resampling, of match="count" and of the flips.
        resamples: how many, and how many flips: 19 or more.

    Returns:
        One entry per layer: layer, quantity, difference, low, high, p (two-sided, by flipping the signs of prompts'
        differences), p_max (over all layers together), match, n (prompts), seed, model.

    Raises:
        ValueError: modes with different prompts, fewer than 8, traces that are not comparable, an infinite value, or a quantity
            that was not recorded.

    Examples:
        >>> mode_differences(think, direct)[["layer", "difference", "n"]].tail(2).round()
            layer  difference   n
        10     10      -170.0  12
        11     11      -151.0  12
    """
    think, direct = traces_of(think), traces_of(direct)
    pairs = pair_modes(think, direct)
    read = lambda trace: values(trace, quantity, features)  # noqa: E731
    first, second = mode_means(pairs, read, match=match, tokens=tokens, seed=seed)
    mean, low, high = bootstrap_mean(first - second, seed=seed, resamples=resamples)
    p, p_max = sign_flips(first - second, seed=seed, flips=resamples)
    counts = (~np.isnan(first - second)).sum(0)
    by_layer = {"layer": think[0].layers, "difference": mean, "low": low, "high": high, "p": p, "p_max": p_max, "n": counts}
    return DIFFERENCES.frame(by_layer, quantity=quantity, match=match, seed=seed, model=think[0].provenance.model)


def _by_prompt(
    traces: Sequence[Trace], quantity: str, tokens: Tokens = "read", features: Latents | None = None
) -> Mapping[str, NDArray[np.float64]]:
    """Means [layer] of each prompt, over its samples; without the label "prompt" that of the same tokens is the same."""
    means = {}
    for prompt, samples in by_own_prompt(traces).items():
        stacked = np.stack([response_means(trace, quantity, tokens, features).double().numpy() for trace in samples])
        held = ~np.isnan(stacked).all(1)
        means[prompt] = stacked[held].mean(0) if held.any() else stacked[0]
    return means
