"""Problems that are made from a seed.

>>> make_problems("arithmetic", 1, level=2)[0].answer
'11'

A level is the number of steps that have to be worked out one after the other.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import math
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from numbers import Integral
from types import MappingProxyType
from typing import Any, Literal, get_args

from tl_l2norm.core.arguments import check_text, one_or_several
from tl_l2norm.core.errors import InputError, InputTypeError
from tl_l2norm.tasks.families.base import Family
from tl_l2norm.tasks.families.compact import COMPACT
from tl_l2norm.tasks.families.prose import PROSE
from tl_l2norm.tasks.judging.choices import LETTERS, inline_choices, is_lettered, label_of
from tl_l2norm.tasks.judging.references import final_answer

Split = Literal["train", "test"]

DEFAULT_LEVELS = (1, 2, 4, 8)

TEST_SHARE = 5  # one problem in this many is a test problem
_MAX_REPEATS = 200  # draws without a new question, after which a family is taken to be exhausted


@dataclass(frozen=True, slots=True, kw_only=True, init=False)
class Problem:
    r"""A question and its answer.

    An answer may be given as data sets write it (12, 12.0, True, "... #### 12", r"... \boxed{12}", "(B)"): what is kept is
    the final answer as text (`final_answer`). Where it is a letter and the question lists what the letters mean, `options`
    and `option_texts` are read from there.

    Attributes:
        question: its text.
        answer: the final one; None where it isn't known.
        family: what it is a problem of.
        level: steps, from 1 on; None if it has none.
        options: of which the answer is one; () where it is free.
        option_texts: what the letters of `options` stand for.
        system: a system message to ask it under; None for the model's own.
        source: where it comes from.
        verify: judges an extracted answer, in place of the comparison with `answer`.

    Raises:
        InputError: an empty question, an answer that can't be read or is none of the options, a level below 1,
            a `verify` that can't be called.

    Examples:
        >>> problem = l2.Problem(question="Which? (A) red (B) blue", answer="(b)", family="colours")
        >>> problem.answer, problem.options, problem.option_texts
        ('B', ('A', 'B'), ('red', 'blue'))
        >>> l2.Problem(question="3 * 4?", answer="3 * 4 = 12\n#### 12", family="sums").answer
        '12'
    """

    question: str
    answer: str | None
    """None where it is not known: correctness is then not known either."""
    family: str
    level: int = 1
    options: tuple[str, ...] = ()
    """The words or letters of which the answer is one; () where it is a number, an expression or free text."""
    option_texts: tuple[str, ...] = ()
    """What each letter of `options` stands for; () where they are words."""
    system: str | None = None
    """A system message to ask the question under; None leaves it to the chat template."""
    source: str = "tl_l2norm"
    verify: Callable[[str], bool | None] | None = field(default=None, compare=False, repr=False)
    """Judges an extracted answer in place of the comparison with `answer`: True, False, or None where it can't tell."""

    def __init__(
        self,
        *,
        question: str,
        answer: str | int | float | Decimal | None,
        family: str,
        level: int = 1,
        options: Sequence[str] = (),
        option_texts: Sequence[str] = (),
        system: str | None = None,
        source: str = "tl_l2norm",
        verify: Callable[[str], bool | None] | None = None,
    ) -> None:
        if verify is not None and not callable(verify):
            raise InputTypeError(
                f"verify is a function of the extracted answer that returns True, False or None, got {verify!r}"
            )
        final, options, option_texts = _read_answer(question_text(question), answer, options, option_texts, verify is not None)
        fields: dict[str, object] = {
            "question": question,
            "answer": final,
            "family": family_text(family),
            "level": whole_level(level),
        }
        fields |= {"options": options, "option_texts": option_texts, "system": system, "source": source, "verify": verify}
        _check_texts(fields)
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    @property
    def id(self) -> str:
        """Hexadecimal hash of family and question, the same on every machine."""
        return hashlib.sha256(f"{self.family}\n{self.question}".encode()).hexdigest()[:16]

    @property
    def key(self) -> str:
        """Hexadecimal hash of all that decides what is asked and which answer is right; `id` is that of the question alone."""
        parts = [self.family, self.question, self.system, self.answer, self.options, self.option_texts]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    @property
    def split(self) -> Split:
        """One problem in five is for testing, by its hash: no training of ours has seen these."""
        return "train" if int(self.id, 16) % TEST_SHARE else "test"

    @property
    def thinking(self) -> str | None:
        """The steps that lead to the answer, in the families that have them written."""
        ours = self.source == "tl_l2norm" and self.family in FAMILIES
        think = FAMILIES[self.family].think if ours else None
        return think(self.question) if think else None


