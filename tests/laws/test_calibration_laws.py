"""How often a claim is made of nothing, and how often of something: planted nulls and planted effects of stated size."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import binom

import tl_l2norm as l2
from tests.planted import both_modes
from tests.traces import Array, response
from tl_l2norm.analysis.accuracy import wilson_interval
from tl_l2norm.analysis.attribution import Attribution, attribute
from tl_l2norm.analysis.bound import bound_points, bound_table
from tl_l2norm.analysis.causal import causal_differences
from tl_l2norm.analysis.correlation import correlation_table
from tl_l2norm.analysis.pairing import shuffle_modes
from tl_l2norm.analysis.reasoning import ReasoningFeatures, find_reasoning_features
from tl_l2norm.analysis.rise import dynamics
from tl_l2norm.analysis.separation import family_separation
from tl_l2norm.analysis.trend import level_trend
from tl_l2norm.core.resampling import bootstrap_mean
from tl_l2norm.core.trace import Trace

NULLS, PLANTED = 200, 100
FALSE, FOUND = 0.07, 0.95
STREAM = 1
"""Of the made-up data. Over thousands of data sets these intervals miss in 5 to 6%, which of 200 is by chance 2 to 10%."""
FEW = {"resamples": 300}

Modes = tuple[list[Trace], list[Trace]]


def share(claims: Sequence[bool]) -> float:
    return float(np.mean(claims))


def excludes(entry: Any, value: float = 0.0) -> bool:
    return bool(entry["low"] > value or entry["high"] < value)


NOISE: dict[str, Callable[..., Array]] = {
    "normal": lambda rng, size: rng.normal(size=size),
    "exponential": lambda rng, size: rng.exponential(size=size) - 1,
    "lognormal": lambda rng, size: (rng.lognormal(size=size) - np.exp(0.5)) / 2.16,
}


def modes(seed: int, n: int, effect: float = 0.0, noise: str = "normal") -> Modes:
    """Prompts of different norm, responses of 2 to 4 tokens; in all layers thinking is higher by `effect` standard deviations
    of the prompts' differences."""
    rng = np.random.default_rng([seed, STREAM])  # not the stream that prompts are resampled by
    prompts, each = 100 + 5 * rng.normal(size=n), NOISE[noise](rng, (n, 2)) / 2**0.5

    def make(i: int, mode: str) -> Trace:
        k, thinking = int(rng.integers(2, 5)), mode == "think"
        tokens = 0.2 * rng.normal(size=(4, k))
        norms = prompts[i] + each[i, int(thinking)] + effect * thinking + tokens
        return response(norms, prompt=str(i), mode=mode, tokens=rng.integers(0, 2, k))

    return both_modes(n, make)


# Mean differences


@pytest.mark.slow
@pytest.mark.parametrize("n", [8, 16])
def test_modes_that_do_not_differ_are_rarely_said_to(n: int) -> None:
    compared = [l2.analysis.compare_late(*modes(seed, n), seed=seed) for seed in range(NULLS)]
    assert share(["neither" not in late.verdict for late in compared]) <= FALSE


@pytest.mark.parametrize("n", [8, 16, 40])
@pytest.mark.parametrize("noise", NOISE)
def test_the_interval_of_a_mean_misses_as_often_as_it_may(n: int, noise: str) -> None:
    """4,000 data sets, without traces. Differences of two draws from one distribution are symmetric, and missed in 5 to 7%
    however skewed the draws. Where thinking is skewed and direct answers don't vary, which no exchange of modes gives, the mean
    of few values has no interval by percentiles that keeps 5%: 10, 8 and 6% are missed at 8, 16 and 40 prompts (exponential),
    16, 13 and 10% (lognormal)."""
    rng, count = np.random.default_rng([n, 1]), 4000
    thinking, direct = NOISE[noise](rng, (2, n, count))

    def missed(values: Array) -> float:
        parts = [bootstrap_mean(part, seed=i) for i, part in enumerate(np.split(values, 20, axis=1))]
        return share([bool(x) for _, low, high in parts for x in (low > 0) | (high < 0)])

    alone = {"normal": {8: 0.07, 16: 0.07, 40: 0.07}, "exponential": {8: 0.12, 16: 0.1, 40: 0.08}}
    assert missed(thinking - direct) <= FALSE + (0.01 if noise == "lognormal" else 0)
    assert missed(thinking) <= alone.get(noise, {8: 0.18, 16: 0.15, 40: 0.12})[n]


