"""How a quantity rises over the layers, and how much more it does in thinking."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from einops import reduce
from numpy.typing import NDArray

from tl_l2norm.analysis.pairing import Tokens, label, mode_means, pair_modes
from tl_l2norm.analysis.quantities import Latents, values
from tl_l2norm.core.arguments import as_names
from tl_l2norm.core.errors import InputError, Unmeasurable
from tl_l2norm.core.resampling import MIN_PROMPTS, RESAMPLES, Array, Estimate, bootstrap
from tl_l2norm.core.schema import MODEL, QUANTITY, SEED, Column, N, Schema, ends
from tl_l2norm.core.trace import Trace, TracesLike, traces_of

SHARP = 0.5
"""Share of the rise in the last quarter of the layers over which it is called a sharp late spike; an even rise has 0.25."""

_GROUPS = ("family", "level")

DYNAMICS = Schema(
    "shapes of the rise",
    "dynamics",
    (
        *(Column(name, object, "label of the group", optional=True) for name in _GROUPS),
        QUANTITY,
        Column("onset", float, "layer at which the thinking curve bends upwards; NaN without a bend"),
        *ends("onset", prefix=True),
        Column("sharpness", float, "share of the thinking curve's rise in the last quarter of the layers; NaN without a rise"),
        *ends("sharpness", prefix=True),
        Column("spike", float, "thinking minus direct, mean over late layers, in units of the quantity"),
        *ends("spike", prefix=True),
        Column("amplification", float, "thinking over direct, of the means over late layers"),
        *ends("amplification", prefix=True),
        N,
        Column("description", str, "the shape in words"),
        SEED,
        MODEL,
    ),
)


def dynamics(
    think: TracesLike,
    direct: TracesLike,
    *,
    quantity: str = "l2_norm",
    by: str | Sequence[str] = (),
    features: Latents | None = None,
    tokens: Tokens = "read",
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> pd.DataFrame:
    """Shape of the mean curve over layers, and thinking against direct in the late layers.

    - onset: layer at which the thinking curve bends upwards, by the two-piece linear fit of least squares; NaN without such
      a bend.
    - sharpness: share of the thinking curve's whole rise that falls in the last quarter of the layers; NaN without a rise.
    - spike: mean over late layers, thinking minus direct. amplification: the ratio of the two means.

    Args:
        think: traces with all layers, with the label "prompt" and those of `by`.
        direct: to the same prompts.
        quantity: "l2_norm", a recorded metric, "feature_sum" or "reasoning_sum".
        by: "family", "level", both, or nothing: an entry for each group.
        features: for "reasoning_sum".
        tokens: "read", the response's own, or "chosen", those from which they were chosen.
        seed: of the resampling.
        resamples: how many.

    Returns:
        One entry per group: the columns of `by`, quantity, then onset, sharpness, spike, amplification, each with _low and
        _high (NaN below 8 prompts), n (prompts), description, seed, model.

    Raises:
        ValueError: modes with different prompts, fewer than 8 prompts in all, not all layers recorded, or a label that is
            missing.

    Examples:
        >>> dynamics(think, direct)[["spike", "amplification", "n"]].round(1)
           spike  amplification   n
        0 -275.7            0.5  12
    """
    think, direct = traces_of(think), traces_of(direct)
    by = as_names("by", by)
    if unknown := set(by) - set(_GROUPS):
        raise InputError(f"can't group by {sorted(unknown)}: give any of {', '.join(_GROUPS)}")
    pairs = pair_modes(think, direct)
    _require_all_layers(think[0])
    first, second = mode_means(pairs, lambda trace: values(trace, quantity, features), tokens=tokens)
    groups = _group_index([members[0][0] for members in pairs.values()], by)
    late = np.isin(think[0].layers, think[0].late_layers)
    entries = [
        {**dict(zip(by, key, strict=True)), "quantity": quantity, **_shape(first[at], second[at], late, seed, resamples)}
        for key, at in groups.items()
    ]
    return DYNAMICS.frame(entries, by=by, seed=seed, model=think[0].provenance.model)


def _require_all_layers(trace: Trace) -> None:
    if trace.provenance.n_layers < 4:
        raise Unmeasurable(f"the rise over the layers needs at least 4, the model has {trace.provenance.n_layers}")
    if len(trace.layers) < trace.provenance.n_layers:
        raise InputError(
            f"the rise over the layers needs all of them: the traces have {len(trace.layers)} of {trace.provenance.n_layers}"
        )


def _group_index(traces: Sequence[Trace], by: Sequence[str]) -> dict[tuple[object, ...], NDArray[np.bool_]]:
    """Prompts of each group, in the order of its labels."""
    keys = [tuple(label(trace, name) for name in by) for trace in traces]
    return {key: np.array([k == key for k in keys]) for key in sorted(set(keys), key=lambda k: tuple(map(_order, k)))}


def _order(label: object) -> tuple[bool, float, str]:
    number = isinstance(label, int | float)
    return (not number, float(label) if number else 0.0, str(label))  # type: ignore[arg-type]


def _shape(think: Array, direct: Array, late: NDArray[np.bool_], seed: int, resamples: int) -> dict[str, object]:
    shape = {
        "onset": bootstrap(think, onset, seed=seed, resamples=resamples),
        "sharpness": bootstrap(think, lambda curves: sharpness(curves, late), seed=seed, resamples=resamples),
    }
    both = np.stack([think, direct], axis=1)
    both = both[~reduce(np.isnan(both[..., late]), "prompt mode layer -> prompt", "any")]
    nothing = Estimate(mean=np.nan, low=np.nan, high=np.nan, n=0)
    shape["spike"] = bootstrap(both, lambda m: _spike(m, late), seed=seed, resamples=resamples) if len(both) else nothing
    shape["amplification"] = bootstrap(both[..., late], amplification, seed=seed, resamples=resamples) if len(both) else nothing
    entry: dict[str, object] = {}
    for name, e in shape.items():
        known = e.n >= MIN_PROMPTS
        entry |= {name: e.mean, f"{name}_low": e.low if known else np.nan, f"{name}_high": e.high if known else np.nan}
    return {**entry, "n": len(both), "description": describe_rise(shape["sharpness"], shape["onset"])}


def _spike(curves: Array, late: NDArray[np.bool_]) -> Array:
    """Difference of the modes [..., mode, layer] over late layers."""
    means: Array = curves[..., late].mean(-1)
    return means[..., 0] - means[..., 1]


def amplification(curves: Array) -> Array:
    """Thinking over direct: the ratio of the modes' means [..., mode, layer] over layers; NaN where the second is 0.

    Of means over prompts it is the ratio of the means, where a prompt of small norms weighs no more than its norms do; of
    single prompts it is each one's own.
    """
    means = curves.mean(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio: Array = np.where(means[..., 1] != 0, means[..., 0] / means[..., 1], np.nan)
    return ratio


def onset(curves: Array) -> Array:
    """Layer at which each curve [..., layer] bends upwards: the knot k of the best fit a + b l + c max(0, l - k) with c > 0."""
    n = curves.shape[-1]
    layers = np.arange(n)
    best, at = np.full(curves.shape[:-1], np.inf), np.full(curves.shape[:-1], np.nan)
    for knot in range(1, n - 1):
        design = np.stack([np.ones(n), layers, np.maximum(0, layers - knot)], axis=1)
        fit = np.linalg.pinv(design)
        weights = curves @ fit.T
        error = ((curves - weights @ design.T) ** 2).sum(-1)
        better = (weights[..., 2] > 1e-9) & (error < best)
        best, at = np.where(better, error, best), np.where(better, float(knot), at)
    return at


def sharpness(curves: Array, late: NDArray[np.bool_]) -> Array:
    """Share of the whole rise of each curve [..., layer] that falls in the late layers; NaN where it doesn't rise."""
    before = max(int(np.flatnonzero(late)[0]) - 1, 0)
    whole = curves[..., -1] - curves[..., 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        share: Array = np.where(whole > 0, (curves[..., -1] - curves[..., before]) / whole, np.nan)
    return share


def describe_rise(share: Estimate, bend: Estimate) -> str:
    """One line on the shape of a curve, with the figure that it rests on."""
    if np.isnan(share.mean):
        return "no rise over the layers"
    figures = f"{share.mean:.0%} [{share.low:.0%}, {share.high:.0%}] of the rise in the last quarter of the layers"
    figures += "" if np.isnan(bend.mean) else f", bend at layer {bend.mean:.0f}"
    if share.n < MIN_PROMPTS:
        return f"too few prompts to say ({share.mean:.0%} of the rise in the last quarter)"
    if share.low > SHARP:
        return f"sharp late spike: {figures}"
    if share.high < SHARP:
        return f"gradual build-up: {figures}"
    return f"between a gradual build-up and a sharp late spike: {figures}"
