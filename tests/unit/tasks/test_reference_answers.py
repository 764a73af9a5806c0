"""Answers as data sets write them, and problems that are made with them."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from tl_l2norm.tasks.judging.references import final_answer
from tl_l2norm.tasks.problems import FAMILIES, Problem, make_problems
from tl_l2norm.tasks.verifiers import is_correct


@pytest.mark.parametrize(
    ("written", "answer"),
    [
        (None, None),
        ("42", "42"),
        (" 42 ", " 42 "),
        (42, "42"),
        (42.0, "42"),
        (-0.5, "-0.5"),
        (1e20, "100000000000000000000"),
        (0.1, "0.1"),
        (2**60 + 1, "1152921504606846977"),
        (Decimal("1.50"), "1.50"),
        (np.int64(7), "7"),
        (np.float32(2.5), "2.5"),
        (np.bool_(True), "true"),
        (False, "false"),
        ("5 + 5 = <<5+5=10>>10\n#### 10", "10"),
        ("Costs.\n####$1,250 ", "$1,250"),
        ("#### -3\n\n", "-3"),
        ("# Title\n## Part\nno mark", "# Title\n## Part\nno mark"),
        ("\\boxed{\\frac{a}{\\sqrt{b}}}", "\\frac{a}{\\sqrt{b}}"),
        ("First \\boxed{1}. No: it is \\boxed{2}.", "2"),
        ("Roots $\\boxed{1}$ and $\\boxed{2}$.", "1, 2"),
        ("\\fbox{9}", "9"),
        ("It is $\\boxed 7$.", "7"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("Some text. <answer>x = 4</answer>", "x = 4"),
        ("We add.\nThe answer is 12.", "12"),
        ("Final Answer: The final answer is $5$. I hope it is correct.", "$5$"),
        ("**Answer:** Paris", "Paris"),
        ("**12**", "12"),
        ("*Paris*", "Paris"),
        ("12 (twelve)", "12"),
        ("12 (cm)", "12 cm"),
        ("about 12", "12"),
        ("≈ 3.5 kg", "3.5 kg"),
        ("about time", "about time"),
        ("3 (mod 5)", "3 (mod 5)"),
        ("f(x)", "f(x)"),
    ],
)
def test_the_final_answer_of_what_is_written(written: Any, answer: str | None) -> None:
    assert final_answer(written) == answer


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("", "answer must be text"),
        ("\n ", "answer must be text"),
        ([], "answer must be text"),
        ({"text": "x"}, "answer must be text"),
        (float("nan"), "answer must be text"),
        (float("inf"), "answer must be text"),
        ("x\n#### ", "marked is empty"),
        ("so \\boxed{}", "marked is empty"),
        ("so \\boxed{\\frac{1}{2}", "never closes it"),
        ("word " * 31, "31 words that marks no final answer"),
    ],
)
def test_an_answer_that_cannot_be_understood_is_refused(written: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        final_answer(written)


def made(answer: Any, question: str = "?", **fields: Any) -> Problem:
    return Problem(question=question, answer=answer, family="custom", **fields)


def test_a_problem_keeps_the_final_answer() -> None:
    assert made(12.0) == made(12) == made("12") == made("ten and two\n#### 12") == made("\\boxed{12}")
    assert made("(b)", "Which? (A) red (B) blue") == made("B", "Which? (A) red (B) blue")


@pytest.mark.parametrize(
    "question",
    ["Which? (A) red (B) blue", "Which?\nA. red\nB. blue", "Which?\n(a) red,\n(b) blue", "A and B met. Which? A) red B) blue"],
)
def test_choices_in_a_question_are_read(question: str) -> None:
    problem = made("B", question)
    assert (problem.options, problem.option_texts) == (("A", "B"), ("red", "blue"))
    assert is_correct(problem, "It is blue.") and not is_correct(problem, "It is red.")


@pytest.mark.parametrize("question", ["Is vitamin A or B meant?", "Plan A. It failed.", "(B) comes after (A)", "What is next?"])
def test_letters_in_a_question_are_no_choices(question: str) -> None:
    assert made("B", question).options == ()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"answer": "red", "options": ("blue", "green")}, "'red' is none of the options: blue, green"),
        ({"answer": "C", "options": ("A", "B")}, "'C' is none of the options"),
        ({"answer": "red", "options": "red"}, "options are a tuple of words"),
        ({"answer": "A", "options": ("A", "B"), "option_texts": ("x",)}, "option_texts are what the letters"),
        ({"answer": "x", "options": ("x", "y"), "option_texts": ("1", "2")}, "option_texts are what the letters"),
        ({"answer": "x", "level": 0}, "level must be"),
        ({"answer": ""}, "answer must be"),
        ({"answer": "x", "question": " "}, "question must be"),
        ({"answer": "x", "family": ""}, "family must be"),
    ],
)
def test_a_problem_that_cannot_be_judged_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Problem(**{"question": "?", "family": "custom", **fields})


def test_a_problem_is_a_value() -> None:
    problem = made("B", "Which? (A) red (B) blue", system="Be brief.")
    for twin in (copy.deepcopy(problem), pickle.loads(pickle.dumps(problem)), dataclasses.replace(problem)):
        assert twin == problem and twin.key == problem.key and hash(twin) == hash(problem)
    with pytest.raises(dataclasses.FrozenInstanceError):
        problem.answer = "A"  # type: ignore[misc]


def test_the_key_tells_apart_what_the_id_does_not() -> None:
    problem = made("1")
    others = [made("2"), made("1", system="Be brief."), made("1", options=("1", "2")), made(None)]
    assert {other.id for other in others} == {problem.id}
    assert len({problem.key, *(other.key for other in others)}) == 5
    assert made("1", "!").key != problem.key != dataclasses.replace(problem, family="other").key


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_our_own_problems_are_kept_as_they_are_made(family: str) -> None:
    for problem in make_problems(family, 20, level=2):
        assert dataclasses.replace(problem, answer=problem.answer) == problem
        assert problem.option_texts == () and (not problem.options or problem.answer in problem.options)
