"""Five compact families, and the thinking that solves them step by step: what the tiny reasoner knows.

>>> draft = modular(random.Random(0), 3)
>>> draft.question, think_modular(draft.question), draft.answer
('mod 10: 6A-1B-9C-7', '6A-1=5B-9=6C-7=9', '9')

The steps of a chain are labelled A, B, C, ...: without that a step that occurs twice would not say which comes next.

- modular: `mod 10: 7A+5B*3` is ((7 + 5) * 3) mod 10. Factors are 3, 7 and 9: each step can be undone, none can be skipped.
- swaps: `row a3b1c5d2e4: A12B35 c` asks at which place c is, first at 5, after places 1 and 2, then 3 and 5 are swapped.
- circuit: `bits pqr=101: ApqBq1 r` asks for bit r after p becomes p xor q, then q becomes q xor 1.
- pointers: `map Ac Be Ca ...: a 3` asks where 3 arrows lead from a, when a points to c, b to e and so on.
- maximum: `max kdtb` asks for the letter that comes last in the alphabet: a control that needs no serial steps.
"""

from __future__ import annotations

import itertools
import operator
import random
from collections.abc import Callable

from tl_l2norm.tasks.families.base import Draft, Family

LABELS = "ABCDEFGHIJKL"
CONSONANTS = "bcdfghjklmnpqrstvwxz"  # no word of the tiny reasoner's tokenizer can be spelled with these
NODES = "abcdefghijkl"
PLACES = "12345"

_OPERATORS: dict[str, Callable[[int, int], int]] = {"+": operator.add, "-": operator.sub, "*": operator.mul}
_GATES = tuple(target + operand for target in "pqr" for operand in "pqr1" if target != operand)
_SWAPS = tuple(map("".join, itertools.combinations(PLACES, 2)))


def _chain(rng: random.Random, steps: tuple[str, ...], level: int) -> list[str]:
    """`level` steps, none the same as the one before it."""
    chain: list[str] = []
    for _ in range(level):
        chain.append(rng.choice([step for step in steps if step != (chain[-1] if chain else "")]))
    return chain


def _label(chain: list[str]) -> str:
    return "".join(map(operator.add, LABELS, chain))


def _labelled(text: str) -> list[tuple[str, str, str]]:
    """The chain as label and both characters of each step."""
    return [(text[i], text[i + 1], text[i + 2]) for i in range(0, len(text), 3)]


def modular(rng: random.Random, level: int) -> Draft:
    """`level` additions, subtractions and multiplications modulo 10, from left to right."""
    value = rng.randrange(10)
    chain = []
    for _ in range(level):
        symbol = rng.choice("+-*")
        chain.append(symbol + str(rng.choice((3, 7, 9)) if symbol == "*" else rng.randint(1, 9)))
    question = f"mod 10: {value}{_label(chain)}"
    return Draft(question, think_modular(question)[-1])


def think_modular(question: str) -> str:
    """The value after each operation."""
    text = question.removeprefix("mod 10: ")
    value, written = int(text[0]), text[0]
    for label, symbol, operand in _labelled(text[1:]):
        value = _OPERATORS[symbol](value, int(operand)) % 10
        written += f"{label}{symbol}{operand}={value}"
    return written


def swaps(rng: random.Random, level: int) -> Draft:
    """Where one of five letters stands after `level` swaps of two places."""
    places = "".join(map(operator.add, "abcde", rng.sample(PLACES, 5)))
    question = f"row {places}: {_label(_chain(rng, _SWAPS, level))} {rng.choice('abcde')}"
    return Draft(question, think_swaps(question)[-1], tuple(PLACES))


def think_swaps(question: str) -> str:
    """The place of the letter after each swap."""
    _, places, text, letter = question.replace(":", "").split(" ")
    place = places[places.index(letter) + 1]
    written = letter + place
    for label, one, other in _labelled(text):
        place = {one: other, other: one}.get(place, place)
        written += f"{label}{one}{other}={place}"
    return written


def circuit(rng: random.Random, level: int) -> Draft:
    """One of three bits after `level` reversible gates, each of which flips a bit if another one is set, or always."""
    bits = "".join(rng.choice("01") for _ in "pqr")
    question = f"bits pqr={bits}: {_label(_chain(rng, _GATES, level))} {rng.choice('pqr')}"
    return Draft(question, think_circuit(question)[-1], ("0", "1"))


def think_circuit(question: str) -> str:
    """The three bits after each gate, then the one that was asked for."""
    _, start, text, asked = question.replace(":", "").split(" ")
    state = {"1": 1, **dict(zip("pqr", map(int, start.removeprefix("pqr=")), strict=True))}
    written = "".join(str(state[name]) for name in "pqr")
    for label, target, operand in _labelled(text):
        state[target] ^= state[operand]
        written += f"{label}{target}{operand}=" + "".join(str(state[name]) for name in "pqr")
    return f"{written}{asked}={state[asked]}"


def pointers(rng: random.Random, level: int) -> Draft:
    """Where `level` arrows lead, among twelve letters that each point to another; no letter comes twice on the way."""
    path = rng.sample(NODES, level + 1)
    target = {node: rng.choice([other for other in NODES if other != node]) for node in NODES}
    target |= dict(itertools.pairwise(path))
    arrows = " ".join(node.upper() + target[node] for node in NODES)
    return Draft(f"map {arrows}: {path[0]} {level}", path[-1], tuple(NODES))


def think_pointers(question: str) -> str:
    """The arrows in the order in which they are followed, numbered."""
    arrows, start = question.removeprefix("map ").split(": ")
    target = {arrow[0].lower(): arrow[1] for arrow in arrows.split(" ")}
    node, written = start[0], ""
    for step in range(1, int(start[2:]) + 1):
        written += f"{step} {node.upper()}{target[node]}"
        node = target[node]
    return written


def maximum(rng: random.Random, level: int) -> Draft:
    """The last letter in the alphabet among `level + 1`."""
    letters = rng.sample(CONSONANTS, level + 1)
    return Draft("max " + "".join(letters), max(letters), tuple(CONSONANTS))


def think_maximum(question: str) -> str:
    """The maximum up to each letter."""
    letters = question.removeprefix("max ")
    written = largest = letters[0]
    for letter in letters[1:]:
        largest = max(largest, letter)
        written += f"{letter}={largest}"
    return written


COMPACT = (
    Family("modular", 12, "`level` additions, subtractions and multiplications modulo 10", modular, think_modular),
    Family("swaps", 12, "where one of five letters stands after `level` swaps", swaps, think_swaps),
    Family("circuit", 8, "one of three bits after `level` reversible gates", circuit, think_circuit),
    Family("pointers", 9, "where `level` arrows lead among twelve letters", pointers, think_pointers),
    Family("maximum", 10, "the last letter in the alphabet among `level + 1`: needs no serial steps", maximum, think_maximum),
)
"""These families."""
