"""When two values are equal: exactly where both are exact, to six digits where one is a decimal of the other.

Expressions are worked out at a few fixed points and never rewritten, so that comparing takes no time, whatever they are.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from tl_l2norm.tasks.judging.sizes import is_expandable
from tl_l2norm.tasks.judging.values import NAME, Group, Relation

_DIGITS = 120  # to which numbers that are no fractions are worked out
_SAME = Fraction(1, 10**80)  # relative difference of these that is none
_SAME_DECIMAL = Fraction(1, 10**6)
_IMAGINARY = "i"
_FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}
_POINTS = ((Fraction(7, 5), Fraction(11, 4)), (Fraction(-13, 10), Fraction(-9, 4)), (Fraction(-3, 8), Fraction(17, 8)))


def equal(gold: Any, given: Any, *, ordered: bool = False) -> bool:
    """Whether what a response gives equals the reference.

    A name that something is given to ("x =") may be left out. A list without brackets is a set where it is not `ordered`; it
    may be written for a set, or for a tuple in its order.
    """
    if isinstance(gold, Relation) and isinstance(given, Relation):
        return _same_relations(gold, given, ordered)
    if isinstance(gold, Relation):
        if isinstance(given, Group) and (interval := _interval(gold)) is not None:
            return equal(interval, given)
        return is_assignment(gold) and equal(assigned(gold), given, ordered=ordered)
    if isinstance(given, Relation):
        leads_there = is_assignment(given) or _is_worked_out(given) or (_is_constant(gold) and _is_evaluated(given))
        return leads_there and equal(gold, assigned(given), ordered=ordered)
    if isinstance(gold, Group) or isinstance(given, Group):
        return _same_groups(_grouped(gold), _grouped(given), ordered)
    return _same_expressions(gold, given)


def is_assignment(relation: Relation) -> bool:
    """Whether a relation says what something is: "x = 3", "P(A) = 6/10 = 3/5", "x in (0, 1)", "3 = x"."""
    ends = (relation.names[0], relation.names[-1])
    return set(relation.signs) == {"="} and any(NAME.fullmatch(name) for name in ends)


def assigned(relation: Relation) -> Any:
    """What the last side is, or the first where the last is the name."""
    is_last = not NAME.fullmatch(relation.names[-1]) or bool(NAME.fullmatch(relation.names[0]))
    return relation.sides[-1 if is_last else 0]


def form(value: Any, *, ordered: bool = False) -> Fraction | str:
    """A form in which equal values are equal: a fraction for numbers, else text."""
    if isinstance(value, Relation):
        return form(assigned(value), ordered=ordered) if is_assignment(value) else _relation_form(value)
    if isinstance(value, Group):
        items = [str(form(item)) for item in value.items]
        is_set = value.opens in ("\\{", "\\cup", "\\cap") or (not value.opens and not ordered and not _is_system(value))
        opens = "{" if value.opens in ("", "\\{") and is_set else value.opens or "("
        return (
            f"{opens} {', '.join(sorted(items) if is_set else items)} {value.closes.strip(chr(92)) or ('}' if is_set else ')')}"
        )
    if hasattr(value, "shape"):
        return str(value.tolist())
    return _expression_form(value)


def _is_worked_out(relation: Relation) -> bool:
    """Whether a chain of numbers, "24/2 = 12", or of sides that are equal leads to its last side."""
    if set(relation.signs) != {"="} or not all(map(_is_expression, relation.sides)):
        return False
    if not any(_symbols(side) for side in relation.sides):
        return True
    return all(_same_expressions(relation.sides[0], side) for side in relation.sides[1:])


def _is_evaluated(relation: Relation) -> bool:
    """Whether a relation says which number an expression of several names is: "m + n = 2/3"."""
    *before, last = relation.sides
    return set(relation.signs) == {"="} and all(map(_is_expression, before)) and _is_constant(last)


def _is_constant(value: Any) -> bool:
    return _is_expression(value) and not _symbols(value)


def _same_relations(gold: Relation, given: Relation, ordered: bool) -> bool:
    if is_assignment(gold) and is_assignment(given):
        one, other = (_assignment_name(relation) for relation in (gold, given))
        return (one == other and equal(assigned(gold), assigned(given), ordered=ordered)) or _same_statement(gold, given)
    return _same_statement(gold, given)


def _assignment_name(relation: Relation) -> str:
    return relation.names[0] if NAME.fullmatch(relation.names[0]) else relation.names[-1]


def _same_statement(gold: Relation, given: Relation) -> bool:
    """The same signs between the same sides, read from either end; of two sides, the same difference up to a factor."""
    if not all(map(_is_expression, (*gold.sides, *given.sides))):
        return gold.signs == given.signs and all(map(equal, gold.sides, given.sides))
    if [name.count("'") for name in sorted(gold.names)] != [name.count("'") for name in sorted(given.names)]:
        return False
    if len(gold.sides) != 2 or len(given.sides) != 2:
        turned = Relation(tuple(_FLIPPED[sign] for sign in given.signs[::-1]), given.sides[::-1], given.names[::-1])
        return any(
            gold.signs == other.signs and all(map(_same_expressions, gold.sides, other.sides)) for other in (given, turned)
        )
    factor = _factor(gold.sides[0] - gold.sides[1], given.sides[0] - given.sides[1])
    if factor is None:
        return False
    return given.signs[0] == (gold.signs[0] if factor > 0 else _FLIPPED[gold.signs[0]])


def _factor(one: Any, other: Any) -> Any:
    """The real factor that is between two expressions at every point; None where there is none."""
    names = sorted({*_symbols(one), *_symbols(other)})
    pairs = [(_at(one, names, point), _at(other, names, point)) for point in _POINTS]
    if not all(_is_number(value) and value != 0 for pair in pairs for value in pair):
        return None
    factors = [a / b for a, b in pairs]
    is_one = all(_close(factor, factors[0], is_decimal=False) for factor in factors) and factors[0].is_real
    return factors[0] if is_one else None


def _interval(relation: Relation) -> Group | None:
    """The interval that "1 < x", or "0 <= x < 5", is of one name."""
    import sympy

    if len(relation.sides) not in (2, 3) or "=" in relation.signs or "!=" in relation.signs:
        return None
    sides, signs = relation.sides, relation.signs
    if signs[0].startswith(">"):
        sides, signs = sides[::-1], tuple(_FLIPPED[sign] for sign in signs[::-1])
    if any(sign.startswith(">") for sign in signs):
        return None
    if len(sides) == 2:
        is_upper = getattr(sides[0], "is_Symbol", False)
        sides = (-sympy.oo, *sides) if is_upper else (*sides, sympy.oo)
        signs = ("<", *signs) if is_upper else (*signs, "<")
    if not getattr(sides[1], "is_Symbol", False) or any(map(_symbols, (sides[0], sides[2]))):
        return None
    return Group("(" if signs[0] == "<" else "[", (sides[0], sides[2]), ")" if signs[1] == "<" else "]")


def _grouped(value: Any) -> Group:
    return value if isinstance(value, Group) else Group("", (value,), "")


def _is_system(group: Group) -> bool:
    """Whether a list gives values to several names: their order is known."""
    statements = [item for item in group.items if isinstance(item, Relation)]
    names = {_assignment_name(item) for item in statements if is_assignment(item)}
    return len(statements) == len(group.items) == len(names) > 1


def _same_groups(gold: Group, given: Group, ordered: bool) -> bool:
    if len(gold.items) != len(given.items):
        return False
    shapes = {(gold.opens, gold.closes), (given.opens, given.closes)}
    bare = ("", "")
    if len(shapes) == 2 and (bare not in shapes or not shapes & {("\\{", "\\}"), ("(", ")")}):
        return len(gold.items) > 2 and shapes == {bare, ("[", "]")} and _same_in_order(gold, given)
    if (
        ("\\setminus", "") in shapes
        or not shapes & {bare, ("\\{", "\\}"), ("\\cup", ""), ("\\cap", "")}
        or shapes == {bare, ("(", ")")}
    ):
        return _same_in_order(gold, given)
    if shapes == {bare} and (ordered or _is_system(gold) != _is_system(given)):
        return _same_in_order(gold, given)
    return _same_in_any_order(gold.items, given.items)


def _same_in_order(gold: Group, given: Group) -> bool:
    return all(map(equal, gold.items, given.items))


def _same_in_any_order(gold: Sequence[Any], given: Sequence[Any]) -> bool:
    left = list(given)
    for item in gold:
        place = next((i for i, other in enumerate(left) if equal(item, other)), None)
        if place is None:
            return False
        del left[place]
    return True


def _same_expressions(gold: Any, given: Any) -> bool:
    if hasattr(gold, "shape") or hasattr(given, "shape"):
        is_same_shape = getattr(gold, "shape", None) == getattr(given, "shape", None)
        return is_same_shape and all(map(_same_expressions, list(gold), list(given)))
    if not (_is_expression(gold) and _is_expression(given)):  # the real numbers, the empty set
        return bool(gold == given)
    names = sorted({*_symbols(gold), *_symbols(given)})
    is_decimal = _has_decimal(gold) or _has_decimal(given)
    for point in _POINTS if names else _POINTS[:1]:
        one, other = _at(gold, names, point), _at(given, names, point)
        if not (_is_number(one) and _is_number(other)):
            return not names and bool(one == other) and "nan" not in str(one)
        if not _close(one, other, is_decimal=is_decimal):
            return False
    return True


def _close(one: Any, other: Any, *, is_decimal: bool) -> bool:
    if (
        one.is_Rational
        and other.is_Rational
        and not (is_decimal and not (_is_finite_decimal(one) and _is_finite_decimal(other)))
    ):
        return bool(one == other)
    greatest = max(abs(one), abs(other))
    tolerance = _SAME_DECIMAL if is_decimal else _SAME
    return bool(greatest == 0) or bool(abs(one - other) * tolerance.denominator <= greatest)


def _is_finite_decimal(number: Any) -> bool:
    rest = int(number.q)
    for factor in (2, 5):
        while rest % factor == 0:
            rest //= factor
    return rest == 1


def _at(value: Any, names: list[str], point: tuple[Fraction, Fraction]) -> Any:
    """An expression's value where its variables are some fractions: exact if it is a fraction, else to many digits."""
    import sympy

    first, step = point
    places = {name: sympy.Rational(first + i * step) for i, name in enumerate(names)}
    atoms = {atom: places[str(atom)] for atom in _unknowns(value)}
    exact = _exact(value).xreplace({_exact(atom): place for atom, place in atoms.items()}).doit()
    return exact if exact.is_Rational else exact.evalf(_DIGITS)


