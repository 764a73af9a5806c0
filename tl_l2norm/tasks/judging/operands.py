"""Numbers that are no value of their own, because more mathematics stands around them: 12 in "12 squared" or "half of 12"."""

from __future__ import annotations

import re

_AFTER = re.compile(
    r"""\s*\\(?:pi|sqrt|[dt]?frac|[dt]?binom|pm|mp|times|cdot|div|p?mod|bmod|choose|alpha|beta|theta|[lc]?dots|sin|cos|tan|log|ln|exp
        |le|ge|lt|gt|ne)(?:q)?(?![A-Za-z])
    | \s*[±∓π√×·÷≤≥≠] | [²³¹⁰⁴-⁹⁻^_|] | !(?=\s*[$})\].,+*/=!^-]) | \\%(?=[A-Za-z(\\])
    | \((?=\s*(?:[-\d]|[A-Za-z]\s*[-+*/^)])) | \{
    | \s+(?:mod(?:ulo)?|choose|times|plus|minus|over|divided\s+by|multiplied\s+by|to\s+the\s+power\s+of|raised\s+to|per)
      \s+(?:the\s+power\s+of\s+)? (?=[-\d$(\\√πA-Z] | [b-z]\b | (?:one|two|three|four|five|six|seven|eight|nine|ten|pi)\b)
    | \s+(?:squared|cubed|factorial|pi|root|raised)\b | \s+to\s+the\s+(?:power|\w+th|\w*(?:second|third))\b
    | \s+or\s+(?:more|less|fewer|greater|higher|lower|above|below)\b
    | \s+and\s+(?:an?|one|two|three|four|five|\d+)[\s-]+(?:half|halves|thirds?|quarters?|fourths?|fifths?|sixths?|eighths?|tenths?)\b
    | \s+(?:halves|thirds|quarters|fourths|fifths|sixths|sevenths|eighths|ninths|tenths|hundredths)\b
    | \s+(?![aAIVxX]\b|[mgshlCFKLVWNJ]\b)[b-zB-Z](?![\w'’.)]|\s+[a-z]{2}) (?=\s*(?:[.$,;)}\]+*/^=-]|$)) | \s+x(?=\s*(?:[.$,;)}\]+/^=-]|$))""",
    re.VERBOSE,
)
_BEFORE = re.compile(
    r"""(?: (?:[<>≠≤≥√∛~^_|] | !=) \s* | \\(?:leq?|geq?|neq?|lt|gt|not|sqrt|approx|pm|mp)(?:\[\d+\])? | [±∓]
      | \b(?:log|ln|lg|exp|sin|cos|tan|sqrt|root|abs)\b
      | \b(?:half|halves|thirds?|quarters?|fourths?|fifths?|sixths?|sevenths?|eighths?|ninths?|tenths?|hundredths?|root|squares?|cubes?|power
          |double|triple|negative|opposite|reciprocal|inverse|logarithm|log|factorial|multiples?|factors?|divisors?|complement
          |percent|%|digits|modul(?:us|o)) \s+ of
      | \b(?:twice|thrice|double|triple|times|divided\s+by|multiplied\s+by|mod(?:ulo)?|squared|choose|half|more\s+than|less\s+than|under|below|above)
    ) [\s*$({\\]* $""",
    re.VERBOSE | re.IGNORECASE,
)
_WITHIN_AFTER = re.compile(r"\s*[/^%+*×·÷]|\s*\\%|\s*[-−–]\s*\d|[.,:]\d")
_WITHIN_BEFORE = re.compile(r"(?:[\d)}]\s*[/^+*×·÷]|\d[.,:]|[-−–.])\s*$")
_PERCENT_OF = re.compile(r"\s+of\s+[$(\\]*\d")
_WINDOW = 60


def is_operand(text: str, number: re.Match[str]) -> bool:
    """Whether a number that was found in a text is a part of an expression, a bound or a fraction in words."""
    end = number.end()
    if _AFTER.match(text, end) or _BEFORE.search(text[max(0, number.start() - _WINDOW) : number.start()]):
        return True
    if not number.group().endswith(("%", "percent")):
        return False
    return text[end : end + 1].isalpha() or bool(_PERCENT_OF.match(text, end))


def is_within(text: str, number: re.Match[str]) -> bool:
    """Whether a number is a part of another one: of a fraction, a decimal, a sum, a negative or a percentage."""
    return bool(_WITHIN_AFTER.match(text, number.end()) or _WITHIN_BEFORE.search(text[: number.start()][-_WINDOW:]))
