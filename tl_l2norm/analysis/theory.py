"""The four assumptions of the paper's theorem, as figures."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from tl_l2norm.analysis.directions import (
    MOST_DIRECTIONS,
    coactive_cosine,
    decoder_cosine,
    positions,
    random_cosine,
    random_cosine_spread,
)
from tl_l2norm.analysis.pairing import Tokens, by_prompt, mode_means, pair_modes, require_prompts
from tl_l2norm.analysis.reasoning import ReasoningFeatures
from tl_l2norm.core.measured import EXPLAINED
from tl_l2norm.core.resampling import (
    RESAMPLES,
    Estimate,
    estimate,
    interval,
    prompt_weights,
)
from tl_l2norm.core.schema import LAYER, MODEL, SEED, Column, Schema, ends
from tl_l2norm.core.trace import Trace, TracesLike, traces_of

TOP_SHARE = 0.05
"""A4: the tokens on which a part is most active are this share of all."""

BOUNDS = {"A1": 0.02, "A1 co-active": 0.02, "A2 R2": 0.95, "A2 residual": 0.05, "A2 gap": 1.0, "A3": 0.1, "A4": 0.03}
"""The paper's; of co-active directions its bound on all, of the gap that at which the error is as large as the gap itself."""
AT_LEAST = frozenset({"A2 R2"})
"""What must lie over its bound; the others under theirs."""
STATEMENTS = {
    "A1": "mean absolute cosine between decoder directions is under 0.02",
    "A1 co-active": "mean absolute cosine between directions that are active on the same token is under 0.02",
    "A2 R2": "the reconstruction explains over 95% of the variance",
    "A2 residual": "its error is under 5% of the squared norm",
    "A2 gap": "its squared error is under the difference between the modes' mean squared norms",
    "A3": "the reconstruction's reasoning part and its rest have an absolute cosine under 0.1",
    "A4": "the tokens on which both are most active overlap in under 3%",
}

ASSUMPTIONS = Schema(
    "assumptions",
    "assumption_table",
    (
        Column("assumption", str, "A1 to A4"),
        Column("statement", str, "in words, with its bound"),
        LAYER,
        Column("value", float, "cosine or share, as the statement says"),
        *ends("value"),
        Column("bound", float, "the paper's"),
        Column("holds", str, '"holds", "does not hold", "undecided" or "not measured"'),
        Column("control", float, "a figure to hold the value against; NaN without one"),
        *ends("control", prefix=True, kind="95% interval of the control's mean"),
        Column("control_name", str, "what the control is"),
        Column("n", int, "prompts; 0 for what is exact"),
        SEED,
        MODEL,
    ),
)

_USED = ("layer", "explained_variance", "low", "high", "residual", "residual_low", "residual_high", "n")
_CONTROL = "as many latents, shuffled modes"
_RANDOM = "random directions"
_NOTHING = Estimate(mean=np.nan, low=np.nan, high=np.nan, n=0)


def error_against_gap(
    think: TracesLike, direct: TracesLike, layer: int, residual: float, *, tokens: Tokens = "read", seed: int = 0
) -> Estimate:
    """The reconstruction's squared error over the difference that it is to resolve, of the modes' mean squared norms (A2).

    Args:
        think: thinking traces.
        direct: direct ones, of the same prompts.
        layer: which.
        residual: squared error over squared norm, from `evaluate_saes`.
        tokens: "read", the response's own, or "chosen", those from which they were chosen.
        seed: of the resampling.

    Returns:
        residual x the modes' mean squared norm / the absolute difference of theirs; the upper end is infinite where that
        difference may be 0.
    """
    pairs = pair_modes([t.select(layer) for t in traces_of(think)], [t.select(layer) for t in traces_of(direct)])
    first, second = (side[:, 0] for side in mode_means(pairs, lambda trace: trace.l2_norms**2, tokens=tokens))
    gap, size = estimate(first - second, seed=seed), float(np.nanmean((first + second) / 2))
    ends = sorted((abs(gap.low), abs(gap.high)))
    least = ends[0] if gap.excludes_zero else 0.0
    with np.errstate(divide="ignore"):
        value, low, high = (residual * size / np.array([abs(gap.mean), ends[1], least])).tolist()
    return Estimate(mean=value, low=low, high=high, n=gap.n)


