r"""A reference answer as people write it, reduced to the answer alone.

>>> final_answer("There are 3*4=<<3*4=12>>12 rolls.\n#### 12")
'12'
>>> final_answer(r"Hence $x = \boxed{\frac{1}{2}}$.")
'\\frac{1}{2}'
>>> final_answer(12.0)
'12'
"""

from __future__ import annotations

import math
import re
from decimal import Decimal
from numbers import Integral, Real

import numpy as np

from tl_l2norm.core.errors import InputError
from tl_l2norm.tasks.judging.text import boxed, has_open_box, read_quantity
from tl_l2norm.text.thoughts import read

MAX_WORDS = 30
"""An answer of more words than this is a worked solution, which has to mark the final one."""

_HASHES = re.compile(r"####[ \t]*([^\n#]*?)\s*\Z")
_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_SENTENCE = re.compile(
    r"(?:\A|.*[\s*])answer(?:\s+is:?|:)[\s*]+([^\n]+?)(?:\.?\s*I hope it is correct)?[.*]*\s*\Z", re.DOTALL | re.IGNORECASE
)
_EMPHASISED = re.compile(r"\s*(\*{1,3}|__?|`)([^*`\n]+)\1\s*")
_ABOUT = re.compile(r"\A\s*(?:(?:about|around|roughly|exactly|approximately|approx\.?|ca\.?)\s+|[≈~]\s*)", re.IGNORECASE)
_SAID_TWICE = re.compile(r"([^()]*\d[^()]*?)\s*\(([A-Za-z][A-Za-z -]*)\)\.?")


def final_answer(answer: object) -> str | None:
    r"""The answer itself: what follows `####`, stands in the last `\boxed{}` or `<answer>`, or ends "The answer is ...".

    What a text thinks before is no part of it. Text without such a mark is the answer, as it stands; whole numbers lose ".0";
    True is "true". None stays None.

    Raises:
        InputError: nothing, a list or the like, a number that isn't finite, or a long text that doesn't mark its answer.
    """
    if answer is None:
        return None
    if isinstance(answer, str):
        return _of_text(answer)
    if type(answer).__name__ in ("bool", "bool_"):  # NumPy's too
        return "true" if answer else "false"
    if isinstance(answer, Integral):
        return str(int(answer))
    if isinstance(answer, Decimal | Real) and math.isfinite(answer):
        return _of_float(answer)
    raise InputError(f"answer must be text, a number or left out, got {answer!r}")


def _of_float(answer: Decimal | Real) -> str:
    value = answer if isinstance(answer, Decimal) else Decimal(str(answer) if _is_narrow(answer) else repr(float(answer)))
    return str(int(value)) if value == int(value) else format(value, "f")


def _is_narrow(answer: object) -> bool:
    """Whether a number is of less than double precision: as a double it would get digits that nobody meant."""
    return isinstance(answer, np.floating) and answer.itemsize < 8


def _of_text(text: str) -> str:
    reading = read(text)
    if reading.thoughts and reading.unclosed is None:
        text = reading.answer.strip()
    if not text.strip():
        raise InputError(f"answer must be text, a number or left out, got {text!r}")
    if has_open_box(text):
        raise InputError(f"the answer opens a \\boxed{{ and never closes it: ...{text[-40:]!r}")
    marked = _marked(text)
    if marked is None:
        if (words := len(text.split())) > MAX_WORDS:
            raise InputError(
                f"the answer is a text of {words} words that marks no final answer: "
                "give the answer alone, or mark it, as in '#### 12' or '\\boxed{12}'"
            )
        return _undressed(text)
    if not marked.strip():
        raise InputError(f"the answer that is marked is empty: ...{text[-40:]!r}")
    return _undressed(marked.strip())


def _undressed(text: str) -> str:
    """A reference without emphasis around it, "about" before a number, and the word for it behind: "12 (twelve)"."""
    if emphasised := _EMPHASISED.fullmatch(text):
        text = emphasised[2]
    bare = _ABOUT.sub("", text)
    if bare != text and read_quantity(bare):
        return bare
    if (said_twice := _SAID_TWICE.fullmatch(text)) and read_quantity(said_twice[1]):
        with_unit = read_quantity(f"{said_twice[1]} {said_twice[2]}")
        return f"{said_twice[1]} {said_twice[2]}" if with_unit and with_unit.unit else said_twice[1]
    return text


def _marked(text: str) -> str | None:
    if match := _HASHES.search(text):
        return match[1]
    if tagged := _TAGGED.findall(text):
        return str(tagged[-1])
    if (box := boxed(text)) is not None:
        return box
    match = _SENTENCE.fullmatch(text)
    return match[1] if match else None