def _read_answer(
    question: str, answer: object, options: Any, texts: Any, has_verify: bool
) -> tuple[str | None, tuple[str, ...], tuple[str, ...]]:
    """The final answer, options and what they stand for, as a problem keeps them."""
    if isinstance(options, str) or isinstance(texts, str):
        raise InputTypeError(f"options are a tuple of words, got one text: {options or texts!r}")
    if odd := [given for given in (options, texts) if not isinstance(given, Iterable)]:
        raise InputTypeError(f"options are a tuple of words, got {odd[0]!r:.80}")
    options, texts = tuple(map(str, options)), tuple(map(str, texts))
    final = answer if has_verify and isinstance(answer, str) else final_answer(answer)
    letter = None if final is None or has_verify else label_of(final)
    if letter and not options and letter in LETTERS[: len(listed := inline_choices(question))]:
        options, texts = tuple(LETTERS[: len(listed)]), listed
    if letter and is_lettered(options):
        final = letter
    if texts and not (len(texts) == len(options) and is_lettered(options)):
        raise InputError(f"option_texts are what the letters A, B, ... in options stand for: {len(texts)} for {options}")
    if final is not None and options and final.casefold() not in map(str.casefold, options):
        raise InputError(f"the answer {final!r} is none of the options: {', '.join(options)}")
    return final, options, texts


def _check_texts(fields: Mapping[str, object]) -> None:
    """Refuse a system message or a source that is no text, and half characters wherever they are."""
    for name in ("system", "source"):
        if not isinstance(fields[name], str) and (name, fields[name]) != ("system", None):
            raise InputTypeError(f"{name} must be text, got {fields[name]!r:.80}")
    for name, value in fields.items():
        texts = value if isinstance(value, tuple) else (value,)
        check_text(name, "".join(text for text in texts if isinstance(text, str)))


def question_key(problem: Problem) -> str:
    """Hexadecimal hash of the question's words, the same in every family and with other spaces between them."""
    return hashlib.sha256(" ".join(problem.question.split()).encode()).hexdigest()[:16]


def question_text(question: object) -> str:
    """The question; refused where it is no text, or empty."""
    if not isinstance(question, str) or not question.strip():
        raise InputError(f"question must be text that is not empty, got {question!r}")
    return question


def family_text(family: object) -> str:
    """The name of a family; refused where it is no text, or empty."""
    if not isinstance(family, str) or not family:
        raise InputError(f"family must be text, got {family!r}")
    return family


def whole_level(level: object) -> int:
    """The level as an int; refused where it is no whole number from 1 on."""
    if isinstance(level, bool) or not isinstance(level, Integral) or level < 1:
        raise InputError(f"level must be a whole number from 1 on, got {level!r}")
    return int(level)


def make_problems(family: str, n: int, *, level: int = 1, seed: int = 0, split: Split | None = None) -> tuple[Problem, ...]:
    """`n` distinct problems; problem i depends on family, level, seed, split and i alone.

    Args:
        family: One of `FAMILIES`.
        n: How many.
        level: Difficulty, from 1 to the family's `levels`.
        seed: Same seed, same problems, on every machine.
        split: "train" or "test" problems alone; None is both.

    Raises:
        ValueError: an unknown family, a level that it doesn't have, or more problems than it has there.

    Examples:
        >>> problem = l2.make_problems("swaps", 1, level=3)[0]
        >>> problem.question, problem.answer
        ('row a1b2c4d3e5: A35B25C24 b', '5')
        >>> problem.thinking
        'b2A35=2B25=5C24=5'
    """
    check_count(n)
    check_split(split)
    problems = tuple(itertools.islice(draw_problems(family, level=level, seed=seed, split=split), n))
    if len(problems) < n:
        which = f"distinct {split} questions" if split else "distinct questions"
        raise InputError(f"{family} at level {level} gave {len(problems)} {which}, not {n}: raise the level")
    return problems


