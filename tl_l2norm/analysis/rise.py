"""How a quantity rises over the layers, and how much more it does in thinking."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pandas as pd
from einops import reduce
from numpy.typing import NDArray

from tl_l2norm.analysis.labels import label
from tl_l2norm.analysis.pairing import Match, Tokens, mode_means, pair_modes
from tl_l2norm.analysis.quantities import Latents, values
from tl_l2norm.core.arguments import as_names
from tl_l2norm.core.errors import InputError, Unmeasurable
from tl_l2norm.core.layers import late_layers, layer_ranges
from tl_l2norm.core.resampling import MIN_PROMPTS, RESAMPLES, Array, Estimate, bootstrap
from tl_l2norm.core.schema import MODEL, QUANTITY, SEED, Column, N, Schema, ends
from tl_l2norm.core.trace import Trace, TracesLike, traces_of

NO_SHAPE = "no shape can be told"
SHARP = 0.5
"""Share of the rise in the last quarter of the layers over which it is called a sharp late spike; `even_share` of them rises
there where the rise is even."""

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
        Column("even_share", float, "sharpness of an even rise over as many layers"),
        Column("spike", float, "thinking minus direct, mean over late layers, in units of the quantity"),
        *ends("spike", prefix=True),
        Column("amplification", float, "thinking over direct, of the means over late layers"),
        *ends("amplification", prefix=True),
        Column("sharpness_but_last", float, "sharpness without the last block; NaN where that is the only late one"),
        *ends("sharpness_but_last", prefix=True),
        Column("spike_but_last", float, "spike without the last block; NaN where that is the only late one"),
        *ends("spike_but_last", prefix=True),
        Column("amplification_but_last", float, "amplification without the last block; NaN where that is the only late one"),
        *ends("amplification_but_last", prefix=True),
        Column("match", str, "how the modes are matched in spike and amplification"),
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
    match: Match = "count",
    tokens: Tokens = "read",
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> pd.DataFrame:
    """Shape of the mean curve over layers, and thinking against direct in the late layers.

    - onset: layer at which the thinking curve bends upwards, by the two-piece linear fit of least squares; NaN without such
      a bend.
    - sharpness: share of the thinking curve's whole rise that falls in the last quarter of the layers; NaN without a rise. An
      even rise has `even_share`: 27.3% of it over 12 layers, as 3 of its 11 steps are late.
    - spike: mean over late layers, thinking minus direct. amplification: the ratio of the two means. Over as many tokens of
      both responses by default; onset and sharpness are of all thinking tokens.

    All but the onset also without the last block, whose output the unembedding alone reads.

    Args:
        think: traces with all layers, with the label "prompt" and those of `by`.
        direct: to the same prompts.
        quantity: "l2_norm", a recorded metric, "feature_sum" or "reasoning_sum".
        by: "family", "level", both, or nothing: an entry for each group.
        features: for "reasoning_sum".
        match: which tokens of the two modes are compared, as in `find_reasoning_features`.
        tokens: "read", the response's own, or "chosen", those from which they were chosen.
        seed: of the resampling, and of match="count".
        resamples: how many, 19 or more.

    Returns:
        One entry per group: the columns of `by`, quantity, then onset, sharpness, spike, amplification, sharpness_but_last,
        spike_but_last, amplification_but_last, each with _low and _high (NaN below 8 prompts), even_share, match, n (prompts),
        description, seed, model.

    Raises:
        ValueError: modes with different prompts, fewer than 8 prompts in all, not all layers recorded, or a label that is
            missing.
        Unmeasurable: fewer than 4 layers, or a late layer without any value, such as an activation where there is no SAE.

    Examples:
        >>> dynamics(think, direct)[["spike", "amplification", "n"]].round(1)
           spike  amplification   n
        0 -144.6            0.6  12
    """
    think, direct = traces_of(think), traces_of(direct)
    by = as_names("by", by)
    if unknown := set(by) - set(_GROUPS):
        raise InputError(f"can't group by {sorted(unknown)}: give any of {', '.join(_GROUPS)}")
    pairs = pair_modes(think, direct)
    _require_all_layers(think[0])
    means = {
        way: mode_means(pairs, lambda trace: values(trace, quantity, features), match=way, tokens=tokens, seed=seed)
        for way in {"none", match}
    }
    whole, (first, second) = means["none"][0], means[match]
    groups = _group_index([members[0][0] for members in pairs.values()], by)
    late = np.isin(think[0].layers, think[0].late_layers)
    lacking = _lacking(whole, think[0], quantity)
    entries = [
        {
            **dict(zip(by, key, strict=True)),
            "quantity": quantity,
            **_shape(whole[at], first[at], second[at], late, seed, resamples),
            **lacking,
        }
        for key, at in groups.items()
    ]
    return DYNAMICS.frame(entries, by=by, match=match, seed=seed, model=think[0].provenance.model)


def _require_all_layers(trace: Trace) -> None:
    if trace.provenance.n_layers < 4:
        raise Unmeasurable(f"the rise over the layers needs at least 4, the model has {trace.provenance.n_layers}")
    if len(trace.layers) < trace.provenance.n_layers:
        raise InputError(
            f"the rise over the layers needs all of them: the traces have {len(trace.layers)} of {trace.provenance.n_layers}"
        )


def _lacking(whole: Array, trace: Trace, quantity: str) -> dict[str, str]:
    """The description of a curve [prompt, layer] that lacks layers before the late ones, such as those without an SAE."""
    if np.isnan(whole).all():
        raise Unmeasurable(
            f"no prompt has a value of {quantity} in thinking at any layer, where direct answers have one too: there is no "
            "curve; a response's last token has none, so a direct answer takes two or more"
        )
    lacking = [trace.layers[i] for i in np.flatnonzero(np.isnan(whole).all(0))]
    if not lacking:
        return {}
    which = f"layers {layer_ranges(lacking)} have no value of {quantity}, as where they have no SAE"
    if set(lacking) & set(trace.late_layers):
        raise Unmeasurable(f"the rise over the layers needs all of them: {which}")
    return {"description": f"{NO_SHAPE}: {which}"}


def _group_index(traces: Sequence[Trace], by: Sequence[str]) -> dict[tuple[object, ...], NDArray[np.bool_]]:
    """Prompts of each group, in the order of its labels."""
    keys = [tuple(label(trace, name) for name in by) for trace in traces]
    return {key: np.array([k == key for k in keys]) for key in sorted(set(keys), key=lambda k: tuple(map(_order, k)))}


def _order(label: object) -> tuple[bool, float, str]:
    number = isinstance(label, int | float)
    return (not number, float(label) if number else 0.0, str(label))  # type: ignore[arg-type]


def _shape(whole: Array, think: Array, direct: Array, late: NDArray[np.bool_], seed: int, resamples: int) -> dict[str, object]:
    """Of the curve of all thinking tokens, and of both modes' curves [prompt, layer] on the tokens that are compared."""
    both = np.stack([think, direct], axis=1)
    both = both[~reduce(np.isnan(both[..., late]), "prompt mode layer -> prompt", "any")]
    nothing = Estimate(mean=np.nan, low=np.nan, high=np.nan, n=0)
    shape = {"onset": bootstrap(whole, onset, seed=seed, resamples=resamples)}
    for suffix, stop in {"": len(late), "_but_last": len(late) - 1}.items():
        at = late[:stop]
        parts: dict[str, tuple[Array, Callable[[Array], Array]]] = {
            "sharpness": (whole[:, :stop], partial(sharpness, late=at)),
            "spike": (both[..., :stop][..., at], _spike),
            "amplification": (both[..., :stop][..., at], amplification),
        }
        for name, (curves, statistic) in parts.items():
            known = len(curves) > 0 and bool(at.any())
            shape[name + suffix] = bootstrap(curves, statistic, seed=seed, resamples=resamples) if known else nothing
    entry: dict[str, object] = {}
    for name, e in shape.items():
        known = e.n >= MIN_PROMPTS
        entry |= {name: e.mean, f"{name}_low": e.low if known else np.nan, f"{name}_high": e.high if known else np.nan}
    even = even_share(len(late))
    description = describe_rise(shape["sharpness"], shape["onset"], even)
    return {**entry, "even_share": even, "n": len(both), "description": description}


