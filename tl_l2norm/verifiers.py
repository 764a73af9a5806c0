"""Judge a free response: the answer that it states, against the one that is known."""

from __future__ import annotations

import itertools
import re
from decimal import Decimal

from tl_l2norm.boundaries import read
from tl_l2norm.tasks import Problem

_NUMBER = re.compile(
    r"""(?<![\w.]) (?<![A-Za-z]-) (?<!\d:)               # not within a word, a decimal, COVID-19 or 10:30
    (?P<sign> (?<![\w)\]}]) [-−–] | (?:minus|negative)\s )? [$€£]?
    (?P<digits> (?:\d{1,3}(?:,\d{3})+ | \d+) (?:\.\d+)? (?:e[+-]?\d+)? | \.\d+ )
    (?! \w | \.\d | -[A-Za-z] | :\d )""",
    re.VERBOSE | re.IGNORECASE,
)
_NAMED_OPTIONS = {word: pair for pair in (("true", "false"), ("yes", "no")) for word in pair}

# Two values with nothing but this between them are the terms of an expression, a list or a choice, not an answer.
_JOINT = re.compile(
    r"""[ \t]+ | \}\{ | \)[ \t]*\(
    | [ \t(){}$]* (?: [-+−–*/×÷^x,;&] | \\(?:times|cdot|div) | ,?[ ]*\b(?:and|or|nor|to|vs\.?)\b ) [ \t(){}$]*
      (?: (?:the|not)[ ] )?""",
    re.VERBOSE | re.IGNORECASE,
)
_DENIED_BEFORE = re.compile(
    r"""(?: (?: \b(?:not|cannot) | n['’]t ) (?:\s+be)? | \b(?:neither|nor|either|or|than|at\ least|at\ most|step) )
    \s+ (?:the\s+)? [*_"'$]* $""",
    re.VERBOSE | re.IGNORECASE,
)
_DENIED_AFTER = re.compile(
    r"""[*_"'$.]*\s* (?: \? | ['’]s\b | (?:is|was|would\ be)\s*(?:not|n['’]t|wrong|incorrect)\b )""",
    re.VERBOSE | re.IGNORECASE,
)
_ANNOUNCED = r"\banswer(?:\ to\ [^.\n]{1,60}?)?[*_\s]*(?:\bis\b|\bwould\ be\b|:|=)"
_STATED_BEFORE = re.compile(
    rf"""(?: {_ANNOUNCED} | \\boxed\{{ | <answer> )
    (?: [\s:*_$"'`({{\[] | \\\( | \\text\{{ | \\boxed\{{
      | \b(?:the|a|an|number|value|colou?r|simply|exactly|therefore|thus|now)\b )*
    (?: [\d\s()+\-−*/×÷.,^$]* = )* [\s$*]* $""",
    re.VERBOSE | re.IGNORECASE,
)
_MARKED_TEXT = re.compile(
    r"<answer>(?P<tag>.*?)</answer> | \\boxed\{(?P<box> [^{}\n]* (?: \{[^{}\n]*\} [^{}\n]* )*)\}",
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)
_STATED_TEXT = re.compile(rf"{_ANNOUNCED} [\s:*]* ([^\s] [^\n]*?) (?=\.\s | \n | \Z)", re.VERBOSE | re.IGNORECASE)
_WRAPPING = " \t*_`$\"'"
_WINDOW = 120  # characters around a value that decide what it is


def is_correct(problem: Problem, text: str) -> bool | None:
    """Whether a free response gives the problem's answer; None where that is not known.

    Numbers are compared as numbers (3.0 is 3), words without regard to case, free text also without punctuation.
    """
    if problem.answer is None and problem.verify is None:
        return None
    given = extract_answer(problem, text)
    if given is None:
        return False
    if problem.verify is not None:
        return problem.verify(given)
    expected = problem.answer or ""
    if not problem.options and (number := _number(expected)) is not None:
        return _number(given) == number
    return _plain(given) == _plain(expected)


def comparable_answer(problem: Problem, text: str) -> Decimal | str | None:
    """The answer that a response states, in a form in which equal answers are equal; None where it states none."""
    given = extract_answer(problem, text)
    if given is None:
        return None
    number = None if problem.options else _number(given)
    return _plain(given) if number is None else number