def make_mixture(
    n: int,
    *,
    families: Sequence[str] | Literal["prose", "compact"] = "prose",
    levels: Sequence[int] | None = None,
    seed: int = 0,
    split: Split | None = None,
) -> tuple[Problem, ...]:
    """`n` problems spread evenly over families and levels; problem i does not depend on `n`.

    Args:
        n: How many.
        families: Names from `FAMILIES`; "prose" are those in plain words, "compact" those that the tiny reasoner knows.
        levels: None is 1, 2, 4 and 8.
        seed: As in `make_problems`.
        split: As in `make_problems`.

    Raises:
        ValueError: an unknown family or group, no level, or more problems than there are.

    Examples:
        >>> [(problem.family, problem.level) for problem in l2.make_mixture(4, families="compact")]
        [('modular', 1), ('swaps', 2), ('circuit', 4), ('pointers', 8)]
    """
    check_count(n)
    check_split(split)
    groups = {"prose": PROSE, "compact": COMPACT}
    if isinstance(families, str) and families not in groups:
        raise InputError(unknown("group of families", families, groups))
    names = tuple(family.name for family in groups[families]) if isinstance(families, str) else tuple(families)
    steps = DEFAULT_LEVELS if levels is None else tuple(levels)
    if not names or not steps:
        raise InputError("a mixture needs at least one family and one level")
    # Both indices advance together; the shift after each full period makes every pair come up equally often.
    period = math.lcm(len(names), len(steps))
    cells = [(names[i % len(names)], steps[(i + i // period) % len(steps)]) for i in range(n)]
    pools = {
        (name, level): iter(make_problems(name, count, level=level, seed=seed, split=split))
        for (name, level), count in Counter(cells).items()
    }
    return tuple(next(pools[cell]) for cell in cells)


def draw_problems(family: str, *, level: int = 1, seed: int = 0, split: Split | None = None) -> Iterator[Problem]:
    """Distinct problems in the order of their draws, until new ones become rare: what `make_problems` takes the first of."""
    check_split(split)
    if family not in FAMILIES:
        raise InputError(unknown("family", family, FAMILIES))
    kind = FAMILIES[family]
    if not 1 <= level <= kind.levels:
        raise InputError(f"{family} has levels 1 to {kind.levels}, not {level}")
    return _drawn(kind, level, seed, split)


def _drawn(kind: Family, level: int, seed: int, split: Split | None) -> Iterator[Problem]:
    family = kind.name
    rng = random.Random(f"{family}/{level}/{seed}")
    seen: set[str] = set()
    repeats = 0
    while repeats < _MAX_REPEATS:
        draft = kind.make(rng, level)
        problem = Problem(question=draft.question, answer=draft.answer, options=draft.options, family=family, level=level)
        if split not in (None, problem.split):
            continue
        repeats = repeats + 1 if problem.question in seen else 0
        if not repeats:
            seen.add(problem.question)
            yield problem


FAMILIES: Mapping[str, Family] = MappingProxyType({family.name: family for family in (*PROSE, *COMPACT)})
"""The problems that `make_problems` makes, by name."""


def problems_of(given: Any) -> tuple[Problem, ...]:
    """Problems as they are asked: one or several.

    Raises:
        TypeError: texts, or something else.
    """
    problems = one_or_several(given, (Problem, str))
    if odd := [one for one in problems if not isinstance(one, Problem)]:
        raise InputTypeError(
            "problems are what make_problems and load_problems return, Problem(question=..., answer=..., family=...), "
            f"got {odd[0]!r:.80}"
        )
    return problems


def require_distinct(problems: Sequence[Problem]) -> None:
    """Refuse the same problem twice: results are found, and paired, by it."""
    if len({problem.id for problem in problems}) < len(problems):
        raise InputError("some problems are the same: results are paired by problem, so give each once")


def check_count(n: int) -> None:
    """Refuse to make less than one problem."""
    if n < 1:
        raise InputError(f"n must be at least 1, not {n}")


def check_split(split: object) -> None:
    """Refuse a split that no problem is in."""
    if split is not None and split not in get_args(Split):
        raise InputError(unknown("split", str(split), get_args(Split)))


def unknown(kind: str, name: str, known: Collection[str]) -> str:
    """The message for a name that isn't there, with the closest that are."""
    close = difflib.get_close_matches(name, known, n=3)
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    return f"no {kind} {name!r}.{hint} There are: {', '.join(sorted(known))}"
