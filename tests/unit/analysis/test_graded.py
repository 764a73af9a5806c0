"""Accuracy of responses against their problems."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

import tl_l2norm as l2
from tl_l2norm.core.errors import InputError, InputTypeError

PROBLEMS = [l2.Problem(question=f"How much is {n} and {n}?", answer=str(2 * n), family="sums") for n in (1, 2, 3)]


def response(index: int, answer: str, *, end: str = "stop", asks: int | None = None) -> Any:
    prompt = f"<user>\n{PROBLEMS[index if asks is None else asks].question}<assistant>"
    return SimpleNamespace(prompt_index=index, prompt=prompt, answer=answer, finish_reason=end)


def test_a_problem_counts_once_by_the_share_of_its_responses_that_is_right() -> None:
    out = [response(0, "It is 2."), response(0, "It is 3."), response(1, "4"), response(1, "4", end="length")]
    measured = l2.accuracy(PROBLEMS, out)
    assert measured.correct == (True, False, True, True) and measured.n == 2 and measured.n_cut_off == 1
    assert float(measured) == measured.accuracy == 0.75 and f"{measured:.0%}" == "75%"
    assert repr(measured).startswith("Accuracy(0.75, 95% 0.") and "1 of 4 responses cut off" in f"{measured}"
    low, high = l2.analysis.accuracy.wilson_interval(1.5, 2)
    assert (measured.low, measured.high) == (low, high)


def test_texts_are_one_for_each_problem_and_unknown_answers_leave_the_count() -> None:
    unknown = l2.Problem(question="Why?", answer=None, family="open")
    measured = l2.accuracy([*PROBLEMS, unknown], ["2", "5", "The answer is 6.", "Because."])
    assert measured.correct == (True, False, True, None) and measured.n == 3 and measured.n_cut_off is None
    assert l2.accuracy(PROBLEMS[0], "2").accuracy == 1.0
    nothing = l2.accuracy(unknown, "Because.")
    assert nothing.n == 0 and nothing.accuracy != nothing.accuracy


@pytest.mark.parametrize(
    ("problems", "out", "says"),
    [
        (PROBLEMS, ["2", "4"], "2 responses to 3 problems"),
        (PROBLEMS[:2], [response(2, "6")], "answers prompt 2, of 2 problems"),
        (PROBLEMS[::-1], [response(0, "2")], "response 0 answers the question of problem 2, not of problem 0"),
        (PROBLEMS, [], "3 problems and 0 responses"),
    ],
)
def test_responses_that_are_not_the_problems_are_refused(problems: Any, out: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        l2.accuracy(problems, out)


def test_what_is_no_problem_is_refused() -> None:
    with pytest.raises(InputTypeError, match="problems are what make_problems"):
        l2.accuracy(iter([*PROBLEMS, "How much?"]), ["2"])  # type: ignore[list-item]
