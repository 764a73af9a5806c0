"""One record of a table as a problem: which columns hold what, chats, choices."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, NamedTuple

from tl_l2norm.core.errors import InputError, InputTypeError
from tl_l2norm.tasks.files import Record
from tl_l2norm.tasks.judging.choices import LETTERS, chosen_letter, lettered, without_labels
from tl_l2norm.tasks.judging.references import final_answer
from tl_l2norm.tasks.problems import Problem, family_text, question_text, unknown, whole_level
from tl_l2norm.text.thoughts import read

QUESTIONS = ("question", "problem", "prompt", "messages", "instruction", "input")
ANSWERS = (
    *("answer", "final_answer", "correct_answer", "expected_answer", "ground_truth"),
    *("answerkey", "target", "label", "solution"),
)
_LIKE_ANSWERS = {*ANSWERS, "correct", "expected", "gold", "output", "reference", "response", "completion"}
_LIKE_ANSWERS |= {"correct_option", "correct_choice", "answer_index"}
_CHOICES = ("choices", "options", "endings")
_CONTEXTS = ("context", "passage", "article", "story")
_CHOOSE = "rename the column, or name it with load_problems(..., {}=...)"
_FEW_WORDS = 5
_WORKING = re.compile(r"=|[.:;!?]\s")
_LEVEL = re.compile(r"level (\d+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Which columns of a table hold questions and answers, in lower case."""

    question: str
    answer: str | None
    not_read: str = ""
    """What else could have been meant, and is not read; "" where nothing could."""

    @classmethod
    def among(cls, records: Sequence[Record], question: str | None, answer: str | None, table: str) -> Columns:
        """The columns asked for, else the first of the usual names that any record has."""
        cells = (cell for record in records for cell in record.cells.items())
        names = {name: None for name, value in cells if value is not None or name == "question"}
        for name, asked in (("question", question), ("answer", answer)):
            if not (asked is None or isinstance(asked, str)):
                raise InputTypeError(f"{name} is the name of a column, got {asked!r:.80}")
            if asked is not None and asked.casefold() not in names:
                raise InputError(f"{table}: {unknown('column', asked, list(names))}")
        questions, answers = ([name for name in usual if name in names] for usual in (QUESTIONS, ANSWERS))
        if not question and not questions:
            raise InputError(
                f"{table}: no column has the questions ({', '.join(QUESTIONS)}): "
                f"{_CHOOSE.format('question')}: there are {', '.join(names) or 'no columns'}"
            )
        chosen = question.casefold() if question else questions[0]
        known = answer.casefold() if answer else next(iter(answers), None)
        if chosen == "instruction" and "input" in questions:
            questions.remove("input")  # is asked with it
        notes = [] if question else _also("questions", chosen, [name for name in questions if name != chosen])
        notes += [] if answer or known is None else _also("answers", known, [name for name in answers if name != known])
        if known is None:
            near = [name for name in names if name != chosen and difflib.get_close_matches(name, _LIKE_ANSWERS, 1, 0.75)]
            named = ", ".join(map(repr, near))
            notes += [f"no answers are read, from {named} neither ({_CHOOSE.format('answer')})"] if near else []
        notes += [f"the column {name!r} is not asked" for name in _CONTEXTS if name in names and name != chosen]
        return cls(question=chosen, answer=known, not_read="; ".join(notes))


def _also(what: str, chosen: str, others: Sequence[str]) -> list[str]:
    named = ", ".join(map(repr, others))
    choose = _CHOOSE.format(what[:-1])
    return [f"{what} are read from the column {chosen!r}, not from {named} ({choose})"] if others else []


def check_names(records: Sequence[Record], columns: Columns, table: str) -> None:
    """Refuse a record that lacks a column that is read and has one of almost its name, which no record with that column has."""
    names = {columns.question, columns.answer, *_CHOICES, "family", "level", "system"}
    forms = {frozenset(record.cells): record.place for record in reversed(records)}
    for name in sorted(set().union(*forms) & names):
        usual = {*names, *QUESTIONS, *ANSWERS}.union(*(form for form in forms if name in form))
        for form, place in forms.items():
            if name not in form and (near := difflib.get_close_matches(name, sorted(form - usual), 1, 0.75)):
                raise InputError(
                    f"{table}, {place}: no {name!r}, which other rows have, but {near[0]!r}: give both the same name"
                )


def is_worked_solution(record: Record, columns: Columns, problem: Problem) -> bool:
    """Whether a reference that marks no answer, and so was taken as it stands, reads like sentences that lead to one."""
    given = record.cells.get(columns.answer) if columns.answer else None
    if not isinstance(given, str) or problem.answer != given or problem.options:
        return False
    return len(given.split()) > _FEW_WORDS and bool(_WORKING.search(given.strip()))


