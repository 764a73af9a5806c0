"""Whether the late norm of a thinking response says that it is right, given its problem, length and log-probability."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from tl_l2norm.analysis.curves import response_means
from tl_l2norm.analysis.within_problems import MixedProblems, mixed
from tl_l2norm.core.arguments import as_integer, check_choice
from tl_l2norm.core.errors import InputError, InputTypeError, Unmeasurable
from tl_l2norm.core.layers import BUT_LAST, LATE, late_groups
from tl_l2norm.core.resampling import MAX_DRAWS, MIN_DRAWS, MIN_PROMPTS, RESAMPLES, Array
from tl_l2norm.core.schema import MODEL, SEED, Column, Schema, ends
from tl_l2norm.core.trace import require_comparable
from tl_l2norm.tasks.results import Result, results_of
from tl_l2norm.tasks.verifiers import extract_answer

MAX_CUT_OFF = 0.05
"""Share of responses cut off at the token limit above which there is no verdict: they are long and wrong by construction, and
can make such a figure or turn it round."""

MIN_SAMPLES = 4
"""Of a problem: lines of its own, by length and by log-probability, leave nothing of fewer."""

GOOD_SAMPLES = 8
"""Of a problem, from which on most is left: of 4 samples the problem's mean and its two lines take three quarters."""

FEW_SAMPLES = (
    f"give {GOOD_SAMPLES} samples of a problem or more: with {MIN_SAMPLES} nearly all is spent on the lines of each problem"
)

MIN_TOLERANCE = 0.1
"""Share of the norm's variance within problems that length and log-probability leave; below it, a variance inflation of over
10 (the usual bound), it can't be told from them."""

Clusters = Literal["prompt", "family"]

SAMPLES = Schema(
    "samples",
    "correctness_samples",
    (
        Column("prompt", str, "the problem's id"),
        Column("family", str, "the problem's"),
        Column("level", int, "the problem's", optional=True),
        Column("sample", int, "number of the response to the problem, from 0"),
        Column("correct", bool, "whether it is right"),
        Column("cut_off", bool, "whether it ran into max_new_tokens or states no answer"),
        Column("length", int, "tokens of the response"),
        Column("log_prob", float, "mean log-probability of its tokens, nats"),
        Column(LATE, float, "mean norm over the response's tokens and the late layers"),
        Column(BUT_LAST, float, "the same without the model's last block; NaN where that is all"),
        MODEL,
    ),
)
"""Beside these, a column for each recorded layer, by number."""

CORRECTNESS = Schema(
    "effects of the norm on correctness",
    "correctness_effect",
    (
        Column("responses", str, '"all", or "finished": those that were not cut off'),
        Column("layer", object, f'"{LATE}", "{BUT_LAST}" or a number'),
        Column("beta", float, "log-odds of a right response per standard deviation of the norm within problems"),
        *ends("beta"),
        Column("p", float, "two-sided"),
        Column("p_max", float, "over all layers together; NaN for means over layers"),
        Column(
            "tolerance", float, "share of the norm's variance within problems that length and log-probability leave, unbiased"
        ),
        Column("auc_norm", float, "share of pairs of a right and a wrong response to a problem that the norm ranks right"),
        Column("auc_without", float, "share that length and log-probability rank right"),
        Column("auc_with", float, "the same with the norm"),
        Column("gain", float, "the difference of the two"),
        *ends("gain", prefix=True),
        Column("n", int, "problems with right and wrong responses"),
        Column("n_same", int, "problems whose responses are all right or all wrong"),
        Column("n_samples", int, "responses of the former"),
        Column("right", float, "share of all responses"),
        Column("cut_off", float, "share of all responses"),
        Column("verdict", str, "in words"),
        SEED,
        MODEL,
    ),
)


