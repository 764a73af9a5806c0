r"""What answers are written in: numbers with units, boxes, LaTeX around words.

>>> read_quantity(r"\$1,200")
Quantity(number=Decimal('1200'), unit='$')
>>> boxed(r"so $\boxed{\frac{1}{2}}$")
'\\frac{1}{2}'
"""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal
from typing import NamedTuple

_UNITS = {
    "%": "percent",
    "‰": "permille",
    "$": "dollar dollars usd",
    "€": "euro euros",
    "cent": "cents ¢",
    "mm": "millimeter millimeters millimetre millimetres",
    "cm": "centimeter centimeters centimetre centimetres",
    "m": "meter meters metre metres",
    "km": "kilometer kilometers kilometre kilometres",
    "in": "inch inches",
    "ft": "foot feet",
    "yd": "yard yards",
    "mi": "mile miles",
    "mg": "milligram milligrams",
    "g": "gram grams",
    "kg": "kilogram kilograms",
    "lb": "lbs pound pounds",
    "oz": "ounce ounces",
    "tonne": "tonnes ton tons",
    "gallon": "gallons gal",
    "quart": "quarts",
    "pint": "pints",
    "ml": "milliliter milliliters millilitre millilitres",
    "l": "liter liters litre litres",
    "s": "sec secs second seconds",
    "min": "mins minute minutes",
    "h": "hr hrs hour hours",
    "day": "days",
    "week": "weeks",
    "month": "months",
    "year": "years",
    "°": "degree degrees",
    "rad": "radian radians",
    "mph": "miles/hour mi/h",
    "km/h": "kmh kph",
    "m/s": "",
    "am": "a.m.",
    "pm": "p.m.",
}
SCALES = {
    "dozen": 12,
    "lakh": 10**5,
    "crore": 10**7,
    "mn": 10**6,
    "bn": 10**9,
    "tn": 10**12,
    "hundred": 100,
    "thousand": 1000,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
}
_UNIT_OF = {alias: unit for unit, aliases in _UNITS.items() for alias in (unit, *aliases.split())}
_POWERS = {"square": "2", "sq": "2", "cubic": "3", "²": "2", "³": "3", "2": "2", "3": "3"}
_LONG_NAMES = "|".join(re.escape(name) for name in sorted(_UNIT_OF, key=len, reverse=True) if len(name) > 1)
_LETTERS = "".join(re.escape(name) for name in _UNIT_OF if len(name) == 1)
_UNIT_NAMES = rf"{_LONG_NAMES}|(?-i:[{_LETTERS}L])"  # 12 m are meters, 12M are none
_UNIT = rf"""(?: (?:(?P<power>square|sq|cubic)\.?\s+)? (?P<unit>{_UNIT_NAMES}) (?<!\bin(?=\s+\w))
    (?P<exponent> \^?\{{?[23]\}}? | [²³])? (?!\w) )"""

_SCALE = rf"(?P<scale>{'|'.join(SCALES)})s?\b"
NUMBER = rf"""
    (?P<sign> (?<![\w)\]}}]) [-−–] | (?:minus|negative)\s )? (?P<currency>[$€£])?
    (?P<digits> (?P<comma> \d{{1,3}}(?:\.\d{{3}})+,\d{{1,2}} | (?<![(\[])0,\d+
          | \d+,\d{{1,2}}(?=\s?(?:\\?%|€|[ckm]?m\b|k?g\b|l\b|km/h)) )(?![\d,.]\d|\d|\s*[)\]])
      | (?:\d{{1,3}}(?:(?:,\d{{3}})+|(?:['’]\d{{3}})+|(?:_\d{{3}})+) | \d{{1,2}}(?:,\d{{2}}){{1,9}},\d{{3}} | \d+)
        (?:\.\d+)? (?:e[+-]?\d{{1,4}})? | \.\d+ )
    (?: [ ]*(?:[×·x*]|\\times|\\cdot)[ ]*10[ ]*\^[ ]*(?P<brace>\{{)?(?P<ten>[-−]?\d{{1,4}})(?(brace)\}}) )?
    (?: \s?{_SCALE} )?"""
