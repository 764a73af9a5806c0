"""Draw a response in a terminal while it is written: tokens lit by norm, and beside each line how its norms ran."""

from __future__ import annotations

import os
from typing import Any

from rich.cells import cell_len, chop_cells
from rich.color import Color, ColorSystem
from rich.console import Console

from tl_l2norm.recording.token_stream import TokenStep
from tl_l2norm.show.following import ASCII_SPARKS, SPARKS, Following, Outcome, sparkline
from tl_l2norm.text.inert import inert

_SYSTEMS = {"standard": ColorSystem.STANDARD, "256": ColorSystem.EIGHT_BIT, "truecolor": ColorSystem.TRUECOLOR}
_LEVELS, _UNLIT = 12, 3
"""Steps of the colour scale, and how many of the lowest have no colour."""
_HIGH = (230, 159, 0)
_MARGIN, _GAP, _NARROW = 24, 2, 40
"""Columns of the sparkline and before it; below the last there is none."""
_PROMPT_LINES = 12
_BOLD, _DIM, _UNDERLINED = "1", "2", "4"


class TerminalView:
    """Writes each token where the cursor is, and rewrites the sparkline beside its line.

    Where nobody sees colours move (a file, a pipe, TERM=dumb) lines are written whole and plain. NO_COLOR leaves colours out.
    """

    def __init__(self, file: Any = None) -> None:
        self._console = Console(file=file, highlight=False, markup=False, emoji=False, force_jupyter=False)
        self._file = self._console.file
        self._moves = self._console.is_terminal and not self._console.is_dumb_terminal
        system = None if self._console.no_color else _SYSTEMS.get(self._console.color_system or "")
        self._ramp = _ramp(system, light=_is_light()) if self._moves and system else [""] * (_LEVELS + 1)
        encoding = self._console.encoding
        self._encoding = None if encoding.startswith("utf") else encoding
        self._sparks = SPARKS if self._encoding is None else ASCII_SPARKS
        self._begin_line()

    def _begin_line(self) -> None:
        width = self._console.width - 1  # the last column would wrap
        self._margin = min(_MARGIN, width // 3) if width >= _NARROW else 0
        self._columns = max(2, width - self._margin - _GAP * bool(self._margin))  # a wide character takes two
        self._column = 0
        self._line = ""
        self._values: list[float] = []

    def begin(self, title: str, prompt: str) -> None:
        """The prompt, dimmed; of a long one its last lines."""
        prompt_lines = map(self._plain, prompt.rstrip("\n").split("\n"))
        lines = [part for line in prompt_lines for part in chop_cells(line, self._columns) or [""]]
        cut = [self._plain("…")] if len(lines) > _PROMPT_LINES else []
        head = [self._styled(self._plain(title), _BOLD)] if title else []
        body = [self._styled("\n".join([*cut, *lines[-_PROMPT_LINES:]]), _DIM)] if prompt else []
        self._write("".join(f"{part}\n" for part in (*head, *body)))

    def show(self, step: TokenStep, value: float, following: Following) -> None:
        """A token."""
        place = following.scale.place(value)
        is_sink = step.l2_norms is not None and value != value
        lit = _DIM if is_sink else self._ramp[round(place * _LEVELS)] if place == place else ""
        done = any(event["fired"] for event in step.events)
        code = _joined(lit, _BOLD if step.segment == "answer" else "", _UNDERLINED if done else "")
        text = self._plain(step.token_text)
        cells = len(text) if text.isascii() else cell_len(text)
        if self._column and self._column + cells > self._columns:
            self._end_line(following)
        for index, part in enumerate([text] if cells <= self._columns else chop_cells(text, self._columns)):
            if index:
                self._end_line(following)
            self._put(part, code)
        if step.l2_norms is not None:
            self._values.append(value)
        if "\n" in step.token_text:
            self._end_line(following)
        elif self._moves and self._margin:
            self._write(f"\x1b7\x1b[{self._columns + _GAP + 1}G{self._spark(following)}\x1b8")
        if self._moves:
            self._file.flush()

    def end(self, outcome: Outcome, following: Following) -> None:
        """What it came to."""
        if self._column or self._values:
            self._end_line(following)
        whole = sparkline(outcome.places, max(_MARGIN, self._columns), self._sparks)
        self._write(self._plain(whole) + "\n" + self._plain_lines(str(outcome)) + "\n")
        self._file.flush()

    def _put(self, text: str, code: str) -> None:
        self._column += cell_len(text)
        if self._moves:
            self._write(self._styled(text, code))
        else:
            self._line += text

    def _end_line(self, following: Following) -> None:
        if self._moves:
            margin = f"\x1b[{self._columns + _GAP + 1}G{self._spark(following)}" if self._margin else ""
            self._write(margin + "\n")
        else:
            padding = " " * (self._columns - self._column + _GAP)
            self._write((self._line + padding + self._spark(following)).rstrip() + "\n")
        self._begin_line()

    def _spark(self, following: Following) -> str:
        line = sparkline(following.scale.places(self._values), self._margin, self._sparks)
        return line.ljust(self._margin) if self._moves else line

    def _styled(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._moves and code and text else text

    def _plain(self, text: str) -> str:
        """Text that the terminal shows as it is."""
        shown = inert(text)
        return shown if self._encoding is None else shown.encode(self._encoding, "backslashreplace").decode(self._encoding)

    def _plain_lines(self, text: str) -> str:
        return "\n".join(map(self._plain, text.split("\n")))

    def _write(self, text: str) -> None:
        self._file.write(text)


def _joined(*codes: str) -> str:
    return ";".join(code for code in codes if code)


def _is_light() -> bool:
    """Whether the terminal says that it is light; most are dark, and few say."""
    background = os.environ.get("COLORFGBG", "").rpartition(";")[2]
    return background in ("7", "15")


def _ramp(system: ColorSystem, *, light: bool) -> list[str]:
    """Codes of each level: from the terminal's own colours to orange, the text black or white, whichever is legible on it."""
    codes = [""] * _UNLIT
    for level in range(_UNLIT, _LEVELS + 1):
        strength = level / _LEVELS
        background = [round(255 + (own - 255) * strength) if light else round(own * strength) for own in _HIGH]
        text = (0, 0, 0) if _luminance(background) > 0.18 else (255, 255, 255)
        pair: list[Any] = [(Color.from_rgb(*text), True), (Color.from_rgb(*background), False)]
        codes.append(";".join(code for own, front in pair for code in own.downgrade(system).get_ansi_codes(foreground=front)))
    return codes


def _luminance(rgb: list[int]) -> float:
    """Relative luminance (WCAG 2): black text on more than 0.18 of it has a contrast of 4.6 or more, white on less."""
    linear = [c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
    return sum(weight * channel for weight, channel in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
