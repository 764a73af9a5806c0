r"""Answers that are expressions, read by math-verify and compared by value: `1/2` is `\frac{1}{2}`, 0.5 and 50%.

>>> is_mathematical(r"\frac{\sqrt{3}}{2}"), is_mathematical("Paris")
(True, False)
>>> same_value("1/2", r"\frac{2}{4}")
True
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction
from typing import Any

from tl_l2norm.tasks.judging.equal import equal, form
from tl_l2norm.tasks.judging.text import plain_powers, plain_thousands, read_quantity, split_unit, strip_latex
from tl_l2norm.tasks.judging.values import read_value

_NAMES = r"sqrt|pi|sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|log|ln|exp|infinity|inf|oo"
_LATEX_NAMES = {"inf": "infty", "infinity": "infty", "oo": "infty"}
_WORDS = r"(?i:a[mnst]|be|by|do|go|he|i[fnst]|me|my|no|o[fn]|so|to|up|us|we)\b"
_SYMBOLS = "−–·×÷√π∞≤≥±°∪∩⁻⁰¹²³⁴-⁹½¼¾⅐-⅞"
_EXPRESSION = re.compile(
    rf"""(?> (?:
        \\(?:begin|end)\{{[a-z]+\}} | \\(?:text|textbf|mathrm|mbox|mathbf|operatorname)\{{[^{{}}]*\}}
        | \\[A-Za-z]+ | \\[{{}}!,;:%$\ \\]
        | \d+(?:\.\d+)? | \.\d+ | \b(?:{_NAMES})(?![A-Za-z]) | \b(?:and|or)\b
        | (?:(?<=\d)|(?<![A-Za-z])) (?!{_WORDS}) [A-Za-z]{{1,2}} (?![A-Za-z])
        | [-+*/^=<>(){{}}\[\],|!%_&'\s$.{_SYMBOLS}]
    )+ )""",
    re.VERBOSE,
)
# Dates, ranges and scores, names, numbers, versions.
_NOT_VALUES = re.compile(r"\d{1,4}[-/]\d{1,2}[-/]\d{1,4}|\d+[-–]\d+|[A-Za-z]\w*|[\d.]+|\d+\.\d+\.[\d.]*")
_PLAIN = (
    ("−", "-"), ("–", "-"), ("·", r"\cdot "), ("×", r"\times "), ("÷", r"\div "), ("±", r"\pm "), ("**", "^"), ("°", ""),
    ("π", r"\pi "), ("∞", r"\infty "), ("≤", r"\le "), ("≥", r"\ge "), ("∪", r"\cup "), ("∩", r"\cap "),
)  # fmt: skip
_VULGAR = re.compile("[½¼¾⅐-⅞]")
_BASED = re.compile(r"(\d[\dA-F]*)_(?:\{(\d+)\}|(\d+))")  # a number with its base: 1010_2


def is_mathematical(text: str) -> bool:
    """Whether text is an expression, equation, list, tuple, interval or set, and no word, date or range."""
    text = plain_powers(strip_latex(text))
    if not text or _NOT_VALUES.fullmatch(text) or not _EXPRESSION.fullmatch(text):
        return False
    return bool(
        re.search(r"[\d½¼¾⅐-⅞]|\\(?!text|mathrm|mbox)[A-Za-z]+|[√π∞]|[A-Za-z)]\s*[-+*/^=<>]\s*[A-Za-z(]|\bpi\b|sqrt", text)
    )


def same_value(gold: str, given: str, *, ordered: bool = False) -> bool:
    """Whether an expression equals the reference one. "x or y" has to equal it in both of its parts, or as a list.

    Args:
        gold: The reference.
        given: What a response says.
        ordered: A bare list, "1, 2, 3", is compared in its order, and not as a set.
    """
    (gold, unit), (given, other) = split_unit(gold), split_unit(given)
    if unit and other and unit != other:
        return False
    if _compact(gold) == _compact(given):
        return True
    if _based(gold) or _based(given):
        return _based(gold) == _based(given)
    if (expected := _read(gold)) is None:
        return False
    parts = re.split(r"\s*,?\s*\bor\b\s*", given)
    alternatives = [[given], parts] if len(parts) > 1 else [[given]]
    return any(all(_is_equal(expected, part, ordered) for part in several) for several in alternatives)


def canonical(text: str, *, ordered: bool = False) -> Fraction | str:
    """A form in which equal expressions are equal: a fraction for numbers, else the expanded expression as text."""
    if quantity := read_quantity(text):
        return Fraction(quantity.share)
    text, _ = split_unit(text)
    if re.fullmatch(r"-?\d{1,300}", digits := _compact(text)):  # thousands with spaces
        return Fraction(digits)
    if based := _based(text):
        return "_".join(based)
    value = _read(text)
    return _compact(text) if value is None else form(value, ordered=ordered)


def in_base(text: str, base: str | None) -> str:
    """A number without its base, where `base` is that of the reference ("" where that leaves it out), gets or loses its own."""
    if base is None:
        return text
    if based := _based(text):
        return text if base else based[0]
    return f"{text}_{{{base}}}" if base and re.fullmatch(r"[\dA-F]+", text) else text


def base_of(text: str) -> str:
    """The base that a number is written with; "" where it has none."""
    based = _based(text)
    return based[1] if based else ""


def _based(text: str) -> tuple[str, str] | None:
    """Digits and base of a number that is written with its base."""
    match = _BASED.fullmatch(_compact(text))
    return (match[1], match[2] or match[3]) if match else None


def _is_equal(expected: Any, given: str, ordered: bool) -> bool:
    value = _read(given)
    return value is not None and equal(expected, value, ordered=ordered)


def _read(text: str) -> Any:
    return read_value(_latex(text))


def _latex(text: str) -> str:
    """LaTeX of an expression that may be typed plainly: sqrt(2), 1 1/2, {1, 2}, 3 * 4."""
    text = re.sub(r"\$|\\[()\[\]]", " ", strip_latex(text)).strip()
    text = plain_powers(_VULGAR.sub(_fraction, text))
    for sign, latex in _PLAIN:
        text = text.replace(sign, latex)
    text = re.sub(r"(?:(?<!\\)\bsqrt|√)\s*(?:\(([^()]*)\)|(\d+|[a-z]))", r"\\sqrt{\1\2}", text)
    text = re.sub(rf"(?<!\\)\b({_NAMES})\b", lambda name: "\\" + _LATEX_NAMES.get(name[1], name[1]), text)
    text = re.sub(r"(?<![\w.^])(\d+)\s+(\d+)/(\d+)(?![\w.])", r"(\1+\\frac{\2}{\3})", text)
    text = re.sub(r"(?<![\w.])(\d(?:\.\d+)?)[eE]([+-]?\d+)(?!\w)", r"\1\\times10^{\2}", text)
    if re.fullmatch(r"\{[^{}]*\}", text):
        text = rf"\{{{text[1:-1]}\}}"
    return re.sub(r"(?<!\\)%", r"\\%", text)


def _fraction(vulgar: re.Match[str]) -> str:
    over, _, under = unicodedata.normalize("NFKC", vulgar.group()).partition("⁄")
    return rf"\frac{{{over}}}{{{under}}}"


def _compact(text: str) -> str:
    """LaTeX without what doesn't change its meaning, for comparison as it stands."""
    text = re.sub(r"\\(?:left|right|displaystyle|,|!|;|:|quad)(?![A-Za-z])", "", plain_thousands(strip_latex(text)))
    if re.fullmatch(r"\s*\d+(?:\s+\d+)+\s*", text) and not re.fullmatch(r"\s*\d{1,3}(?:\s\d{3})+\s*", text):
        text = ",".join(text.split())  # a list: 1 2 3
    return re.sub(r"\s|\$", "", text.replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac").replace("−", "-"))
