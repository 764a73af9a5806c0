"""Where a free response states its answer: values that are announced, bold or last, and not denied, asked or listed."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import NamedTuple

from tl_l2norm.tasks.judging.revisions import is_doubted, revised
from tl_l2norm.tasks.judging.text import boxed

# Two values with nothing but this between them are the terms of an expression, a list or a choice, not an answer.
_JOINT = re.compile(
    r"""[ \t]+ | \}\{ | \)[ \t]*\(
    | [ \t(){}$]* (?: [-+−–*/×÷^x,;&] | \\(?:times|cdot|div) | ,?[ ]*\b(?:and|or|nor|to|vs\.?)\b ) [ \t(){}$]*
      (?: (?:the|not)[ ] )?""",
    re.VERBOSE | re.IGNORECASE,
)
_CONTRAST = re.compile(r"[*_\"')\s]*,?\s+(?:and\s+)?not\s+(?:the\s+)?[*_\"'(]*", re.IGNORECASE)
_DENIED_BEFORE = re.compile(
    r"""(?: (?: \b(?:not|cannot) | n['’]t ) (?:\s+(?:be|say))? | \b(?:neither|nor|either|or|than|over|at\ least|at\ most|step
        |except|except(?:ing)?\ for|excluding|besides
        |apart\ from|aside\ from|instead\ of)
      | \b(?:all|any(?:thing|one)?|every(?:thing|one)?|each)(?:\s+\w+)?\s+but
      | \b(?:rul(?:e|es|ed|ing)\s+out|(?:eliminat|exclud|discard|reject)(?:e|s|es|ed|ing)?) )
    \s+ (?:the\s+)? (?:(?:option|choice)\s+)? [*_"'$(]* $""",
    re.VERBOSE | re.IGNORECASE,
)
_DENIED_AFTER = re.compile(
    r"""[*_"'$.)]*\s* (?: \? | ['’]s\b | 
      (?:is|are|was|were|would\ be|(?:can|may|must|should)\ be|(?:has|have)\ been|gets?)\s*
      (?:not|n['’]t|wrong|incorrect|false|impossible|eliminated|excluded|ruled\ out|discarded|rejected|crossed\ out)\b )""",
    re.VERBOSE | re.IGNORECASE,
)
ANNOUNCED = r"\banswer(?:\ to\ [^.\n]{1,60}?)?[*_\s]*(?:\bis\b|\bwould\ be\b|:|=)"
_STATED_BEFORE = re.compile(
    rf"""(?: {ANNOUNCED} | \\boxed\{{ | <answer> )
    (?: [\s:*_$"'`({{\[] | \\\( | \\\[ | \\(?:text|textbf|mathrm|mathbf|boxed)\{{
      | \b(?:the|a|an|number|value|colou?r|option|choice|letter|simply|exactly|therefore|thus|now)\b )*
    (?: [\d\s()+\-−*/×÷.,^$]* = )* [\s$*]* $""",
    re.VERBOSE | re.IGNORECASE,
)
_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.IGNORECASE | re.DOTALL)
_STATED_TEXT = re.compile(rf"{ANNOUNCED} [\s:*]* ([^\s] [^\n]*?) (?=\.\s | \n | \Z)", re.VERBOSE | re.IGNORECASE)
_STATEMENT = re.compile(rf"{ANNOUNCED}|\\boxed|<answer>|####|\*\*", re.IGNORECASE)
_ANNOUNCED = re.compile(rf"{ANNOUNCED}[^.\n]*$", re.IGNORECASE)
_WRAPPING = " \t*_`\"'"
_ANNOUNCEMENT = 2  # the most explicit way of stating a value
_WINDOW = 120  # characters around a value that decide what it is

Joint = Callable[[str, re.Match[str], re.Match[str]], bool]
Part = Callable[[str, re.Match[str]], bool]


class Stated(NamedTuple):
    """A value that a response states."""

    match: re.Match[str]
    is_announced: bool


def best_value(
    text: str, pattern: re.Pattern[str], is_joint: Joint | None = None, is_part: Part | None = None
) -> Stated | None:
    """The last candidate of the most explicit kind; None where there is no candidate.

    Args:
        text: The response.
        pattern: What values look like.
        is_joint: Whether two values that follow each other are parts of one expression or list.
        is_part: Whether a value is a part of something larger, and none of its own.
    """
    candidates = _candidates(text, pattern, is_joint or joined)
    if is_part:
        candidates = [value for value in candidates if not is_part(text, value)]
    best = max(candidates, key=lambda value: (_explicitness(text, value), value.start()), default=None)
    return best and Stated(best, _explicitness(text, best) == _ANNOUNCEMENT)


def joined(text: str, one: re.Match[str], other: re.Match[str]) -> bool:
    """Whether two values are terms of one expression, list or choice; "one, not other" is none."""
    between = text[one.end() : min(other.start(), one.end() + _WINDOW)]
    return len(between) < _WINDOW and bool(_JOINT.fullmatch(between)) and not _CONTRAST.fullmatch(between)


def stated_text(text: str) -> str | None:
    r"""What stands in "<answer>" tags or "\boxed{}", else what is announced up to the end of its sentence."""
    if (marked := marked_text(text)) is not None:
        return marked or None
    stated = [match[1] for match in _STATED_TEXT.finditer(text) if not is_doubted(text, match.start())]
    return (bare(stated[-1]) or None) if stated else None


def without_revised(text: str) -> str:
    """A response without what it takes back: only what follows the last correction of a stated answer counts."""
    return revised(text, _STATEMENT)


def marked_text(text: str) -> str | None:
    r"""What stands in the last "<answer>" tags or, where there are none, "\boxed{}"; None where there is neither."""
    tagged = _TAGGED.findall(text)
    if not tagged:
        return boxed(text)
    inner = str(tagged[-1]).strip()
    return boxed(inner) or inner


def last_line(text: str) -> str:
    """The last line, without what surrounds it."""
    return bare(text.rpartition("\n")[2])


def bare(text: str) -> str:
    """The text without quotes, emphasis and full stop around it."""
    return text.strip(_WRAPPING).removesuffix(".").strip(_WRAPPING)


def _candidates(text: str, pattern: re.Pattern[str], is_joint: Joint) -> list[re.Match[str]]:
    values = list(pattern.finditer(text))
    joint = {
        position
        for one, other in itertools.pairwise(values)
        if is_joint(text, one, other)
        for position in (one.start(), other.start())
    }
    return [value for value in values if value.start() not in joint and not _is_denied(text, value)]


def _is_denied(text: str, value: re.Match[str]) -> bool:
    before = text[max(0, value.start() - _WINDOW) : value.start()]
    is_list_number = re.search(r"\n[ \t]*$", before) and re.match(r"[.)][ \t]+\S", text[value.end() :][:9])
    if is_list_number or _DENIED_BEFORE.search(before) or _DENIED_AFTER.match(text, value.end()):
        return True
    announcement = _ANNOUNCED.search(before)
    return is_doubted(before, announcement.start()) if announcement else False


def _explicitness(text: str, value: re.Match[str]) -> int:
    """How clearly a value is the answer: announced, in bold or behind a final "=" (1), or only there (0)."""
    before = text[max(0, value.start() - _WINDOW) : value.start()]
    if _STATED_BEFORE.search(before):
        return _ANNOUNCEMENT
    is_bold = before.endswith(("**", "__")) and text.startswith(("**", "__"), value.end())
    is_final_result = re.search(r"=[\s$*]*$", before) and re.fullmatch(r"[\s.!*$]*", text[value.end() :])
    return 1 if is_bold or is_final_result else 0
