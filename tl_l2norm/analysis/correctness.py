"""Whether the late norm of a thinking response says that it is right, given its problem, length and log-probability."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tl_l2norm.analysis.inversion import ROUNDING
from tl_l2norm.analysis.sample_norms import GIVEN_TYPES, SAMPLES
from tl_l2norm.analysis.within_problems import MixedProblems, mixed
from tl_l2norm.core.arguments import as_integer, check_choice
from tl_l2norm.core.errors import InputError, InputTypeError, Unmeasurable
from tl_l2norm.core.layers import BUT_LAST, LATE
from tl_l2norm.core.resampling import MAX_DRAWS, MIN_DRAWS, MIN_PROMPTS, RESAMPLES, Array
from tl_l2norm.core.schema import MODEL, SEED, Column, Schema, ends

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
"""Share of the norm's variance within problems that length, log-probability and, given types, those leave; below it, a variance
inflation of over 10 (the usual bound), it can't be told from them."""

Clusters = Literal["prompt", "family"]

CORRECTNESS = Schema(
    "effects of the norm on correctness",
    "correctness_effect",
    (
        Column("responses", str, '"all", or "finished": those that were not cut off'),
        Column("layer", object, f'"{LATE}", "{GIVEN_TYPES}", "{BUT_LAST}" or a number'),
        Column("beta", float, "log-odds of a right response per standard deviation of the norm within problems"),
        *ends("beta"),
        Column("p", float, "two-sided"),
        Column("p_max", float, "over all layers together; NaN for means over layers"),
        Column("p_families", float, "the greatest when any one family is left out"),
        Column("tolerance", float, "share of the norm's variance within problems that length, log-probability and types leave"),
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


def correctness_effect(
    samples: pd.DataFrame, *, clusters: Clusters = "prompt", seed: int = 0, resamples: int = RESAMPLES
) -> pd.DataFrame:
    """The effect of the norm on correctness within problems, at each layer and over the late ones.

    Conditional logistic regression: logit P(correct) = problem + beta x norm + smooth log length + smooth log-probability. Only
    problems with right and wrong responses say anything. The norm is per standard deviation within problems, and of it the part
    that doesn't go along lines of the problem's own with log length and log-probability: where both norm and correctness
    depend on how far a length is from what suits the problem, or on log-probability more in some problems than in others,
    one line for all lets 80 and 97% of nulls through.

    Right responses may hold more tokens of loud types (digits, say), whoever reads them: the claim is made of "late" and of
    "late given types" together, and p, sign and tolerance of both count for the verdict of either. Types are held as they are:
    what a type adds behind one token and not behind another isn't, nor in any entry but that one. Where tokens' norms follow
    their types alone, right responses with 10 (3) points more tokens of loud types (of 30) are found by "late" in 40 (24) of 40
    data sets, by both in 0 (0).

    p is that of the score statistic of beta, studentised by clusters, among data sets in which correctness is dealt out again
    within each problem, each arrangement as likely as length and log-probability make it, and refitted by one step: without
    the refit 7.0 to 7.7% of nulls with 48 problems x 6 are false, with it 5.3 to 6.0% (of 600). `p_max` counts the greatest of
    all layers. `p_families` is the greatest when the scores of any one family are left out, 1 where the sign then changes.
    With problems as clusters it is still a finding of these families: where each of 8 has an effect of its own, about 0 over
    all and as large as the norm's noise or twice that, 6 and 8 of 40 data sets are false (by p alone 9 and 10); with
    clusters="family", for a statement on families like these, 2 and 2.

    The interval inverts that test: it reaches to the farthest beta at which the same statistic, all else fitted again, is at
    most the 95% quantile of its size among those data sets. And p is that of 0 and of all beyond it, seen from beta, together:
    with few samples what acts beside the norm all but separates right from wrong, and a beta of -8 may pass where 0 doesn't. So
    p is at most 0.05 where the interval leaves out 0, and nowhere else. It isn't symmetric about beta, and it is infinite on a
    side on which the data set no bound; on both, no effect is rejected, and there is no verdict: so in 76, 46 and 17% of nulls
    with 12, 16 and 20 problems x 4, in none with 40 x 4 or 12 x 8 (of 200 or more each). Of 12, 16, 20 and 40 problems x 4 it
    misses 0 in 3, 6, 6 and 5% of nulls, of 12 and 40 x 8 in 7 and 4%; a beta of 1 of 12, 20 and 40 x 4 in 2, 10 and 6%, of 12
    and 40 x 8 in 8 and 6%, of 20 x 16 in 9%. Beta itself, a maximum likelihood, lies too far from 0 where samples are few
    (medians of 1.15, 1.08, 1.02 with 40 problems x 4, 8, 16); the interval, not centred on it, allows for that.

    Give 8 samples of a problem or more: of 4, the mean and the lines of each problem take three quarters, and the interval is
    three times as wide as with 8 and six times as wide as with 16.

    At most 7% false where norm and correctness follow length (straight, U-shaped), log-probability, difficulty or nothing, with
    skewed norms and lengths, from 12 problems x 8 on (tests/laws/test_correctness_laws.py lists the rates' worlds). Not kept: a
    sharp step of both at one length of each problem's own, two standard deviations high in both: a quarter false; of one,
    5%. Supported in at least 90% (of 40, 10 families) is a beta of 0.5 with 100 problems x 8 samples of which nine in ten have
    both outcomes, of 0.3 with 200 x 8, of 1 with 48 x 6; without any one family less is left: 0.4 with 100 x 8 in 32 of 40 (by
    p alone 38).

    Args:
        samples: of `correctness_samples`.
        clusters: what is independent of each other: problems, or families of problems.
        seed: of the shuffles, folds and resamples.
        resamples: how many of each.

    Returns:
        Twice (all responses; "finished", those that were not cut off) one row for "late", "late given types", "late but the
        last" and each layer: responses, layer, beta (log-odds per standard deviation), low, high (95%, by inverting the test),
        p (two-sided), p_max (of layers), p_families (without any one family; p itself of one family; NaN where fewer than 8
        problems are left), tolerance (share of the norm's variance within problems that length and log-probability leave, of
        variances that what is fitted does not bias, at most 1; given types, what all leave of that of "late"), auc_norm (share
        of pairs of a right and a wrong response to one problem in which the right one's norm is higher; no regression),
        auc_without and auc_with (by the regression without and with the norm, fitted to other problems), gain, gain_low,
        gain_high (their difference, by resampling clusters), n (problems with both outcomes), n_same (those without, which say
        nothing), n_samples (of the n), right (share of all responses), cut_off (share of all responses), verdict, seed, model.
        The verdict is "supported" (right responses have the higher norm: beta over 0 and p, at layers p_max, and p_families at
        most 0.05), "not supported", or "can't be tested here" (over 5% cut off, a tolerance under 0.1, or under 8 problems
        left, of all or without one of several families); "late" and "late given types" share one, the lesser.

    Raises:
        ValueError: not such a table, or a family of one problem where families are clusters. One problem under two ids is
            refused by `correctness_samples`, which sees its prompt; here it can't be told.
        Unmeasurable: a problem with fewer than 4 samples; fewer than 8 problems (or families) with both outcomes.

    Examples:
        >>> rng, number = np.random.default_rng(0), np.arange(320)
        >>> samples = pd.DataFrame({"prompt": number // 8, "family": "made up", "sample": number % 8, "cut_off": False})
        >>> samples["length"], samples["log_prob"] = rng.integers(20, 60, 320), rng.normal(size=320)
        >>> samples["late"] = samples["late given types"] = samples["late but the last"] = rng.normal(100, 5, 320)
        >>> samples["correct"] = samples["late"] + rng.normal(0, 5, 320) > 100
        >>> l2.analysis.correctness_effect(samples.assign(model="none"), resamples=200).loc[0, "verdict"]
        'supported'
    """
    check_choice("clusters", clusters, get_args(Clusters))
    resamples = as_integer("resamples", resamples, least=MIN_DRAWS, most=MAX_DRAWS)
    given = _checked(samples)
    samples = _with_norms(given)
    _require_clusters(samples, clusters)
    options: dict[str, Any] = {"clusters": clusters, "seed": seed, "resamples": resamples}
    finished = samples[~samples["cut_off"].astype(bool)]
    whole = _effects(samples, **options)
    parts = {"all": whole, "finished": whole if len(finished) == len(samples) else _effects(finished, **options)}
    table = pd.concat([part.assign(responses=name) for name, part in parts.items()], ignore_index=True)
    table = table.assign(right=given["correct"].astype(float).mean(), cut_off=given["cut_off"].astype(float).mean())
    table["verdict"] = _verdicts(table)
    return CORRECTNESS.frame(table, seed=seed, model=samples["model"].iloc[0])


def _checked(samples: pd.DataFrame) -> pd.DataFrame:
    """The table; refuses what isn't such a one."""
    if not isinstance(samples, pd.DataFrame):
        raise InputTypeError(f"samples are what correctness_samples returns, got {samples!r:.80}")
    samples = SAMPLES.check(samples)
    layers = {name: int(name) for name in samples.columns if isinstance(name, str) and name.isascii() and name.isdecimal()}
    samples = samples.rename(columns=layers)  # of a CSV file
    if twice := samples.columns[samples.columns.duplicated()].tolist():
        raise InputError(f"samples have two columns of layer {twice[0]}, by number and as text: leave one of them out")
    if samples[LATE].isna().all():
        raise Unmeasurable("no late layer was recorded: nothing can be said of late norms")
    if samples.duplicated(["prompt", "sample"]).any():
        raise InputError("a sample of a problem occurs twice: give the results of one run of sample_thinking")
    if samples["model"].nunique() > 1:
        raise InputError("samples of several models: their norms are not comparable, give those of one")
    _require_values(samples)
    return samples


def _require_values(samples: pd.DataFrame) -> None:
    """Refuse values that no sample has."""
    for name in ("prompt", "family"):
        if count := int(samples[name].isna().sum()):
            raise InputError(f"{name} is missing in {count} samples: pandas reads NA and null in a CSV file as missing")
    norms = [name for name in samples.columns if name in (LATE, GIVEN_TYPES, BUT_LAST) or isinstance(name, int | np.integer)]
    if infinite := [name for name in (*norms, "log_prob") if np.isinf(samples[name].astype(float)).any()]:
        raise InputError(f"{infinite[0]} is infinite in a sample: nothing can be fitted to it")


def _with_norms(samples: pd.DataFrame) -> pd.DataFrame:
    """Samples that have norms, enough of each problem."""
    held = samples[samples[[LATE, GIVEN_TYPES, "log_prob"]].notna().all(axis=1)]
    if not (np.isfinite(held["length"].astype(float)) & (held["length"] > 0)).all():
        raise InputError("length is a number of tokens, 1 or more: a sample with norms has another")
    families = samples.groupby("prompt")["family"].nunique()
    if len(several := families[families > 1]):
        raise InputError(f"samples of problem {several.index[0]!r} are of {several.iloc[0]} families: a problem is of one")
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
            "samples are all right or all wrong say nothing; give more problems, or a temperature and levels at which more of "
            "them have both"
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
    names = [name for name in (LATE, GIVEN_TYPES, BUT_LAST, *layers) if samples[name].notna().all()]
    counts = {"n": own["prompt"].nunique(), "n_same": samples["prompt"].nunique() - own["prompt"].nunique()}
    table = pd.DataFrame({"layer": pd.Series(names, dtype=object)})
    if counts["n"] < MIN_PROMPTS or own[clusters].nunique() < MIN_PROMPTS:
        return table.assign(**dict.fromkeys((*_FIGURES, *_P), np.nan), **counts, n_samples=len(own))
    data = MixedProblems.of(own, names, clusters)
    tests, all_drawn = data.tests(seed, resamples)
    t, drawn = tests[-1], all_drawn[:, -1]
    by_layer = np.array([isinstance(name, int | np.integer) for name in names])
    greatest = np.abs(drawn[:, by_layer]).max(1, initial=0)
    figures = {**data.estimates(t, critical_size(np.abs(drawn))), **data.aucs(seed, resamples)}
    table["p"] = _p(np.abs(drawn), figures["evidence"])
    table["p_max"] = np.where(by_layer, _p(greatest[:, None], figures["evidence"]), np.nan)
    table["p_families"] = _p_families(tests, all_drawn, np.bincount(data.family), table["p"].to_numpy())
    figures["tolerance"] *= np.where(table["layer"] == GIVEN_TYPES, _kept_by_types(own), 1)
    return table.assign(**{name: figures[name] for name in _FIGURES}, **counts, n_samples=len(own))


def _kept_by_types(samples: pd.DataFrame) -> float:
    """Share of the late norm's variance within problems that types and places leave, at most 1."""
    problem = samples.groupby("prompt")
    kept, whole = (float(((samples[name] - problem[name].transform("mean")) ** 2).sum()) for name in (GIVEN_TYPES, LATE))
    return min(kept / whole, 1.0) if whole > 0 else 0.0


_P = ("p", "p_max", "p_families")
_FIGURES = (
    "beta", "low", "high", "tolerance", "auc_norm", "auc_without", "auc_with", "gain", "gain_low", "gain_high",
)  # fmt: skip


def _p(null: Array, value: Array) -> Array:
    """Share of shuffles [shuffle, layer] that are as large, the data's own among them."""
    found: Array = (1 + (null >= value - ROUNDING).sum(0)) / (1 + len(null))
    return found


def _p_families(t: Array, drawn: Array, sizes: NDArray[np.intp], whole: Array) -> Array:
    """[layer] The greatest p of the tests without each family, of so many problems; 1 where t then changes its sign. NaN where
    fewer than 8 problems are left; p itself of one family.

    Args:
        t: [family + 1, layer] without each family, and of all.
        drawn: [shuffle, family + 1, layer]
        sizes: [family]
        whole: [layer] p of all.
    """
    if len(sizes) == 1:
        return whole
    if sizes.sum() - sizes.max() < MIN_PROMPTS:
        return np.full(t.shape[1], np.nan)
    greatest: Array = np.where(np.sign(t[:-1]) == np.sign(t[-1]), _p(np.abs(drawn[:, :-1]), np.abs(t[:-1])), 1.0).max(0)
    return greatest


def critical_size(null: Array) -> Array:
    """[layer] what a value must exceed for its `_p` to be at most 0.05; infinite for too few shuffles."""
    most = int(0.05 * (1 + len(null)) + 1e-9)  # the data's own among them
    return np.sort(null, axis=0)[-most] if most else np.full(null.shape[1], np.inf)


def _verdicts(table: pd.DataFrame) -> list[str]:
    """Of each entry, with or without types both."""
    own = [_verdict(entry) for entry in table.to_dict("records")]
    both = table["layer"].isin([LATE, GIVEN_TYPES])
    for _, at in table[both].groupby("responses").groups.items():
        worst = max((own[i] for i in at), key=_VERDICTS.index)
        for i in at:
            own[i] = worst
    return own


def _verdict(entry: dict[str, Any]) -> str:
    p = np.maximum(entry["p"] if np.isnan(entry["p_max"]) else entry["p_max"], entry["p_families"])
    endless = np.isinf(entry["low"]) and np.isinf(entry["high"])
    if entry["cut_off"] > MAX_CUT_OFF or np.isnan(p) or entry["tolerance"] < MIN_TOLERANCE or endless:
        return _VERDICTS[2]
    return _VERDICTS[0] if p <= 0.05 and entry["beta"] > 0 else _VERDICTS[1]


_VERDICTS = ("supported", "not supported", "can't be tested here")  # from the best on
