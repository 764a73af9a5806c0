"""Where in a sentence an expression stands."""

from __future__ import annotations

import re

from tl_l2norm.tasks.judging.math import is_mathematical
from tl_l2norm.tasks.judging.responses import bare
from tl_l2norm.tasks.judging.text import read_quantity

_FILLER = re.compile(
    r"(?:(?:the|a|an|number|value|simply|exactly|approximately|about|therefore|thus|now|equal to)\s+|[:≈*\s])*"
)
MATHS = re.compile(r"\$[^$]{1,500}\$|\\\((?:(?!\\\)).){1,500}\\\)")
_LEADS = tuple(
    re.compile(rf".*(?:{word})\s*(.+)", re.DOTALL) for word in (r"\b(?:is|are|equals|be|get|obtain|have|gives)\b|[:≈]", "=")
)
_LONGEST = 30  # words of an expression
_NEGATED = re.compile(
    r"(?:\b(?:not|cannot|never|neither|nor|either|doubt|impossible|unlikely|false|untrue|whether)|n['’]t)\b[^.]*$|\?\s*$",
    re.IGNORECASE,
)


def leading(text: str) -> str | None:
    """The expression that a statement begins with: "1/4 of the cake", "$x = 1$ or $x = 2$"."""
    text = text[_FILLER.match(text).end() :]  # type: ignore[union-attr]
    if is_mathematical(text):
        return text
    if MATHS.match(text):
        end = max(span.end() for span in MATHS.finditer(text))
        joints = re.sub(MATHS, "", text[:end])
        is_list = not re.sub(r"\b(?:and|or)\b|[\s,=;]", "", joints)
        return text[:end] if is_list else MATHS.match(text).group()  # type: ignore[union-attr]
    words = text.split(" ")
    lengths = [n for n in range(min(len(words), _LONGEST), 0, -1) if words[n - 1] not in ("a", "I")]
    beginnings = (" ".join(words[:n]).rstrip(" ,;:").removesuffix(", or") for n in lengths)
    expression = next((part for part in beginnings if is_mathematical(part) or read_quantity(part)), None)
    rest = text[len(expression) :] if expression else ""
    return None if re.match(r"[\s,]*(?:is|was)\s+(?:not|wrong|incorrect)\b", rest) else expression


def trailing(line: str) -> str | None:
    r"""The expression that a line ends with, or the only one in a sentence: "so it is 1/4", "it is $\frac14$ cm long."."""
    text = bare(line)
    if is_mathematical(text) or read_quantity(text):
        return text
    spans = list(MATHS.finditer(text))
    if spans:
        before, after = text[: spans[-1].start()], text[spans[-1].end() :].strip(" .*")
        is_listed = re.search(r"(?:\$|\\\)|\b(?:and|or))\s*,?\s*(?:and|or)?\s*$", before)
        is_whole = not after or (len(spans) == 1 and line.rstrip(" *").endswith("."))
        is_value = is_mathematical(spans[-1].group()) or read_quantity(spans[-1].group())
        return spans[-1].group() if is_whole and is_value and not is_listed and not is_negated(before) else None
    sentence = re.split(r"(?<=\.)\s+", text)[-1]
    for match in filter(None, (lead.fullmatch(sentence) for lead in _LEADS)):
        part = leading(match[1])
        is_whole = bool(part) and (part == bare(match[1]) or line.rstrip(" *").endswith("."))
        if is_whole and not is_negated(sentence[: match.start(1)]):
            return part
    return None


def is_negated(before: str) -> bool:
    """Whether what follows these words is denied, doubted or asked."""
    return bool(_NEGATED.search(before[-200:]))