def test_a_difference_of_0_8_standard_deviations_is_found_with_40_prompts() -> None:
    compared = [l2.analysis.compare_late(*modes(seed, 40, effect=0.8), seed=seed, **FEW) for seed in range(PLANTED)]
    assert share(["are higher" in late.verdict for late in compared]) >= FOUND


@pytest.mark.parametrize("n", [8, 16, 40])
def test_spike_amplification_and_attribution_claim_what_the_comparison_claims(n: int) -> None:
    """They are the same difference, so its rates are theirs: a ratio of means is over 1 where their difference is over 0."""
    for seed in range(12):
        think, direct = modes(seed, n, effect=0.4)
        late = l2.analysis.compare_late(think, direct, seed=seed, **FEW).difference
        entry = dynamics(think, direct, seed=seed, **FEW).iloc[0]
        assert entry[["spike", "spike_low", "spike_high"]].tolist() == pytest.approx([late.mean, late.low, late.high], abs=1e-4)
        assert (entry["amplification_low"] > 1) == (entry["spike_low"] > 0)
        assert (entry["amplification_high"] < 1) == (entry["spike_high"] < 0)
        own = attribute(think, direct, seed=seed, **FEW).table.set_index("match").loc["count"]
        assert (own["difference"], own["low"], own["high"]) == pytest.approx((late.mean, late.low, late.high), abs=1e-4)


# What a difference is put down to


@pytest.mark.slow
def test_no_difference_is_attributed_to_nothing() -> None:
    verdicts = [attribute(*modes(seed, 8), seed=seed).verdict for seed in range(NULLS)]
    assert share(["No difference" not in verdict for verdict in verdicts]) <= FALSE


def confounded(
    value: Callable[[str, Array, Array], Array],
    *,
    lengths: tuple[tuple[int, int], tuple[int, int]] = ((6, 10), (6, 10)),
    prompt_lens: tuple[int, int] = (2, 2),
    types: tuple[Sequence[float], Sequence[float]] = ((0.25,) * 4, (0.25,) * 4),
    n: int = 12,
    seed: int = 0,
) -> Modes:
    """Responses whose tokens have the norm value(mode, index, type) over noise; pairs are of thinking and direct."""
    rng = np.random.default_rng([seed, STREAM])

    def make(i: int, mode: str) -> Trace:
        m = int(mode == "direct")
        k = int(rng.integers(*lengths[m]))
        ids = rng.choice(4, size=k, p=types[m])
        norms = 100 + 0.7 * rng.normal() + value(mode, np.arange(k), ids) + 0.2 * rng.normal(size=(4, k))
        return response(norms, prompt=str(i), mode=mode, tokens=ids, prompt_len=prompt_lens[m])

    return both_modes(n, make)


def attributed(make: Callable[[int], Modes]) -> list[Attribution]:
    return [attribute(*make(seed), seed=seed, **FEW) for seed in range(PLANTED)]


LONGER = ((9, 15), (3, 6))


@pytest.mark.slow
def test_an_effect_of_the_index_in_the_response_goes_away_with_length() -> None:
    """Thinking is longer and norms rise along a response. The position in the sequence is nearly the index here, so matching by
    it takes the effect away too (thinking's prompt is 2 longer: its index is lower at the same position), and so does the
    regression: the mean index follows from the length. Types and the answer's token (thinking's last) keep it."""
    attributions = attributed(
        lambda seed: confounded(lambda mode, index, ids: 1.0 * index, lengths=LONGER, prompt_lens=(4, 2), seed=seed)
    )
    assert share(["length" in f.goes_away for f in attributions]) >= FOUND
    assert share(["stays so" in f.verdict or not f.is_there for f in attributions]) <= 1 - FOUND
    assert share(["token" in f.goes_away or "answer" in f.goes_away for f in attributions]) <= 1 - FOUND


