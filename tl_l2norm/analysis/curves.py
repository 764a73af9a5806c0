"""Norm per layer and mode, and whether thinking is above direct in the late layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from tl_l2norm.analysis.pairing import (
    Tokens,
    meant,
    mode_means,
    pair_modes,
    require_mode,
    require_modes,
    require_same_prompts,
    weighted_mean,
)
from tl_l2norm.analysis.quantities import Latents, values
from tl_l2norm.analysis.rise import amplification
from tl_l2norm.core.arguments import check_text
from tl_l2norm.core.errors import Unmeasurable
from tl_l2norm.core.resampling import MIN_PROMPTS, RESAMPLES, Estimate, bootstrap, bootstrap_mean, estimate
from tl_l2norm.core.schema import LAYER, MODEL, QUANTITY, SEED, Column, N, Schema, ends
from tl_l2norm.core.trace import Trace, TracesLike, require_comparable, traces_of

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


@dataclass(frozen=True, slots=True, kw_only=True)
class LateComparison:
    """Thinking minus direct, mean norm over the late layers' response tokens, paired by prompt."""

    difference: Estimate
    ratio: Estimate
    """The amplification: the ratio of the two means."""
    layers: tuple[int, ...]
    tokens: Tokens
    seed: int
    model: str

    @property
    def verdict(self) -> str:
        """In words, whichever way it falls."""
        difference, first, last = self.difference, self.layers[0], self.layers[-1]
        where = f"layers {first} to {last}" if len(self.layers) > 1 else f"layer {first}"
        if self.tokens == "chosen":
            where += ", at the tokens from which the response was chosen"
        prompts = "1 prompt" if difference.n == 1 else f"{difference.n} prompts"
        if difference.n < MIN_PROMPTS:
            few = f"With {prompts} nothing can be said of the late layers ({where})"
            figures = f"difference {difference.mean:.4g}, ratio {self.ratio.mean:.3f}, no interval with so few"
            return f"{few}: {figures}; give at least {MIN_PROMPTS}."
        ratio = f"{self.ratio.mean:.3f} [{self.ratio.low:.3f}, {self.ratio.high:.3f}]"
        figures = f"difference {difference} prompts, ratio {ratio}"
        if not difference.excludes_zero:
            return f"Thinking norms are neither higher nor lower than direct ones in the late layers ({where}): {figures}."
        word = "higher" if difference.mean > 0 else "lower"
        return f"Thinking norms are {word} than direct ones in the late layers ({where}): {figures}."


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
            quantity that was not recorded, or prompts that the features were chosen on.

    Examples:
        >>> curve = layer_curve(think, mode="think")
        >>> curve.to_frame()[["layer", "mean", "low", "high", "n"]].tail(2).round()
            layer   mean    low   high   n
        10     10  271.0  257.0  285.0  12
        11     11  311.0  295.0  327.0  12
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


def compare_late(
    think: TracesLike,
    direct: TracesLike,
    *,
    tokens: Tokens = "read",
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> LateComparison:
    """Compare the modes over the late layers, as far as they were recorded, paired by the label "prompt".

    A prompt without a response token in either mode is left out; `difference.n` says how many are left.

    Raises:
        ValueError: traces that are not comparable or say that they are of the other mode, modes whose prompts differ, no late
            layer recorded, or no prompt with response tokens in both modes.

    Examples:
        >>> compare_late(think, direct).verdict
        'Thinking norms are lower than direct ones in the late layers (layers 9 to 11): difference -275.7 ...'
    """
    think, direct = traces_of(think), traces_of(direct)
    require_comparable([*think, *direct])
    require_modes(think, direct)
    think, direct = ([trace.select("late") for trace in traces] for traces in (think, direct))
    by_think, by_direct = _by_prompt(think, "l2_norm", tokens), _by_prompt(direct, "l2_norm", tokens)
    require_same_prompts(by_think, by_direct)
    both = np.array([[by_think[prompt], by_direct[prompt]] for prompt in by_think])  # [prompt, mode, layer]
    late = both.mean(-1)
    held = both[~np.isnan(late).any(1)]
    if not len(held):
        raise Unmeasurable("no prompt has response tokens in both modes: collect over prompts with responses, or use generate")
    return LateComparison(
        difference=estimate(late[:, 0] - late[:, 1], seed=seed, resamples=resamples),
        ratio=bootstrap(held, amplification, seed=seed, resamples=resamples),
        layers=think[0].layers,
        tokens=tokens,
        seed=seed,
        model=think[0].provenance.model,
    )


def mode_differences(
    think: TracesLike,
    direct: TracesLike,
    *,
    quantity: str = "l2_norm",
    features: Latents | None = None,
    tokens: Tokens = "read",
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> pd.DataFrame:
    """Thinking minus direct at each layer, paired by prompt.

    Returns:
        One entry per layer: layer, quantity, difference, low, high, n (prompts), seed, model.

    Raises:
        ValueError: modes with different prompts, fewer than 8, traces that are not comparable, or a quantity that was not
            recorded.

    Examples:
        >>> mode_differences(think, direct)[["layer", "difference", "n"]].tail(2).round()
            layer  difference   n
        10     10      -268.0  12
        11     11      -335.0  12
    """
    think, direct = traces_of(think), traces_of(direct)
    pairs = pair_modes(think, direct)
    first, second = mode_means(pairs, lambda trace: values(trace, quantity, features), tokens=tokens)
    mean, low, high = bootstrap_mean(first - second, seed=seed, resamples=resamples)
    counts = (~np.isnan(first - second)).sum(0)
    by_layer = {"layer": think[0].layers, "difference": mean, "low": low, "high": high, "n": counts}
    return DIFFERENCES.frame(by_layer, quantity=quantity, seed=seed, model=think[0].provenance.model)


def _by_prompt(
    traces: Sequence[Trace], quantity: str, tokens: Tokens = "read", features: Latents | None = None
) -> Mapping[object, NDArray[np.float64]]:
    """Means [layer] of each prompt, over its samples; without the label "prompt" each trace is its own."""
    groups: dict[object, list[NDArray[np.float64]]] = {}
    for i, trace in enumerate(traces):
        groups.setdefault(trace.labels.get("prompt", i), []).append(
            response_means(trace, quantity, tokens, features).double().numpy()
        )
    means = {}
    for prompt, samples in groups.items():
        stacked = np.stack(samples)
        held = ~np.isnan(stacked).all(1)
        means[prompt] = stacked[held].mean(0) if held.any() else stacked[0]
    return means
