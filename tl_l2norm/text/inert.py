"""Text of tokens that a terminal or a page shows and never obeys."""

from __future__ import annotations

import unicodedata

_MARKS = {code: chr(0x2400 + code) for code in range(0x20)} | {0x7F: "\u2421", ord("\n"): "↵", ord("\t"): "⇥"}
"""Of newline, tab and control characters, by code."""
_OBEYED = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
"""Unicode's categories of what moves a cursor, turns the direction of writing, joins, breaks lines or can't be encoded."""


def inert(text: str) -> str:
    r"""Text in which everything that controls how text is shown is a mark of its own.

    Newlines and tabs become ↵ and ⇥, control characters their Unicode pictures, and what has none its code: no token can move a
    cursor, colour what follows, set a title or turn the direction of writing.

    Examples:
        >>> inert("\x1b[31mred\n"), inert("a\u202eb\x9b2J"), inert("naïve 数学 🧠")
        ('␛[31mred↵', 'a‹202E›b‹9B›2J', 'naïve 数学 🧠')
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_shown(character) for character in text)


def _shown(character: str) -> str:
    if (named := _MARKS.get(ord(character))) is not None:
        return named
    return f"‹{ord(character):02X}›" if unicodedata.category(character) in _OBEYED else character
