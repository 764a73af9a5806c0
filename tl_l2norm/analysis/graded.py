"""Responses against the problems that they answer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tl_l2norm.analysis.accuracy import wilson_interval
from tl_l2norm.core.arguments import one_or_several
from tl_l2norm.core.errors import InputError, InputTypeError
from tl_l2norm.tasks.problems import Problem, problems_of
from tl_l2norm.tasks.verifiers import Answered, is_correct
from tl_l2norm.text.sequences import squeezed


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Accuracy:
    """Share of problems that responses get right, with its 95% Wilson interval. A number: `float(...)` and formats take it.

    Attributes:
        accuracy: a problem counts once, several responses to it by the share that is right; NaN where no answer is known.
        low: of the interval.
        high: of the interval.
        n: problems with a known answer.
        correct: [response] whether it is right; None where that isn't known.
        n_cut_off: responses that ran into max_new_tokens; None of texts, which don't say.
    """

    accuracy: float
    low: float
    high: float
    n: int
    correct: tuple[bool | None, ...] = field(repr=False)
    n_cut_off: int | None

    def __float__(self) -> float:
        return self.accuracy

    def __format__(self, spec: str) -> str:
        return format(self.accuracy, spec) if spec else repr(self)

    def __repr__(self) -> str:
        """One line."""
        cut = f", {self.n_cut_off} of {len(self.correct)} responses cut off" if self.n_cut_off else ""
        return f"Accuracy({self.accuracy:.3g}, 95% {self.low:.2f} to {self.high:.2f}, {self.n} problems{cut})"


def accuracy(problems: Problem | Iterable[Problem], out: str | Answered | Iterable[str | Answered]) -> Accuracy:
    """How many problems responses get right, as `is_correct` judges them.

    Args:
        problems: that were asked, in the order of the prompts.
        out: what `generate` returned, whose completions say which prompt they answer; or texts, one for each problem.

    Raises:
        InputError: responses to other prompts than one for each problem, or a response to another one's question.
        InputTypeError: neither problems nor responses.

    Examples:
        >>> problems = l2.make_problems("modular", 8, level=1, split="test")
        >>> prompts = [l2.chat_prompt(model.tokenizer, problem.question, mode="think") for problem in problems]
        >>> l2.accuracy(problems, l2.generate(model, prompts, max_new_tokens=64, progress=False))
        Accuracy(..., 95% ... to ..., 8 problems)
    """
    asked = problems_of(problems)
    given = one_or_several(out, (str, Answered))
    if odd := [one for one in given if not isinstance(one, str | Answered)]:
        raise InputTypeError(f"responses are what generate returns, or texts, got {odd[0]!r:.80}")
    owners = _owners(asked, given)
    correct = [is_correct(asked[owner], one) for owner, one in zip(owners, given, strict=True)]
    by_problem: dict[str, list[bool]] = {}
    for owner, right in zip(owners, correct, strict=True):
        if right is not None:
            by_problem.setdefault(asked[owner].id, []).append(right)
    shares, n = sum(sum(own) / len(own) for own in by_problem.values()), len(by_problem)
    low, high = wilson_interval(shares, n) if n else (math.nan, math.nan)
    ends = [end for one in given if (end := getattr(one, "finish_reason", None)) is not None]
    return Accuracy(
        accuracy=shares / n if n else math.nan,
        low=low,
        high=high,
        n=n,
        correct=tuple(correct),
        n_cut_off=ends.count("length") if len(ends) == len(given) else None,
    )


def _owners(problems: Sequence[Problem], given: Sequence[Any]) -> list[int]:
    """Which problem each response answers."""
    if not problems or not given:
        raise InputError(f"{len(problems)} problems and {len(given)} responses: give at least one of each")
    if any(getattr(one, "prompt_index", None) is None for one in given):
        if len(given) != len(problems):
            raise InputError(f"{len(given)} responses to {len(problems)} problems: give one for each, or generate's own return")
        return list(range(len(given)))
    owners = [int(one.prompt_index) for one in given]
    if max(owners) >= len(problems):
        raise InputError(f"a response answers prompt {max(owners)}, of {len(problems)} problems: give one for each prompt")
    questions = [squeezed(problem.question) for problem in problems]
    for place, (owner, one) in enumerate(zip(owners, given, strict=True)):
        prompt = squeezed(str(getattr(one, "prompt", "")))
        others = [i for i, question in enumerate(questions) if question in prompt]
        if others and owner not in others:
            raise InputError(
                f"response {place} answers the question of problem {others[0]}, not of problem {owner}: give the problems in "
                "the order of the prompts"
            )
    return owners
