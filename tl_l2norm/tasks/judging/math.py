r"""Answers that are expressions, judged by math-verify: `1/2` is `\frac{1}{2}`, 0.5 and 50%.

>>> is_mathematical(r"\frac{\sqrt{3}}{2}"), is_mathematical("Paris")
(True, False)
>>> same_value("1/2", r"\frac{2}{4}")
True
"""

from __future__ import annotations

import functools
import itertools
import logging
import math
import re
from fractions import Fraction
from typing import Any

from tl_l2norm.tasks.judging.text import plain_thousands, read_quantity, split_unit, strip_latex

_NAMES = r"sqrt|pi|sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|log|ln|exp|infinity|inf|oo"
_LATEX_NAMES = {"inf": "infty", "infinity": "infty", "oo": "infty"}
_WORDS = r"(?i:a[mnst]|be|by|do|go|he|i[fnst]|me|my|no|o[fn]|so|to|up|us|we)\b"
_SYMBOLS = "−–·×÷√π∞≤≥±°²³½¼¾∪∩"
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
    ("²", "^2"), ("³", "^3"), ("½", r"\frac12 "), ("¼", r"\frac14 "), ("¾", r"\frac34 "),
)  # fmt: skip
_BASED = re.compile(r"(\d[\dA-F]*)_(?:\{(\d+)\}|(\d+))")  # a number with its base: 1010_2
_SET = re.compile(r"\\\{[^|:<>=]*\\\}")
_TUPLE = re.compile(r"\([^()]*,[^()]*\)")
_ASSIGNMENT = re.compile(  # x = ..., P(A) = ... = ..., x in ..., ... = y
    r"\s*[A-Za-z](?:\([A-Za-z]\))?\s*(?:\\in(?![a-z])|=(?:[^=<>]*=)*)\s*([^=<>]+)|([^=<>]+)=\s*[A-Za-z]\s*"
)
# What can take sympy for ever: towers of powers, factorials of large numbers, integrals and sums.
_ENDLESS = re.compile(r"!\s*[)}\]]*\s*!|\d{4,}\s*[)}\]]*\s*!|\\(?:int|sum|prod|lim|binom\s*\{\d{4,})(?![a-z])")
_POWER = re.compile(r"(?P<bracket>[)}\]]\s*)?\^\s*(?:\{(?P<group>[^{}]*)(?P<closed>\})?|(?P<digit>.))", re.DOTALL)
_GREATEST_POWER = 2000
_GREATEST_EXPANSION = 10  # power of a bracket with variables in it
_LONGEST = 300  # characters of an expression that is still read
_DEEPEST = 8  # brackets within brackets: the parser's time grows with 2 to the depth


def is_mathematical(text: str) -> bool:
    """Whether text is an expression, equation, list, tuple, interval or set, and no word, date or range."""
    text = strip_latex(text)
    if not text or _NOT_VALUES.fullmatch(text) or not _EXPRESSION.fullmatch(text):
        return False
    return bool(re.search(r"\d|\\(?!text|mathrm|mbox)[A-Za-z]+|[√π∞]|[A-Za-z)]\s*[-+*/^=<>]\s*[A-Za-z(]|\bpi\b|sqrt", text))


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
    parts = re.split(r"\s*,?\s*\bor\b\s*", given)
    return _verified(gold, given, ordered) or (len(parts) > 1 and all(_verified(gold, part, ordered) for part in parts))


def canonical(text: str, *, ordered: bool = False) -> Fraction | str:
    """A form in which equal expressions are equal: a fraction for numbers, else the expanded expression as text."""
    import sympy

    if quantity := read_quantity(text):
        return Fraction(quantity.share)
    text, _ = split_unit(text)
    if re.fullmatch(r"-?\d{1,300}", digits := _compact(text)):  # thousands with spaces
        return Fraction(digits)
    if based := _based(text):
        return "_".join(based)
    assigned = _ASSIGNMENT.fullmatch(strip_latex(text))
    found = _parse(assigned[1] or assigned[2] if assigned else text, ordered)
    if not isinstance(found, sympy.Basic):
        return _compact(text)
    if not isinstance(found, sympy.Expr):
        return str(found.canonical if isinstance(found, sympy.core.relational.Relational) else found)
    value: Any = sympy.expand(found.doit())
    number = sympy.nsimplify(value, rational=True) if value.has(sympy.Float) else value
    return Fraction(int(number.p), int(number.q)) if number.is_Rational else str(number)


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


