"""Five families in plain words, for any chat model.

>>> arithmetic(random.Random(0), 2).question
'Start with 29. Subtract 15. Subtract 17. What is the result? Answer with a number.'
"""

from __future__ import annotations

import random

from tl_l2norm.tasks.families.base import Draft, Family

_NAMES = ("Alice", "Ben", "Clara", "David", "Emma", "Felix", "Hannah", "Igor", "Julia", "Kevin", "Laura", "Oscar")
_OBJECTS = ("apples", "books", "coins", "marbles", "pencils", "shells", "stamps", "stickers")
_COLOURS = ("red", "blue", "green", "yellow")
_VARIABLES = ("P", "Q", "R")


def arithmetic(rng: random.Random, level: int) -> Draft:
    """`level` additions, subtractions and multiplications in a row."""
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


def word(rng: random.Random, level: int) -> Draft:
    """A story in which a count changes `level` times."""
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


def boolean(rng: random.Random, level: int) -> Draft:
    """`level` nested operations: and, or, not."""
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


def comparison(rng: random.Random, level: int) -> Draft:
    """Who has most or fewest, through a chain of `level` differences."""
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


def tracking(rng: random.Random, level: int) -> Draft:
    """Who holds which ball after `level` swaps."""
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


PROSE = (
    Family("arithmetic", 10, "`level` additions, subtractions and multiplications in a row", arithmetic),
    Family("word", 10, "a story in which a count changes `level` times", word),
    Family("boolean", 10, "`level` nested operations: and, or, not", boolean),
    Family("comparison", 10, "who has most or fewest, through a chain of `level` differences", comparison),
    Family("tracking", 10, "who holds which ball after `level` swaps", tracking),
)
"""These families."""
