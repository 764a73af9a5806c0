"""Which SAE latents fire more in thinking than in direct answers to the same prompts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from tl_l2norm.analysis.activations import activation_means, paired_effect
from tl_l2norm.analysis.pairing import Match, Tokens, by_prompt, pair_modes, require_prompts, weighted_pairs
from tl_l2norm.core.arguments import as_integer, as_share, check_finite, check_listed
from tl_l2norm.core.errors import InputError, InputTypeError
from tl_l2norm.core.layers import layer_ranges
from tl_l2norm.core.protocols import is_several
from tl_l2norm.core.resampling import MIN_PROMPTS, RESAMPLES, Array, bootstrap_mean, generator
from tl_l2norm.core.schema import LAYER, MODEL, SEED, Column, N, Schema, ends
from tl_l2norm.core.trace import Trace, TracesLike, traces_of

FDR = 0.05
MIN_EFFECT = 0.2
"""A small effect by Cohen's convention."""
MIN_ACTIVE = 5
"""Prompts of the choosing half on which a latent must be active, in either mode, to be tested."""


LATENT = Column("latent", int, "its number in the layer's SAE")

TESTED = Schema(
    "tested latents",
    "find_reasoning_features(...).table",
    (
        LAYER,
        LATENT,
        Column("think", float, "mean activation in thinking"),
        Column("direct", float, "mean activation in direct answers"),
        Column("difference", float, "the first minus the second"),
        Column("effect", float, "paired: mean difference over its standard deviation"),
        Column("p", float, "one-sided Wilcoxon signed-rank"),
        Column("q", float, "Benjamini-Hochberg within the layer"),
        Column("chosen", bool, "whether it is a reasoning feature"),
        N,
    ),
)