def correctness_samples(results: Result | Sequence[Result]) -> pd.DataFrame:
    """One row per response of `sample_thinking`.

    Columns: prompt, family, level, sample, correct, cut_off (it ran into max_new_tokens, or ended without stating an answer:
    wrong by construction), length (tokens of the response), log_prob (their mean log-probability, nats), then mean norms over
    the response's tokens, sinks left out: "late" (the last quarter of the layers), "late but the last" (without the model's
    last block, whose output the unembedding alone reads; NaN where that is all) and one for each layer, by number; then model.
    A response of one token was never read back: its norms are NaN.

    Raises:
        ValueError: results that are not thinking, have no known answer or no label log_prob, or traces that are not comparable.

    Examples:
        >>> problems = l2.make_mixture(2, families="compact")
        >>> options = {"temperature": 2.5, "max_new_tokens": 40, "progress": False}
        >>> results = l2.experiments.sample_thinking(model, problems, n=4, **options)
        >>> l2.analysis.correctness_samples(results)["sample"].tolist()
        [0, 1, 2, 3, 0, 1, 2, 3]
    """
    results = results_of(results)
    if not results:
        raise InputError("no results given")
    require_comparable([result.trace for result in results])
    for i, result in enumerate(results):
        if result.mode != "think":
            raise InputError(f"result {i} is of the mode {result.mode!r}: give thinking responses, from sample_thinking")
        if result.correct is None:
            raise InputError(f"the problem of result {i} has no known answer: nothing says which of its responses are right")
        if missing := [name for name in ("sample", "log_prob") if name not in result.trace.labels]:
            raise InputError(f"result {i} lacks the label {missing[0]!r} on its trace: sample with sample_thinking")
    samples = pd.DataFrame([_entry(result) for result in results])
    return SAMPLES.check(samples)


def _entry(result: Result) -> dict[Any, Any]:
    trace, means = result.trace, response_means(result.trace).double().numpy()
    groups = late_groups(trace.layers, trace.provenance.n_layers)
    return {
        "prompt": result.problem.id,
        "family": result.problem.family,
        "level": result.problem.level,
        "sample": trace.labels["sample"],
        "correct": result.correct,
        "cut_off": result.finish_reason == "length" or not (result.correct or extract_answer(result.problem, result.answer)),
        "length": len(trace) - trace.prompt_len + 1,
        "log_prob": trace.labels["log_prob"],
        **{name: means[groups[name]].mean() if name in groups else np.nan for name in (LATE, BUT_LAST)},
        **dict(zip(trace.layers, means, strict=True)),
        "model": trace.provenance.model,
    }


