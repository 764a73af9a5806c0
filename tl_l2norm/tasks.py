"""Problems with an exact verifier, made from a seed or read from a file.

>>> problem = make_problems("arithmetic", 1, level=2)[0]
>>> is_correct(problem, f"Well, the answer is {problem.answer}.")
True

A level is the number of steps that have to be worked out one after the other.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import itertools
import json
import math
import random
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from tl_l2norm.prompts import THINK_TAGS

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


# Making problems


def make_problems(family: str, n: int, *, level: int = 1, seed: int = 0) -> tuple[Problem, ...]:
    """`n` distinct problems; problem i depends on family, level, seed and i alone.

    Args:
        family: One of `FAMILIES`.
        n: How many.
        level: Difficulty, from 1 to the family's `levels`.
        seed: Same seed, same problems, on every machine.
    """
    _check_count(n)
    if family not in FAMILIES:
        raise ValueError(_unknown("family", family, FAMILIES))
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
    _check_count(n)
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


# Verifying

_NUMBER = re.compile(
    r"""(?<![\w.]) (?<![A-Za-z]-) (?<!\d:)               # not within a word, a decimal, COVID-19 or 10:30
    (?P<sign> (?<![\w)\]}]) [-−–] | (?:minus|negative)\s )? [$€£]?
    (?P<digits> (?:\d{1,3}(?:,\d{3})+ | \d+) (?:\.\d+)? (?:e[+-]?\d+)? | \.\d+ )
    (?! \w | \.\d | -[A-Za-z] | :\d )""",
    re.VERBOSE | re.IGNORECASE,
)
_NAMED_OPTIONS = {word: pair for pair in (("true", "false"), ("yes", "no")) for word in pair}

# Two values with nothing but this between them are the terms of an expression, a list or a choice, not an answer.
_JOINT = re.compile(
    r"""[ \t]+ | \}\{ | \)[ \t]*\(
    | [ \t(){}$]* (?: [-+−–*/×÷^x,;&] | \\(?:times|cdot|div) | ,?[ ]*\b(?:and|or|nor|to|vs\.?)\b ) [ \t(){}$]*
      (?: (?:the|not)[ ] )?""",
    re.VERBOSE | re.IGNORECASE,
)
_DENIED_BEFORE = re.compile(
    r"""(?: (?: \b(?:not|cannot) | n['’]t ) (?:\s+be)? | \b(?:neither|nor|either|or|than|at\ least|at\ most|step) )
    \s+ (?:the\s+)? [*_"'$]* $""",
    re.VERBOSE | re.IGNORECASE,
)
_DENIED_AFTER = re.compile(
    r"""[*_"'$.]*\s* (?: \? | ['’]s\b | (?:is|was|would\ be)\s*(?:not|n['’]t|wrong|incorrect)\b )""",
    re.VERBOSE | re.IGNORECASE,
)
_ANNOUNCED = r"\banswer(?:\ to\ [^.\n]{1,60}?)?[*_\s]*(?:\bis\b|\bwould\ be\b|:|=)"
_STATED_BEFORE = re.compile(
    rf"""(?: {_ANNOUNCED} | \\boxed\{{ | <answer> )
    (?: [\s:*_$"'`({{\[] | \\\( | \\text\{{ | \\boxed\{{
      | \b(?:the|a|an|number|value|colou?r|simply|exactly|therefore|thus|now)\b )*
    (?: [\d\s()+\-−*/×÷.,^$]* = )* [\s$*]* $""",
    re.VERBOSE | re.IGNORECASE,
)
_MARKED_TEXT = re.compile(
    r"<answer>(?P<tag>.*?)</answer> | \\boxed\{(?P<box> [^{}\n]* (?: \{[^{}\n]*\} [^{}\n]* )*)\}",
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)
_STATED_TEXT = re.compile(rf"{_ANNOUNCED} [\s:*]* ([^\s] [^\n]*?) (?=\.\s | \n | \Z)", re.VERBOSE | re.IGNORECASE)
_WRAPPING = " \t*_`$\"'"
_WINDOW = 120  # characters around a value that decide what it is


def is_correct(problem: Problem, text: str) -> bool | None:
    """Whether a free response gives the problem's answer; None where that is not known.

    Numbers are compared as numbers (3.0 is 3), words without regard to case, free text also without punctuation.
    """
    if problem.answer is None and problem.verify is None:
        return None
    given = extract_answer(problem, text)
    if given is None:
        return False
    if problem.verify is not None:
        return problem.verify(given)
    expected = problem.answer or ""
    if not problem.options and (number := _number(expected)) is not None:
        return _number(given) == number
    return _plain(given) == _plain(expected)


def extract_answer(problem: Problem, text: str) -> str | None:
    r"""The answer that a response gives, or None.

    Only what stands after the last closing think tag counts, and nothing after an opening one that is never closed.
    Candidates are the values of the right kind: numbers, or the problem's options as whole words. Among them the last
    one announced ("answer is", "answer:", "\boxed{", "<answer>") wins, else the last one in bold or after a final
    "=", else the last one of all.

    A value is no candidate if it is denied ("not true", "n't 5", "5 is wrong"), asked, a bound ("at least 5", "than
    Ben"), a possessive, or an item of an expression, a list or a choice ("3 + 4", "red, blue", "true or false"): "not
    true" is not read as "false", it answers nothing.

    Free text is what stands in "<answer>" tags or "\boxed{}", else what is announced, up to the end of its sentence,
    else the last line.

    Where a prompt forced the beginning of the answer, pass that and the response: `prompt.answer_prefix + text`.
    """
    text = _after_thinking(text)
    if options := _options(problem):
        pattern = re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, options))})(?![\w-])", re.IGNORECASE)
        spelling = {option.casefold(): option for option in (*options, problem.answer or "")}
        value = _best(text, pattern)
        return spelling[value.group().casefold()] if value else None
    if problem.answer is not None and _number(problem.answer) is not None:
        value = _best(text.replace("{,}", ",").replace(r",\!", ","), _NUMBER)
        return _digits(value) if value else None
    return _free_text(text)