_BEFORE = r"(?<![\w.√]) (?<![A-Za-z]-) (?<!\d:)"  # not within a word, a decimal, a root, COVID-19 or 10:30
_AFTER = r"(?! \w | \.\d | -[A-Za-z] | :\d )"
_PERCENT = r"(?P<percent> \s?% | \s+percent\b )"
_FLAGS = re.VERBOSE | re.IGNORECASE

PLAIN_NUMBER = re.compile(rf"{_BEFORE} {NUMBER} {_AFTER} {_PERCENT}?", _FLAGS)
NUMBER_WITH_UNIT = re.compile(rf"{_BEFORE} {NUMBER} (?: \s*{_UNIT} | {_AFTER} )", _FLAGS)

_LAST_UNIT = re.compile(rf"(?<=[\d)}}\s]) {_UNIT} \s* $", _FLAGS)
_COUNTED = re.compile(
    rf"{NUMBER} \s+ (?!(?:less|plus|minus|times)\b) (?:[a-z]{{2,}}s|people|men|women|children|sheep|fish)", re.VERBOSE
)
_THOUSANDS = re.compile(r"(?<=\d)(?:\{,\}|,\\!|\\,|[\u00a0\u2009\u202f])(?=\d{3}(?!\d))")
_STYLED = re.compile(r"\\(?:text|textbf|textit|textrm|mbox|mathrm|mathbf|operatorname)\s*\{([^{}]*)\}")
_SPACES = re.compile(r"(?<!\\)\\[,;: ]|~(?=\s*[A-Za-z\\])")
_WITH_UNIT = re.compile(rf"\$\s*({NUMBER} (?:\s*{_UNIT})?)\s*\$(?!\d) | \\\(\s*([-−]?\d[\d.,]*)\s*\\\)", _FLAGS)
_SUPERSCRIPTS = re.compile("(?<=[0-9A-Za-z)}])⁻?[⁰¹²³⁴-⁹]+")
_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?:\{|(?=[^\s{]))|\\.|[{}]", re.DOTALL)
_BETWEEN_BOXES = re.compile(r"[\s$,.]*(?:and|or)?[\s$,]*")


class Quantity(NamedTuple):
    """A number, and its unit as `_UNITS` writes it; None where it has none that we know."""

    number: Decimal
    unit: str | None = None

    def same(self, other: Quantity) -> bool:
        """Equal numbers with units that don't contradict each other; 25% is also 0.25."""
        as_units = self.number == other.number and (self.unit == other.unit or None in (self.unit, other.unit))
        return as_units or ("%" in (self.unit, other.unit) and self.share == other.share)

    @property
    def share(self) -> Decimal:
        """25% as 0.25."""
        return self.number / 100 if self.unit == "%" else self.number


def read_quantity(text: str) -> Quantity | None:
    """The number that the text is, with its unit ("12 cm", "$18", "25%", "12 apples"); None if it is anything else."""
    text = strip_latex(plain_units(text)).strip()
    if match := NUMBER_WITH_UNIT.fullmatch(text):
        quantity = quantity_of(match)
        is_list = (match["comma"] or "").startswith("0,") and quantity.unit is None  # as an answer by itself, "0,5" may be two
        return None if is_list else quantity
    match = _COUNTED.fullmatch(text)
    return Quantity(_decimal(match)) if match else None


def split_unit(text: str) -> tuple[str, str | None]:
    """An expression without the unit at its end, and that unit: one letter alone is a variable, unless LaTeX says text."""
    plain = strip_latex(plain_units(text))
    match = _LAST_UNIT.search(plain)
    if match is None or (match["unit"] in "%°$€" or (len(match["unit"]) == 1 and plain == text)):
        return text, None
    power = _POWERS.get((match["exponent"] or match["power"] or "").strip("^{}").casefold(), "")
    return plain[: match.start()].strip(), _UNIT_OF[match["unit"].casefold()] + power


def quantity_of(match: re.Match[str]) -> Quantity:
    """Number ("3 million" is multiplied out) and unit of a match of `NUMBER_WITH_UNIT` or `PLAIN_NUMBER`."""
    groups = match.groupdict()
    unit = "%" if groups.get("percent") else groups["currency"]
    if groups.get("unit"):
        power = (groups["exponent"] or groups["power"] or "").strip("^{}").casefold()
        unit = _UNIT_OF[groups["unit"].casefold()] + _POWERS.get(power, "")
    return Quantity(_decimal(match), unit)


def digits_of(match: re.Match[str]) -> str:
    """The number of a match of `NUMBER`, without separators, currency and "million"."""
    written = match["digits"].replace(".", "").replace(",", ".") if match["comma"] else match["digits"]
    digits = ("-" if match["sign"] else "") + re.sub("[,'’_]", "", written)
    return str(Decimal(digits).scaleb(int(match["ten"].replace("−", "-")))) if match["ten"] else digits


def _decimal(match: re.Match[str]) -> Decimal:
    number = Decimal(digits_of(match))
    return number * SCALES[match["scale"].casefold()] if match["scale"] else number


def plain_thousands(text: str) -> str:
    r"""The commas that LaTeX and typesetters write, `{,}`, `\,` and thin spaces, as ",", and `\%` as "%"."""
    return _THOUSANDS.sub(",", text).replace(r"\%", "%")


def plain_powers(text: str) -> str:
    """Superscripts as powers: 10⁻² is 10^{-2}."""
    return _SUPERSCRIPTS.sub(lambda raised: f"^{{{unicodedata.normalize('NFKC', raised.group())}}}".replace("−", "-"), text)


def plain_units(text: str) -> str:
    r"""Numbers and their units as words: `5\,\text{cm}` and `$5$ cm` are "5 cm"."""
    text = _SPACES.sub(" ", _STYLED.sub(r"\1", plain_powers(plain_thousands(text))))
    return _WITH_UNIT.sub(lambda match: match.group().strip("$\\() "), text)


def strip_latex(text: str) -> str:
    r"""LaTeX that surrounds words and numbers is taken off: `$...$`, `\text{...}`, `\$`, `\%`, `^\circ`, `1{,}000`."""
    text = _SPACES.sub(" ", _STYLED.sub(r"\1", plain_thousands(text))).replace(r"\$", "\0")
    text = re.sub(r"\^?\{?\\circ\}?|\\degree", "°", text).strip()
    for start, end in (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")):
        if len(text) > len(start + end) and text.startswith(start) and text.endswith(end):
            text = text[len(start) : -len(end)]
    return re.sub(r"(?<!\\)\\ ", " ", text.replace("\0", "$")).strip()


def boxed(text: str) -> str | None:
    r"""What stands in the last `\boxed{}` (or in the last ones, where only "and" or a comma is between them)."""
    boxes = _boxes(text)
    if not boxes:
        return None
    first = len(boxes) - 1
    while first and _BETWEEN_BOXES.fullmatch(text, boxes[first - 1][1] + 1, text.rfind("\\", 0, boxes[first][0])):
        first -= 1
    return ", ".join(text[start:end].strip() for start, end in boxes[first:])


def has_open_box(text: str) -> bool:
    """Whether a box is opened and never closed: the text was cut off in it."""
    return "\\boxed{" in text and not _boxes(text)


def _boxes(text: str) -> list[tuple[int, int]]:
    """Start and end of what stands in each box that isn't within another."""
    spans: list[tuple[int, int]] = []
    opened: list[int | None] = []  # where each open brace's box began; None: a brace of its own
    for match in _BOX.finditer(text):
        if match.group().startswith(("\\boxed", "\\fbox")):
            if match.group().endswith("{"):
                opened.append(match.end())
            elif bare := re.compile(r"[^\s$.,]+").match(text, match.end()):
                spans.append(bare.span())
        elif match.group() == "{":
            opened.append(None)
        elif match.group() == "}" and opened and (start := opened.pop()) is not None:
            while spans and spans[-1][0] > start:
                spans.pop()
            spans.append((start, match.start()))
    return spans