def correctness_effect(
    samples: pd.DataFrame, *, clusters: Clusters = "prompt", seed: int = 0, resamples: int = RESAMPLES
) -> pd.DataFrame:
    """The effect of the norm on correctness within problems, at each layer and over the late ones.

    Conditional logistic regression: logit P(correct) = problem + beta x norm + smooth log length + smooth log-probability. Only
    problems with right and wrong responses say anything. The norm is per standard deviation within problems, and of it the part
    that doesn't go along lines of the problem's own with log length and log-probability: where both norm and correctness
    depend on how far a length is from what suits the problem, or on log-probability more in some problems than in others,
    one line for all lets 80 and 97% of nulls through.

    p is that of the score statistic of beta, studentised by clusters, among data sets in which correctness is dealt out again
    within each problem, each arrangement as likely as length and log-probability make it, and refitted by one step: without
    the refit 7.0 to 7.7% of nulls with 48 problems x 6 are false, with it 5.3 to 6.0% (of 600). `p_max` counts the greatest of
    all layers.

    The interval inverts that test: it holds every beta at which the same statistic, all else fitted again, is at most the 95%
    quantile of its size among those data sets. So it leaves out 0 where p is at most 0.05, is not symmetric about beta, and is
    infinite on a side on which the data set no bound. With 40 problems x 4, 8, 16 it misses 0 in 5, 4, 4% of nulls (of 250,
    200, 100) and a beta of 1 in 7, 6, 8% (of 100, 200, 60). Beta itself, a maximum likelihood, lies too far from 0 where
    samples are few (medians of 1.15, 1.08, 1.02); the interval, not centred on it, allows for that.

    Give 8 samples of a problem or more: of 4, the mean and the lines of each problem take three quarters, and the interval is
    three times as wide as with 8 and six times as wide as with 16.

    At most 7% false where norm and correctness follow length (straight, U-shaped), log-probability, difficulty or nothing, with
    skewed norms and lengths, from 12 problems x 8 on (tests/laws/test_correctness_laws.py lists the rates' worlds). Not kept: a
    sharp step of both at one length of each problem's own, two standard deviations high in both: a quarter false; of one,
    5%. What is found in at least 90%, beta over: 0.4 with 100 problems x 8 samples of which nine in ten have both outcomes, 0.3
    with 200 x 8, 0.8 with 48 x 6.

    Args:
        samples: of `correctness_samples`.
        clusters: what is independent of each other: problems, or families of problems.
        seed: of the shuffles, folds and resamples.
        resamples: how many of each.

    Returns:
        Twice (all responses; "finished", those that were not cut off) one row for "late", "late but the last" and each layer:
        responses, layer, beta (log-odds per standard deviation), low, high (95%, by inverting the test), p (two-sided),
        p_max (of layers), tolerance (share of the norm's variance within problems that length and log-probability leave, of
        variances that what is fitted does not bias; at most 1), auc_norm (share of pairs of a right and a wrong response to
        one problem in which the right one's norm is higher; no regression), auc_without and auc_with (by the regression
        without and with the norm, fitted to other problems), gain, gain_low, gain_high (their difference, by resampling
        clusters), n (problems with both outcomes), n_same (those without, which say nothing), n_samples (of the n), right
        (share of all responses), cut_off (share of all responses), verdict, seed, model. The verdict is "supported" (right
        responses have the higher norm: beta over 0 and p, at layers p_max, at most 0.05), "not supported",
        or "can't be tested here" (over 5% cut off, a tolerance under 0.1, or under 8 problems left).

    Raises:
        ValueError: not such a table, or a family of one problem where families are clusters.
        Unmeasurable: a problem with fewer than 4 samples; fewer than 8 problems (or families) with both outcomes.

    Examples:
        >>> rng, number = np.random.default_rng(0), np.arange(320)
        >>> samples = pd.DataFrame({"prompt": number // 8, "family": "made up", "sample": number % 8, "cut_off": False})
        >>> samples["length"], samples["log_prob"] = rng.integers(20, 60, 320), rng.normal(size=320)
        >>> samples["late"] = samples["late but the last"] = rng.normal(100, 5, 320)
        >>> samples["correct"] = samples["late"] + rng.normal(0, 5, 320) > 100
        >>> l2.analysis.correctness_effect(samples.assign(model="none"), resamples=200).loc[0, "verdict"]
        'supported'
    """
    check_choice("clusters", clusters, get_args(Clusters))
    resamples = as_integer("resamples", resamples, least=MIN_DRAWS, most=MAX_DRAWS)
    samples = _checked(samples)
    _require_clusters(samples, clusters)
    options: dict[str, Any] = {"clusters": clusters, "seed": seed, "resamples": resamples}
    finished = samples[~samples["cut_off"].astype(bool)]
    whole = _effects(samples, **options)
    parts = {"all": whole, "finished": whole if len(finished) == len(samples) else _effects(finished, **options)}
    table = pd.concat([part.assign(responses=name) for name, part in parts.items()], ignore_index=True)
    table = table.assign(right=samples["correct"].mean(), cut_off=samples["cut_off"].mean())
    table["verdict"] = [_verdict(entry) for entry in table.to_dict("records")]
    return CORRECTNESS.frame(table, seed=seed, model=samples["model"].iloc[0])


def _checked(samples: pd.DataFrame) -> pd.DataFrame:
    """Samples that have norms; refuses what isn't such a table."""
    if not isinstance(samples, pd.DataFrame):
        raise InputTypeError(f"samples are what correctness_samples returns, got {samples!r:.80}")
    samples = SAMPLES.check(samples).rename(columns=lambda name: int(name) if str(name).isdigit() else name)  # of a CSV file
    if samples[LATE].isna().all():
        raise Unmeasurable("no late layer was recorded: nothing can be said of late norms")
    if samples.duplicated(["prompt", "sample"]).any():
        raise InputError("a sample of a problem occurs twice: give the results of one run of sample_thinking")
    if samples["model"].nunique() > 1:
        raise InputError("samples of several models: their norms are not comparable, give those of one")
    held = samples[samples[[LATE, "log_prob"]].notna().all(axis=1)]
    counts = held.groupby("prompt").size()
    if not len(held) or (len(counts) < samples["prompt"].nunique()) or counts.min() < MIN_SAMPLES:
        few = min((int(counts.get(prompt, 0)) for prompt in samples["prompt"].unique()), default=0)
        raise Unmeasurable(
            f"too few samples per problem: one has {few}, at least {MIN_SAMPLES} are needed: sample_thinking(n=8); "
            + FEW_SAMPLES
        )
    return held


