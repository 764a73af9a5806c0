"""How much work an expression can make, from its tree alone: nothing is worked out that is not known to be small."""

from __future__ import annotations

import math
from typing import Any

_MOST_BITS = 10_000  # of a number on the way
_MOST_TERMS = 200  # of a sum that is multiplied out
_GREATEST_OPERAND = 1000  # of a factorial, binomial or gamma
_READABLE_BITS = 64  # up to which an exponent or operand is worked out to be compared with a bound

_ATOMS = {"Symbol", "Pi", "Exp1", "ImaginaryUnit", "GoldenRatio", "Infinity", "NegativeInfinity", "Reals", "Integers",
          "Rationals", "Naturals", "Naturals0", "Complexes", "EmptySet"}  # fmt: skip
_ADDING = {"Add", "Mul", "UnevaluatedExpr", "log", "Abs", "floor", "ceiling", "Max", "Min", "Mod", "sign", "re", "im", "arg",
           "conjugate", "sin", "cos", "tan", "cot", "sec", "csc", "asin", "acos", "atan", "acot", "asec", "acsc",
           "tanh", "coth", "asinh", "acosh", "atanh"}  # fmt: skip
_GROWING = {"exp", "sinh", "cosh"}
_EXPLODING = {"factorial", "binomial", "gamma"}


class _TooLarge(Exception):
    """More than is worked out, or of a kind that has no bound here."""


def is_small(value: Any) -> bool:
    """Whether an expression is worked out exactly in no time."""
    try:
        return _bits(value) <= _MOST_BITS
    except (_TooLarge, RecursionError):
        return False


def is_expandable(value: Any) -> bool:
    """Whether a small expression has few terms when it is multiplied out."""
    return _terms(value) <= _MOST_TERMS


def _bits(node: Any) -> int:
    """A bound of the bits of an expression's numerator and denominator, a variable taken for a small number."""
    name = type(node).__name__
    if getattr(node, "is_Rational", False):
        return max(int(node.p).bit_length(), int(node.q).bit_length())
    if getattr(node, "is_Float", False):
        _, mantissa, exponent, _ = node._mpf_
        return int(mantissa).bit_length() + abs(int(exponent))
    if name in _ATOMS or name == "NegativeOne":
        return 4
    if name == "Pow":
        return _power_bits(node.base, node.exp)
    if name in _GROWING:
        return 2 * _greatest(node.args[0])
    if name in _EXPLODING:
        if (greatest := max(map(_greatest, node.args))) > _GREATEST_OPERAND:
            raise _TooLarge
        return 10 * greatest
    if name in _ADDING or (getattr(node, "is_Function", False) and not hasattr(type(node), "eval")):
        return _checked(sum(_bits(part) + 1 for part in node.args))
    raise _TooLarge


def _power_bits(base: Any, exponent: Any) -> int:
    return _checked(_bits(base) * _greatest(exponent))


def _greatest(node: Any) -> int:
    """A bound of an expression's absolute value."""
    bits = _bits(node)
    if bits > _READABLE_BITS:
        raise _TooLarge
    value = node.doit() if not node.free_symbols else None
    if value is not None and value.is_Rational:
        return max(1, int(abs(value)) + 1)
    return int(2 ** _checked(bits))


def _checked(bits: int) -> int:
    if bits > _MOST_BITS:
        raise _TooLarge
    return bits


def _terms(node: Any) -> int:
    inner = [_terms(part) for part in node.args]
    if node.is_Add:
        return sum(inner)
    if node.is_Mul:
        return math.prod(inner)
    if node.is_Pow and node.exp.is_Integer and inner[0] > 1:
        return math.comb(abs(int(node.exp)) + inner[0] - 1, inner[0] - 1)
    return 1 if max(inner, default=1) <= _MOST_TERMS else _MOST_TERMS + 1
