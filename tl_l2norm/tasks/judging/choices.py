r"""Multiple choice: the options that a question offers, and which of them a reference answer means.

>>> inline_choices("Which? (A) red (B) blue")
('red', 'blue')
>>> lettered(("red", "blue"))
'A. red\nB. blue'
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

from tl_l2norm.core.errors import InputError

LETTERS = string.ascii_uppercase
_LABEL = re.compile(r"\s*\(?(?:option\s+)?([A-Za-z])(?:\)|[).:])?\s*", re.IGNORECASE)
_LABELLED = re.compile(r"\s*(?:\(([A-Z])\)|([A-Z])[).:])\s*(?=\S)")
_INLINE = re.compile(r"(?:(?<=\s)|^)(?:\(([A-Za-z])\)|([A-Z])[).:])[ \t]*(?=\S)", re.MULTILINE)


def label_of(answer: str) -> str | None:
    """The letter that an answer is: "B" of "B", "(b)", "B." and "option B"; None where it is anything else."""
    match = _LABEL.fullmatch(answer)
    if match is None or not (match[1].isupper() or answer.strip() != match[1]):
        return None
    return match[1].upper()


def is_lettered(options: Sequence[str]) -> bool:
    """Whether options are the first letters, "A", "B", and so on."""
    return len(options) > 1 and tuple(options) == tuple(LETTERS[: len(options)])


def inline_choices(question: str) -> tuple[str, ...]:
    """What stands after (A), (B), ... or A), B. and so on in a question; () where it offers no two in order."""
    marks = list(_INLINE.finditer(question))
    # A question may mention a letter before it lists them: the list is the last that begins with A.
    starts = [i for i, mark in enumerate(marks) if _letter(mark) == "A"]
    marks = marks[starts[-1] :] if starts else []
    count = next((i for i, mark in enumerate(marks) if i >= len(LETTERS) or _letter(mark) != LETTERS[i]), len(marks))
    if count < 2:
        return ()
    ends = [mark.start() for mark in marks[1:count]] + [len(question)]
    texts = [question[mark.end() : end] for mark, end in zip(marks, ends, strict=False)]
    return tuple(text.strip().partition("\n")[0].strip(" ,;") for text in texts)


def without_labels(choices: Sequence[str]) -> tuple[str, ...]:
    """Choices without the letters that some files write before them: "A)21" is "21"."""
    marks = [_LABELLED.match(choice) for choice in choices]
    if all(mark and _letter(mark) == LETTERS[i] for i, mark in enumerate(marks)):
        return tuple(choice[mark.end() :].strip() for choice, mark in zip(choices, marks, strict=True) if mark)
    return tuple(choice.strip() for choice in choices)


def lettered(choices: Sequence[str]) -> str:
    """The choices as a list, a line each."""
    return "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False))


def chosen_letter(answer: str | int, choices: Sequence[str], labels: Sequence[str] = ()) -> str:
    """The letter of the choice that a reference answer means: its label, its letter, its text, or its index from 0.

    A whole number that isn't text is the index, whatever the texts of the choices are.

    Raises:
        InputError: it means none of them, or two different ones.
    """
    if isinstance(answer, int) and not labels and 0 <= answer < len(choices):
        return LETTERS[answer]
    text = str(answer).strip()
    meant = {i for i, choice in enumerate(choices) if choice.casefold() == text.casefold()}
    if labels:
        meant = {i for i, label in enumerate(labels) if label.casefold() == text.casefold()} or meant
    else:
        if (letter := label_of(text)) and letter in LETTERS[: len(choices)]:
            meant.add(LETTERS.index(letter))
        if text.isdecimal() and int(text) < len(choices):
            meant.add(int(text))
    if len(meant) != 1:
        among = " and ".join(LETTERS[i] for i in sorted(meant)) or "none"
        raise InputError(
            f"the answer {text!r} means {among} of the {len(choices)} choices: give a letter, from A on, or an index from 0"
        )
    return LETTERS[meant.pop()]


def _letter(mark: re.Match[str]) -> str:
    return (mark[1] or mark[2]).upper()
