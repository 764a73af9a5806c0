"""The kinds of answers: how each is found in a response, and when two of them are the same."""

from __future__ import annotations

import functools
import re
from abc import ABC, abstractmethod
from collections.abc import Hashable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from tl_l2norm.tasks.judging.choices import LETTERS, is_lettered, label_of
from tl_l2norm.tasks.judging.math import base_of, canonical, in_base, is_mathematical, same_value
from tl_l2norm.tasks.judging.operands import is_operand, is_within
from tl_l2norm.tasks.judging.phrases import MATHS, is_negated, leading, trailing
from tl_l2norm.tasks.judging.responses import best_value, joined, last_line, marked_text, stated_text
from tl_l2norm.tasks.judging.text import (
    NUMBER_WITH_UNIT,
    PLAIN_NUMBER,
    SCALES,
    Quantity,
    digits_of,
    plain_units,
    quantity_of,
    read_quantity,
    split_unit,
    strip_latex,
)
from tl_l2norm.tasks.problems import Problem

_NAMED_OPTIONS = {word: pair for pair in (("true", "false"), ("yes", "no")) for word in pair}
_FEWEST_LETTERS = 5  # a letter as answer without a list of options: one of A to E, or of more where it is a later one
_OPERATION = re.compile(r"[+*×·=,<>]|\s[-−–]\s|\d[-−–]|\\(?:times|cdot|div|pm)|\b(?:or|and)\b")
_FRACTION = re.compile(r"\d\s*/\s*\d|\\[dt]?frac|sqrt|[√^½¼¾²³]")
_ASKS_PERCENT = re.compile(r"(?<!\d)(?<!\d\s)(?<!\d\\)(?:%|percent)", re.IGNORECASE)  # "10%" is given, not asked for
_ASKS_BASE = re.compile(r"\b(?:base|binary|octal|hexadecimal)\b", re.IGNORECASE)
_ORDERED = re.compile(r"\b(?:sort\w*|ascending|descending|in\s+(?:\w+\s+)?order|sequence|rank\w*|arrange\w*)\b", re.IGNORECASE)
# "A case can be made", "A Roman" and "A 3-digit number" name no option, "A is right" does.
_NOT_A_WORD = r"""(?!(?<=[AI])\s+(?!(?:because|since|as|is|was|and|or|nor|not|with|for)\b)[a-z])
    (?!(?<=[AI])[ ]+(?!(?:Because|Since|The|This|That|It|So|Explanation|Reason)\b)(?:[A-Z][a-z]|\d+-[a-z]))"""
_NAMED_BY_LETTERS = ("vitamin", "point", "group", "plan", "hepatitis", "mr.", "mrs.", "ms.", "dr.")


class AnswerKind(ABC):
    """What answers to a problem look like."""

    @abstractmethod
    def find(self, text: str) -> str | None:
        """The answer that a response states."""

    @abstractmethod
    def value(self, given: str) -> Hashable:
        """A form of an answer that was found, in which equal answers are equal."""

    def same(self, answer: str, given: str) -> bool:
        """Whether an answer that was found is the reference one."""
        return self.value(answer) == self.value(given)


def kind_of(problem: Problem) -> AnswerKind:
    """The kind of a problem's answers, by its options and its reference answer."""
    answer = (problem.answer or "").strip()
    named = tuple(noun for noun in _NAMED_BY_LETTERS if not _has_word(noun, problem.question))
    if problem.option_texts or is_lettered(problem.options):
        return Choice(problem.options, problem.option_texts, named)
    if options := problem.options or _NAMED_OPTIONS.get(answer.casefold(), ()):
        return Words((*options, answer))
    base = base_of(answer) if _ASKS_BASE.search(problem.question) else None
    if (quantity := read_quantity(answer)) is not None:
        return _number_kind(problem.question, quantity, base)
    if problem.verify is None and (letter := label_of(answer)):
        return Choice(tuple(LETTERS[: max(_FEWEST_LETTERS, LETTERS.index(letter) + 1)]), named=named)
    if problem.verify is None and is_mathematical(answer):
        return Expression(bool(_ORDERED.search(problem.question)), split_unit(answer)[1], base)
    return Text()


def _has_word(word: str, text: str) -> bool:
    return bool(re.search(rf"\b{re.escape(word)}s?(?!\w)", text, re.IGNORECASE))


def _number_kind(question: str, answer: Quantity, base: str | None) -> Number:
    size = abs(answer.number)
    counted = frozenset(word for word, scale in SCALES.items() if _has_word(word, question) and size < scale)
    is_small = size <= 1
    in_points = is_small if answer.unit == "%" else not is_small or bool(_ASKS_PERCENT.search(question))
    return Number(answer.unit, in_points, counted, base)