def _verified(gold: str, given: str, ordered: bool) -> bool:
    from math_verify import verify

    plain, other = _compact(gold), _compact(given)
    if (_SET.fullmatch(plain) and _TUPLE.fullmatch(other)) or (_TUPLE.fullmatch(plain) and _SET.fullmatch(other)):
        return False
    expected, found = _parse(gold, ordered), _parse(given, ordered)
    # The gold comes first (verify is not symmetric); without its timeouts, which are signals and fail outside the main thread.
    return expected is not None and found is not None and bool(verify(expected, found, timeout_seconds=None))


@functools.lru_cache(maxsize=1024)
def _parse(text: str, ordered: bool) -> Any:
    """A sympy value; None where it can't be read."""
    from math_verify import LatexExtractionConfig, parse

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its timeouts are off
    latex = _latex(text)
    if not _is_bounded(latex):
        return None
    if ordered and "," in latex and latex[0] not in "([{\\":
        latex = f"({latex})"
    found = parse(f"${latex}$", [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None)
    return found[0] if found else None


def _is_bounded(latex: str) -> bool:
    """Whether an expression can be worked out in no time, whatever it is."""
    if len(latex) > _LONGEST or _ENDLESS.search(latex) or _depth(latex) > _DEEPEST:
        return False
    nested, greatest = 1, 1
    for power in _POWER.finditer(latex):
        exponent = power["digit"] or power["group"]
        if "^" in exponent or (power["group"] and not power["closed"]):
            return False
        size = math.prod(int(digits) or 1 for digits in re.findall(r"\d{1,6}", exponent))
        nested, greatest = (nested * size, greatest) if power["bracket"] else (nested, max(greatest, size))
    has_variables = re.search(r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])", latex)
    return nested * greatest <= _GREATEST_POWER and not (has_variables and nested > _GREATEST_EXPANSION)


def _depth(latex: str) -> int:
    """How deep brackets stand within brackets."""
    steps = ((sign in "([{") - (sign in ")]}") for sign in latex)
    return max(itertools.accumulate(steps), default=0)


def _latex(text: str) -> str:
    """LaTeX of an expression that may be typed plainly: sqrt(2), 1 1/2, {1, 2}, 3 * 4."""
    text = re.sub(r"\$|\\[()\[\]]", " ", strip_latex(text)).strip()
    for sign, latex in _PLAIN:
        text = text.replace(sign, latex)
    text = re.sub(r"(?:(?<!\\)\bsqrt|√)\s*(?:\(([^()]*)\)|(\d+|[a-z]))", r"\\sqrt{\1\2}", text)
    text = re.sub(rf"(?<!\\)\b({_NAMES})\b", lambda name: "\\" + _LATEX_NAMES.get(name[1], name[1]), text)
    text = re.sub(r"(?<![\w.^])(\d+)\s+(\d+)/(\d+)(?![\w.])", r"(\1+\\frac{\2}{\3})", text)
    text = re.sub(r"(?<![\w.])(\d(?:\.\d+)?)[eE]([+-]?\d+)(?!\w)", r"\1\\times10^{\2}", text)
    if re.fullmatch(r"\{[^{}]*\}", text):
        text = rf"\{{{text[1:-1]}\}}"
    return re.sub(r"(?<!\\)%", r"\\%", text)


def _compact(text: str) -> str:
    """LaTeX without what doesn't change its meaning, for comparison as it stands."""
    text = re.sub(r"\\(?:left|right|displaystyle|,|!|;|:|quad)(?![A-Za-z])", "", plain_thousands(strip_latex(text)))
    return re.sub(r"\s|\$", "", text.replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac").replace("−", "-"))
