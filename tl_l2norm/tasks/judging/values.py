r"""What an answer in LaTeX is made of: expressions in lists, sets, tuples and intervals, equations and inequalities.

Brackets, commas and relations are taken apart here and keep their order and number; math-verify reads the expressions
between them.
"""

from __future__ import annotations

import functools
import itertools
import logging
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from tl_l2norm.tasks.judging.sizes import is_small

NAME = re.compile(
    r"(?!\\(?:pi|infty|emptyset|varnothing|mathbb)(?![a-z])|e\Z)(?:\\[A-Za-z]+|[A-Za-z])(?:_\w+)?'*(?:\([A-Za-z](?:(?:,|\\cap|\\cup|\||\\mid)[A-Za-z])*\))?|\\(?:angle|triangle)?[A-Z]{2,3}"
)
"""What something may be given to: x, f'(x), a_1, P(A), AB."""

_LONGEST = 300  # characters of an expression that is still read
_DEEPEST = 8  # brackets within brackets: the parser's time grows with 2 to the depth
_COMMANDS = (
    r"\\(?:frac|sqrt|cdot|times|div|pi|infty|binom|ln|log|exp|(?:arc)?(?:sin|cos|tan)|cot|sec|csc|sinh|cosh|tanh|Gamma"
    r"|[lr](?:floor|ceil|vert)|vert|mathbb|emptyset|varnothing|overline|angle|triangle|max|min|mod|begin|end"
    r"|alpha|beta|gamma|[dD]elta|(?:var)?epsilon|zeta|eta|[tT]heta|kappa|[lL]ambda|mu|nu|xi|rho|[sS]igma|tau|(?:var)?phi|chi"
    r"|[pP]si|Phi|[oO]mega)(?![A-Za-z])"
)
_OTHER_COMMAND = re.compile(rf"(?!{_COMMANDS})\\[A-Za-z]")
# The parser leaves most as it stands; these it works out, so that nothing large may be in them.
_WORKED_OUT = re.compile(r"\||\\(?:[lr](?:floor|ceil|vert)|vert|max|min|mod)(?![A-Za-z])")
_LARGE = re.compile(r"!|\\(?:binom|Gamma|exp|sinh|cosh)|\^\s*(?:\{[^{}]*(?:[{(^\\]|$)|\{?-?\d{4})|[)}\]|]\s*\^\s*\{?-?\d{2}")
_SHORT = r"(?:[^(){}^\\!\d]|(?<!\d)\d{1,4}(?!\d))"  # of an operand: no power, number or command that can be large
_SMALL_OPERANDS = re.compile(
    rf"(?:(?<![\d.])\d{{1,4}}|[A-Za-z]|\({_SHORT}{{1,30}}\))\s*!|\\binom\s*(?:\{{{_SHORT}{{1,30}}\}}\s*){{2}}"
    rf"|\\Gamma\s*\({_SHORT}{{1,30}}\)"
)
_MATRIX = re.compile(r"\\begin\{([pb]?matrix)\}.*\\end\{\1\}", re.DOTALL)
_RELATION = re.compile(r"\\(?:leq?|geq?|neq?|in|lt|gt)(?![a-zA-Z])|<=|>=|[<>=]")
_RELATIONS = {"leq": "<=", "le": "<=", "geq": ">=", "ge": ">=", "ne": "!=", "neq": "!=", "lt": "<", "gt": ">", "in": "="}
_INFIX = re.compile(r"\\(?:cup|cap|setminus)(?![a-zA-Z])")
_SEPARATOR = re.compile(r"[,;]|\b(?:and|or)\b")
_NUMBERS_APART = re.compile(r"(?<![A-Za-z]\s)(?<![\w.])\d[\d.]*\s+\d")
_LAYOUT = re.compile(r"\\(?:left|right|bigl?|bigr|Bigl?|Bigr|displaystyle|quad)(?![A-Za-z])|(?<!\\)\\[,!;:\ ]|~")


class Group(NamedTuple):
    r"""Values between brackets, or between none; `opens` is the operator of a union, "\\cup", and the like."""

    opens: str
    items: tuple[Any, ...]
    closes: str


class Relation(NamedTuple):
    """Sides with what stands between them: "<", "<=", ">", ">=", "!=" or "=" (also for "in")."""

    signs: tuple[str, ...]
    sides: tuple[Any, ...]
    names: tuple[str, ...]
    """The text of each side."""


@functools.lru_cache(maxsize=1024)
def read_value(latex: str) -> Any:
    """A sympy expression or matrix, `Group` or `Relation`; None where it can't be read or is too large to be worked with."""
    latex = re.sub(r"\\[dt]frac", r"\\frac", _LAYOUT.sub(" ", latex)).strip()
    if len(latex) > _LONGEST or not 0 <= _depth(latex) <= _DEEPEST:
        return None
    return _read(latex)