@dataclass(frozen=True)
class Words(AnswerKind):
    """One of a few words, whatever its case."""

    options: tuple[str, ...]

    def find(self, text: str) -> str | None:
        """The option, spelled as in `options`."""
        pattern = re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, filter(None, self.options)))})(?![\w-])", re.IGNORECASE)
        if "yes" in map(str.casefold, self.options):
            pattern = re.compile(rf"{pattern.pattern}(?!\s+would\b)", re.IGNORECASE)  # "a yes would need more" says none
        best = best_value(text, pattern)
        return {option.casefold(): option for option in self.options}[best.match.group().casefold()] if best else None

    def value(self, given: str) -> str:
        """The word, whatever its case."""
        return given.strip().casefold()


@dataclass(frozen=True)
class Choice(AnswerKind):
    """A letter, or what it stands for."""

    letters: tuple[str, ...]
    texts: tuple[str, ...] = ()
    named: tuple[str, ...] = ()
    """Nouns before a letter that make it a name, "vitamin A", and no choice."""

    def find(self, text: str) -> str | None:
        """The letter, or else the text of the option as the response writes it."""
        best = best_value(text, _choice_pattern(self.letters, self.texts, self.named), self._is_joint, _is_part)
        return (_letter(best.match) or best.match.group()) if best else None

    def value(self, given: str) -> str:
        """The letter."""
        if letter := label_of(given):
            return letter
        texts = [_plain(text) for text in self.texts]
        return self.letters[texts.index(_plain(given))] if _plain(given) in texts else given

    def _is_joint(self, text: str, one: re.Match[str], other: re.Match[str]) -> bool:
        """Options in a row, as in a question that is repeated; "B. blue" is one value, "(B) ... B" is said twice."""
        if self.value(_letter(one) or one.group()) == self.value(_letter(other) or other.group()):
            return False
        return joined(text, one, other) or not re.sub(r"[\s*•,;.-]", "", text[one.end() : other.start()])


def _is_part(text: str, option: re.Match[str]) -> bool:
    """Whether an option's text that is a number stands in a larger one, 1 in 1/2 or 1.5."""
    if _letter(option) or not re.search(r"^\W*\d|\d$", option.group()):
        return False
    return is_operand(text, option) or is_within(text, option)


@functools.lru_cache(maxsize=256)
def _choice_pattern(letters: tuple[str, ...], texts: tuple[str, ...], named: tuple[str, ...]) -> re.Pattern[str]:
    """A letter in brackets (`inner`), alone (`outer`) or announced (`small`), an option's `text`, or `both`."""
    large, small = f"{letters[0]}-{letters[-1]}", f"{letters[0]}-{letters[-1]}".lower()
    no_name = "".join(rf"(?<!\b(?i:{re.escape(noun)})\ )" for noun in named)
    label = rf"""(?: \((?P<inner>[{large}{small}])\)
        | (?<!\(){no_name}(?P<outer>[{large}])(?![\w'’]|-\w|[ ]*[+/=^]|[ ]+\*[ ]) {_NOT_A_WORD}
        | (?:(?<=answer\ is\ )|(?<=answer:\ )|(?<=option\ )|\A)(?P<small>[{small}])(?=[\s.)*]*(?:\n|$)) )"""
    own = "|".join(
        rf"(?:(?:\(?{letter}[).:\]]*|{letter}\s*[-–:])\s*[*_\"']*{_words(text)})"
        for letter, text in zip(letters, texts, strict=False)
    )
    words = "|".join(_words(text) for text in sorted(texts, key=len, reverse=True))
    whole = rf"(?P<both>{own}) | {label} | (?P<text>{words})" if texts else label
    return re.compile(rf"(?<![\w'’\\-])(?:{whole})(?!\w)", re.VERBOSE)


def _words(text: str) -> str:
    """A pattern of an option's text, whatever its case."""
    return rf"(?i:{re.escape(text)})"


def _letter(match: re.Match[str]) -> str | None:
    """The letter that a match of a choice names; None where it is an option's text alone."""
    groups = match.groupdict()
    if groups.get("both"):
        return match.group().lstrip("( ")[0].upper()
    letter = groups["inner"] or groups["outer"] or groups["small"]
    return letter.upper() if letter else None