def _spike(curves: Array) -> Array:
    """Difference of the modes [..., mode, layer] over layers."""
    means: Array = curves.mean(-1)
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


def even_share(n_layers: int) -> float:
    """Share of an even rise that falls in the last quarter of the layers: 3 of the 11 steps between 12 layers.

    Examples:
        >>> print(f"{even_share(12):.1%} of 12 layers, {even_share(28):.1%} of 28")
        27.3% of 12 layers, 25.9% of 28
    """
    return len(late_layers(n_layers)) / (n_layers - 1)


def describe_rise(share: Estimate, bend: Estimate, even: float) -> str:
    """One line on the shape of a curve, with the figures that it rests on, beside the share that an even rise has."""
    if np.isnan(share.mean):
        return "no rise over the layers"
    word = "over" if share.low > even else "under" if share.high < even else "not told from"
    figures = f"{share.mean:.0%} [{share.low:.0%}, {share.high:.0%}] of the rise in the last quarter of the layers, "
    figures += f"{word} the {even:.1%} of an even rise"
    figures += "" if np.isnan(bend.mean) else f", bend at layer {bend.mean:.0f}"
    if share.n < MIN_PROMPTS:
        return f"too few prompts to say ({share.mean:.0%} of the rise in the last quarter)"
    if share.low > SHARP:
        return f"sharp late spike: {figures}"
    if share.high < SHARP:
        return f"gradual build-up: {figures}"
    return f"between a gradual build-up and a sharp late spike: {figures}"