def part_cosines(
    traces: TracesLike,
    features: ReasoningFeatures,
    layer: int,
    decoder: Float[Tensor, "d_sae d_model"],
    bias: Float[Tensor, " d_model"],
    *,
    tokens: Tokens = "read",
    seed: int = 0,
) -> Estimate:
    """Absolute cosine between the reconstruction's reasoning part and its rest, bias included (A3), mean over prompts.

    Tokens without an active reasoning feature have no angle and are left out.
    """
    traces = traces_of(traces)
    for trace in traces:
        features.check(trace)
    chosen = torch.zeros(len(decoder))
    chosen[list(features.latents[layer])] = 1.0
    means = []
    for group in by_prompt(traces).values():
        cosines = torch.cat([_cosines(trace, layer, chosen, decoder, bias, tokens) for trace in group])
        means.append(float(cosines.mean()) if len(cosines) else np.nan)
    return estimate(np.array(means), seed=seed)


def _cosines(
    trace: Trace, layer: int, chosen: Tensor, decoder: Tensor, bias: Tensor, tokens: Tokens
) -> Float[Tensor, " tokens"]:
    acts = trace.features[layer].select(positions(trace, layer, tokens))
    weight = chosen[acts.latents.long()]
    parts = [_decode(acts.latents, acts.starts, acts.values * w, decoder) for w in (weight, 1 - weight)]
    active = torch.tensor([bool(x) for x in parts[0].abs().sum(1) > 0], dtype=torch.bool)
    cosines: Tensor = torch.nn.functional.cosine_similarity(parts[0], parts[1] + bias, dim=1)[active].abs()
    return cosines


def _decode(latents: Tensor, starts: Tensor, values: Tensor, decoder: Tensor) -> Float[Tensor, "pos d_model"]:
    """Sum of active directions at each position, without a dense [pos, d_sae]."""
    sums: Tensor = torch.nn.functional.embedding_bag(
        latents.long(), decoder, starts[:-1].long(), mode="sum", per_sample_weights=values
    )
    return sums