@pytest.mark.slow
def test_an_effect_of_the_position_in_the_sequence_goes_away_with_position_alone() -> None:
    """Thinking's prompt is 4 tokens longer, its responses are not."""
    prompt_lens = (6, 2)
    attributions = attributed(
        lambda seed: confounded(
            lambda mode, index, ids: index + 1.0 * prompt_lens[mode == "direct"], prompt_lens=prompt_lens, seed=seed
        )
    )
    assert share([f.is_there and f.goes_away == ("position",) for f in attributions]) >= FOUND


@pytest.mark.slow
def test_an_effect_of_the_whole_length_goes_away_with_the_regression_alone() -> None:
    """Every token of a longer response is louder, the first as well: no choice of tokens takes that away."""
    attributions = attributed(
        lambda seed: confounded(lambda mode, index, ids: 1.0 * len(index) + 0 * index, lengths=LONGER, seed=seed)
    )
    assert share([f.is_there and f.goes_away == ("length, by regression",) for f in attributions]) >= FOUND


@pytest.mark.slow
def test_an_effect_of_token_types_goes_away_with_types_alone() -> None:
    types, lengths = ((0.05, 0.15, 0.3, 0.5), (0.5, 0.3, 0.15, 0.05)), ((14, 18), (14, 18))
    attributions = attributed(
        lambda seed: confounded(lambda mode, index, ids: 3.0 * ids, types=types, lengths=lengths, n=24, seed=seed)
    )
    assert share([f.is_there and f.goes_away == ("token", "jointly") for f in attributions]) >= FOUND


def test_an_effect_that_spares_the_answers_token_goes_away_with_it_alone() -> None:
    attributions = attributed(
        lambda seed: confounded(lambda mode, index, ids: 3.0 * (mode == "think") * (index < len(index) - 1), seed=seed)
    )
    assert share([f.is_there and f.goes_away == ("answer",) for f in attributions]) >= FOUND


@pytest.mark.slow
def test_an_effect_of_thinking_stays() -> None:
    """Of 1.5 standard deviations with 24 prompts where responses are as long (84% with 16).

    Where thinking is always longer the regression, an extrapolation to a length that no prompt has, takes more, 8, and mode
    can't be told from length: that it stays is not said.
    """
    same = [attribute(*modes(seed, 24, effect=1.5), seed=seed, **FEW) for seed in range(PLANTED)]
    longer = attributed(
        lambda seed: confounded(lambda mode, index, ids: 8.0 * (mode == "think") + 0 * index, lengths=LONGER, seed=seed)
    )
    assert share(["is higher, and stays so however" in f.verdict for f in same]) >= FOUND
    assert share([f.is_there and not f.goes_away and not f.undecided for f in longer]) >= FOUND
    assert all("mode can't be told from" in f.verdict and not f.stays for f in longer if f.is_there)


# Reasoning features


def activations(seed: int, n: int, effect: float = 0.0, latents: int = 8) -> Modes:
    """Sparse, skewed activations, larger on some prompts; latent 0 is `effect` standard deviations more active in thinking."""
    rng = np.random.default_rng([seed, STREAM])
    prompts = rng.exponential(size=(n, latents))
    spread = np.sqrt(2 * 0.3 * 2 - 2 * 0.09)  # of a difference of two exponentials that are there in 3 of 10 cases

    def make(i: int, mode: str) -> Trace:
        acts = rng.exponential(size=(1, latents)) * (rng.random((1, latents)) < 0.3) + 0.2 * prompts[i]
        acts[:, 0] += effect * spread * (mode == "think")
        return response(np.ones((4, 1)), prompt=f"p{i:03}", mode=mode, acts=acts)

    return both_modes(n, make)


