"""Accuracy of selecting against the number of samples, score by score, with paired differences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, SupportsIndex

import numpy as np
import pandas as pd

from tl_l2norm.analysis.selecting import (
    DIFFERENCES,
    REFERENCES,
    Rule,
    Sampled,
    accuracies,
    curve_table,
    difference_table,
    in_order,
    selected,
    strength_table,
)
from tl_l2norm.core.arguments import as_integer, as_integers, as_names, as_seed
from tl_l2norm.core.errors import InputError, Unmeasurable
from tl_l2norm.core.layers import Layers
from tl_l2norm.core.resampling import Array
from tl_l2norm.core.tables import render_table
from tl_l2norm.experiments.candidates import Unscorable, candidates_of
from tl_l2norm.experiments.others_scores import WINDOW
from tl_l2norm.experiments.scores import SCORES, VOTES, Scorer
from tl_l2norm.experiments.selection import by_layer, html_of, missing_lines
from tl_l2norm.recording.completions import Completion
from tl_l2norm.tasks.problems import Problem, unknown

RULES: Mapping[str, Rule] = {
    name: Rule(at_random=True)
    if name == "random"
    else Rule(votes=True, weights=VOTES[name][0], keep=VOTES[name][1])
    if name in VOTES
    else Rule()
    for name in SCORES
}
"""How each score selects."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SelectionCurve:
    """How well scores select among n samples, and what they say of correctness; prints as a table."""

    curve: pd.DataFrame
    """One entry per score and n: score, n, accuracy, low, high, problems. Expected over all subsets of n of a problem's
    samples; 95% interval by resampling problems."""
    differences: pd.DataFrame
    """One entry per score and reference (random, majority): score, reference, difference, low, high, p, p_holm, problems, of
    selecting among all of a problem's samples."""
    at_length: pd.DataFrame
    """The same where one response is selected in each stratum of like lengths, by score and by reference, of all samples; empty
    where no two responses to a problem are of like length."""
    signals: pd.DataFrame
    """One entry per score: auc, problems_auc, auc_at_length, problems_at_length, rho_correct, rho_length, each of the four
    statistics with _low and _high: how it goes with correctness and with length within a problem, over all samples."""
    n: tuple[int, ...]
    left_out: Mapping[str, str]
    """Scores that could not be computed, and why."""
    seed: int

    def better_than(self, reference: str) -> tuple[str, ...]:
        """Scores that select better than a reference, "random" or "majority", among all samples: p_holm is at most 0.05.

        Raises:
            InputError: another reference.
        """
        if reference not in REFERENCES:
            raise InputError(unknown("reference", reference, REFERENCES))
        own = self.differences[self.differences["reference"] == reference]
        return tuple(own.loc[(own["p_holm"] <= 0.05) & (own["difference"] > 0), "score"])

    def to_frame(self) -> pd.DataFrame:
        """One entry per score: accuracy at each n, differences among all samples with their corrected p, and signals."""
        table = self.curve.pivot(index="score", columns="n", values="accuracy").add_prefix("n=").reset_index()
        table = self.curve[["score"]].drop_duplicates().merge(table, on="score")
        for reference in REFERENCES:
            own = self.differences[self.differences["reference"] == reference]
            columns = {"difference": f"from_{reference}", "p_holm": f"p_{reference}"}
            table = table.merge(own[["score", *columns]].rename(columns=columns), on="score", how="left")
        return table.merge(self.signals[["score", "auc", "rho_length"]], on="score")

    @property
    def _head(self) -> str:
        problems = int(self.curve["problems"].max())
        return f"{problems} problems; accuracy of one response of n, all else among all samples; seed {self.seed}"

    def __str__(self) -> str:
        """Scores side by side, what is left out below."""
        return "\n".join([self._head, render_table(self.to_frame(), width=140), *missing_lines(self.left_out)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_of(self._head, self.to_frame(), self.left_out)


def selection_curve(
    completions: Completion | Iterable[Completion],
    *,
    problems: Sequence[Problem] | None,
    by: str | Sequence[str] | None = None,
    n: SupportsIndex | Iterable[SupportsIndex] | None = None,
    thresholds: Mapping[int, float] | None = None,
    layers: Layers = "late",
    window: int = WINDOW,
    seed: int = 0,
) -> SelectionCurve:
    """Accuracy of selecting one of n responses by each score, for several n, from one set of samples.

    Accuracy at n is its expectation over all subsets of n of a problem's samples, ties shared: exact for all scores but
    weighted votes and Think@n, which take at most 512 subsets of a problem. Scores are computed once, over all samples: norms
    are standardised, and a probe's states centred, over all of a problem's samples. "majority" and "random" are always among
    the scores: what others are compared with, problem by problem.

    Args:
        completions: the samples, in any order.
        problems: one for each prompt, in their order; those without a known answer don't count.
        by: one or several of `SCORES`; all that these samples allow by default.
        n: numbers of responses to select from; by default 1, 2, 4 and so on up to as many as every problem has.
        thresholds: as in `select`.
        layers: as in `select`.
        window: as in `select`.
        seed: of intervals, tests and subsets.

    Raises:
        ValueError: bad input.
        Unscorable: a score of `by` that these samples don't allow, an n over the number of samples, one sample for each prompt,
            or no problem with a known answer.

    Examples:
        >>> problems = l2.make_mixture(2, families="compact")
        >>> prompts = [l2.chat_prompt(model.tokenizer, problem.question, mode="think") for problem in problems]
        >>> out = l2.generate(model, prompts, n=4, temperature=1.0, max_new_tokens=64, progress=False)
        >>> found = l2.experiments.selection_curve(out, problems=problems, by=["norm_sum", "shortest"])
        >>> found.n, sorted(set(found.curve["score"]))
        ((1, 2, 4), ['majority', 'norm_sum', 'random', 'shortest'])
    """
    groups = candidates_of(completions, _required(problems))
    scorer = Scorer(groups, by_layer(thresholds), layers, as_seed(seed), as_integer("window", window, least=1))
    names, left_out = _scores(scorer, by)
    rules = {name: RULES[name] for name in names if by is None or name in (*as_names("by", by), *REFERENCES)}
    sampled = _sampled(scorer, names, scorer.correct)
    sizes = _sizes(n, sampled)
    ordered = in_order(list(sampled.values()))
    found, listed = accuracies(ordered, rules, sizes, seed), list(rules)
    return SelectionCurve(
        curve=curve_table(found, listed, sizes, seed),
        differences=difference_table(selected(ordered, rules, seed), listed, seed),
        at_length=_at_length(ordered, rules, seed),
        signals=strength_table(ordered, listed, seed),
        n=sizes,
        left_out=MappingProxyType(left_out),
        seed=seed,
    )


def arm_curve(
    completions: Sequence[Completion],
    *,
    problems: Sequence[Problem],
    by: str,
    thresholds: Mapping[int, float] | None,
    layers: Layers,
    seed: int,
) -> pd.DataFrame:
    """`CURVES` of one score alone, without tests; what isn't known to be right is wrong, as in an arm's outcomes."""
    scorer = Scorer(candidates_of(completions, problems), by_layer(thresholds), layers, seed)
    sampled = _sampled(scorer, _scores(scorer, by)[0], [np.nan_to_num(own) for own in scorer.correct])
    sizes = _sizes(None, sampled)
    return curve_table(accuracies(in_order(list(sampled.values())), {by: RULES[by]}, sizes, seed), [by], sizes, seed)


def _sampled(scorer: Scorer, values: Mapping[str, Sequence[Array]], correct: Sequence[Array]) -> dict[int, Sampled]:
    """Responses to each problem of which all are known to be `correct` or not, by the number of its prompt."""
    sampled = {
        group.completions[0].prompt_index: Sampled(
            correct=correct[i],
            answers=scorer.answers[i],
            lengths=np.array([len(c.tokens) for c in group.completions], dtype=np.float64),
            values={n: np.zeros(len(v[i])) if RULES[n].at_random else v[i] for n, v in values.items()},  # no draw: its mean
        )
        for i, group in enumerate(scorer.groups)
        if not np.isnan(correct[i]).any()
    }
    if not sampled:
        raise Unscorable("no problem has a known answer: selection can't be right or wrong")
    return sampled


def _at_length(sampled: Sequence[Sampled], rules: Mapping[str, Rule], seed: int) -> pd.DataFrame:
    try:
        return difference_table(selected(sampled, rules, seed, at_length=True), list(rules), seed)
    except Unmeasurable:  # all are of other lengths
        return DIFFERENCES.frame([])


def _required(problems: Any) -> Any:
    if problems is None:
        raise InputError("a curve of accuracies needs problems=, one for each prompt")
    return problems


def _sizes(n: Any, sampled: Mapping[int, Sampled]) -> tuple[int, ...]:
    """The numbers of responses to select from."""
    prompt, least = min(((prompt, len(own)) for prompt, own in sampled.items()), key=lambda item: item[1])
    if max(map(len, sampled.values())) == 1:
        raise Unscorable("there is one response to each prompt, nothing to select from: generate(..., n=8, temperature=...)")
    if n is None:
        return tuple(sorted({2**i for i in range(least.bit_length())} | {least}))
    sizes = sorted(set(as_integers("n", n if isinstance(n, Iterable) else [n])))
    if not sizes or sizes[0] < 1:
        raise InputError(f"n is how many responses one is selected from, 1 or more, got {sizes or 'none'}")
    if sizes[-1] > least:
        raise Unscorable(f"n = {sizes[-1]} is over the {least} responses to prompt {prompt}: give n up to {least}")
    return tuple(sizes)


def _scores(scorer: Scorer, by: Any) -> tuple[dict[str, list[Any]], dict[str, str]]:
    """Values of the scores by name, the references among them, and of the scores that rules need."""
    if by is None:
        return scorer.all(SCORES)
    names = as_names("by", by)
    for name in names:
        if name not in SCORES:
            raise InputError(unknown("score", name, SCORES))
    needed = [part for name in names for part in (RULES[name].weights, RULES[name].keep) if part is not None]
    return {name: scorer(name) for name in dict.fromkeys((*names, *REFERENCES, *needed))}, {}