def _unknowns(value: Any) -> list[Any]:
    """Variables, and what functions that are only names are of them; i is the imaginary unit."""
    from sympy import Symbol
    from sympy.core.function import AppliedUndef

    atoms = value.atoms(Symbol, AppliedUndef)
    return sorted((atom for atom in atoms if str(atom) != _IMAGINARY), key=str, reverse=True)


def _symbols(value: Any) -> set[str]:
    return {str(atom) for atom in _unknowns(value)} if hasattr(value, "atoms") else set()


def _exact(value: Any) -> Any:
    """An expression whose decimals are fractions, and whose i is the imaginary unit."""
    import sympy

    fractions = {number: sympy.Rational(str(number)) for number in value.atoms(sympy.Float)}
    units = {atom: sympy.I for atom in value.atoms(sympy.Symbol) if str(atom) == _IMAGINARY}
    return value.xreplace({**fractions, **units})


def _has_decimal(value: Any) -> bool:
    import sympy

    return bool(value.atoms(sympy.Float))


def _is_expression(value: Any) -> bool:
    import sympy

    return isinstance(value, sympy.Expr)


def _is_number(value: Any) -> bool:
    import sympy

    return bool(value.is_number and value.is_finite and not value.atoms(sympy.Function))


@functools.lru_cache(maxsize=1024)
def _expression_form(value: Any) -> Fraction | str:
    import sympy

    if not isinstance(value, sympy.Expr):
        return str(value)
    worked_out = _exact(value).doit()
    if is_expandable(worked_out):
        worked_out = sympy.expand(worked_out)
    return Fraction(int(worked_out.p), int(worked_out.q)) if worked_out.is_Rational else str(worked_out)


def _relation_form(relation: Relation) -> str:
    signs, sides = relation.signs, relation.sides
    if signs[0].startswith(">"):
        signs, sides = tuple(_FLIPPED[sign] for sign in signs[::-1]), sides[::-1]
    parts = [str(form(side)) for side in sides]
    if set(signs) <= {"=", "!="}:
        parts.sort()
    return " ".join([parts[0], *(part for pair in zip(signs, parts[1:], strict=True) for part in pair)])
