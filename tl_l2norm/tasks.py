"""Problems that are made from a seed.

>>> make_problems("arithmetic", 1, level=2)[0].answer
'11'

A level is the number of steps that have to be worked out one after the other.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

DEFAULT_LEVELS = (1, 2, 4, 8)

_NAMES = ("Alice", "Ben", "Clara", "David", "Emma", "Felix", "Hannah", "Igor", "Julia", "Kevin", "Laura", "Oscar")
_OBJECTS = ("apples", "books", "coins", "marbles", "pencils", "shells", "stamps", "stickers")
_COLOURS = ("red", "blue", "green", "yellow")
_VARIABLES = ("P", "Q", "R")
_MAX_REPEATS = 200  # draws without a new question, after which a family is taken to be exhausted


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A question and its answer."""

    question: str
    answer: str | None
    """None where it is not known: correctness is then not known either."""
    family: str
    level: int = 1
    options: tuple[str, ...] = ()
    """The words of which the answer is one; () where it is a number or free text."""
    source: str = "tl_l2norm"
    verify: Callable[[str], bool] | None = field(default=None, compare=False, repr=False)
    """Judges an extracted answer in place of the comparison with `answer`."""

    @property
    def id(self) -> str:
        """Hexadecimal hash of family and question, the same on every machine."""
        return hashlib.sha256(f"{self.family}\n{self.question}".encode()).hexdigest()[:16]


class Draft(NamedTuple):
    """What a family makes: a problem that does not know its place yet."""

    question: str
    answer: str
    options: tuple[str, ...] = ()


class Family(NamedTuple):
    """A kind of problem; `make(rng, level)` draws one."""

    name: str
    levels: int
    description: str
    make: Callable[[random.Random, int], Draft]


def make_problems(family: str, n: int, *, level: int = 1, seed: int = 0) -> tuple[Problem, ...]:
    """`n` distinct problems; problem i depends on family, level, seed and i alone.

    Args:
        family: One of `FAMILIES`.
        n: How many.
        level: Difficulty, from 1 to the family's `levels`.
        seed: Same seed, same problems, on every machine.
    """
    check_count(n)
    if family not in FAMILIES:
        raise ValueError(unknown("family", family, FAMILIES))
    kind = FAMILIES[family]
    if not 1 <= level <= kind.levels:
        raise ValueError(f"{family} has levels 1 to {kind.levels}, not {level}")
    problems = tuple(itertools.islice(_draw(kind, level, seed), n))
    if len(problems) < n:
        raise ValueError(f"{family} at level {level} gave {len(problems)} distinct questions, not {n}: raise the level")
    return problems


