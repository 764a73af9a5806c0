"""Whether a quantity follows the share of a token's SAE activation that is reasoning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_array, vstack

from tl_l2norm.analysis.correlation import MIN_TOKENS, present_mean
from tl_l2norm.analysis.covariates import Projection, indicators, ranks_within, smooth
from tl_l2norm.analysis.pairing import Tokens, by_prompt, meant, require_numbers, require_prompts
from tl_l2norm.analysis.quantities import as_quantities, values
from tl_l2norm.analysis.random_sets import SUBSETS, random_sets
from tl_l2norm.analysis.reasoning import ReasoningFeatures, check_features
from tl_l2norm.core.arguments import as_integer
from tl_l2norm.core.errors import Unmeasurable
from tl_l2norm.core.layers import BUT_LAST, LATE, late_groups
from tl_l2norm.core.resampling import RESAMPLES, Array, estimate
from tl_l2norm.core.schema import MODEL, QUANTITY, SEED, Column, N, Schema, ends
from tl_l2norm.core.sign_flips import as_extreme
from tl_l2norm.core.trace import Trace, TracesLike, require_comparable, traces_of

LINKS = Schema(
    "links with reasoning features",
    "feature_link",
    (
        QUANTITY,
        Column("layer", object, f'"{LATE}", "{BUT_LAST}" or a number'),
        Column("rho", float, "partial rank correlation with the share of activation, mean over prompts"),
        *ends("rho"),
        Column("subsets_mean", float, "the same of random sets of latents"),
        *ends("subsets", prefix=True, kind="central 95% of the sets"),
        Column("p_subsets", float, "two-sided: how many sets lie as far out"),
        Column("p_max", float, "the same over all layers and both means together"),
        Column("latents", int, "that are chosen"),
        Column("shared", float, "mean share of a random set's latents that are chosen ones"),
        N,
        SEED,
        MODEL,
    ),
)


def feature_link(
    traces: TracesLike,
    features: ReasoningFeatures,
    *,
    quantities: str | Sequence[str] = ("l2_norm",),
    tokens: Tokens = "read",
    subsets: int = SUBSETS,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> pd.DataFrame:
    """Rank correlation of a quantity with the share of a token's activation that its reasoning features hold, given its type.

    A sum of activations grows with the norm whatever the latents mean; a share does not. Over the tokens of a response, ranks
    of both, with what token id, smooth index and response explain taken out; then the mean over prompts. Beside it the same of
    `subsets` random sets of latents of the same SAE, as many of each stratum of firing rate and mean activation: `p_subsets`
    is twice the share of sets, the chosen one among them, whose rho is as high, or as low. Chosen latents may be
    drawn too: sets of the others alone vary less than a set of all does, and of choices that say nothing a fifth would lie
    outside of them where a quarter of the latents are chosen, four fifths where half are. `shared` says how much of a set is
    chosen; near 1 there are too few others to tell the choice from.

    Args:
        traces: of thinking responses, on prompts that the features were not chosen on; label "prompt".
        features: from `find_reasoning_features`.
        quantities: the norm and recorded metrics.
        tokens: "read", the response's own, or "chosen", those from which they were chosen.
        subsets: how many random sets of latents.
        seed: of the sets and the resampling.
        resamples: of prompts.

    Returns:
        One entry per quantity and layer with reasoning features, and for the means over such late layers, "late" and "late but
        the last" (without the model's last block): quantity, layer,
        rho, low, high, subsets_mean, subsets_low, subsets_high (their central 95%), p_subsets, p_max (over all layers), latents
        (how many are chosen), shared (mean share of a set that is chosen), n (prompts), seed, model.

    Raises:
        ValueError: traces that can't be compared, prompts that the features were chosen on, one prompt under two labels, a
            norm that is NaN, or fewer than 8 prompts.
        Unmeasurable: no reasoning features; or too few other latents for random sets of the same kind.
    """
    subsets = as_integer("subsets", subsets, least=1)
    check_features(features)
    traces, quantities = traces_of(traces), as_quantities(quantities)
    require_comparable(traces)
    for trace in traces:
        features.check(trace)
    groups = by_prompt(traces)
    require_prompts(len(groups))
    require_numbers(traces, tokens)
    layers = [layer for layer in traces[0].layers if features.latents.get(layer)]
    if not layers:
        raise Unmeasurable("no reasoning features were found: there is nothing that a norm could follow")
    numbers = {prompt: i for i, prompt in enumerate(groups)}
    rhos: dict[int, Array] = {}  # [quantity, 1 + subsets, prompt]
    shared: dict[int, float] = {}
    for layer in layers:
        table = _Tokens.of(traces, numbers, layer, quantities, tokens)
        sets = random_sets(table.acts, features.latents[layer], subsets, seed)
        shared[layer] = float(sets[list(features.latents[layer])].sum(0)[1:].mean() / sets.sum(0)[0])
        rhos[layer] = _correlations(table, sets, len(groups))
    rows = {layer: [row] for row, layer in enumerate(layers)} | late_groups(layers, traces[0].provenance.n_layers)
    means = [present_mean(np.stack([rhos[layers[row]] for row in own])) for own in rows.values()]
    frames = [
        pd.DataFrame([_summary(own[q], seed, resamples) for own in means]).assign(
            quantity=quantity, layer=list(rows), p_max=_p_max([present_mean(own[q].T) for own in means])
        )
        for q, quantity in enumerate(quantities)
    ]
    latents = {name: sum(len(features.latents[layers[row]]) for row in own) for name, own in rows.items()}
    overlap = {name: float(np.mean([shared[layers[row]] for row in own])) for name, own in rows.items()}
    table = pd.concat(frames, ignore_index=True)
    table = table.assign(latents=table["layer"].map(latents), shared=table["layer"].map(overlap))
    return LINKS.frame(table, seed=seed, model=traces[0].provenance.model)


def _p_max(means: Sequence[Array]) -> Array:
    """[layer] how many random sets lie as far out at any layer, in their own standard deviations; means [1 + subsets]."""
    z = np.stack([np.abs(own - np.nanmean(own[1:])) / max(float(np.nanstd(own[1:])), 1e-12) for own in means], axis=1)
    return as_extreme(np.nan_to_num(z).max(1, keepdims=True), z[0])


def _summary(rhos: Array, seed: int, resamples: int) -> dict[str, object]:
    """Of [1 + subsets, prompt], the chosen set first."""
    own = estimate(rhos[0], seed=seed, resamples=resamples)
    means = present_mean(rhos.T)
    others = means[1:][~np.isnan(means[1:])]
    if not len(others) or np.isnan(own.mean):
        raise Unmeasurable(f"no response has {MIN_TOKENS} tokens of types that occur again, with activations that differ")
    sides = ((others >= own.mean - 1e-12).sum(), (others <= own.mean + 1e-12).sum())
    low, high = np.quantile(others, (0.025, 0.975))
    return {
        "rho": own.mean,
        "low": own.low,
        "high": own.high,
        "subsets_mean": float(others.mean()),
        "subsets_low": float(low),
        "subsets_high": float(high),
        "p_subsets": float(min(1.0, 2 * (1 + min(sides)) / (1 + len(others)))),
        "n": own.n,
    }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Tokens:
    """Response tokens of one layer, of all traces, whose type occurs again; only responses with enough of them."""

    prompt: NDArray[np.intp]
    response: NDArray[np.intp]
    token: NDArray[np.int64]
    index: NDArray[np.int64]
    quantities: Array
    """[quantity, token]"""
    acts: csr_array
    """[token, latent]"""

    @classmethod
    def of(
        cls, traces: Sequence[Trace], numbers: Mapping[str, int], layer: int, quantities: Sequence[str], tokens: Tokens
    ) -> _Tokens:
        parts, read, acts = [], [], []
        for response, trace in enumerate(traces):
            row, encoded = trace.index_of(layer), trace.features[layer]
            matrix = csr_array(
                (encoded.values.numpy(), encoded.latents.numpy(), encoded.starts.numpy()), shape=(len(trace), encoded.d_sae)
            )
            at = np.flatnonzero((meant(trace, tokens) & ~trace.is_sink[row]).numpy() & (matrix.sum(1) > 0))
            parts.append(
                np.stack(np.broadcast_arrays(numbers[str(trace.labels["prompt"])], response, trace.tokens.numpy()[at], at))
            )
            read.append(np.stack([values(trace, name)[row].double().numpy()[at] for name in quantities]))
            acts.append(matrix[at])
        prompt, response_of, token, index = np.concatenate(parts, axis=1)
        _, which, counts = np.unique(token, return_inverse=True, return_counts=True)
        again = counts[which] > 1
        enough = np.bincount(response_of[again], minlength=len(traces)) >= MIN_TOKENS
        kept = again & enough[response_of]
        if not kept.any():
            raise Unmeasurable(f"layer {layer}: no response has {MIN_TOKENS} tokens of types that occur again")
        every = csr_array(vstack(acts, format="csr"))
        fields = (prompt, response_of, token, index)
        prompt, response_of, token, index = (x[kept] for x in fields)
        return cls(
            prompt=prompt,
            response=response_of,
            token=token,
            index=index,
            quantities=np.concatenate(read, axis=1)[:, kept],
            acts=every[np.flatnonzero(kept)],
        )


def _correlations(table: _Tokens, sets: csr_array, n_prompts: int) -> Array:
    """Partial rank correlations [quantity, 1 + subsets, prompt], the mean over a prompt's responses."""
    total = np.asarray(table.acts.sum(1)).ravel()
    shares = np.asarray((table.acts @ sets).todense()) / total[:, None]
    projection = Projection.on(indicators(table.response), indicators(table.token), smooth(table.index))
    x = projection.rest(ranks_within(table.quantities.T, table.response))
    y = projection.rest(ranks_within(shares, table.response))
    response, prompts = np.unique(table.response, return_inverse=True)[1], table.prompt
    group = csr_array(indicators(table.response).T)
    found = np.full((x.shape[1], y.shape[1], n_prompts), np.nan)
    owner = prompts[np.unique(response, return_index=True)[1]]
    members = csr_array((np.ones(len(owner)), (owner, np.arange(len(owner)))), shape=(n_prompts, len(owner)))
    squares = group @ y**2
    for q in range(x.shape[1]):
        scale = np.sqrt((group @ x[:, q] ** 2)[:, None] * squares)
        with np.errstate(divide="ignore", invalid="ignore"):
            rho = np.where(scale > 1e-9, (group @ (x[:, q : q + 1] * y)) / scale, np.nan)
            held = members @ (~np.isnan(rho)).astype(float)
            found[q] = np.where(held > 0, (members @ np.nan_to_num(rho)) / held, np.nan).T
    return found