def _read(latex: str) -> Any:
    latex = latex.strip()
    if re.search(r"\\pm|\\mp", latex):
        return _group(
            "", [latex.replace("\\pm", "+").replace("\\mp", "-"), latex.replace("\\pm", "-").replace("\\mp", "+")], ""
        )
    if re.fullmatch(r"\d+(?:\s+\d+)+", latex):
        return _group("", latex.split(), "")
    if not re.search(r"[([{]", latex):
        latex = re.sub(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])", lambda number: number.group().replace(",", ""), latex)
    if _MATRIX.fullmatch(latex):
        return _expression(latex)
    for pattern, build in ((_SEPARATOR, _listed), (_RELATION, _related), (_INFIX, _joined)):
        marks = _outside(latex, pattern)
        if marks:
            ends = [*(mark.start() for mark in marks), len(latex)]
            starts = [0, *(mark.end() for mark in marks)]
            return build([latex[start:end].strip() for start, end in zip(starts, ends, strict=True)], marks)
    return _bracketed(latex)


def _listed(parts: list[str], marks: list[re.Match[str]]) -> Any:
    return _group("", [part for part in parts if part], "")


def _related(parts: list[str], marks: list[re.Match[str]]) -> Any:
    names = tuple(re.sub(r"[\s{}]", "", part) for part in parts)
    sides = _all_read(parts, names)
    signs = tuple(_RELATIONS.get(mark.group().strip("\\"), mark.group()) for mark in marks)
    return Relation(signs, sides, names) if sides else None


def _joined(parts: list[str], marks: list[re.Match[str]]) -> Any:
    signs = {mark.group() for mark in marks}
    return _group(signs.pop(), parts, "") if len(signs) == 1 else None


def _bracketed(latex: str) -> Any:
    for opens, closes in itertools.product(("(", "[", "\\{"), (")", "]", "\\}")):
        if not (latex.startswith(opens) and latex.endswith(closes)):
            continue
        inner = latex[len(opens) : -len(closes)]
        if _depth(inner) < 0:
            continue
        if opens == "\\{" or _outside(inner, _SEPARATOR):
            return _group(opens, _parts(inner), closes)
    return _expression(latex)


def _parts(inner: str) -> list[str]:
    marks = _outside(inner, _SEPARATOR)
    ends = [*(mark.start() for mark in marks), len(inner)]
    return [inner[start:end] for start, end in zip([0, *(mark.end() for mark in marks)], ends, strict=True)]


def _group(opens: str, parts: list[str], closes: str) -> Group | None:
    items = _all_read(parts)
    return Group(opens, items, closes) if items else None


def _all_read(parts: Sequence[str], names: Sequence[str] = ()) -> Any:
    """All of them, or None; what is a name alone, where names are given, is a variable whatever it looks like."""
    import sympy

    is_name = [bool(NAME.fullmatch(name)) for name in names] or [False] * len(parts)
    items = tuple(sympy.Symbol(names[i]) if is_name[i] else _read(part) for i, part in enumerate(parts))
    return None if any(item is None for item in items) else items


def _expression(latex: str) -> Any:
    """A sympy expression; None where it can't be read, or holds a command whose work has no bound."""
    from math_verify import LatexExtractionConfig, parse

    if not latex or _OTHER_COMMAND.search(latex) or _NUMBERS_APART.search(latex):
        return None
    if "\\begin" in latex and not _MATRIX.fullmatch(latex):
        return None
    if _WORKED_OUT.search(latex) and _LARGE.search(latex):
        return None
    if re.search(r"!|\\(?:binom|Gamma)", _SMALL_OPERANDS.sub("", latex)):
        return None
    latex = re.sub(r"([A-Za-z])('+)", lambda prime: f"{prime[1]}_{{{len(prime[2])}d}}", latex)
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its timeouts are off
    parsed = parse(f"${latex}$", [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None)
    if not parsed or isinstance(parsed[0], str):
        return None
    return parsed[0] if all(map(is_small, parsed[0] if hasattr(parsed[0], "shape") else parsed[:1])) else None


def _outside(latex: str, pattern: re.Pattern[str]) -> list[re.Match[str]]:
    """Matches that stand in no brackets."""
    depths = list(itertools.accumulate(_steps(latex)))
    return [match for match in pattern.finditer(latex) if depths[match.start()] == 0]


def _depth(latex: str) -> int:
    """How deep brackets stand within brackets; -1 where one is closed that was never opened."""
    depths = list(itertools.accumulate(_steps(latex)))
    return max(depths, default=0) if min(depths, default=0) >= 0 else -1


def _steps(latex: str) -> list[int]:
    return [(sign in "([{") - (sign in ")]}") for sign in latex]
