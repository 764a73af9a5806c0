"""The paper's theorem and its four assumptions, as figures."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from tl_l2norm.analysis.accuracy import wilson_interval
from tl_l2norm.analysis.pairing import Tokens, by_prompt, meant, mode_means, pair_modes, require_prompts
from tl_l2norm.analysis.reasoning import ReasoningFeatures
from tl_l2norm.core.errors import InputError
from tl_l2norm.core.resampling import (
    MIN_PROMPTS,
    RESAMPLES,
    Array,
    Estimate,
    estimate,
    generator,
    interval,
    prompt_weights,
)
from tl_l2norm.core.trace import Trace, TracesLike, traces_of

TOP_SHARE = 0.05
"""A4: the tokens on which a part is most active are this share of all."""

BOUNDS = {"A1": 0.02, "A2 R2": 0.95, "A2 residual": 0.05, "A3": 0.1, "A4": 0.03}
STATEMENTS = {
    "A1": "mean absolute cosine between decoder directions is under 0.02",
    "A2 R2": "the reconstruction explains over 95% of the variance",
    "A2 residual": "its error is under 5% of the squared norm",
    "A3": "the reconstruction's reasoning part and its rest have an absolute cosine under 0.1",
    "A4": "the tokens on which both are most active overlap in under 3%",
}

_CONTROL = "as many latents, shuffled modes"
_PAIRS_AT_ONCE = 1 << 24
_MOST_DIRECTIONS = 1 << 13  # all pairs of more would take minutes


def bound_points(
    think: TracesLike, direct: TracesLike, features: ReasoningFeatures, *, tokens: Tokens = "read"
) -> pd.DataFrame:
    """Both sides of the theorem for each prompt and layer with reasoning features.

    `left` is the sum over reasoning features of mean activation in thinking minus in direct answers; `right` is
    `sqrt(||h_think||^2 - ||h_direct||^2)` of mean squared norms, NaN where the difference is not positive: there the theorem's
    premise fails.

    Returns:
        One row per prompt and layer: prompt, layer, left, right, premise, model.

    Raises:
        ValueError: prompts that the features were chosen on, modes with different prompts, or fewer than 8.
    """
    think, direct = traces_of(think), traces_of(direct)
    pairs = pair_modes(think, direct)
    left_think, left_direct = mode_means(pairs, features.total, tokens=tokens)
    square_think, square_direct = mode_means(pairs, lambda trace: trace.l2_norms**2, tokens=tokens)
    left, square = left_think - left_direct, square_think - square_direct
    held = [row for row, layer in enumerate(think[0].layers) if features.latents.get(layer)]
    frames = []
    for row in held:
        layer = think[0].layers[row]
        right = np.sqrt(np.where(square[:, row] > 0, square[:, row], np.nan))
        frame = pd.DataFrame({"prompt": list(pairs), "layer": layer, "left": left[:, row], "right": right})
        frames.append(frame.assign(premise=square[:, row] > 0)[~np.isnan(square[:, row])])
    names = ["prompt", "layer", "left", "right", "premise"]
    table = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=names)
    return table.assign(model=think[0].provenance.model)


def bound_table(points: pd.DataFrame, *, seed: int = 0, resamples: int = RESAMPLES) -> pd.DataFrame:
    """The theorem layer by layer: how often its premise holds, and `c1 <= left / right <= c2` where it does.

    c1 and c2 are the tightest constants for these prompts, the least and the greatest ratio; c1 over 0 is what the theorem
    asks for.

    Returns:
        One row per layer: layer, n (prompts), premise (share with a larger thinking norm), premise_low, premise_high (Wilson),
        n_premise, c1, c2, r2 (squared correlation of left and right), r2_low, r2_high (NaN below 8 such prompts), seed, model.
    """
    if points.duplicated(["prompt", "layer"]).any():
        raise InputError("the points hold a prompt twice at the same layer: give what bound_points returned, once")
    rows = []
    for layer, group in points.groupby("layer", sort=True):
        holds = group["premise"].to_numpy(dtype=bool)
        low, high = wilson_interval(int(holds.sum()), len(holds))
        left, right = (group[name].to_numpy(dtype=np.float64)[holds] for name in ("left", "right"))
        r2 = _r_squared(left, right, seed, resamples)
        rows.append(
            {
                "layer": layer,
                "n": len(holds),
                "premise": float(holds.mean()),
                "premise_low": low,
                "premise_high": high,
                "n_premise": int(holds.sum()),
                "c1": float((left / right).min()) if len(left) else np.nan,
                "c2": float((left / right).max()) if len(left) else np.nan,
                "r2": r2.mean,
                "r2_low": r2.low,
                "r2_high": r2.high,
            }
        )
    names = ["layer", "n", "premise", "premise_low", "premise_high", "n_premise", "c1", "c2", "r2", "r2_low", "r2_high"]
    model = points["model"].iloc[0] if len(points) else ""
    return pd.DataFrame(rows, columns=names).assign(seed=seed, model=model)


def _r_squared(x: Array, y: Array, seed: int, resamples: int) -> Estimate:
    if len(x) < MIN_PROMPTS:
        return Estimate(mean=np.nan, low=np.nan, high=np.nan, n=len(x))
    weights = np.vstack([np.ones(len(x)), prompt_weights(len(x), seed=seed, resamples=resamples)])
    total = weights.sum(1)
    mean_x, mean_y = weights @ x / total, weights @ y / total
    cross = weights @ (x * y) / total - mean_x * mean_y
    scale = (weights @ x**2 / total - mean_x**2) * (weights @ y**2 / total - mean_y**2)
    with np.errstate(divide="ignore", invalid="ignore"):
        r2 = np.where(scale > 0, cross**2 / scale, np.nan)
    return interval(float(r2[0]), r2[1:], len(x))


def decoder_cosine(directions: Float[Tensor, "d_sae d_model"], *, seed: int = 0) -> float:
    """Mean absolute cosine between different decoder directions (A1); over 8,192 drawn ones where there are more."""
    n = len(directions)
    if n > _MOST_DIRECTIONS:
        chosen = torch.from_numpy(generator(seed).choice(n, _MOST_DIRECTIONS, replace=False))
        directions, n = directions[chosen.to(directions.device)], _MOST_DIRECTIONS
    if n < 2:
        return float("nan")
    unit = torch.nn.functional.normalize(directions.detach().float(), dim=1)
    total = sum(float((part @ unit.T).abs().sum()) for part in torch.split(unit, max(1, _PAIRS_AT_ONCE // n)))
    return (total - float((unit**2).sum())) / (n * (n - 1))


def random_cosine(d_model: int) -> float:
    """Mean absolute cosine between random directions, `Gamma(d / 2) / (sqrt(pi) Gamma((d + 1) / 2))`."""
    from scipy.special import gammaln

    return float(np.exp(gammaln(d_model / 2) - gammaln((d_model + 1) / 2)) / np.sqrt(np.pi))


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
    acts = trace.features[layer].select(_positions(trace, layer, tokens))
    weight = chosen[acts.latents.long()]
    parts = [_decode(acts.latents, acts.starts, acts.values * w, decoder) for w in (weight, 1 - weight)]
    active = torch.tensor([bool(x) for x in parts[0].abs().sum(1) > 0], dtype=torch.bool)
    cosines: Tensor = torch.nn.functional.cosine_similarity(parts[0], parts[1] + bias, dim=1)[active].abs()
    return cosines


def _decode(latents: Tensor, starts: Tensor, values: Tensor, decoder: Tensor) -> Float[Tensor, "pos d_model"]:
    """Sum of active directions at each position, without a dense [pos, d_sae]."""
    found: Tensor = torch.nn.functional.embedding_bag(
        latents.long(), decoder, starts[:-1].long(), mode="sum", per_sample_weights=values
    )
    return found


def _positions(trace: Trace, layer: int, tokens: Tokens) -> Tensor:
    return (meant(trace, tokens) & ~trace.is_sink[trace.index_of(layer)]).nonzero()[:, 0]


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
            at = _positions(trace, layer, tokens)
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
        One row per assumption and layer: assumption, statement, layer, value, low, high, bound, holds ("holds", "does not
        hold", or "undecided" where the interval straddles the bound), control (a figure to hold it against), control_name,
        n, seed, model. A layer without reasoning features has no A3 and A4.
    """
    think, direct = traces_of(think), traces_of(direct)
    traces = [*think, *direct]
    for trace in traces:
        features.check(trace)
    require_prompts(len(by_prompt(traces)))
    rows: list[dict[str, object]] = []
    for layer, (decoder, bias) in decoders.items():
        decoder, bias = decoder.detach().float().cpu(), bias.detach().float().cpu()
        rows.append(_row("A1", layer, _exact(decoder_cosine(decoder)), random_cosine(decoder.shape[1]), "random directions"))
        at = explained[explained["layer"] == layer]
        for name, column in (("A2 R2", "explained_variance"), ("A2 residual", "residual")):
            for found in at.to_dict("records"):
                ends = ("low", "high") if name == "A2 R2" else ("residual_low", "residual_high")
                value = Estimate(mean=found[column], low=found[ends[0]], high=found[ends[1]], n=found["n"])
                rows.append(_row(name, layer, value, np.nan, ""))
        if not features.latents.get(layer):
            continue
        other = control if control is not None and control.latents.get(layer) else None
        angle = {f: part_cosines(traces, f, layer, decoder, bias, tokens=tokens, seed=seed) for f in (features, other) if f}
        overlap = {f: top_overlap(traces, f, layer, tokens=tokens, seed=seed) for f in (features, other) if f}
        for name, found in (("A3", angle), ("A4", overlap)):
            rows.append(_row(name, layer, found[features], found[other].mean if other else np.nan, _CONTROL))
    order = {name: i for i, name in enumerate(BOUNDS)}
    table = pd.DataFrame(rows).sort_values(
        ["assumption", "layer"], key=lambda c: c.map(order) if c.name == "assumption" else c, ignore_index=True
    )
    return table.assign(seed=seed, model=features.model)


def _exact(value: float) -> Estimate:
    """A property of weights: no prompt to resample."""
    return Estimate(mean=value, low=value, high=value, n=0)


def _row(name: str, layer: int, found: Estimate, control: float, control_name: str) -> dict[str, object]:
    bound, at_least = BOUNDS[name], name == "A2 R2"
    inside = (found.low > bound, found.high > bound) if at_least else (found.high < bound, found.low < bound)
    verdict = "holds" if inside[0] else "undecided" if inside[1] else "does not hold"
    return {
        "assumption": name,
        "statement": STATEMENTS[name],
        "layer": layer,
        "value": found.mean,
        "low": found.low,
        "high": found.high,
        "bound": bound,
        "holds": "not measured" if np.isnan(found.low) else verdict,
        "control": control,
        "control_name": control_name,
        "n": found.n,
    }