def top_overlap(
    traces: TracesLike,
    features: ReasoningFeatures,
    layer: int,
    *,
    share: float = TOP_SHARE,
    tokens: Tokens = "read",
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Estimate:
    """Of the tokens on which reasoning features are most active (their summed activation, the top `share`), how many are also
    among those on which the other latents are (A4). Two independent parts overlap in `share`.
    """
    traces = traces_of(traces)
    for trace in traces:
        features.check(trace)
    groups = list(by_prompt(traces).values())
    both: list[list[Tensor]] = []
    for group in groups:
        sides = []
        for trace in group:
            at = positions(trace, layer, tokens)
            reasoning = trace.features[layer].total(features.latents[layer])[at]
            sides.append(torch.stack([reasoning, trace.features[layer].total()[at] - reasoning]))
        both.append(sides)
    whole = torch.cat([side for sides in both for side in sides], dim=1)
    bounds = torch.quantile(whole.double(), 1 - share, dim=1)
    hits = np.zeros((len(groups), 2))
    for i, sides in enumerate(both):
        top = torch.cat(sides, dim=1) > bounds[:, None]
        hits[i] = int(top.all(0).sum()), int(top[0].sum())
    draws = prompt_weights(len(groups), seed=seed, resamples=resamples) @ hits
    with np.errstate(divide="ignore", invalid="ignore"):
        value, resampled = hits[:, 0].sum() / hits[:, 1].sum(), draws[:, 0] / draws[:, 1]
    return interval(float(value), resampled, len(groups))


def assumption_table(
    think: TracesLike,
    direct: TracesLike,
    features: ReasoningFeatures,
    decoders: Mapping[int, tuple[Float[Tensor, "d_sae d_model"], Float[Tensor, " d_model"]]],
    explained: pd.DataFrame,
    *,
    control: ReasoningFeatures | None = None,
    tokens: Tokens = "read",
    seed: int = 0,
) -> pd.DataFrame:
    """A1 to A4 at each layer: value, bound, and whether it holds.

    A description, no test: a bound that random directions or shuffled modes keep as well says little. Directions (A1) are held
    against random ones of that width, over all pairs and over those that are active together, which alone meet in a token. The
    error (A2) is held against the norm, as the paper does, and against the difference between the modes that it must resolve.

    Args:
        think: thinking traces of prompts that the features were not chosen on.
        direct: direct ones.
        features: from `find_reasoning_features`.
        decoders: of each layer's SAE the decoder (rows are directions) and its bias.
        explained: what `evaluate_saes` returned for these SAEs.
        control: as many latents, chosen with shuffled modes: A3 and A4 for these stand beside.
        tokens: "read", the response's own, or "chosen", those from which they were chosen.
        seed: of the resampling.

    Returns:
        One entry per assumption and layer: assumption, statement, layer, value, low, high, bound, holds ("holds", "does not
        hold", or "undecided" where the interval straddles the bound), control (a figure to hold it against), control_low,
        control_high, control_name, n, seed, model. A layer without reasoning features has no A3 and A4, one on which no two
        latents are active together no co-active pairs.

    Raises:
        ValueError: prompts that the features were chosen on, or fewer than 8; a table `explained` of other columns.
    """
    think, direct = traces_of(think), traces_of(direct)
    traces = [*think, *direct]
    for trace in traces:
        features.check(trace)
    require_prompts(len(by_prompt(traces)))
    entries: list[dict[str, object]] = []
    explained = EXPLAINED.check(explained, *_USED)
    for layer, (decoder, bias) in decoders.items():
        decoder, bias = decoder.detach().float().cpu(), bias.detach().float().cpu()
        entries += _directions(traces, layer, decoder, tokens, seed)
        for sae in explained[explained["layer"] == layer].to_dict("records"):
            r2 = Estimate(mean=sae["explained_variance"], low=sae["low"], high=sae["high"], n=sae["n"])
            error = Estimate(mean=sae["residual"], low=sae["residual_low"], high=sae["residual_high"], n=sae["n"])
            gap = error_against_gap(think, direct, layer, error.mean, tokens=tokens, seed=seed)
            of_error = {"A2 R2": r2, "A2 residual": error, "A2 gap": gap}
            entries += [_entry(name, layer, value, _NOTHING, "") for name, value in of_error.items()]
        if not features.latents.get(layer):
            continue
        other = control if control is not None and control.latents.get(layer) else None
        angle = {f: part_cosines(traces, f, layer, decoder, bias, tokens=tokens, seed=seed) for f in (features, other) if f}
        overlap = {f: top_overlap(traces, f, layer, tokens=tokens, seed=seed) for f in (features, other) if f}
        for name, values in (("A3", angle), ("A4", overlap)):
            entries.append(_entry(name, layer, values[features], values[other] if other else _NOTHING, _CONTROL))
    order = {name: i for i, name in enumerate(BOUNDS)}
    return ASSUMPTIONS.frame(
        sorted(entries, key=lambda entry: (order[str(entry["assumption"])], entry["layer"])), seed=seed, model=features.model
    )


def _directions(
    traces: TracesLike, layer: int, decoder: Float[Tensor, "d_sae d_model"], tokens: Tokens, seed: int
) -> list[dict[str, object]]:
    """A1 over all pairs and over co-active ones, beside as many pairs of random directions."""
    used = min(len(decoder), MOST_DIRECTIONS)
    together, pairs = coactive_cosine(traces, layer, decoder, tokens=tokens, seed=seed)
    entries = [_entry("A1", layer, _exact(decoder_cosine(decoder)), _random(decoder.shape[1], used * (used - 1) // 2), _RANDOM)]
    if pairs:
        entries.append(_entry("A1 co-active", layer, together, _random(decoder.shape[1], pairs), _RANDOM))
    return entries


def _random(d_model: int, pairs: int) -> Estimate:
    mean = random_cosine(d_model)
    half = 1.96 * random_cosine_spread(d_model, pairs) if pairs else np.nan
    return Estimate(mean=mean, low=mean - half, high=mean + half, n=0)


def _exact(value: float) -> Estimate:
    """A property of weights: no prompt to resample."""
    return Estimate(mean=value, low=value, high=value, n=0)


def _entry(name: str, layer: int, value: Estimate, control: Estimate, control_name: str) -> dict[str, object]:
    bound, at_least = BOUNDS[name], name in AT_LEAST
    inside = (value.low > bound, value.high > bound) if at_least else (value.high < bound, value.low < bound)
    verdict = "holds" if inside[0] else "undecided" if inside[1] else "does not hold"
    return {
        "assumption": name,
        "statement": STATEMENTS[name],
        "layer": layer,
        "value": value.mean,
        "low": value.low,
        "high": value.high,
        "bound": bound,
        "holds": "not measured" if np.isnan(value.low) else verdict,
        "control": control.mean,
        "control_low": control.low,
        "control_high": control.high,
        "control_name": control_name,
        "n": value.n,
    }
