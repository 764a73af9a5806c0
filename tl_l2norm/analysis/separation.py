"""How well families of problems are told apart by what the model does on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.stats import binomtest

from tl_l2norm.analysis.accuracy import WILSON, wilson_interval
from tl_l2norm.analysis.labels import label
from tl_l2norm.analysis.pairing import Pair, Tokens, meant, mode_means, pair_modes
from tl_l2norm.analysis.quantities import Latents, values
from tl_l2norm.analysis.token_rest import ResponseTokens
from tl_l2norm.core.errors import Unmeasurable
from tl_l2norm.core.layers import BUT_LAST, LATE, late_groups
from tl_l2norm.core.resampling import MIN_PROMPTS, Array, generator
from tl_l2norm.core.schema import MODEL, QUANTITY, Column, N, Schema, ends
from tl_l2norm.core.trace import Trace, TracesLike, traces_of

CONTROLS = ("length", "tokens", "prompt", "all")
"""Predictors that know nothing of the quantity."""

SEPARATIONS = Schema(
    "separations of families",
    "family_separation",
    (
        Column("predictor", str, '"profile", "rest", "spike", "spike but the last", "length", "tokens", "prompt" or "all"'),
        Column("accuracy", float, "share of prompts whose family is guessed right"),
        *ends("accuracy", kind=WILSON),
        Column("chance", float, "share of the largest family"),
        Column("p", float, "two-sided: of a control, that the profile is right as often; of others, that they are mere chance"),
        Column("least_p", float, "of a control, p of a profile that is always right; of others NaN"),
        N,
        Column("families", int, "that are told apart"),
        QUANTITY,
        Column("seed", int, "of the halves"),
        MODEL,
    ),
)

BUT_LAST_SPIKE = "spike but the last"
_SPIKES = {LATE: "spike", BUT_LAST: BUT_LAST_SPIKE}

_Guess = Callable[[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]], NDArray[np.intp]]
"""From known prompts, their families, and the prompts that are asked to guesses."""


def family_separation(
    think: TracesLike,
    direct: TracesLike,
    *,
    quantity: str = "l2_norm",
    features: Latents | None = None,
    tokens: Tokens = "read",
    seed: int = 0,
) -> pd.DataFrame:
    """How well families are told apart by norms, and by controls that know the thinking responses but no norm of theirs.

    "profile": the mean of each layer; "spike": the late difference of the modes; "rest": the profile of what token type, smooth
    index, smooth position in the sequence and log lengths of response and prompt don't explain of each token. Controls: the
    "length" of the response, its "tokens" (multinomial naive Bayes over their ids), the length of the "prompt", by which
    positions in the sequence differ, and "all" three together.

    Families are guessed from the other half of the prompts, and the other way round: by the nearest mean of standardised values
    or, of controls, by the greatest likelihood. Prompts with the same label "original" are one, by their means: of paraphrases
    on both sides each half knows what the other asks, and any norm tells the family by its originals. Near duplicates without
    that label are taken for prompts of their own. Whether the profile beats a control is tested on the prompts of which one of
    the two alone is right (McNemar's test, exact). Where a control is wrong so rarely that no profile could be better by it,
    `least_p` says so.

    Returns:
        One entry per predictor (the above; "spike but the last" is without the model's last block): predictor, accuracy, low,
        high (Wilson), chance (the largest family's share), p (of a control, that the profile is right no more often; of the
        others, that they are right by chance), least_p (of a control, p of a profile that is always right), n (prompts,
        those of one original as one), families, quantity, seed, model.

    Raises:
        ValueError: as `dynamics`; or fewer than two families of at least 8 prompts.
    """
    think, direct = traces_of(think), traces_of(direct)
    pairs: dict[str, list[Pair]] = {}
    for prompt, own in pair_modes(think, direct).items():
        pairs.setdefault(str(own[0][0].labels.get("original", prompt)), []).extend(own)
    first, second = mode_means(pairs, lambda trace: values(trace, quantity, features), tokens=tokens)
    members = [list({id(pair[0]): pair[0] for pair in pairs[prompt]}.values()) for prompt in pairs]
    names, families = np.unique([str(label(traces[0], "family")) for traces in members], return_inverse=True)
    held = ~np.isnan(first).any(1) & ~np.isnan(second).any(1)
    large = [i for i in range(len(names)) if (families[held] == i).sum() >= MIN_PROMPTS]
    if len(large) < 2:
        raise Unmeasurable(f"at least two families of {MIN_PROMPTS} prompts or more are needed to tell them apart")
    held &= np.isin(families, large)
    members = [traces for traces, kept in zip(members, held, strict=True) if kept]
    late = late_groups(think[0].layers, think[0].provenance.n_layers)
    lengths = np.array([np.mean([np.log(len(t) - t.prompt_len) for t in traces]) for traces in members])
    before = np.array([np.mean([np.log(t.prompt_len) for t in traces]) for traces in members])
    by_length, by_tokens, by_prompt = _gaussian(lengths), _bag(_counts(members, tokens)), _gaussian(before)
    every = ResponseTokens.of(members, lambda trace: values(trace, quantity, features).double().numpy(), tokens)
    predictors: dict[str, _Guess] = {
        "profile": _nearest_mean(first[held]),
        "rest": _nearest_mean(np.nan_to_num(every.rest())),
        **{_SPIKES[name]: _nearest_mean((first - second)[held][:, rows].mean(1, keepdims=True)) for name, rows in late.items()},
        "length": _most_likely(by_length),
        "tokens": _most_likely(by_tokens),
        "prompt": _most_likely(by_prompt),
        "all": _most_likely(by_length, by_tokens, by_prompt),
    }
    right = {name: _right(guess, families[held], seed) for name, guess in predictors.items()}
    chance = float(np.bincount(families[held]).max() / held.sum())
    entries = ({"predictor": name, **_entry(name, right, chance)} for name in predictors)
    return SEPARATIONS.frame(
        entries, chance=chance, families=len(large), quantity=quantity, seed=seed, model=think[0].provenance.model
    )


def _entry(name: str, right: dict[str, NDArray[np.bool_]], chance: float) -> dict[str, object]:
    own = right[name]
    hits, n = int(own.sum()), len(own)
    low, high = wilson_interval(hits, n)
    entry = {"accuracy": hits / n, "low": low, "high": high, "n": n}
    if name not in CONTROLS:
        return {**entry, "p": float(binomtest(hits, n, chance).pvalue), "least_p": np.nan}
    ahead, behind = int((right["profile"] & ~own).sum()), int((own & ~right["profile"]).sum())
    return {**entry, "p": _mcnemar(ahead, behind), "least_p": _mcnemar(n - hits, 0)}


def _mcnemar(ahead: int, behind: int) -> float:
    """That of the prompts of which one predictor alone is right either is right as often."""
    return float(binomtest(ahead, ahead + behind).pvalue) if ahead + behind else 1.0


def _right(guess: _Guess, families: NDArray[np.intp], seed: int) -> NDArray[np.bool_]:
    """Which are guessed right, each half from the other."""
    fold = np.zeros(len(families), dtype=int)
    rng = generator(seed)
    for family in np.unique(families):
        fold[rng.permutation(np.flatnonzero(families == family))[::2]] = 1
    right = np.zeros(len(families), dtype=bool)
    for test in (0, 1):
        known, asked = np.flatnonzero(fold != test), np.flatnonzero(fold == test)
        right[asked] = guess(known, families[known], asked) == families[asked]
    return right


def _nearest_mean(x: Array) -> _Guess:
    """Of [prompt, value], standardised by the known."""

    def guess(known: NDArray[np.intp], families: NDArray[np.intp], asked: NDArray[np.intp]) -> NDArray[np.intp]:
        centre, scale = x[known].mean(0), x[known].std(0)
        scale = np.where(scale > 1e-6 * np.abs(x).mean(0), scale, np.inf)  # rounding of float32 tells nothing apart
        names = np.unique(families)
        means = np.stack([((x[known] - centre) / scale)[families == name].mean(0) for name in names])
        distance = ((((x[asked] - centre) / scale)[:, None] - means[None]) ** 2).sum(-1)
        chosen: NDArray[np.intp] = names[distance.argmin(1)]
        return chosen

    return guess


_Likelihood = Callable[[NDArray[np.intp], NDArray[np.intp]], Array]
"""Log likelihood [asked] under the known prompts of one family."""


def _most_likely(*likelihoods: _Likelihood) -> _Guess:
    def guess(known: NDArray[np.intp], families: NDArray[np.intp], asked: NDArray[np.intp]) -> NDArray[np.intp]:
        names = np.unique(families)
        of = [known[families == name] for name in names]
        logs = [np.log(len(own)) + sum(likelihood(own, asked) for likelihood in likelihoods) for own in of]
        chosen: NDArray[np.intp] = names[np.argmax(logs, axis=0)]
        return chosen

    return guess


def _gaussian(x: Array) -> _Likelihood:
    """Of x [prompt], normal; no narrower than a hundredth of its spread."""
    least = max(0.01 * float(x.std()), 1e-9)

    def likelihood(known: NDArray[np.intp], asked: NDArray[np.intp]) -> Array:
        scale = max(float(x[known].std()), least)
        log: Array = -0.5 * ((x[asked] - x[known].mean()) / scale) ** 2 - np.log(scale)
        return log

    return likelihood


def _bag(counts: csr_array) -> _Likelihood:
    """Of counts [prompt, token id], multinomial, with one more of each id."""

    def likelihood(known: NDArray[np.intp], asked: NDArray[np.intp]) -> Array:
        total = counts[known].sum(0) + 1.0
        log: Array = counts[asked] @ np.log(total / total.sum())
        return log

    return likelihood


def _counts(members: Sequence[Sequence[Trace]], tokens: Tokens) -> csr_array:
    """[prompt, token id] how often a prompt's responses hold it."""
    ids = [np.concatenate([t.tokens[meant(t, tokens)].numpy() for t in traces]) for traces in members]
    prompt = np.repeat(np.arange(len(ids)), [len(x) for x in ids])
    column = np.unique(np.concatenate(ids), return_inverse=True)[1]
    return csr_array((np.ones(len(column)), (prompt, column)))
