"""LRS (l2-guided response selection): the best of several responses by its norms, see `tl_l2norm.experiments.scores`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import escape
from numpy.typing import NDArray

from tl_l2norm.analysis.accuracy import WILSON, wilson_interval
from tl_l2norm.analysis.signal_strength import spearman
from tl_l2norm.core.arguments import as_integer, as_seed, check_text
from tl_l2norm.core.errors import InputError, InputTypeError
from tl_l2norm.core.layers import Layers, layer_ranges
from tl_l2norm.core.resampling import estimate
from tl_l2norm.core.schema import Column, Schema, ends
from tl_l2norm.core.tables import html_table, render_table
from tl_l2norm.core.thresholds import Thresholds, as_thresholds
from tl_l2norm.experiments.candidates import Candidates, candidates_of
from tl_l2norm.experiments.others_scores import WINDOW
from tl_l2norm.experiments.scores import NORM_SCORES, SCORES, Scorer
from tl_l2norm.recording.completions import Completion, Generations
from tl_l2norm.tasks.problems import Problem, unknown

_SCORE = "defined in `tl_l2norm.experiments.scores`; the higher, the better"


SCORED = Schema(
    "scores",
    "score_table(...).scores",
    (
        Column("prompt_index", int, "number of the prompt"),
        Column("sample", int, "number of the response to it"),
        Column("n_tokens", int, "length of the response"),
    ),
)

LENGTH_CORRELATIONS = Schema(
    "correlations with length",
    "score_table(...).length_correlation",
    (
        Column("score", str, "its name"),
        Column("rho", float, "Spearman's, with n_tokens among the candidates of a prompt, mean over prompts"),
        *ends("rho"),
        Column("n_prompts", int, "with three candidates or more, of several scores and lengths"),
    ),
)

SELECTED_ACCURACIES = Schema(
    "accuracies by score",
    "score_table(..., problems=...).accuracy",
    (
        Column("score", str, "its name"),
        Column("accuracy", float, "of the responses that it selects, expected where at random; NaN where no answer is known"),
        *ends("accuracy", kind=WILSON),
        Column("n", int, "prompts with a known answer"),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoreTable:
    """Scores of all responses, their correlation with length and the accuracy of selecting by them; prints as a table."""

    scores: pd.DataFrame
    """One entry per completion: prompt_index, sample, n_tokens and one column per score."""
    length_correlation: pd.DataFrame
    """One entry per score: score, rho, low, high, n_prompts. Spearman's rho with n_tokens among the candidates of a prompt,
    mean over the prompts with at least three candidates that differ in score and in length; 95% interval by resampling
    prompts."""
    accuracy: pd.DataFrame | None
    """One entry per score: score, accuracy of what it selects, low, high (95%, Wilson), n prompts with a known answer; None
    without problems."""
    left_out: Mapping[str, str]
    """Scores that could not be computed, and why."""
    layers: tuple[int, ...]
    """Layers of the norm scores; () without them."""
    thresholds: Mapping[int, float]
    """tau of each of `layers`."""
    model: str | None
    seed: int

    def to_frame(self) -> pd.DataFrame:
        """One entry per score: its accuracy, where that is known, and its correlation with length."""
        lengths = self.length_correlation.rename(
            columns={"rho": "rho_length", "low": "rho_low", "high": "rho_high", "n_prompts": "rho_n"}
        )
        return lengths if self.accuracy is None else self.accuracy.merge(lengths, on="score", sort=False)

    @property
    def _head(self) -> str:
        prompts = self.scores["prompt_index"].nunique()
        norms = f", {self.model}, layers {layer_ranges(self.layers)}" if self.layers else ""
        return f"{len(self.scores)} responses to {prompts} prompts{norms}, seed {self.seed}"

    def __str__(self) -> str:
        """The scores side by side, what they were computed from above them, what is left out below."""
        return "\n".join([self._head, render_table(self.to_frame()), *missing_lines(self.left_out)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_of(self._head, self.to_frame(), self.left_out)


def select(
    completions: Completion | Iterable[Completion],
    *,
    by: str,
    thresholds: Mapping[int, float] | None = None,
    layers: Layers = "late",
    problems: Sequence[Problem] | None = None,
    window: int = WINDOW,
    seed: int = 0,
) -> Generations:
    """The response with the highest score for each prompt, in the order of the prompts; ties go to the earlier sample.

    Args:
        completions: the candidates, in any order.
        by: one of `SCORES`.
        thresholds: tau of each layer; by default `iqr_thresholds` over the candidates themselves, of all prompts together.
        layers: of the norm scores; "late" and slices are of the model, as far as they were recorded.
        problems: one for each prompt, in their order; "oracle" and "probe" need them, votes read answers of their kind with
            them.
        window: tokens of DeepConf's groups; the authors' 2048, which is more than short responses have.
        seed: of "random".

    Raises:
        ValueError: bad input, or a score that these completions don't allow (`Unscorable`).

    Examples:
        >>> problems = l2.make_mixture(2, families="compact")
        >>> prompts = [l2.chat_prompt(model.tokenizer, problem.question, mode="think") for problem in problems]
        >>> out = l2.generate(model, prompts, n=3, temperature=1.0, max_new_tokens=64, progress=False)
        >>> best = l2.select(out, by="event_area_per_token")
        >>> [completion.answer.strip() for completion in best]
        ['4', '3']
    """
    check_text("by", by)
    if by not in SCORES:
        raise InputError(unknown("score", by, SCORES))
    groups = candidates_of(completions, problems)
    scores = Scorer(groups, by_layer(thresholds), layers, as_seed(seed), as_integer("window", window, least=1))(by)
    return Generations(tuple(group.completions[best] for group, best in zip(groups, _best(scores), strict=True)))


def score_table(
    completions: Completion | Iterable[Completion],
    *,
    thresholds: Mapping[int, float] | None = None,
    layers: Layers = "late",
    problems: Sequence[Problem] | None = None,
    window: int = WINDOW,
    seed: int = 0,
) -> ScoreTable:
    """Every score of every response, its correlation with length and, with `problems`, the accuracy of selecting by it.

    Arguments as for `select`; `seed` is also that of the intervals. Scores that these completions don't allow are left out. The
    accuracy of "random" is its expectation, not that of one draw. Whether one score is better than another, `selection_curve`
    says: intervals side by side don't.

    Raises:
        ValueError: bad input.

    Examples:
        >>> problems = l2.make_mixture(2, families="compact")
        >>> prompts = [l2.chat_prompt(model.tokenizer, problem.question, mode="think") for problem in problems]
        >>> out = l2.generate(model, prompts, n=3, temperature=1.0, max_new_tokens=64, progress=False)
        >>> table = l2.score_table(out, problems=problems)
        >>> table.layers, len(table.scores)
        ((9, 10, 11), 6)
        >>> table.accuracy.loc[table.accuracy["score"] == "majority", ["accuracy", "n"]].values.tolist()
        [[1.0, 2.0]]
    """
    groups = candidates_of(completions, problems)
    scorer = Scorer(groups, by_layer(thresholds), layers, as_seed(seed), as_integer("window", window, least=1))
    by_name, left_out = scorer.all(SCORES)
    candidates = [completion for group in groups for completion in group.completions]
    columns = {
        "prompt_index": [completion.prompt_index for completion in candidates],
        "sample": [completion.sample for completion in candidates],
        "n_tokens": [len(completion.tokens) for completion in candidates],
        **{name: np.concatenate(scores) for name, scores in by_name.items()},
    }
    has_norms = NORM_SCORES[0] in by_name
    accuracies = [_accuracy(name, scores, scorer.correct) for name, scores in by_name.items()]
    return ScoreTable(
        scores=SCORED.plus(*(Column(name, float, _SCORE) for name in by_name)).frame(columns),
        length_correlation=LENGTH_CORRELATIONS.frame(_length_correlation(name, s, groups, seed) for name, s in by_name.items()),
        accuracy=None if problems is None else SELECTED_ACCURACIES.frame(accuracies),
        left_out=MappingProxyType(left_out),
        layers=scorer.chosen if has_norms else (),
        thresholds=MappingProxyType(scorer.taus if has_norms else {}),
        model=scorer.traces[0].provenance.model if has_norms else None,
        seed=seed,
    )


def missing_lines(left_out: Mapping[str, str]) -> list[str]:
    """What is left out and why, one line for each reason."""
    reasons: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        reasons.setdefault(reason, []).append(name)
    return [f"left out: {', '.join(names)}: {reason}" for reason, names in reasons.items()]


def html_of(head: str, table: pd.DataFrame, left_out: Mapping[str, str]) -> str:
    """A table under its heading, with what is left out below it, for a notebook."""
    missing = "".join(f"<p>{escape(line)}</p>" for line in missing_lines(left_out))
    return f"<p>{escape(head)}</p>{html_table(table)}{missing}"


def by_layer(thresholds: Any) -> Thresholds | None:
    """Thresholds of norm scores; None where they come from the candidates."""
    if thresholds is None:
        return None
    taus = as_thresholds(thresholds)
    if not isinstance(taus, Thresholds):
        raise InputTypeError("AdaptiveIQR follows a run that goes on: for scores give iqr_thresholds(traces) or {layer: value}")
    return taus


def _best(scores: Sequence[NDArray[np.float64]]) -> list[int]:
    """Of each prompt, the first of the candidates with the highest score."""
    return [int(np.argmax(values)) for values in scores]


def _length_correlation(
    name: str, scores: Sequence[NDArray[np.float64]], groups: Sequence[Candidates], seed: int
) -> dict[str, str | float | int]:
    rhos = [
        spearman(values, np.array([len(completion.tokens) for completion in group.completions], dtype=np.float64))
        for group, values in zip(groups, scores, strict=True)
    ]
    rho = estimate(np.array(rhos), seed=seed)
    return {"score": name, "rho": rho.mean, "low": rho.low, "high": rho.high, "n_prompts": rho.n}


def _accuracy(
    name: str, scores: Sequence[NDArray[np.float64]], correct: Sequence[NDArray[np.float64]]
) -> dict[str, str | float | int]:
    if name == "random":
        chosen = [float(values.mean()) for values in correct]
    else:
        chosen = [values[best] for values, best in zip(correct, _best(scores), strict=True)]
    known = [value for value in chosen if not np.isnan(value)]
    hits, n = float(sum(known)), len(known)
    low, high = wilson_interval(hits, n) if n else (float("nan"), float("nan"))
    return {"score": name, "accuracy": hits / n if n else float("nan"), "low": low, "high": high, "n": n}
