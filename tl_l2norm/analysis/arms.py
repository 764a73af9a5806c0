"""Arms beside their baseline: accuracy, paired differences with verdicts, and what each costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tl_l2norm.analysis.accuracy import WILSON, wilson_interval
from tl_l2norm.analysis.paired import compare, exact_p_loss, p_loss
from tl_l2norm.core.arguments import as_names
from tl_l2norm.core.errors import InputError
from tl_l2norm.core.holm import holm
from tl_l2norm.core.resampling import MIN_PROMPTS, RESAMPLES, Array
from tl_l2norm.core.schema import MODEL, SEED, Column, Schema, ends

Claim = Literal["helps", "no harm"]

ALPHA = 0.05
CUT_OFF = 0.05
"""Share of responses that ran into the limit from which on a table begins with it: a selection by any sum would be one by
length."""

HELPS, HARMS, ALIKE, NO_HARM, MAYBE_HARM, TOO_FEW, BASELINE, BOUND = (
    "helps",
    "harms",
    "not told apart",
    "does no harm",
    "harm not excluded",
    "too few problems",
    "baseline",
    "has seen the answers",
)
"""Verdicts on an arm."""
SOLVED, UNSOLVED = 0.9, 0.2
"""Share of right answers of a baseline over which there is little to win, and under which there is little to lose."""
NOT_BEYOND = ", not beyond its control"
"""Follows a verdict that holds against the baseline, and not against what spends the same elsewhere."""

_ARM = Column("arm", str, "its name")
_GROUPS = (
    Column("family", str, "of the problems", optional=True),
    Column("level", int, "of the problems", optional=True),
)

ARM_OUTCOMES = Schema(
    "outcomes of arms",
    "evaluate(...).outcomes",
    (
        _ARM,
        Column("prompt", str, "the problem's id"),
        Column("family", str, "of the problem"),
        Column("level", int, "of the problem"),
        Column("sample", int, "which response to the problem, from 0; of a selection the one that it chose"),
        Column("correct", bool, "whether its answer is right; one that was cut off is wrong"),
        Column("responses", int, "how many were written for it: those that a selection chose from"),
        Column("cut_off", float, "share of them that ran into the limit"),
        Column("tokens", int, "of all of them"),
        Column("reruns", int, "layers that ran again, in all of them"),
        Column("layer_passes", int, "layers that ran: of the model for each token, and again"),
        Column("seconds", float, "of the clock, its share of the time in which those beside it were written"),
        SEED,
        MODEL,
    ),
)

ARM_TABLE = Schema(
    "arms",
    "arm_table",
    (
        *_GROUPS,
        _ARM,
        Column("against", str, 'the arm that it is compared with; "" of the baseline'),
        Column("n", int, "problems"),
        Column("accuracy", float, "share of right answers, over the responses to each problem and then over problems"),
        *ends("accuracy", kind=WILSON),
        Column("difference", float, "of accuracy, from the other arm"),
        *ends("difference", prefix=True, kind="95% interval over problems"),
        Column("better", int, "problems of which it gets more than the other"),
        Column("worse", int, "problems of which it gets less"),
        Column("p", float, "that it differs by chance or, of no harm, that it loses the margin or more"),
        Column("test", str, "by which p was had"),
        Column("p_holm", float, "the arm's greatest p, by Holm over all arms of the table"),
        Column("verdict", str, "on the arm"),
        Column("cut_off", float, "share of all its responses that ran into the limit"),
        SEED,
        MODEL,
    ),
)

ARM_COSTS = Schema(
    "costs of arms",
    "cost_table",
    (
        _ARM,
        Column("responses", float, "written for one answer"),
        Column("tokens", float, "written for one answer: as many forward passes, the first over the prompt"),
        Column("reruns", float, "layers that ran again for it"),
        Column("layer_passes", float, "layers that ran for it, again included"),
        Column("times", float, "layer passes over those of the baseline"),
        Column("cut_off", float, "share of its responses that ran into the limit"),
        Column("seconds", float, "of the clock for it, beside others in its batch"),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What an arm is held against, and what is claimed of it."""

    arm: str
    against: tuple[str, ...]
    """The baseline, then its controls: a claim has to hold against each."""
    chosen_from: frozenset[str] = frozenset()
    """Those of them of whose responses it chose one for each problem."""
    claim: Claim = "helps"
    margin: float | None = None
    """Of "no harm": a loss of accuracy as large as this would be one."""
    tested: bool = True
    """Not where the arm has seen the answers: it is a bound, and takes nothing from the others by Holm."""


