"""What came of asking a model a problem."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tl_l2norm.core.arguments import one_or_several
from tl_l2norm.core.errors import InputTypeError
from tl_l2norm.core.trace import Trace
from tl_l2norm.tasks.problems import Problem
from tl_l2norm.text.prompts import Mode


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Result:
    """One problem, asked in one mode."""

    problem: Problem
    mode: Mode
    prompt: str
    """The rendered prompt, chat template and all."""
    control: str
    """What put the model into its mode, see `ChatPrompt.control`."""
    response: str
    """What the model wrote after the prompt."""
    answer: str
    """The part that is judged: the answer, with the beginning that the prompt forced."""
    finish_reason: str
    correct: bool | None
    """None where the problem has no known answer."""
    direct: bool | None
    """Whether a direct prompt got a direct answer, one that ended; None in thinking mode."""
    trace: Trace


def results_of(given: Result | Iterable[Result]) -> tuple[Result, ...]:
    """Results, one or several.

    Raises:
        TypeError: something else, such as completions.
    """
    results = one_or_several(given, Result)
    if odd := [one for one in results if not isinstance(one, Result)]:
        raise InputTypeError(f"results are what run_modes returns, got {odd[0]!r:.80}")
    return results