def _after_thinking(text: str) -> str:
    for start, end in THINK_TAGS:
        text = text.rpartition(end)[2].partition(start)[0]
    return text.strip()


def _options(problem: Problem) -> tuple[str, ...]:
    return problem.options or _NAMED_OPTIONS.get((problem.answer or "").strip().casefold(), ())


def _best(text: str, pattern: re.Pattern[str]) -> re.Match[str] | None:
    """The last candidate of the most explicit kind."""
    return max(_candidates(text, pattern), key=lambda value: (_explicitness(text, value), value.start()), default=None)


def _candidates(text: str, pattern: re.Pattern[str]) -> list[re.Match[str]]:
    values = list(pattern.finditer(text))
    joint = {
        position
        for one, other in itertools.pairwise(values)
        if other.start() - one.end() < _WINDOW and _JOINT.fullmatch(text, one.end(), other.start())
        for position in (one.start(), other.start())
    }
    return [value for value in values if value.start() not in joint and not _is_denied(text, value)]


def _is_denied(text: str, value: re.Match[str]) -> bool:
    before = text[max(0, value.start() - _WINDOW) : value.start()]
    is_list_number = re.search(r"\n[ \t]*$", before) and re.match(r"[.)][ \t]+\S", text[value.end() :][:9])
    return bool(is_list_number or _DENIED_BEFORE.search(before) or _DENIED_AFTER.match(text, value.end()))


def _explicitness(text: str, value: re.Match[str]) -> int:
    before = text[max(0, value.start() - _WINDOW) : value.start()]
    if _STATED_BEFORE.search(before):
        return 2
    is_bold = before.endswith(("**", "__")) and text.startswith(("**", "__"), value.end())
    is_final_result = re.search(r"=[\s$*]*$", before) and re.fullmatch(r"[\s.!*$]*", text[value.end() :])
    return 1 if is_bold or is_final_result else 0


def _free_text(text: str) -> str | None:
    marked = [match[match.lastgroup or 0] for match in _MARKED_TEXT.finditer(text)]
    if marked:
        return marked[-1].strip() or None
    stated = _STATED_TEXT.findall(text)
    found = stated[-1] if stated else text.rpartition("\n")[2]
    return found.strip(_WRAPPING).removesuffix(".").strip(_WRAPPING) or None


