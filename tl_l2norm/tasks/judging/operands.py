"""Numbers that are no value of their own, because more mathematics stands around them: 12 in "12 squared" or "half of 12"."""

from __future__ import annotations

import re

_PARTS = "half|halves|thirds?|quarters?|fourths?|fifths?|sixths?|sevenths?|eighths?|ninths?|tenths?|hundredths?"
_NUMERALS = "one|two|three|four|five|six|seven|eight|nine|ten|pi"
_COMMANDS = (
    "pi|sqrt|[dt]?frac|[dt]?binom|pm|mp|times|cdot|div|p?mod|bmod|choose|alpha|beta|theta|[lc]?dots|sin|cos|tan|log|ln|exp"
    "|leq?|geq?|neq?|lt|gt"
)
_AFTER = re.compile(
    rf"""\s*\\(?:{_COMMANDS})(?![A-Za-z])
    | \s*[±∓π√×·÷≤≥≠] | [²³¹⁰⁴-⁹⁻^_|] | !(?=\s*[$}})\].,+*/=!^-]) | \\%(?=[A-Za-z(\\])
    | \((?=\s*(?:[-\d]|[A-Za-z]\s*[-+*/^)])) | \{{
    | \s+(?:mod(?:ulo)?|choose|times|plus|minus|over|divided\s+by|multiplied\s+by|to\s+the\s+power\s+of|raised\s+to)
      \s+(?:the\s+power\s+of\s+)? (?=[-\d$(\\√πA-Z] | [b-z]\b | (?:{_NUMERALS})\b)
    | \s+(?:squared|cubed|factorial|pi|raised)\b | \s+to\s+the\s+(?:power|\w+th|\w*(?:second|third))\b
    | \s+or\s+(?:more|less|fewer|greater|higher|lower|above|below)\b
    | \s+and\s+(?:an?|\d+|{_NUMERALS})[\s-]+(?:{_PARTS})\b | \s+(?!half\b|quarter\b|second)(?:{_PARTS})(?<=s)\b
    | \s*[-+−]\s*(?![aI]\b)[A-Za-z](?=\s*(?:[.$,;)}}\]+*/^=−-]|$))
    | \s+(?![aAIVX]\b|[mgshlCFKLVWNJ]\b) [b-zB-Z] (?=\s*(?:[.$,;)}}\]+*/^=]|-(?![A-Za-z]{{2}})|$))""",
    re.VERBOSE,
)
_OPERATIONS = (
    "roots?|squares?|cubes?|powers?|double|triple|negative|opposite|reciprocal|inverse|log(?:arithm)?|factorial|multiples?"
    "|factors?|divisors?|complement|percent|%|modul(?:us|o)"
)
_BEFORE = re.compile(
    rf"""(?: (?:[<>≠≤≥√∛^_|±∓] | !=) \s* | \\(?:leq?|geq?|neq?|lt|gt|not|sqrt|pm|mp)(?:\[\d+\])?
      | [A-Za-z]\([^()\n]{{0,40}} | [\w)}}] \s* \+ | (?:\b[kmnxyz]|[\w)}}]\^\{{?\w+\}}?) \s* [-−]
      | \b(?:log|ln|lg|exp|sin|cos|tan|sqrt|root|abs)\b | (?:\b(?:{_PARTS}|{_OPERATIONS})|%) \s+ of
      | \b(?:twice|thrice|double|triple|times|(?:divided|multiplied)\s+by|mod(?:ulo)?|choose|half|(?:more|less)\s+than)
    ) [\s*$({{\\]* $""",
    re.VERBOSE | re.IGNORECASE,
)
_WITHIN_AFTER = re.compile(r"\s*[/^%+×·÷]|\s*\*\s*\d|\s*\\%|\s*[-−–]\s*\d|[.,:]\d")
_WITHIN_BEFORE = re.compile(r"(?:[\d)}]\s*[/^+×·÷]|\d\s*\*|\d[.,:]|[-−–.])\s*$")
_PERCENT_OF = re.compile(r"\s+of\s+[$(\\]*\d")
_HTML = re.compile(r"</?\w+>\s*$")
_WINDOW = 60


def is_operand(text: str, number: re.Match[str]) -> bool:
    """Whether a number that was found in a text is a part of an expression, a bound or a fraction in words."""
    end = number.end()
    before = _HTML.sub("", text[max(0, number.start() - _WINDOW) : number.start()])
    if _AFTER.match(text, end) or _BEFORE.search(before):
        return True
    if not number.group().endswith(("%", "percent")):
        return False
    return text[end : end + 1].isalpha() or bool(_PERCENT_OF.match(text, end))


def is_within(text: str, number: re.Match[str]) -> bool:
    """Whether a number is a part of another one: of a fraction, a decimal, a sum, a negative or a percentage."""
    return bool(_WITHIN_AFTER.match(text, number.end()) or _WITHIN_BEFORE.search(text[: number.start()][-_WINDOW:]))