def problem_of(cells: Mapping[str, Any], columns: Columns, source: str) -> Problem:
    """The problem of a record.

    Raises:
        InputError: no question, or anything in the record that can't be understood.
    """
    question, system, said = _question(cells, columns)
    given: Any = cells.get(columns.answer) if columns.answer else None
    given = said if given is None else given
    if isinstance(given, str) and read(given).unclosed is not None:
        raise InputError(f"the answer begins a thought and never ends it: {given[:40]!r}...")
    choices, labels, are_numbers = _choices(cells)
    answer = final_answer(given)
    options: tuple[str, ...] = ()
    texts = without_labels(choices) if choices else ()
    if texts:
        if len(set(texts)) < len(texts):
            raise InputError(f"two choices are the same: {', '.join(map(repr, texts)):.80}")
        is_index = not isinstance(given, bool) and isinstance(given, Integral) and not are_numbers
        meant = int(given) if is_index else answer
        answer = None if meant is None else chosen_letter(meant, texts, labels)
        question = question if _lists(question, texts) else f"{question}\n{lettered(texts)}"
        options = tuple(LETTERS[: len(texts)])
    family = family_text("custom" if cells.get("family") is None else cells["family"])
    return Problem(
        question=question,
        answer=answer,
        family=family,
        level=_level(cells.get("level")),
        options=options,
        option_texts=texts,
        system=system,
        source=source,
    )


def _question(cells: Mapping[str, Any], columns: Columns) -> tuple[str, str | None, str | None]:
    """The question, a system message, and what an assistant answered."""
    asked = cells.get(columns.question)
    if asked is None:
        raise InputError("no question" if columns.question == "question" else f"no question in {columns.question!r}")
    if isinstance(asked, list):
        return _of_chat(asked)
    more = cells.get("input") if columns.question == "instruction" else None
    if isinstance(asked, str) and isinstance(more, str) and more.strip():
        asked = f"{asked}\n\n{more}"
    asked = question_text(asked)
    system = cells.get("system")
    if system is not None and not isinstance(system, str):
        raise InputError(f"a system message is text, got {system!r:.60}")
    return asked, system or None, None


def _of_chat(messages: Sequence[Any]) -> tuple[str, str | None, str | None]:
    turns: dict[str, list[str]] = {"system": [], "user": [], "assistant": []}
    for message in messages:
        role = message.get("role") if isinstance(message, Mapping) else None
        role = "system" if role == "developer" else role
        if role not in turns:
            raise InputError(f"a message has a role (system, user or assistant) and content, got {message!r:.60}")
        turns[role].append(_content(message))
    if len(turns["user"]) != 1 or any(len(said) > 1 for said in turns.values()):
        raise InputError(f"a chat must have one user message, not {len(turns['user'])}: earlier turns can't be asked again")
    return turns["user"][0], next(iter(turns["system"]), None), next(iter(turns["assistant"]), None)


def _content(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    texts = [part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise InputError(f"the content of a message must be text, got {content!r:.60}")
    return "".join(map(str, texts))


class _Choices(NamedTuple):
    texts: tuple[str, ...]
    labels: tuple[str, ...] = ()
    """() where they have none of their own."""
    are_numbers: bool = False
    """Whether some are numbers: one that is given as the answer may be one of them, or an index."""


def _choices(cells: Mapping[str, Any]) -> _Choices:
    """The choices of a record, if there are any."""
    choices = next((cells[name] for name in _CHOICES if cells.get(name) is not None), None)
    choices = _of_letters(cells) if choices is None else choices
    if choices is None:
        return _Choices(())
    labels: Any = ()
    if isinstance(choices, Mapping) and "text" in choices:
        choices, labels = choices["text"], choices.get("label", ())
    elif isinstance(choices, Mapping):
        choices, labels = list(choices.values()), list(choices)
    elif isinstance(choices, list) and choices and all(isinstance(choice, Mapping) for choice in choices):
        choices, labels = [choice.get("text") for choice in choices], [choice.get("label") for choice in choices]
    texts = (int, float, str)
    if (
        not isinstance(choices, list | tuple)
        or not all(isinstance(c, texts) and str(c).strip() for c in choices)
        or len(choices) == 1
    ):
        raise InputError(f"choices must be a list of at least two texts, got {choices!r:.80}")
    if len(choices) > len(LETTERS):
        raise InputError(f"{len(choices)} choices: no more than {len(LETTERS)} can be named by letters")
    labels = [label for label in labels if label is not None]
    if labels and len(labels) != len(choices):
        raise InputError(f"{len(choices)} choices have {len(labels)} labels")
    numbers = [isinstance(choice, int | float) and not isinstance(choice, bool) for choice in choices]
    written = [str(final_answer(c)) if is_number else str(c) for c, is_number in zip(choices, numbers, strict=True)]
    return _Choices(tuple(written), tuple(map(str, labels)), any(numbers))


def _of_letters(cells: Mapping[str, Any]) -> list[Any] | None:
    """What stands in columns `a`, `b` and so on; a record may leave out the last ones, or all."""
    if "a" not in cells or "b" not in cells:
        return None
    columns = [cells.get(letter) for letter in "abcdefghij"]
    filled = [value for value in columns if value is not None]
    if columns[: len(filled)] != filled or len(filled) == 1:
        blank = "abcdefghij"[columns.index(None)]
        raise InputError(f"the choice in column {blank!r} is blank: fill it, or leave out the last ones alone")
    return filled or None


def _lists(question: str, choices: Sequence[str]) -> bool:
    """Whether a question has its choices in it already, each after its letter."""
    return all(
        re.search(rf"(?<!\w)\(?{letter}[).:]\s*{re.escape(choice)}", question, re.IGNORECASE)
        for letter, choice in zip(LETTERS, choices, strict=False)
    )


def _level(level: object) -> int:
    match = _LEVEL.fullmatch(level.strip()) if isinstance(level, str) else None
    return int(match[1]) if match else whole_level(1 if level is None else level)