REPLICATIONS = Schema(
    "replications of latents",
    "ReasoningFeatures.evaluate",
    (
        LAYER,
        LATENT,
        Column("difference", float, "thinking minus direct, mean activation on prompts that it was not chosen on"),
        *ends("difference"),
        Column("effect", float, "paired: mean difference over its standard deviation"),
        Column("replicated", bool, "whether the interval is over 0"),
        N,
        SEED,
        MODEL,
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReasoningFeatures:
    """Latents of each layer that fire more in thinking, and the prompts that they were chosen on.

    Those prompts are refused wherever the latents are evaluated.

    Attributes:
        latents: by layer, the largest effect first.
        table: one entry for each tested latent.
        chosen_on: ids of the prompts that they were chosen on.
        saes: by layer, which SAE.
        match: how modes were matched.
        tokens: over which tokens.
        seed: of the resampling.
        model: its name.

    Examples:
        >>> features = ReasoningFeatures(  # as `find_reasoning_features` makes them
        ...     latents={3: (7, 1)},
        ...     table=TESTED.frame([]),
        ...     chosen_on=frozenset({str(think[0].labels["prompt"])}),
        ...     saes={3: "by hand"},
        ...     match="none",
        ...     tokens="read",
        ...     seed=0,
        ...     model="tiny-reasoner",
        ... )
        >>> len(features), len(think), len(features.held_out(think))
        (2, 12, 11)
    """

    latents: Mapping[int, tuple[int, ...]]
    """By layer, the largest effect first; an empty tuple where none was found."""
    table: pd.DataFrame
    """One entry for each tested latent: layer, latent, think and direct (mean activation), difference, effect (paired: mean
    difference over its standard deviation), p (one-sided Wilcoxon signed-rank), q (Benjamini-Hochberg within the layer),
    chosen, n (prompts)."""
    chosen_on: frozenset[str]
    saes: Mapping[int, str]
    match: Match
    tokens: Tokens
    seed: int
    model: str

    def __post_init__(self) -> None:
        for layer, latents in self.latents.items():
            for latent in latents:
                as_integer(f"latents[{layer}]", latent, least=0)

    def __repr__(self) -> str:
        """One line."""
        where = {layer: len(latents) for layer, latents in self.latents.items() if latents}
        text = f"{sum(where.values())} of {len(self.table)} tested latents, in {len(where)} of {len(self.latents)} layers"
        return f"ReasoningFeatures({text}, chosen on {len(self.chosen_on)} prompts)"

    def __len__(self) -> int:
        """How many, over all layers."""
        return sum(map(len, self.latents.values()))

    def held_out(self, traces: TracesLike) -> tuple[Trace, ...]:
        """Those traces whose prompts the latents were not chosen on."""
        return tuple(t for prompt, group in by_prompt(traces).items() if prompt not in self.chosen_on for t in group)

    def total(self, trace: Trace) -> Float[Tensor, "layer pos"]:
        """Summed activation of the latents at each layer and position, NaN at layers without an SAE.

        Raises:
            ValueError: a prompt that they were chosen on, or features of another SAE.
        """
        self.check(trace)
        missing = torch.full((len(trace),), torch.nan)
        return torch.stack(
            [trace.features[layer].total(self.latents[layer]) if layer in self.latents else missing for layer in trace.layers]
        )

    def check(self, trace: Trace) -> None:
        """Refuse a trace that the latents must not or can't be evaluated on."""
        if self.chosen_on and "prompt" not in trace.labels:
            raise InputError("the trace doesn't say which prompt it answers: collect(..., labels=[t.labels for t in traces])")
        if str(trace.labels.get("prompt")) in self.chosen_on:
            raise InputError(
                f"prompt {trace.labels['prompt']!r} is one that the features were chosen on: evaluate them on others, "
                "features.held_out(traces)"
            )
        if trace.provenance.model != self.model:
            raise InputError(f"the features are of {self.model}, the trace is of {trace.provenance.model}")
        for layer, sae in ((layer, sae) for layer, sae in self.saes.items() if layer in trace.layers):
            if layer not in trace.features:
                raise InputError(f"the trace has no SAE features at layer {layer}: collect(..., saes=...)")
            if trace.features[layer].sae != sae:
                raise InputError(
                    f"layer {layer}: the features were found with {sae}, the trace has those of {trace.features[layer].sae}"
                )
            if (largest := max(self.latents.get(layer, ()), default=0)) >= (width := trace.features[layer].d_sae):
                raise InputError(f"layer {layer}: there is no latent {largest}, the trace's SAE has {width}")

    def check_layers(self, trace: Trace) -> None:
        """Refuse a trace without a layer that has latents."""
        if lacking := [layer for layer, latents in self.latents.items() if latents and layer not in trace.layers]:
            raise InputError(
                f"the features are of layers {layer_ranges(lacking)} too, which were not recorded: the traces have layers "
                f"{layer_ranges(trace.layers)}"
            )

    def evaluate(self, think: TracesLike, direct: TracesLike, *, seed: int = 0, resamples: int = RESAMPLES) -> pd.DataFrame:
        """What becomes of them on other prompts, matched as they were chosen.

        Returns:
            One entry per latent: layer, latent, difference (thinking minus direct, mean activation), low, high, effect,
            replicated (the interval is over 0), n (prompts), seed, model.

        Raises:
            ValueError: as `total`, `find_reasoning_features`; a layer with latents that wasn't recorded or has under 8 prompts.
        """
        think, direct = traces_of(think), traces_of(direct)
        for trace in (*think, *direct):
            self.check(trace)
            self.check_layers(trace)
        pairs = pair_modes(think, direct)
        frames = []
        for layer, latents in self.latents.items():
            if not latents:
                continue
            first, second = activation_means(pairs, layer, self.match, self.tokens, seed=seed)
            differences = (first - second)[:, list(latents)]
            n = int((~np.isnan(differences[:, 0])).sum())
            require_prompts(n, what=f"prompts with tokens to compare at layer {layer} (match={self.match!r})")
            mean, low, high = bootstrap_mean(differences, seed=seed, resamples=resamples)
            columns = {"latent": latents, "difference": mean, "low": low, "high": high, "effect": paired_effect(differences)}
            frames.append(pd.DataFrame({"layer": layer, **columns, "replicated": low > 0, "n": n}))
        entries = pd.concat(frames, ignore_index=True) if frames else ()
        return REPLICATIONS.frame(entries, seed=seed, model=self.model)


def check_features(features: Any) -> None:
    """Refuse what `find_reasoning_features` didn't return."""
    if not isinstance(features, ReasoningFeatures):
        raise InputTypeError(f"features must be what find_reasoning_features(think, direct) returns, got {features!r:.80}")


def find_reasoning_features(
    think: TracesLike,
    direct: TracesLike,
    *,
    choose_on: Collection[str] | None = None,
    match: Match = "count",
    tokens: Tokens = "read",
    fdr: float = FDR,
    min_effect: float = MIN_EFFECT,
    n_latents: Mapping[int, int] | None = None,
    seed: int = 0,
) -> ReasoningFeatures:
    """Choose, on half of the prompts, the latents that are more often more active in thinking than in direct answers.

    A latent is chosen if its false-discovery rate within the layer is at most `fdr` (one-sided Wilcoxon signed-rank test over
    prompts, Benjamini-Hochberg) and its paired effect at least `min_effect`. To choose none is a result. With 8 prompts in a
    half the smallest p-value is 0.007: a few latents among many can't be found then, give more.

    The test is of ranks, not of means: a latent that fires often and weakly in thinking, rarely and strongly in direct
    answers, is higher in thinking on most prompts, and may be chosen though its means are equal. `evaluate` is of means, on
    other prompts.

    As many tokens of both responses are compared (match="count"), for the number of tokens acts by itself on ranks otherwise:
    of 20 to 40 thinking tokens against 1 or 2 direct ones, all alike, every run of the other ways finds features, many of which
    replicate. `split_thinking` shows it on one's own traces.

    Args:
        think: traces with SAE features, of thinking responses; the label "prompt" pairs them.
        direct: of direct answers to the same prompts.
        choose_on: the prompts to choose on; half of them, drawn by `seed`, by default. The others are for evaluation.
        match: which tokens are compared: "count" (as many of the longer response, drawn at random, as the shorter has), "none"
            (all), "length", "position", "token" (types) or "answer" (its token alone).
        tokens: "read", the response's own, or "chosen", those from which they were chosen.
        fdr: false-discovery rate.
        min_effect: mean difference over its standard deviation.
        n_latents: for a control, take so many of each layer by p-value and effect, significant or not.
        seed: of the halves, and of the tokens that are drawn.

    Raises:
        ValueError: no features, modes with different prompts, traces that are not comparable, or fewer than 8 prompts in a
            half.

    Examples:
        >>> sae = {11: l2.load_saes("tiny-reasoner")[11]}
        >>> think, direct = (
        ...     l2.collect(model, traces, saes=sae, labels=[trace.labels for trace in traces], progress=False)
        ...     for traces in (think, direct)
        ... )
        >>> features = find_reasoning_features(think, direct, choose_on=[trace.labels["prompt"] for trace in think[:8]])
        >>> features  # 8 prompts with one token each are too few to find any
        ReasoningFeatures(0 of 26 tested latents, in 0 of 1 layers, chosen on 8 prompts)
        >>> len(features.held_out(think))
        4
    """
    fdr = as_share("fdr", fdr)
    check_finite("min_effect", min_effect)
    counts = None if n_latents is None else _counts(n_latents)
    think, direct = traces_of(think), traces_of(direct)
    pairs = pair_modes(think, direct, least=2 * MIN_PROMPTS if choose_on is None else MIN_PROMPTS)
    saes = _saes([*think, *direct])
    chosen_on = _half(list(pairs), seed) if choose_on is None else _named(choose_on, pairs)
    half = {prompt: members for prompt, members in pairs.items() if prompt in chosen_on}
    usable = {p: m for p, m in half.items() if weighted_pairs(m, match, tokens, seed=seed)}
    require_prompts(len(usable), what=f"prompts to choose features on with tokens to compare (match={match!r})")
    tables, latents = [], {}
    for layer in saes:
        table = _test(*activation_means(usable, layer, match, tokens, seed=seed), fdr)
        order = table.sort_values(["p", "effect"], ascending=[True, False]).index
        if counts is None:
            table["chosen"] = (table["q"] <= fdr) & (table["effect"] >= min_effect)
        else:
            table["chosen"] = table.index.isin(order[: counts.get(layer, 0)])
        chosen = table[table["chosen"]].sort_values("effect", ascending=False)
        latents[layer] = tuple(chosen["latent"].tolist())
        tables.append(table.assign(layer=layer))
    return ReasoningFeatures(
        latents=latents,
        table=TESTED.frame(pd.concat(tables, ignore_index=True)),
        chosen_on=chosen_on,
        saes=saes,
        match=match,
        tokens=tokens,
        seed=seed,
        model=think[0].provenance.model,
    )


def _test(think: Array, direct: Array, fdr: float) -> pd.DataFrame:
    """One entry for each latent that is active often enough to be tested, whichever mode it is active in."""
    held = ~np.isnan(think[:, 0]) & ~np.isnan(direct[:, 0])
    think, direct = think[held], direct[held]
    tested = np.flatnonzero(((think != 0) | (direct != 0)).sum(0) >= MIN_ACTIVE)
    differences = (think - direct)[:, tested]
    p = np.ones(len(tested))
    if len(tested):
        with np.errstate(all="ignore"):  # a latent whose differences are all 0 has no rank sum
            p = stats.wilcoxon(differences, axis=0, alternative="greater", correction=True, method="asymptotic").pvalue
        p = np.where(np.isnan(p), 1.0, p)
    return pd.DataFrame(
        {
            "latent": tested,
            "n": len(differences),
            "think": think[:, tested].mean(0),
            "direct": direct[:, tested].mean(0),
            "difference": differences.mean(0),
            "effect": paired_effect(differences),
            "p": p,
            "q": stats.false_discovery_control(p) if len(p) else p,
        }
    )


def _half(prompts: Sequence[str], seed: int) -> frozenset[str]:
    return frozenset(generator(seed).permutation(sorted(prompts))[: len(prompts) // 2].tolist())


def _named(choose_on: Any, prompts: Collection[str]) -> frozenset[str]:
    expected = "a list of the prompts to choose on"
    check_listed("choose_on", choose_on, expected)
    if isinstance(choose_on, str) or not is_several(choose_on):
        raise InputTypeError(f"choose_on must be {expected}, got {choose_on!r:.80}")
    chosen_on = frozenset(map(str, choose_on))
    if unknown := chosen_on - set(prompts):
        raise InputError(f"choose_on has prompts that the traces lack, such as {min(unknown)!r}")
    return chosen_on


def _counts(n_latents: Any) -> dict[int, int]:
    if not isinstance(n_latents, Mapping):
        raise InputTypeError(f"n_latents must say how many of each layer, such as {{7: 20}}, got {n_latents!r:.80}")
    return {layer: as_integer(f"n_latents[{layer}]", count, least=0) for layer, count in n_latents.items()}


def _saes(traces: Sequence[Trace]) -> dict[int, str]:
    """Which SAE each layer's features come from, the same in all traces."""
    known = {layer: acts.sae for layer, acts in traces[0].features.items()}
    if not known:
        raise InputError("the traces have no SAE features: record them with collect(..., saes=...) or generate(..., saes=...)")
    for i, trace in enumerate(traces):
        if (own := {layer: acts.sae for layer, acts in trace.features.items()}) != known:
            raise InputError(f"trace {i} has features of other SAEs than trace 0: {own} instead of {known}")
    return dict(sorted(known.items()))