@pytest.mark.slow
def test_where_modes_do_not_differ_a_reasoning_feature_is_rarely_found_and_forced_ones_rarely_replicate() -> None:
    """The rate of false discoveries is, where nothing is true, that of any discovery."""
    chosen, replicated = [], []
    for seed in range(NULLS):
        think, direct = activations(seed, 24)
        chosen.append(len(find_reasoning_features(think, direct, seed=seed)) > 0)
        forced = find_reasoning_features(think, direct, seed=seed, n_latents={3: 3})
        assert len(forced) == 3
        replicated += forced.evaluate(forced.held_out(think), forced.held_out(direct), seed=seed, **FEW)["replicated"].tolist()
    assert share(chosen) <= FALSE
    assert share(replicated) <= 0.05, (
        "nominally 0.025, one side of a 95% interval; 0.035 with few prompts and sparse activations"
    )


@pytest.mark.slow
def test_a_latent_that_is_1_5_standard_deviations_more_active_is_found_and_replicates() -> None:
    chosen, replicated = [], []
    for seed in range(PLANTED):
        think, direct = activations(seed, 40, effect=1.5)
        features = find_reasoning_features(think, direct, seed=seed)
        chosen.append(0 in features.latents[3])
        table = features.evaluate(features.held_out(think), features.held_out(direct), seed=seed, **FEW)
        replicated += table[table["latent"] == 0]["replicated"].tolist()
    assert share(chosen) >= FOUND and share(replicated) >= FOUND


# Correlation


class Planted:
    """Stands for chosen latents: what they sum to is a metric of the trace."""

    def total(self, trace: Trace) -> torch.Tensor:
        return trace.metrics["activation"]


def with_activation(norms: Array, activation: Array, i: int, ids: Array) -> Trace:
    behind = np.concatenate([np.zeros((len(norms), 1)), activation], axis=1)
    return response(norms, prompt=str(i), tokens=ids, metrics={"activation": torch.from_numpy(behind).float()})


@functools.cache
def correlations(n: int, weight: float, drift: float, count: int) -> pd.DataFrame:
    """Of responses of 12 to 15 tokens: the norm has `weight` times the activation in it, both have a drift with position."""
    tables = []
    for seed in range(count):
        rng = np.random.default_rng([seed, STREAM])
        traces = []
        for i in range(n):
            k = int(rng.integers(12, 16))
            activation = rng.normal(size=(4, k)) + drift * np.arange(k)
            norms = 100 + rng.normal() + weight * activation + rng.normal(size=(4, k)) + drift * np.arange(k)
            traces.append(with_activation(norms, activation, i, rng.integers(0, 5, k)))
        tables.append(correlation_table(traces, Planted(), quantities=("l2_norm",), seed=seed, **FEW))
    return pd.concat(tables)


def claims(table: pd.DataFrame, scope: str) -> pd.DataFrame:
    return table[(table["scope"] == scope) & (table["layer"] == "late")]


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["tokens", "partial"])
def test_a_norm_that_goes_its_own_way_is_rarely_said_to_follow_the_activation(scope: str) -> None:
    """With 8 and with 12 prompts."""
    entries = pd.concat([claims(correlations(n, 0.0, 0.0, NULLS), scope) for n in (8, 12)])
    assert len(entries) == 2 * NULLS
    assert share([excludes(entry) for _, entry in entries.iterrows()]) <= FALSE


def test_a_norm_that_follows_the_activation_is_found() -> None:
    """A correlation of 0.45 within responses, 12 prompts."""
    table = correlations(12, 0.5, 0.0, PLANTED)
    for scope in ("tokens", "partial"):
        assert share((claims(table, scope)["low"] > 0).tolist()) >= FOUND


def test_two_drifts_with_position_are_a_correlation_over_tokens_but_not_partial() -> None:
    table = correlations(12, 0.0, 0.5, PLANTED)
    assert share((claims(table, "tokens")["low"] > 0).tolist()) >= FOUND
    # ranks of a drift over noise are not quite linear in the position: a little is left
    assert share([excludes(entry) for _, entry in claims(table, "partial").iterrows()]) <= 0.1