@dataclass(frozen=True)
class Number(AnswerKind):
    """A number, with a unit or without."""

    unit: str | None = None
    in_points: bool = False
    """Whether a bare number counts percent points: 25% is 25, and not 0.25."""
    counted: frozenset[str] = frozenset()
    """What the question counts in: where it asks for millions, "3 million" is 3."""
    base: str | None = None
    """The base of the reference ("" where it leaves it out), where the question asks for one: it may be left out then."""

    def find(self, text: str) -> str | None:
        """Its digits, with the unit where the reference has one; a fraction or root, where that is what is announced."""
        plain = plain_units(text)
        best = best_value(plain, NUMBER_WITH_UNIT if self.unit else PLAIN_NUMBER, is_part=is_operand)
        if best is None or not best.is_announced:
            stated = stated_text(text)
            if stated is None:
                stated = _unannounced_fraction(text, has_others=best is not None)
            if stated and _is_single_value(stated):
                return stated
        if best is None:
            return None
        unit, scale = quantity_of(best.match).unit, (best.match["scale"] or "").casefold()
        is_scaled = scale and scale not in self.counted
        return best.match.group() if is_scaled or (unit and (self.unit or unit == "%")) else digits_of(best.match)

    def value(self, given: str) -> Hashable:
        """The number alone, a percentage as `same` reads it; with its unit, where that is another than the reference's."""
        quantity = read_quantity(given)
        if quantity is None:
            return canonical(in_base(given, self.base))
        if self.unit == "%" and quantity.unit is None:
            is_share = abs(quantity.number) <= 1 and not self.in_points
            return quantity.number if is_share else quantity.number / 100
        if quantity.unit == "%":
            return quantity.number if self.unit is None and self.in_points else quantity.share
        return quantity.number if self.unit is None or quantity.unit in (None, self.unit) else quantity

    def same(self, answer: str, given: str) -> bool:
        """Equal numbers with units that don't contradict each other; a percentage is a bare number once, not in two ways."""
        expected, quantity = read_quantity(answer), read_quantity(given)
        if quantity is None:
            return same_value(answer, in_base(given, self.base))
        if quantity.unit == "%" and self.unit is None:
            return self.value(answer) == self.value(given)
        return expected is not None and expected.same(quantity)


def _unannounced_fraction(text: str, *, has_others: bool) -> str | None:
    """A fraction, root or power that is the last line, or that it ends with, where no other number is there."""
    given = last_line(text) if has_others else trailing(text.rpartition("\n")[2])
    return given if given and _FRACTION.search(given) else None


def _is_single_value(text: str) -> bool:
    """A fraction, root or power, and no sum or list that is left to work out."""
    inner = re.sub(r"^\s*[-−–]", "", strip_latex(text))
    return is_mathematical(text) and not _OPERATION.search(inner)


@dataclass(frozen=True)
class Expression(AnswerKind):
    """An expression, equation, list, tuple, interval or set."""

    ordered: bool = False
    unit: str | None = None
    base: str | None = None
    """As in `Number`."""

    def find(self, text: str) -> str | None:
        """What is boxed, else announced, else the end of the last line after "is", "=" or a colon."""
        text = _DISPLAY.sub(lambda match: f"${(match[1] or match[2]).strip()}$", text)
        if (marked := marked_text(text)) is not None:
            return marked or None
        stated = stated_text(text)
        if stated and "?" in stated:
            return None
        expression = leading(stated) if stated else trailing(text.rpartition("\n")[2])
        if expression and MATHS.fullmatch(expression):
            return re.sub(r"^(?:\$|\\\()|(?:\$|\\\))$", "", expression).strip()
        return expression

    def value(self, given: str) -> Hashable:
        """A fraction, or the expanded expression as text; with its unit, where that is another than the reference's."""
        value, (_, unit) = canonical(in_base(given, self.base), ordered=self.ordered), split_unit(given)
        return (value, unit) if unit and self.unit and unit != self.unit else value

    def same(self, answer: str, given: str) -> bool:
        """Equal in value, exactly where both are exact."""
        return same_value(answer, in_base(given, self.base), ordered=self.ordered)


_DISPLAY = re.compile(r"\\\[((?:(?!\\\]).){1,500})\\\]|\$\$([^$]{1,500})\$\$", re.DOTALL)


@dataclass(frozen=True)
class Text(AnswerKind):
    """Words that are compared without regard to case and punctuation."""

    def find(self, text: str) -> str | None:
        """What is marked, else announced, else the last line."""
        marked = marked_text(text)
        return (stated_text(text) or _said(last_line(text)) if marked is None else marked) or None

    def value(self, given: str) -> Decimal | Fraction | str:
        """A number or the expression where it is one, else the words."""
        quantity = read_quantity(given)
        if quantity and quantity.unit in (None, "%", "$", "€", "£"):
            return quantity.share
        return canonical(given) if not quantity and _is_single_value(given) else _plain(given)

    def same(self, answer: str, given: str) -> bool:
        """The same words."""
        return _plain(answer) == _plain(given)


def _said(line: str) -> str:
    """What a line says that "it is", or in bold at its end: "It's Paris", "The capital is **Paris"; else the line."""
    bold = re.fullmatch(r"([^*]*[^*\s]\s+)\*\*([^*]+)(?:\*\*)?", line)
    if bold and not is_negated(bold[1]):
        return bold[2]
    return re.sub(r"^(?:it|this|that)(?:['’]s|\s+is|\s+was|\s+will\s+be)\s+(?:an?\s+)?(?=\S)", "", line, flags=re.IGNORECASE)


def _plain(text: str) -> str:
    text = strip_latex(text)
    return " ".join(re.sub(r"[^\w\s/+*=^<>.|-]", " ", text.casefold()).split()).strip(". ") or text
