"""Draw a response in a notebook while it is written: one output, of HTML without scripts."""

from __future__ import annotations

import html
import time
from itertools import groupby
from typing import Any

from tl_l2norm.core.errors import InputError
from tl_l2norm.recording.token_stream import TokenStep
from tl_l2norm.show.following import Following, Outcome
from tl_l2norm.show.tokens import norm_text
from tl_l2norm.text.inert import inert

_LEVELS = 10
_HIGH = "230,159,0"
"""Over any background, at half its strength, text stays legible in light and dark."""
_BLOCK = "font-family:ui-monospace,monospace;white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.6"
_SECONDS, _SHARE = 0.15, 15.0
"""Between two drawings at least, and at least so many times what the last one took."""
_POINTS, _WIDTH, _HEIGHT = 300, 600, 60


class NotebookView:
    """Rewrites one output, seldom enough that drawing takes little of the time."""

    def __init__(self) -> None:
        self._head = ""
        self._parts: list[tuple[int, bool, bool, str]] = []
        """Of each token: its level, whether it is of the answer, whether something was done at it, and its text."""
        self._drawn, self._pause = 0.0, _SECONDS
        self._output: Any = None

    def begin(self, title: str, prompt: str) -> None:
        """The prompt."""
        from IPython.display import display

        heading = f"<div><strong>{html.escape(inert(title))}</strong></div>" if title else ""
        lines = "\n".join(html.escape(inert(line)) for line in prompt.split("\n"))
        self._head = f'{heading}<div style="{_BLOCK};font-style:italic">{lines}</div>'
        self._output = display(self._bundle("", ""), raw=True, display_id=True)  # type: ignore[no-untyped-call]
        if self._output is None:  # nobody shows it
            raise InputError("this is no notebook: display='terminal', or 'auto', which finds out")

    def show(self, step: TokenStep, value: float, following: Following) -> None:
        """A token; drawn with the next that are due."""
        place = following.scale.place(value)
        level = round(place * _LEVELS) if place == place else 0
        done = any(event["fired"] for event in step.events)
        self._parts.append((level, step.segment == "answer", done, inert(step.token_text) + "\n" * ("\n" in step.token_text)))
        began = time.perf_counter()
        if began - self._drawn >= self._pause:
            self._draw(following.scale.places(following.values), following, "")
            self._drawn = time.perf_counter()
            self._pause = max(_SECONDS, _SHARE * (self._drawn - began))

    def end(self, outcome: Outcome, following: Following) -> None:
        """What it came to."""
        self._draw(list(outcome.places), following, str(outcome))

    def _draw(self, places: list[float], following: Following, says: str) -> None:
        groups = groupby(self._parts, lambda part: (part[0], part[1], part[2]))
        text = "".join(_span(level, answers, done, "".join(p[3] for p in own)) for (level, answers, done), own in groups)
        low, high = following.scale.ends
        name = f"{following.of_what}, {norm_text(low)} to {norm_text(high)}" if high > low else following.of_what
        body = f'<div style="{_BLOCK}">{text}</div>{_curve(places, name)}'
        body += f'<div style="white-space:pre-wrap">{html.escape(says or name)}</div>'
        plain = "".join(part[3] for part in self._parts) + (f"\n{says}" if says else "")
        self._output.update(self._bundle(body, plain), raw=True)

    def _bundle(self, body: str, plain: str) -> dict[str, str]:
        return {"text/html": f"<div>{self._head}{body}</div>", "text/plain": plain}


def _span(level: int, answers: bool, done: bool, text: str) -> str:
    styles = [f"background:rgba({_HIGH},{level / _LEVELS / 2:.2f})"] if level else []
    styles += ["font-weight:600"] * answers + ["text-decoration:underline"] * done
    escaped = html.escape(text)
    return f'<span style="{";".join(styles)}">{escaped}</span>' if styles and text else escaped


def _curve(places: list[float], name: str) -> str:
    """How the norms ran, as a line; of many tokens the greatest of each stretch."""
    known = [(i, place) for i, place in enumerate(places) if place == place]
    if len(known) < 2:
        return ""
    size = -(-len(known) // _POINTS)
    kept = [max(known[i : i + size], key=lambda point: point[1]) for i in range(0, len(known), size)]
    last = max(1, len(places) - 1)
    points = " ".join(f"{_WIDTH * i / last:.1f},{(_HEIGHT - 4) * (1 - place) + 2:.1f}" for i, place in kept)
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" style="width:100%;max-width:{_WIDTH}px;height:{_HEIGHT}px" role="img" '
        f'aria-label="{html.escape(name)}" preserveAspectRatio="none"><polyline points="{points}" fill="none" '
        f'stroke="rgb({_HIGH})" stroke-width="1.5" vector-effect="non-scaling-stroke"/></svg>'
    )