def make_mixture(
    n: int, *, families: Sequence[str] | None = None, levels: Sequence[int] | None = None, seed: int = 0
) -> tuple[Problem, ...]:
    """`n` problems spread evenly over families and levels; problem i does not depend on `n`.

    Args:
        n: How many.
        families: Names from `FAMILIES`; None is all of them.
        levels: None is 1, 2, 4 and 8.
        seed: As in `make_problems`.
    """
    check_count(n)
    names = tuple(FAMILIES) if families is None else tuple(families)
    steps = DEFAULT_LEVELS if levels is None else tuple(levels)
    if not names or not steps:
        raise ValueError("a mixture needs at least one family and one level")
    # Both indices advance together; the shift after each full period makes every pair come up equally often.
    period = math.lcm(len(names), len(steps))
    cells = [(names[i % len(names)], steps[(i + i // period) % len(steps)]) for i in range(n)]
    pools = {
        (name, level): iter(make_problems(name, count, level=level, seed=seed))
        for (name, level), count in Counter(cells).items()
    }
    return tuple(next(pools[cell]) for cell in cells)


def _draw(family: Family, level: int, seed: int) -> Iterator[Problem]:
    """Distinct problems in the order of their draws, until new ones become rare."""
    rng = random.Random(f"{family.name}/{level}/{seed}")
    seen: set[str] = set()
    repeats = 0
    while repeats < _MAX_REPEATS:
        draft = family.make(rng, level)
        repeats = repeats + 1 if draft.question in seen else 0
        if not repeats:
            seen.add(draft.question)
            yield Problem(family=family.name, level=level, **draft._asdict())


def _arithmetic(rng: random.Random, level: int) -> Draft:
    value = rng.randint(2, 30)
    parts = [f"Start with {value}."]
    for _ in range(level):
        sentence, value = rng.choice(_arithmetic_steps(rng, value))
        parts.append(sentence)
    return Draft(" ".join([*parts, "What is the result? Answer with a number."]), str(value))


def _arithmetic_steps(rng: random.Random, value: int) -> list[tuple[str, int]]:
    plus, minus, times = rng.randint(2, 20), rng.randint(2, 20), rng.randint(2, 5)
    steps = [(f"Add {plus}.", value + plus), (f"Subtract {minus}.", value - minus)]
    if abs(value) <= 50:  # the steps are to be hard, not the multiplication
        steps.append((f"Multiply by {times}.", value * times))
    return steps


def _word(rng: random.Random, level: int) -> Draft:
    name, friend = rng.sample(_NAMES, 2)
    things = rng.choice(_OBJECTS)
    count = rng.randint(5, 30)
    parts = [f"{name} has {count} {things}."]
    for _ in range(level):
        sentence, count = rng.choice(_word_steps(rng, name, friend, things, count))
        parts.append(sentence)
    return Draft(" ".join([*parts, f"How many {things} does {name} have now? Answer with a number."]), str(count))


def _word_steps(rng: random.Random, name: str, friend: str, things: str, count: int) -> list[tuple[str, int]]:
    more = rng.randint(2, 12)
    steps = [
        (f"{name} buys {more} {things}.", count + more),
        (f"{friend} gives {name} {more} {things}.", count + more),
    ]
    if count > 2:
        less = rng.randint(2, min(12, count - 1))
        steps += [
            (f"{name} gives {friend} {less} {things}.", count - less),
            (f"{name} loses {less} {things}.", count - less),
        ]
    if count <= 40:
        steps.append((f"Then {name} finds as many {things} as {name} already has.", 2 * count))
    return steps


def _boolean(rng: random.Random, level: int) -> Draft:
    truth = {name: rng.random() < 0.5 for name in _VARIABLES}
    expression = rng.choice(_VARIABLES)
    value = truth[expression]
    for step in range(level):
        operand = f"({expression})" if step else expression
        operator = rng.choice(("and", "or", "not"))
        other = rng.choice([name for name in _VARIABLES if name != expression])
        if operator == "not":
            expression, value = f"not {operand}", not value
        else:
            expression = f"{operand} {operator} {other}"
            value = value and truth[other] if operator == "and" else value or truth[other]
    facts = ", ".join(f"{name} is {_word_of(truth[name])}" for name in _VARIABLES)
    question = f"Suppose that {facts}. What is the value of: {expression}? Answer with true or false."
    return Draft(question, _word_of(value), ("true", "false"))


def _word_of(truth: bool) -> str:
    return "true" if truth else "false"


def _comparison(rng: random.Random, level: int) -> Draft:
    names = tuple(rng.sample(_NAMES, level + 1))
    points = rng.sample(range(10, 60), level + 1)  # distinct: no tie, and nobody is likelier to win
    parts = [f"{names[0]} has {points[0]} points."]
    for i in range(1, level + 1):
        gap = points[i] - points[i - 1]
        parts.append(f"{names[i]} has {abs(gap)} {'more' if gap > 0 else 'fewer'} than {names[i - 1]}.")
    most = rng.random() < 0.5
    winner = points.index(max(points) if most else min(points))
    question = " ".join([*parts, f"Who has the {'most' if most else 'fewest'} points? Answer with a name."])
    return Draft(question, names[winner], names)


def _tracking(rng: random.Random, level: int) -> Draft:
    names = rng.sample(_NAMES, len(_COLOURS))
    balls = dict(zip(names, rng.sample(_COLOURS, len(_COLOURS)), strict=True))
    parts = ["; ".join(f"{name} has the {colour} ball" for name, colour in balls.items()) + "."]
    for _ in range(level):
        one, other = rng.sample(names, 2)
        balls[one], balls[other] = balls[other], balls[one]
        parts.append(f"{one} and {other} swap balls.")
    name = rng.choice(names)
    question = " ".join([*parts, f"What colour is the ball that {name} has now? Answer with a colour."])
    return Draft(question, balls[name], _COLOURS)


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        family.name: family
        for family in (
            Family("arithmetic", 10, "`level` additions, subtractions and multiplications in a row", _arithmetic),
            Family("word", 10, "a story in which a count changes `level` times", _word),
            Family("boolean", 10, "`level` nested operations: and, or, not", _boolean),
            Family("comparison", 10, "who has most or fewest, through a chain of `level` differences", _comparison),
            Family("tracking", 10, "who holds which ball after `level` swaps", _tracking),
        )
    }
)
"""The problems that `make_problems` makes, by name."""


def check_count(n: int) -> None:
    """Refuse to make less than one problem."""
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}")


def unknown(kind: str, name: str, known: Collection[str]) -> str:
    """The message for a name that isn't there, with the closest that are."""
    close = difflib.get_close_matches(name, known, n=3)
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    return f"no {kind} {name!r}.{hint} There are: {', '.join(sorted(known))}"
