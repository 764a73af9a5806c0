"""Text on a stream whose encoding hasn't all of it."""

from __future__ import annotations

import codecs
import io
from typing import Any

_NEAREST = {
    "─": "-",
    "—": "-",
    "–": "-",
    "−": "-",
    "→": "->",
    "×": "x",
    "…": "...",
    "’": "'",
    "“": '"',
    "”": '"',
    "≤": "<=",
    "≥": ">=",
}


def bear_any_text(stream: Any) -> None:
    """Let a stream of text write what its encoding lacks: by what is nearest, else by its code.

    A pipe on Windows and a terminal under LC_ALL=C know neither the rule of a table nor a name of a file in Chinese; an error
    after the work is done would lose it.
    """
    if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
        stream.reconfigure(errors=_NAME)


def _nearest(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(_NEAREST.get(c) or c.encode("ascii", "backslashreplace").decode() for c in lacking), error.end


_NAME = "tl_l2norm.nearest"
codecs.register_error(_NAME, _nearest)
