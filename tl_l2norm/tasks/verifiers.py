"""Judge a free response: the answer that it states, against the one that is known."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Protocol, runtime_checkable

from tl_l2norm.core.errors import InputTypeError
from tl_l2norm.tasks.judging.kinds import kind_of
from tl_l2norm.tasks.judging.responses import without_revised
from tl_l2norm.tasks.problems import Problem
from tl_l2norm.text.thoughts import Tag, read

_NAMED_BEFORE = re.compile(
    r"""(?: [`"'“”‘’(] | \b(?:the|an?|tags?|tokens?|with|by|and|or|of|uses?|using
        |writes?|close|called|named|like|between|as|in)\s ) $""",
    re.VERBOSE | re.IGNORECASE,
)
_NAMED_AFTER = re.compile(r"""[`"'“”‘’)]|\s+(?:tags?|tokens?)\b""")

_AFTER_A_THOUGHT = re.compile(r"\A\s*[.,;:!]+(?=\s|\Z)")
"""The end of the sentence that a closing tag stands in."""


@runtime_checkable
class Answered(Protocol):
    """What holds an answer's text: a `Completion`, a `Result`."""

    @property
    def answer(self) -> str:
        """The answer's text."""


def is_correct(problem: Problem, text: str | Answered) -> bool | None:
    r"""Whether a free response gives the problem's answer; None where that is not known.

    Numbers are compared as numbers (3.0 is 3, "3 million" is 3000000; units may be left out, not contradicted), options by
    their letter or what it stands for, expressions by their value (1/2 is 0.5), words without regard to case,
    free text also without punctuation.

    A percentage for a reference without a unit is read in one way: "25%" is 25 where the reference is above 1 or the question
    asks for a percentage (it has "percent" or "%", and not after a number), else 0.25. Where the reference is "25%", both 25
    and 0.25 are right.

    Args:
        problem: What was asked.
        text: The response, or a `Completion` or `Result`, whose answer is judged.

    Raises:
        InputTypeError: of another type, or the problem's `verify` returns something else than True, False or None.

    Examples:
        >>> half = l2.Problem(question="What is 1 - 1/2?", answer="1/2", family="sums")
        >>> l2.is_correct(half, r"<think>1 - 1/2 = 0.5</think>The answer is $\frac{2}{4}$.")
        True
        >>> l2.is_correct(half, "The answer is 1/2. Wait, actually it is 1/3.")
        False
    """
    _check_problem(problem)
    if problem.answer is None and problem.verify is None:
        return None
    given = extract_answer(problem, text)
    if given is None:
        return False
    if problem.verify is not None:
        return _verdict(problem.verify(given), given)
    return kind_of(problem).same(problem.answer or "", given)


def comparable_answer(problem: Problem, text: str | Answered) -> Hashable | None:
    r"""The answer that a response states, in a form in which equal answers are equal; None where it states none.

    Examples:
        >>> problem = l2.Problem(question="How many?", answer="1200", family="sums")
        >>> {comparable_answer(problem, text) for text in ("It is 1,200.", r"\boxed{1200}", "The answer is 1200.0")}
        {Decimal('1200')}
    """
    given = extract_answer(problem, text)
    return None if given is None else kind_of(problem).value(given)


def extract_answer(problem: Problem, text: str | Answered) -> str | None:
    r"""The answer that a response gives, or None.

    Only what stands after the last thought counts, and nothing of one that is never closed.
    Candidates are the values of the right kind: numbers, or the problem's options as whole words, or as letters and what
    they stand for. Among them the last one announced ("answer is", "answer:", "\boxed{", "<answer>") wins, else the last one
    in bold or after a final "=", else the last one of all.

    A value is no candidate if it is denied ("not true", "n't 5", "5 is wrong"), asked, a bound ("at least 5", "than
    Ben"), a possessive, or an item of an expression, a list or a choice ("3 + 4", "red, blue", "true or false"): "not
    true" is not read as "false", it answers nothing.

    A number with more mathematics around it ("12 squared", "half of 12", "< 12") is no candidate either. What a response takes
    back counts as little as what it denies: after a correction ("Wait, ...", "Sorry, ...", "I mean ...") of an answer that was
    announced, only what follows counts, and where that states nothing, there is no answer.

    An expression, where the reference is one, is what stands in "<answer>" tags or "\boxed{}", else what is announced, else
    the end of the last line. Free text is the same, up to the end of the announcing sentence, else the whole last line.

    Where a prompt forced the beginning of the answer, pass that and the response: `prompt.answer_prefix + text`.

    Examples:
        >>> problem = l2.Problem(question="What is 3 * 4?", answer="12", family="sums")
        >>> extract_answer(problem, "3 * 4 is not 7. The answer is **12**, as 3 + 3 + 3 + 3 = 12.")
        '12'
        >>> extract_answer(problem, "It is 12 or 13.") is None
        True
    """
    _check_problem(problem)
    return kind_of(problem).find(without_revised(_judged(_text_of(text))))


def _check_problem(problem: object) -> None:
    if not isinstance(problem, Problem):
        raise InputTypeError(f"a response is judged by its Problem, got {problem!r:.80}")


def _text_of(given: object) -> str:
    text = given if isinstance(given, str | Problem) else getattr(given, "answer", None)
    if not isinstance(text, str):
        raise InputTypeError(f"what is judged is a response's text, a Completion or a Result, got {given!r:.80}")
    return text


def _verdict(said: object, given: str) -> bool | None:
    """What a problem's own `verify` says, if it is a verdict."""
    if said is None or type(said).__name__ in ("bool", "bool_"):  # NumPy's too
        return None if said is None else bool(said)
    raise InputTypeError(f"verify must return True, False or None, it returned {said!r:.80} for the answer {given!r:.80}")


def _judged(text: str) -> str:
    """What follows the last thought of a text: a tag between spaces is one, unless it is quoted or named, "the <think> tag"."""

    def is_tag(tag: Tag) -> bool | None:
        before, after = text[max(0, tag.start - 20) : tag.start], text[tag.end : tag.end + 10]
        is_named = _NAMED_BEFORE.search(before) or _NAMED_AFTER.match(after) or text[tag.start] not in "<[◁"
        return None if is_named else True

    reading = read(text, is_tag=is_tag)
    return (_AFTER_A_THOUGHT.sub("", reading.answer) if reading.thoughts else reading.answer).strip()