def _require_clusters(samples: pd.DataFrame, clusters: Clusters) -> None:
    total, n = samples["prompt"].nunique(), mixed(samples)["prompt"].nunique()
    if n < MIN_PROMPTS:
        raise Unmeasurable(
            f"{n} of {total} problems have right and wrong responses: at least {MIN_PROMPTS} are needed, problems whose "
            "samples are all right or all wrong say nothing; choose temperature and levels at which 30 to 80% are right"
        )
    if clusters == "family":
        sizes = samples.groupby("family")["prompt"].nunique()
        if len(alone := sizes[sizes < 2]):
            raise InputError(
                f"family {alone.index[0]!r} has one problem: it can't be a cluster of problems; give clusters='prompt', or "
                "several problems of each family"
            )
        if (count := mixed(samples)["family"].nunique()) < MIN_PROMPTS:
            raise Unmeasurable(
                f"{count} families with right and wrong responses: at least {MIN_PROMPTS} are needed as clusters"
            )


def _effects(samples: pd.DataFrame, *, clusters: Clusters, seed: int, resamples: int) -> pd.DataFrame:
    """One row per choice of layers."""
    own = mixed(samples)
    layers = [name for name in samples.columns if isinstance(name, int | np.integer)]
    names = [name for name in (LATE, BUT_LAST, *layers) if samples[name].notna().all()]
    counts = {"n": own["prompt"].nunique(), "n_same": samples["prompt"].nunique() - own["prompt"].nunique()}
    table = pd.DataFrame({"layer": pd.Series(names, dtype=object)})
    if counts["n"] < MIN_PROMPTS or own[clusters].nunique() < MIN_PROMPTS:
        return table.assign(**dict.fromkeys((*_FIGURES, "p", "p_max"), np.nan), **counts, n_samples=len(own))
    data = MixedProblems.of(own, names, clusters)
    t, drawn = data.test(seed, resamples)
    by_layer = np.array([isinstance(name, int | np.integer) for name in names])
    greatest = np.abs(drawn[:, by_layer]).max(1, initial=0)
    table["p"] = _p(np.abs(drawn), np.abs(t))
    table["p_max"] = np.where(by_layer, _p(greatest[:, None], np.abs(t)), np.nan)
    figures = {**data.estimates(critical_size(np.abs(drawn))), **data.aucs(seed, resamples)}
    return table.assign(**{name: figures[name] for name in _FIGURES}, **counts, n_samples=len(own))


_FIGURES = (
    "beta", "low", "high", "tolerance", "auc_norm", "auc_without", "auc_with", "gain", "gain_low", "gain_high",
)  # fmt: skip


def _p(null: Array, value: Array) -> Array:
    """Share of shuffles [shuffle, layer] that are as large, the data's own among them."""
    found: Array = (1 + (null >= value - 1e-12).sum(0)) / (1 + len(null))
    return found


def critical_size(null: Array) -> Array:
    """[layer] what a value must exceed for its `_p` to be at most 0.05; infinite for too few shuffles."""
    most = int(0.05 * (1 + len(null)) + 1e-9)  # the data's own among them
    return np.sort(null, axis=0)[-most] if most else np.full(null.shape[1], np.inf)


def _verdict(entry: dict[str, Any]) -> str:
    p = entry["p"] if np.isnan(entry["p_max"]) else entry["p_max"]
    if entry["cut_off"] > MAX_CUT_OFF or np.isnan(p) or entry["tolerance"] < MIN_TOLERANCE:
        return "can't be tested here"
    return "supported" if p <= 0.05 and entry["beta"] > 0 else "not supported"