def arm_table(
    outcomes: pd.DataFrame,
    comparisons: Sequence[Comparison],
    *,
    by: str | Sequence[str] = (),
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> pd.DataFrame:
    """Accuracy of each arm, how it differs from what it is held against on the same problems, and a verdict.

    An arm *helps* (harms) where it is better (worse) than everything that it is held against and the greatest of these p, by
    Holm's procedure over all arms of the table, is at most 0.05; "not beyond its control" where that holds against the baseline
    alone, by Holm over the arms' p against it. Where no harm is the claim, p is that it loses the margin or
    more against the baseline. p and intervals are those of `analysis.paired.compare`.

    Args:
        outcomes: what `evaluate(...).outcomes` holds.
        comparisons: one for each arm but the baseline.
        by: "family", "level" or both: a table for each, corrected for together.
        seed: of resamples and signs.
        resamples: how many.

    Returns:
        One entry per arm and what it is held against: arm, against ("" of the baseline), n (problems), accuracy, low, high
        (Wilson), difference, difference_low, difference_high, better, worse (problems of which it gets more, or less), p, test,
        p_holm, verdict ("helps", "harms", either ", not beyond its control", "not told apart", "does no harm", "harm not
        excluded", "too few problems", "baseline", "has seen the answers"), cut_off (share of all responses), seed, model.

    Raises:
        InputError: a table of other columns, arms that were asked other problems, a group that is none.

    Examples:
        >>> right = {"plain": 4, "often right": 16}  # of 20 problems
        >>> made = pd.DataFrame([{"arm": a, "prompt": i, "correct": i < k} for a, k in right.items() for i in range(20)])
        >>> costs = {"responses": 1, "cut_off": 0, "tokens": 9, "reruns": 0, "layer_passes": 108, "seconds": 0.1}
        >>> made = made.assign(family="sums", level=1, sample=0, **costs, seed=0, model="by hand")
        >>> table = arm_table(made, [Comparison(arm="often right", against=("plain",))])
        >>> table[["arm", "accuracy", "difference", "better", "worse", "p_holm", "verdict"]].round(4)
                   arm  accuracy  difference  better  worse  p_holm   verdict
        0        plain       0.2         NaN       0      0     NaN  baseline
        1  often right       0.8         0.6      12      0  0.0005     helps
    """
    by = as_names("by", by)
    if set(by) - {"family", "level"}:
        raise InputError(f"can't group by {list(by)}: give any of family, level")
    _require(outcomes)
    parts = list(outcomes.groupby(list(by), sort=True)) if by else [((), outcomes)]
    arms = [
        _Judged(dict(zip(by, key, strict=True)), comparison, list(_entries(group, comparison, seed, resamples)))
        for key, group in parts
        for comparison in _with_baseline(outcomes, comparisons)
    ]
    adjusted = zip(arms, holm([arm.p for arm in arms]), holm([arm.p_baseline for arm in arms]), strict=True)
    entries = [entry for arm, p, p_baseline in adjusted for entry in arm.entries(float(p), float(p_baseline))]
    return ARM_TABLE.frame(entries, by=by, seed=seed, model=outcomes["model"].iloc[0])


def _require(outcomes: pd.DataFrame) -> None:
    """Refuse other tables, and arms that were asked other problems."""
    if ARM_OUTCOMES.check(outcomes).empty:
        raise InputError("no outcomes given")
    every = set(outcomes["prompt"])
    for arm, own in outcomes.groupby("arm", sort=False):
        if lacking := every - set(own["prompt"]):
            raise InputError(
                f"arm {arm!r} lacks {len(lacking)} of the {len(every)} problems: arms are compared on the same ones"
            )


def _with_baseline(outcomes: pd.DataFrame, comparisons: Sequence[Comparison]) -> list[Comparison]:
    """In the order of the arms, an empty one for each that is held against nothing."""
    by_arm = {comparison.arm: comparison for comparison in comparisons}
    names = list(dict.fromkeys(outcomes["arm"]))
    if odd := {name for c in comparisons for name in (c.arm, *c.against)} - set(names):
        raise InputError(f"there are no outcomes of the arms {sorted(odd)}, there are those of {names}")
    return [by_arm.get(name, Comparison(arm=name, against=())) for name in names]


def _shares(outcomes: pd.DataFrame, arm: str) -> tuple[Array, NDArray[np.int64]]:
    """[problem] share of the arm's answers that are right, and how many there are, problems by their id."""
    own = outcomes[outcomes["arm"] == arm]
    answers = own["correct"].astype(float).groupby(own["prompt"]).agg(["mean", "size"]).sort_index()
    return answers["mean"].to_numpy(), answers["size"].to_numpy()


def _entries(outcomes: pd.DataFrame, comparison: Comparison, seed: int, resamples: int) -> Iterator[dict[str, Any]]:
    """The arm beside each of the others, without a verdict."""
    (own, answers), name = _shares(outcomes, comparison.arm), comparison.arm
    low, high = wilson_interval(own.sum(), len(own))
    mine = outcomes[outcomes["arm"] == name]
    cut_off = float(np.average(mine["cut_off"], weights=mine["responses"]))
    entry = {"arm": name, "n": len(own), "accuracy": float(own.mean()), "low": low, "high": high, "cut_off": cut_off}
    nothing = dict.fromkeys(("difference", "difference_low", "difference_high", "p"), float("nan"))
    if not comparison.against:
        yield {**entry, **nothing, "against": "", "better": 0, "worse": 0, "test": ""}
    for number, other in enumerate(comparison.against):
        theirs, others = _shares(outcomes, other)
        one = compare(
            own,
            theirs,
            responses=(answers, others),
            chosen=other in comparison.chosen_from,
            seed=seed,
            resamples=resamples,
        )
        e, p, test = one.difference, one.p, one.test
        if comparison.claim == "no harm" and number == 0:
            assert comparison.margin is not None
            if answers.max() == others.max() == 1:
                p, kind = exact_p_loss(one.better, one.worse, len(own), comparison.margin), "exact"
            else:
                p, kind = p_loss(own - theirs, comparison.margin), "t"
            test = f"{kind}, loss of {comparison.margin:g}"
        ends_ = {"difference": e.mean, "difference_low": e.low, "difference_high": e.high}
        yield {**entry, **ends_, "against": other, "better": one.better, "worse": one.worse, "p": p, "test": test}


@dataclass(frozen=True, slots=True)
class _Judged:
    """An arm in one group of problems."""

    key: Mapping[str, Any]
    comparison: Comparison
    found: list[dict[str, Any]]

    @property
    def p(self) -> float:
        """As it counts: the greatest where all have to hold; NaN without a claim, or where problems are too few for one."""
        if not (self.comparison.against and self.comparison.tested) or self.found[0]["n"] < MIN_PROMPTS:
            return float("nan")
        return float(self.found[0]["p"] if self.comparison.claim == "no harm" else max(entry["p"] for entry in self.found))

    @property
    def p_baseline(self) -> float:
        """The same against the baseline alone."""
        return float("nan") if np.isnan(self.p) else float(self.found[0]["p"])

    def entries(self, p_holm: float, p_baseline: float) -> Iterator[dict[str, Any]]:
        """With the verdict."""
        verdict = self._verdict(p_holm)
        if verdict == ALIKE and p_baseline <= ALPHA and len(self.found) > 1:
            verdict = (HELPS if self.found[0]["difference"] > 0 else HARMS) + NOT_BEYOND
        for entry in self.found:
            yield {**self.key, **entry, "p_holm": p_holm, "verdict": verdict}

    def _verdict(self, p_holm: float) -> str:
        if not self.comparison.against:
            return BASELINE
        if not self.comparison.tested:
            return BOUND
        if np.isnan(p_holm):
            return TOO_FEW
        if self.comparison.claim == "no harm":
            return NO_HARM if p_holm <= ALPHA else MAYBE_HARM
        gains = [entry["difference"] for entry in self.found]
        if p_holm > ALPHA:
            return ALIKE
        return HELPS if min(gains) > 0 else HARMS if max(gains) < 0 else ALIKE


def as_read(table: pd.DataFrame) -> pd.DataFrame:
    """An `arm_table` to look at: what is of the whole arm, its verdict and p by Holm, stands in its first entry alone."""
    again = table.duplicated([name for name in ("family", "level", "arm") if name in table])
    return table.assign(p_holm=table["p_holm"].mask(again), verdict=table["verdict"].mask(again, ""))


def cost_table(outcomes: pd.DataFrame) -> pd.DataFrame:
    """What an answer of each arm costs, the baseline's first.

    Args:
        outcomes: what `evaluate(...).outcomes` holds; its first arm is the baseline.

    Returns:
        One entry per arm, means over its answers: arm, responses (written for one answer), tokens (as many forward passes, the
        first over the prompt), reruns (layers that ran again), layer_passes, times (layer passes over those of the baseline),
        cut_off (share of its responses), seconds (of the clock, beside others in the batch).

    Examples:
        >>> costs = {"responses": 1, "cut_off": 0, "tokens": 9, "seconds": 0.1}
        >>> made = pd.DataFrame({"arm": ["plain", "again"], "reruns": [0, 12], "layer_passes": [108, 120]}).assign(**costs)
        >>> made = made.assign(prompt="p", family="sums", level=1, sample=0, correct=True, seed=0, model="by hand")
        >>> cost_table(made)[["arm", "tokens", "reruns", "times"]].round(2)
             arm  tokens  reruns  times
        0  plain     9.0     0.0   1.00
        1  again     9.0    12.0   1.11
    """
    _require(outcomes)
    names = ["responses", "tokens", "reruns", "layer_passes", "cut_off", "seconds"]
    means = outcomes.groupby("arm", sort=False)[names].mean()
    means["times"] = means["layer_passes"] / means["layer_passes"].iloc[0]
    return ARM_COSTS.frame(means.reset_index())


def cut_off_notes(table: pd.DataFrame) -> list[str]:
    """Of which arms over 5% of the responses ran into the limit, if there are any, in words; of an `arm_table`."""
    much = table[table["cut_off"] > CUT_OFF].drop_duplicates("arm")
    if much.empty:
        return []
    shares = ", ".join(f"{share:.0%} of {arm!r}" for arm, share in zip(much["arm"], much["cut_off"], strict=True))
    return [
        f"responses that ran into the token limit count as wrong: {shares}; over {CUT_OFF:.0%} accuracy tells of lengths, and "
        "a selection by any sum is one by length: give more room (max_new_tokens) or easier problems"
    ]


def baseline_notes(table: pd.DataFrame) -> list[str]:
    """Whether the baseline gets so many right, or so few, that arms have little to differ by, in words; of an `arm_table`."""
    right = float(table.loc[table["against"] == "", "accuracy"].iloc[0])
    if UNSOLVED <= right <= SOLVED:
        return []
    says = "little is left to win: take harder" if right > SOLVED else "little is left to lose: take easier"
    return [f"the baseline gets {right:.0%} right, and {says} problems, so that it gets {UNSOLVED:.0%} to {SOLVED:.0%}"]
