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
from scipy.stats import binom

from tl_l2norm.analysis.signal_strength import auc, length_strata, spearman
from tl_l2norm.analysis.subsets import expected_best, expected_majority, expected_vote
from tl_l2norm.core.errors import Unmeasurable
from tl_l2norm.core.holm import holm
from tl_l2norm.core.resampling import Array, bootstrap_mean, generator
from tl_l2norm.core.schema import Column, Schema, ends
from tl_l2norm.core.sign_flips import sign_flips

REFERENCES = ("random", "majority")
"""What scores are compared with."""
UNTESTED = ("oracle",)
"""Beyond comparison: it has seen the answers."""

_DRAWS = 10_000  # of what chance selects
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

    accuracy: Float[np.ndarray, "unit score"]
    weights: Float[np.ndarray, " unit"]
    """Within its problem, which sum to 1."""
    problem: Int[np.ndarray, " unit"]
    """Its number."""
    shares: Float[np.ndarray, " unit"]
    """Of right responses."""

    def by_problem(self, values: Float[np.ndarray, "unit column"]) -> Float[np.ndarray, "problem column"]:
        """Means over the units of each problem that has any."""
        problems, which = np.unique(self.problem, return_inverse=True)
        means = np.zeros((len(problems), values.shape[1]))
        np.add.at(means, which, self.weights[:, None] * values)
        return means


def selected(problems: Sequence[Sampled], rules: Mapping[str, Rule], seed: int, *, at_length: bool = False) -> Selected:
    """One response of all of each problem's or, with `at_length`, of each length stratum that has several, weighed by its size.

    A score that says no more than length does no better than chance within strata.

    Raises:
        Unmeasurable: no stratum has several responses.
    """
    units: list[tuple[int, float, Sampled]] = []
    for i, problem in enumerate(problems):
        strata = length_strata(problem.lengths) if at_length else np.zeros(len(problem))
        parts = [problem.part(strata == stratum) for stratum in np.unique(strata) if (strata == stratum).sum() > 1]
        units += [(i, len(part) / sum(map(len, parts)), part) for part in parts]
    if not units:
        raise Unmeasurable("no two responses to one problem are of like length")
    return Selected(
        accuracy=np.array(
            [[rule.expected(name, part, len(part), seed) for name, rule in rules.items()] for _, _, part in units]
        ),
        weights=np.array([weight for _, weight, _ in units]),
        problem=np.array([i for i, _, _ in units]),
        shares=np.array([float(part.correct.mean()) for _, _, part in units]),
    )


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
    found = one.by_problem(one.accuracy)
    entries: list[dict[str, object]] = []
    for reference in (name for name in REFERENCES if name in names):
        others = [i for i, name in enumerate(names) if name != reference]
        differences = found[:, others] - found[:, [names.index(reference)]]
        mean, low, high = bootstrap_mean(differences, seed=seed)
        p = _tested(one, others, reference, names, seed)
        p[[names[i] in UNTESTED for i in others]] = np.nan
        corrected = holm(p)
        entries += [
            {
                "score": names[i],
                "reference": reference,
                "difference": mean[j],
                "low": low[j],
                "high": high[j],
                "p": p[j],
                "p_holm": corrected[j],
                "problems": len(found),
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


def _tested(one: Selected, others: Sequence[int], reference: str, names: Sequence[str], seed: int) -> Array:
    """P of each other score against the reference."""

    def by_chance(which: Sequence[int]) -> Array:
        return chance_p(one.weights @ one.accuracy[:, which], one.weights, one.shares, seed=seed)

    if reference == "random":
        return by_chance(others)
    own = names.index(reference)
    pairs = [paired_p(one, i, own, seed=seed) for i in others]
    return np.where([names[i] == "random" for i in others], by_chance([own]), pairs)


def paired_p(one: Selected, first: int, second: int, *, seed: int = 0) -> float:
    """Two-sided p of equal accuracies of two scores over the same problems.

    McNemar's exact test where problems are units; else signs of problems are flipped, as one score's responses change places
    with the other's. Where several responses share a unit it is neither right nor wrong: one is then drawn, and p is the mean
    over draws.

    Args:
        one: what was selected.
        first: a score's number.
        second: the other one's.
        seed: of draws and signs.
    """
    shared = bool(((one.accuracy[:, [first, second]] % 1) != 0).any())
    alone = bool((one.weights == 1).all())
    draws = (200 if alone else 20) if shared else 1
    rng = generator(seed)
    own, other = (one.accuracy[:, [i]] > rng.random((draws, len(one.weights))).T for i in (first, second))
    differences = one.by_problem(own.astype(np.float64) - other)
    if not alone:
        return float(sign_flips(differences, seed=seed).p.mean())
    more, less = (differences > 0).sum(0), (differences < 0).sum(0)
    return float(np.minimum(1.0, 2 * binom.cdf(np.minimum(more, less), more + less, 0.5)).mean())


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
