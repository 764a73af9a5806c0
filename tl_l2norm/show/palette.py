"""The colours of tokens: steps of one hue for light and for dark pages, each with ink that can be read on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

N_STEPS = 32
HIGH_COLOUR, SINK_COLOUR = "#e69f00", "#c4c4c4"
"""White to orange is monotone in lightness, told apart by every kind of sight, and black text is legible on all of it."""

DARK_LOW, DARK_SINK = "#1b1a18", "#5c5c5c"
"""In the dark the steps run the other way: from the page's own black up to the same orange."""

_BLACK, _WHITE = "#000000", "#ffffff"


@cache
def steps(*, dark: bool = False) -> tuple[str, ...]:
    """[step] colours from the least to the greatest value, evenly spaced in OKLab."""
    low, high = (_oklab(colour) for colour in (DARK_LOW if dark else _WHITE, HIGH_COLOUR))
    places = [step / (N_STEPS - 1) for step in range(N_STEPS)]
    return tuple(_hex([a + (b - a) * place for a, b in zip(low, high, strict=True)]) for place in places)


@cache
def ink(colour: str) -> str:
    """Black or white, whichever stands out more on a colour."""
    return max((_BLACK, _WHITE), key=lambda text: contrast(colour, text))


def contrast(one: str, other: str) -> float:
    """WCAG's contrast ratio of two colours, 1 to 21."""
    high, low = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def step_of(place: float) -> int:
    """Step of a place on the scale, 0 to 1."""
    return min(N_STEPS - 1, max(0, round(place * (N_STEPS - 1))))


@cache
def palette_css() -> str:
    """Custom properties with the steps of each theme, and a class for each step: no element needs a style of its own."""
    light, dark = _properties(steps(), SINK_COLOUR), _properties(steps(dark=True), DARK_SINK)
    classes = [f".l2-c{i}{{background:var(--l2-c{i});color:var(--l2-t{i})}}" for i in range(N_STEPS)]
    return "\n".join(
        [
            f".l2-tokens{{{light}}}",
            f"@media screen and (prefers-color-scheme:dark){{.l2-tokens:not([data-theme=light]){{{dark}}}}}",
            f"@media screen{{.l2-tokens[data-theme=dark]{{{dark}}}}}",
            *classes,
            ".l2-sink{background:var(--l2-sink);color:var(--l2-sink-ink)}",
        ]
    )


def _properties(colours: Sequence[str], sink: str) -> str:
    pairs = [f"--l2-c{i}:{colour};--l2-t{i}:{ink(colour)}" for i, colour in enumerate(colours)]
    return ";".join([*pairs, f"--l2-sink:{sink};--l2-sink-ink:{ink(sink)}"])


def _channels(colour: str) -> list[float]:
    """Linear red, green and blue, 0 to 1."""
    values = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values]


def _luminance(colour: str) -> float:
    red, green, blue = _channels(colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _oklab(colour: str) -> list[float]:
    """OKLab of a colour (Ottosson, 2020, bottosson.github.io/posts/oklab)."""
    r, g, b = _channels(colour)
    long = math.cbrt(0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b)
    medium = math.cbrt(0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b)
    short = math.cbrt(0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b)
    return [
        0.2104542553 * long + 0.7936177850 * medium - 0.0040720468 * short,
        1.9779984951 * long - 2.4285922050 * medium + 0.4505937099 * short,
        0.0259040371 * long + 0.7827717662 * medium - 0.8086757660 * short,
    ]


def _hex(oklab: Sequence[float]) -> str:
    lightness, a, b = oklab
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = (
        4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
    )
    return "#" + "".join(f"{_byte(channel):02x}" for channel in linear)


def _byte(linear: float) -> int:
    value = min(1.0, max(0.0, linear))
    return round(255 * (12.92 * value if value <= 0.0031308 else 1.055 * value ** (1 / 2.4) - 0.055))
