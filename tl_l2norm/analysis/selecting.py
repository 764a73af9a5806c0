"""Tables of selecting among samples: accuracy against n, paired differences, what a score says within a problem.

Statistics are of problems: intervals resample them, differences are paired by them. Which problem is which doesn't matter, nor
the order of samples: problems are put into an order of their own content first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy.stats import binomtest

from tl_l2norm.analysis.signal_strength import auc, length_strata, spearman
from tl_l2norm.analysis.subsets import expected_best, expected_majority, expected_vote
from tl_l2norm.core.resampling import Array, bootstrap_mean, generator
from tl_l2norm.core.schema import Column, Schema, ends
from tl_l2norm.core.sign_flips import sign_flips

REFERENCES = ("random", "majority")
"""What scores are compared with."""
UNTESTED = ("oracle",)
"""Beyond comparison: it has seen the answers."""

_DRAWS = 10_000  # of chance
_SCORE, _PROBLEMS = Column("score", str, "its name"), Column("problems", int, "with a known answer")
_INTERVAL = "95% interval over problems"

CURVES = Schema(
    "accuracies against n",
    "selection_curve(...).curve",
    (
        _SCORE,
        Column("n", int, "responses from which one is selected"),
        Column("accuracy", float, "expected over all subsets of n"),
        *ends("accuracy", kind=_INTERVAL),
        _PROBLEMS,
    ),
)

DIFFERENCES = Schema(
    "paired differences",
    "selection_curve(...).differences",
    (
        _SCORE,
        Column("reference", str, "what it is compared with"),
        Column("difference", float, "of accuracies, mean over problems"),
        *ends("difference", kind=_INTERVAL),
        Column("p", float, "of `chance_p` against random, of `paired_p` against majority; NaN for the oracle"),
        Column("p_holm", float, "corrected for all scores against this reference"),
        _PROBLEMS,
    ),
)

STRENGTHS = Schema(
    "what scores say of correctness",
    "selection_curve(...).signals",
    (
        _SCORE,
        Column("auc", float, "of right against wrong within a problem, mean over problems that have both"),
        *ends("auc", prefix=True, kind=_INTERVAL),
        Column("problems_auc", int, "with right and wrong responses"),
        Column("auc_at_length", float, "the same within length strata"),
        *ends("auc_at_length", prefix=True, kind=_INTERVAL),
        Column("problems_at_length", int, "with right and wrong responses of like length"),
        Column("rho_correct", float, "Spearman's, with correctness within a problem"),
        *ends("rho_correct", prefix=True, kind=_INTERVAL),
        Column("rho_length", float, "Spearman's, with length within a problem"),
        *ends("rho_length", prefix=True, kind=_INTERVAL),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sampled:
    """One problem's responses."""

    correct: Float[np.ndarray, " candidate"]
    """1 where right, 0 where wrong."""
    answers: Int[np.ndarray, " candidate"]
    """Number of each answer, `NO_ANSWER` without one."""
    lengths: Float[np.ndarray, " candidate"]
    values: Mapping[str, Float[np.ndarray, " candidate"]]
    """Scores by name."""

    def __len__(self) -> int:
        """Number of responses."""
        return len(self.correct)

    def part(self, chosen: np.ndarray) -> Sampled:  # type: ignore[type-arg]
        """Some of the responses."""
        return Sampled(
            correct=self.correct[chosen],
            answers=self.answers[chosen],
            lengths=self.lengths[chosen],
            values={name: own[chosen] for name, own in self.values.items()},
        )

    def content(self) -> bytes:
        """The same for the same responses in any order."""
        _, answers = np.unique(self.answers, return_inverse=True)  # a number's size says nothing
        sizes = np.bincount(answers)[answers]
        columns = np.stack([self.correct, sizes, self.lengths, *(self.values[name] for name in sorted(self.values))])
        return columns[:, np.lexsort(columns)].astype(np.float64).round(9).tobytes()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How a score selects: the candidate with the highest value, one at random, or the answer with most votes."""

    votes: bool = False
    at_random: bool = False
    weights: str | None = None
    """The score that weighs votes."""
    keep: str | None = None
    """The score by whose upper half is voted."""

    def expected(self, name: str, problem: Sampled, n: int, seed: int) -> float:
        """Probability that what is selected among n of the responses is right."""
        if self.at_random:
            return float(problem.correct.mean())
        if not self.votes:
            return expected_best(problem.values[name], problem.correct, n)
        if self.weights is None and self.keep is None:
            return expected_majority(problem.answers, problem.correct, n)
        weights = np.ones(len(problem)) if self.weights is None else problem.values[self.weights]
        keep = None if self.keep is None else problem.values[self.keep]
        return expected_vote(problem.answers, problem.correct, weights, n, keep=keep, seed=seed)


def in_order(problems: Sequence[Sampled]) -> list[Sampled]:
    """Problems in an order that doesn't depend on the one given."""
    return sorted(problems, key=lambda problem: problem.content())