def test_over_layers_the_interval_speaks_of_prompts_only() -> None:
    """Two profiles over layers that have nothing to do with each other are, with few layers, seldom uncorrelated, and all
    prompts share them: resampling prompts can't tell. Where prompts are all that varies nothing is claimed."""
    claimed: dict[str, list[bool]] = {"profiles": [], "noise": []}
    for seed in range(60):
        for kind, size in (("profiles", 3.0), ("noise", 0.0)):
            rng = np.random.default_rng([seed, STREAM])
            norm, activation = 100 + size * rng.normal(size=(2, 12, 1))
            traces = [
                with_activation(norm + rng.normal(size=(12, 2)), activation + rng.normal(size=(12, 2)), i, np.arange(2))
                for i in range(12)
            ]
            table = correlation_table(traces, Planted(), quantities=("l2_norm",), seed=seed, **FEW)
            claimed[kind].append(excludes(table[table["scope"] == "layers"].iloc[0]))
    assert share(claimed["profiles"]) > 0.3, "if this is calibrated now, say so in the documentation"
    assert share(claimed["noise"]) <= FALSE


# Difficulty and domain


def graded(seed: int, n: int, level: float = 0.0, length: float = 0.0, family: float = 0.0) -> Modes:
    """Three levels, two families; harder problems are thought about longer. Thinking is louder by so much (in standard
    deviations) for each level, token of length, or in the second family."""
    rng = np.random.default_rng([seed, STREAM])

    def make(i: int, mode: str) -> Trace:
        k = 2 + i % 3 + int(rng.integers(0, 4)) if mode == "think" else 2
        lift = (level * (i % 3) + length * k + family * (i // 3 % 2)) * (mode == "think")
        norms = 100 + (rng.normal() + lift) + 0.1 * rng.normal(size=(4, k))
        return response(norms, prompt=str(i), mode=mode, labels={"family": "ab"[i // 3 % 2], "level": i % 3})

    return both_modes(n, make)


@functools.cache
def trends(count: int, n: int, level: float, length: float) -> pd.DataFrame:
    tables = pd.concat([level_trend(*graded(seed, n, level, length), seed=seed, **FEW) for seed in range(count)])
    return tables[tables["part"] == "ratio"]


@pytest.mark.slow
def test_amplification_that_does_not_depend_on_the_level_is_rarely_said_to() -> None:
    table = trends(NULLS, 24, 0.0, 0.0)
    for given in ("nothing", "length"):
        assert share((table[table["given"] == given]["p"] < 0.05).tolist()) <= FALSE


def test_amplification_that_grows_with_the_level_is_found() -> None:
    """By 2 standard deviations of one mode's norms for each level, 30 prompts."""
    table = trends(PLANTED, 30, 2.0, 0.0)
    assert share((table[table["given"] == "nothing"]["p"] < 0.05).tolist()) >= FOUND


@pytest.mark.slow
def test_amplification_that_grows_with_the_length_alone_is_no_trend_given_it() -> None:
    table = trends(PLANTED, 48, 0.0, 2.0)
    assert share((table[table["given"] == "nothing"]["p"] < 0.05).tolist()) >= FOUND
    assert share((table[table["given"] == "length"]["p"] < 0.05).tolist()) <= 0.1  # 5%, and the chance of 100 runs


@pytest.mark.slow
def test_families_that_do_not_differ_are_rarely_told_apart_and_others_are() -> None:
    null = pd.concat([family_separation(*graded(seed, 24), seed=seed) for seed in range(NULLS)])
    apart = pd.concat([family_separation(*graded(seed, 24, family=4.0), seed=seed) for seed in range(PLANTED)])
    for predictor in ("spike", "profile", "length"):
        entries = null[null["predictor"] == predictor]
        assert share((entries["low"] > entries["chance"]).tolist()) <= FALSE
    above = {name: share((entries["low"] > entries["chance"]).tolist()) for name, entries in apart.groupby("predictor")}
    assert above["profile"] >= FOUND and above["spike"] >= FOUND and above["length"] <= FALSE


# Cause and theory


def arms(seed: int, n: int, high: float, random: float) -> pd.DataFrame:
    """Outcomes of two arms whose accuracies are these on average; problems are of different difficulty."""
    rng = np.random.default_rng([seed, STREAM])
    ease = 0.4 * (rng.random(n) - 0.5)
    entries = [
        {"arm": arm, "quantile": q, "prompt": str(i), "correct": bool(rng.random() < accuracy + ease[i])}
        for arm, accuracy in (("paired", high), ("random", random))
        for q in (0.5, 0.9)
        for i in range(n)
    ]
    return pd.DataFrame(entries).assign(draw=0, positions=3, events=3, tokens=5, cut_off=False, seed=seed, model="by hand")


@pytest.mark.slow
@pytest.mark.parametrize("n", [8, 40])
def test_arms_of_the_same_accuracy_are_rarely_said_to_differ(n: int) -> None:
    differences = pd.concat([causal_differences(arms(seed, n, 0.7, 0.7), seed=seed, **FEW) for seed in range(NULLS)])
    assert share([excludes(entry) for _, entry in differences[differences["quantile"].isna()].iterrows()]) <= FALSE
    assert share([excludes(entry) for _, entry in differences.dropna(subset="quantile").iterrows()]) <= FALSE


def test_a_loss_of_40_points_of_accuracy_is_found_with_40_problems() -> None:
    differences = pd.concat([causal_differences(arms(seed, 40, 0.35, 0.75), seed=seed, **FEW) for seed in range(PLANTED)])
    assert share((differences[differences["quantile"].isna()]["high"] < 0).tolist()) >= FOUND


def first_latent() -> ReasoningFeatures:
    return ReasoningFeatures(
        latents={3: (0,)},
        table=pd.DataFrame(),
        chosen_on=frozenset(),
        saes={3: "by hand"},
        match="none",
        tokens="read",
        seed=0,
        model="by hand",
    )


def premise(seed: int, n: int, effect: float, shuffled: bool) -> Any:
    rng = np.random.default_rng([seed, STREAM])
    think, direct = both_modes(
        n,
        lambda i, mode: response(
            100 + (rng.normal() + effect * (mode == "think")) + np.zeros((4, 1)), prompt=str(i), mode=mode, acts=np.ones((1, 1))
        ),
    )
    pair = shuffle_modes(think, direct, seed=seed) if shuffled else (think, direct)
    return bound_table(bound_points(*pair, first_latent()), seed=seed, **FEW).iloc[0]


@pytest.mark.slow
def test_the_theorems_premise_holds_in_half_of_the_prompts_where_modes_do_not_differ() -> None:
    """Wilson's interval of so few successes misses by its nature now less and now more often than 5%: 3.9% at 12 prompts, 7.7%
    at 16. Of thinking norms that are always larger half are exchanged by the control, so that it claims nothing at all."""
    entries = [premise(seed, 12, 0.0, shuffled=False) for seed in range(NULLS)]
    assert share([entry["premise_low"] > 0.5 or entry["premise_high"] < 0.5 for entry in entries]) <= FALSE
    for n, exact in ((12, 0.039), (16, 0.077)):
        misses = [k for k in range(n + 1) if not wilson_interval(k, n)[0] <= 0.5 <= wilson_interval(k, n)[1]]
        assert binom.pmf(misses, n, 0.5).sum() == pytest.approx(exact, abs=0.001)
    exchanged = [premise(seed, 16, 50.0, shuffled=True) for seed in range(20)]
    assert {entry["premise"] for entry in exchanged} == {0.5}


def test_a_thinking_norm_that_is_larger_in_most_prompts_is_found() -> None:
    """By 2.5 standard deviations of one mode's norms: in 96% of prompts, 16 of them."""
    entries = [premise(seed, 16, 2.5, shuffled=False) for seed in range(PLANTED)]
    assert share([entry["premise_low"] > 0.5 for entry in entries]) >= FOUND