def _number(text: str) -> Decimal | None:
    match = _NUMBER.fullmatch(text.strip())
    return Decimal(_digits(match)) if match else None


def _digits(match: re.Match[str]) -> str:
    return ("-" if match["sign"] else "") + match["digits"].replace(",", "")


def _plain(text: str) -> str:
    return " ".join(re.sub(r"[^\w\s/+*=^<>.-]", " ", text.casefold()).split()).strip(". ") or text


# Reading problems


def load_problems(path: str | Path) -> tuple[Problem, ...]:
    """Problems from a JSONL file.

    Each line is an object with `question` and, if you like, `answer` (text, number or true/false), `family` (text) and
    `level` (a whole number from 1 on). Other keys are ignored, blank lines skipped.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no problems at {path}: a JSONL file is expected, one object with a question per line")
    lines: dict[str, int] = {}
    problems = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            problem = _parse_line(line, source=path.name)
            if problem.id in lines:
                raise ValueError(f"same question as line {lines[problem.id]}")
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
        lines[problem.id] = number
        problems.append(problem)
    if not problems:
        raise ValueError(f"{path} holds no problems")
    return tuple(problems)


def _parse_line(line: str, source: str) -> Problem:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from None
    if not isinstance(record, dict):
        raise ValueError(f"expected an object, got {json.dumps(record)[:60]}")
    question, answer = record.get("question"), record.get("answer")
    family, level = record.get("family", "custom"), record.get("level", 1)
    if question is None:
        raise ValueError("no question")
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"question must be text that is not empty, got {question!r}")
    if not isinstance(answer, str | int | float | None) or answer == "":
        raise ValueError(f"answer must be text, a number or left out, got {answer!r}")
    if not isinstance(family, str) or not family:
        raise ValueError(f"family must be text, got {family!r}")
    if not isinstance(level, int) or isinstance(level, bool) or level < 1:
        raise ValueError(f"level must be a whole number from 1 on, got {level!r}")
    answer = answer if isinstance(answer, str | None) else json.dumps(answer)  # True is "true"
    return Problem(question=question, answer=answer, family=family, level=level, source=source)


def reasoning_gym_problems(dataset: str, n: int, *, seed: int = 0, **config: Any) -> tuple[Problem, ...]:
    """`n` distinct problems of a reasoning_gym dataset, judged by its own `score_answer`.

    Args:
        dataset: Its name there, such as "chain_sum".
        n: How many.
        seed: The dataset's seed.
        **config: The dataset's own options, such as `min_terms=3`.
    """
    _check_count(n)
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise ImportError("reasoning_gym is missing: pip install 'tl_l2norm[reasoning-gym]'") from error
    if dataset not in DATASETS:
        raise ValueError(_unknown("reasoning_gym dataset", dataset, DATASETS))
    # Entries are made when asked for, and small settings repeat themselves: offer more than are needed.
    entries = reasoning_gym.create_dataset(dataset, size=10 * n + 100, seed=seed, **config)
    problems = tuple(itertools.islice(_gym_problems(dataset, entries), n))
    if len(problems) < n:
        raise ValueError(f"{dataset} gave {len(problems)} distinct questions with these options, not {n}")
    return problems


def _gym_problems(dataset: str, entries: Iterable[dict[str, Any]]) -> Iterator[Problem]:
    seen: set[str] = set()
    for entry in entries:
        if entry["question"] not in seen:
            seen.add(entry["question"])
            verify = functools.partial(_gym_verify, entries, entry)
            yield Problem(
                question=entry["question"],
                answer=entry["answer"],
                family=dataset,
                source="reasoning-gym",
                verify=verify,
            )


def _gym_verify(dataset: Any, entry: dict[str, Any], answer: str) -> bool:
    return bool(dataset.score_answer(answer, entry) == 1.0)


def _check_count(n: int) -> None:
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}")


def _unknown(kind: str, name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3)
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    return f"no {kind} {name!r}.{hint} There are: {', '.join(sorted(known))}"