def accuracies(problems: Sequence[Sampled], rules: Mapping[str, Rule], n: Sequence[int], seed: int) -> Array:
    """[problem, score, n] expected over subsets."""
    return np.array(
        [[[rule.expected(name, one, size, seed) for size in n] for name, rule in rules.items()] for one in problems]
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Selected:
    """One response selected in each unit, which is a problem with all its responses, or a length stratum of one."""

    accuracy: Float[np.ndarray, "problem score"]
    """Mean over a problem's units by weight; NaN without a unit."""
    weights: Float[np.ndarray, " unit"]
    """Within its problem."""
    shares: Float[np.ndarray, " unit"]
    """Of right responses."""


def selected(problems: Sequence[Sampled], rules: Mapping[str, Rule], seed: int, *, at_length: bool = False) -> Selected:
    """One response of all of each problem's or, with `at_length`, of each length stratum that has several, weighed by its size.

    A score that says no more than length does no better than chance within strata.
    """
    found = np.full((len(problems), len(rules)), np.nan)
    weights, shares = list[float](), list[float]()
    for i, problem in enumerate(problems):
        strata = length_strata(problem.lengths) if at_length else np.zeros(len(problem))
        parts = [problem.part(strata == stratum) for stratum in np.unique(strata) if (strata == stratum).sum() > 1]
        sizes = np.array([len(part) for part in parts])
        for j, (name, rule) in enumerate(rules.items() if parts else ()):
            found[i, j] = np.average([rule.expected(name, part, len(part), seed) for part in parts], weights=sizes)
        weights += (sizes / max(1, sizes.sum())).tolist()
        shares += [float(part.correct.mean()) for part in parts]
    return Selected(accuracy=found, weights=np.array(weights), shares=np.array(shares))


def curve_table(found: Array, names: Sequence[str], n: Sequence[int], seed: int) -> pd.DataFrame:
    """`CURVES`, of `accuracies`."""
    mean, low, high = bootstrap_mean(found, seed=seed)
    entries = [
        {"score": name, "n": size, "accuracy": mean[i, j], "low": low[i, j], "high": high[i, j], "problems": len(found)}
        for i, name in enumerate(names)
        for j, size in enumerate(n)
    ]
    return CURVES.frame(entries)


def difference_table(one: Selected, names: Sequence[str], seed: int) -> pd.DataFrame:
    """`DIFFERENCES`, from each of `REFERENCES` that is among the scores."""
    found = one.accuracy
    entries: list[dict[str, object]] = []
    for reference in (name for name in REFERENCES if name in names):
        others = [i for i, name in enumerate(names) if name != reference]
        differences = found[:, others] - found[:, [names.index(reference)]]
        mean, low, high = bootstrap_mean(differences, seed=seed)
        if reference == "random":
            p = chance_p(np.nansum(found[:, others], axis=0), one.weights, one.shares, seed=seed)
        else:
            p = np.array([paired_p(own, seed=seed) for own in differences.T])
        p[[names[i] in UNTESTED for i in others]] = np.nan
        count, corrected = (~np.isnan(differences)).sum(0), holm(p)
        entries += [
            {
                "score": names[i],
                "reference": reference,
                "difference": mean[j],
                "low": low[j],
                "high": high[j],
                "p": p[j],
                "p_holm": corrected[j],
                "problems": count[j],
            }
            for j, i in enumerate(others)
        ]
    return DIFFERENCES.frame(entries)


def chance_p(
    totals: Float[np.ndarray, " score"],
    weights: Float[np.ndarray, " unit"],
    shares: Float[np.ndarray, " unit"],
    *,
    seed: int = 0,
) -> Float[np.ndarray, " score"]:
    """Two-sided p of as many right responses where each unit's is right as often as its share of right ones says.

    Flipped signs won't do: where nearly all responses are right, chance gains a little often and loses much seldom.

    Args:
        totals: right ones selected by each score, summed with the weights.
        weights: of the units.
        shares: of right ones among the responses of each.
        seed: of the draws.

    Examples:
        >>> chance_p(np.array([4.0]), np.ones(4), np.full(4, 0.5)).round(1)  # 2 / 2^4
        array([0.1])
    """
    rng = generator(seed)
    drawn = np.concatenate([(rng.random((_DRAWS // 10, len(shares))) < shares) @ weights for _ in range(10)])
    upper, lower = ((1 + (sign * drawn[:, None] >= sign * totals - 1e-9).sum(0)) / (len(drawn) + 1) for sign in (1, -1))
    p: Array = np.minimum(1.0, 2 * np.minimum(upper, lower))
    return p


def paired_p(differences: Float[np.ndarray, " problem"], *, seed: int = 0) -> float:
    """Two-sided p of a mean difference of 0 over problems: exact McNemar where all are -1, 0 or 1, else by flipped signs.

    Args:
        differences: of each problem; NaN is left out.
        seed: of the signs.

    Examples:
        >>> paired_p(np.array([1.0] * 5 + [0.0] * 7))  # 2 / 2^5
        0.0625
    """
    known = differences[~np.isnan(differences)]
    if not len(known):
        return float("nan")
    if np.isin(known, (-1.0, 0.0, 1.0)).all():
        more, less = int((known == 1).sum()), int((known == -1).sum())
        return float(binomtest(more, more + less).pvalue) if more + less else 1.0
    return float(sign_flips(known[:, None], seed=seed).p[0])


def holm(p: Float[np.ndarray, " score"]) -> Float[np.ndarray, " score"]:
    """Holm's correction for as many tests as there are; NaN is none. statsmodels' own collects garbage at each call, for 0.2 s.

    Examples:
        >>> holm(np.array([0.01, 0.04, np.nan, 0.03]))
        array([0.03, 0.06,  nan, 0.06])
    """
    order = np.argsort(p)[: int((~np.isnan(p)).sum())]
    corrected = p.copy()
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1.0)
    return corrected


def strength_table(problems: Sequence[Sampled], names: Sequence[str], seed: int) -> pd.DataFrame:
    """`STRENGTHS`, of all responses."""
    found = np.array([[_strengths(problem, name) for name in names] for problem in problems])  # [problem, score, statistic]
    mean, low, high = bootstrap_mean(found, seed=seed)
    counts = (~np.isnan(found)).sum(0)
    entries: list[dict[str, object]] = []
    for i, name in enumerate(names):
        entry: dict[str, object] = {"score": name, "problems_auc": counts[i, 0], "problems_at_length": counts[i, 1]}
        for j, statistic in enumerate(("auc", "auc_at_length", "rho_correct", "rho_length")):
            entry |= {statistic: mean[i, j], f"{statistic}_low": low[i, j], f"{statistic}_high": high[i, j]}
        entries.append(entry)
    return STRENGTHS.frame(entries)


def _strengths(problem: Sampled, name: str) -> tuple[float, float, float, float]:
    values, correct, lengths = problem.values[name], problem.correct, problem.lengths
    return (
        auc(values, correct),
        auc(values, correct, length_strata(lengths)),
        spearman(values, correct),
        spearman(values, lengths),
    )