def extract_answer(problem: Problem, text: str) -> str | None:
    r"""The answer that a response gives, or None.

    Only what stands after the last thought counts, and nothing of one that is never closed.
    Candidates are the values of the right kind: numbers, or the problem's options as whole words. Among them the last
    one announced ("answer is", "answer:", "\boxed{", "<answer>") wins, else the last one in bold or after a final
    "=", else the last one of all.

    A value is no candidate if it is denied ("not true", "n't 5", "5 is wrong"), asked, a bound ("at least 5", "than
    Ben"), a possessive, or an item of an expression, a list or a choice ("3 + 4", "red, blue", "true or false"): "not
    true" is not read as "false", it answers nothing.

    Free text is what stands in "<answer>" tags or "\boxed{}", else what is announced, up to the end of its sentence,
    else the last line.

    Where a prompt forced the beginning of the answer, pass that and the response: `prompt.answer_prefix + text`.
    """
    text = read(text).answer.strip()
    if options := _options(problem):
        pattern = re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, options))})(?![\w-])", re.IGNORECASE)
        spelling = {option.casefold(): option for option in (*options, problem.answer or "")}
        value = _best(text, pattern)
        return spelling[value.group().casefold()] if value else None
    if problem.answer is not None and _number(problem.answer) is not None:
        value = _best(text.replace("{,}", ",").replace(r",\!", ","), _NUMBER)
        return _digits(value) if value else None
    return _free_text(text)


def _options(problem: Problem) -> tuple[str, ...]:
    return problem.options or _NAMED_OPTIONS.get((problem.answer or "").strip().casefold(), ())


def _best(text: str, pattern: re.Pattern[str]) -> re.Match[str] | None:
    """The last candidate of the most explicit kind."""
    return max(_candidates(text, pattern), key=lambda value: (_explicitness(text, value), value.start()), default=None)


def _candidates(text: str, pattern: re.Pattern[str]) -> list[re.Match[str]]:
    values = list(pattern.finditer(text))
    joint = {
        position
        for one, other in itertools.pairwise(values)
        if other.start() - one.end() < _WINDOW and _JOINT.fullmatch(text, one.end(), other.start())
        for position in (one.start(), other.start())
    }
    return [value for value in values if value.start() not in joint and not _is_denied(text, value)]


def _is_denied(text: str, value: re.Match[str]) -> bool:
    before = text[max(0, value.start() - _WINDOW) : value.start()]
    is_list_number = re.search(r"\n[ \t]*$", before) and re.match(r"[.)][ \t]+\S", text[value.end() :][:9])
    return bool(is_list_number or _DENIED_BEFORE.search(before) or _DENIED_AFTER.match(text, value.end()))


def _explicitness(text: str, value: re.Match[str]) -> int:
    before = text[max(0, value.start() - _WINDOW) : value.start()]
    if _STATED_BEFORE.search(before):
        return 2
    is_bold = before.endswith(("**", "__")) and text.startswith(("**", "__"), value.end())
    is_final_result = re.search(r"=[\s$*]*$", before) and re.fullmatch(r"[\s.!*$]*", text[value.end() :])
    return 1 if is_bold or is_final_result else 0


def _free_text(text: str) -> str | None:
    marked = [match[match.lastgroup or 0] for match in _MARKED_TEXT.finditer(text)]
    if marked:
        return marked[-1].strip() or None
    stated = _STATED_TEXT.findall(text)
    found = stated[-1] if stated else text.rpartition("\n")[2]
    return found.strip(_WRAPPING).removesuffix(".").strip(_WRAPPING) or None


def _number(text: str) -> Decimal | None:
    match = _NUMBER.fullmatch(text.strip())
    return Decimal(_digits(match)) if match else None


def _digits(match: re.Match[str]) -> str:
    return ("-" if match["sign"] else "") + match["digits"].replace(",", "")


def _plain(text: str) -> str:
    return " ".join(re.sub(r"[^\w\s/+*=^<>.-]", " ", text.casefold()).split()).strip(". ") or text
