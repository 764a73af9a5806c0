"""Tokens as coloured text that needs no script: what a page shows where none may run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from tl_l2norm.show import palette
from tl_l2norm.show.page import render
from tl_l2norm.show.shown import Event, Shown
from tl_l2norm.text.inert import inert

MAX_CHARS = 200
"""Of one token; a longer one is cut, and says how long it is."""

MAX_STATIC = 2_000
"""Tokens of a widget that are written as text; the rest is drawn by its script alone."""


def visible_text(token: str) -> str:
    """Token text in which all that controls how text is shown can be seen, and its blanks where there is nothing else."""
    return inert(token.replace(" ", "·") if token.isspace() else token)


def short_text(token: str) -> str:
    """Its visible text, cut where it is too long to be read as a token."""
    text = visible_text(token)
    return text if len(text) <= MAX_CHARS else f"{text[:MAX_CHARS]}… ({len(token):,} characters)"


def norm_text(norm: float) -> str:
    """Four digits that a reader can compare: 231.4, 25,090."""
    return f"{float(f'{norm:.4g}'):,.0f}" if norm >= 1000 else f"{norm:.4g}"


class Scale(NamedTuple):
    """From the least to the greatest value of the tokens that are no sinks."""

    low: float
    high: float

    @classmethod
    def of(cls, values: NDArray[np.floating]) -> Scale | None:
        """None where no value is finite."""
        finite = values[np.isfinite(values)]
        return cls(float(finite.min()), float(finite.max())) if len(finite) else None

    def place(self, value: float) -> float:
        """0 to 1; all are 0 on a scale without extent."""
        return (value - self.low) / (self.high - self.low) if self.high > self.low else 0.0


class _Token(NamedTuple):
    text: str
    title: str
    css: str
    colours: tuple[str, str]
    """Background and ink, for a page that takes no style sheet."""
    breaks: int


class _Segment(NamedTuple):
    name: str
    length: int
    tokens: list[_Token]


class _Sequence(NamedTuple):
    title: str
    segments: list[_Segment]
    hidden: int
    beyond: int
    """How many are drawn by the script alone."""


def static_text(
    shown: Sequence[Shown],
    values: Sequence[NDArray[np.floating]],
    *,
    layer: int,
    name: str,
    caption: str,
    sinks_text: str,
    max_tokens: int | None,
    inline: bool,
) -> Markup:
    """HTML of sequences, coloured by values.

    Args:
        shown: sequences.
        values: [sequence][pos] of one layer.
        layer: whose sinks are marked.
        name: of the values, before each of them.
        caption: what the colours are.
        sinks_text: what there is to say of sinks.
        max_tokens: of each sequence.
        inline: with styles on every element, for places that keep no style sheet and no class of ours.
    """
    sinks = [one.trace.is_sink[one.trace.index_of(layer)].numpy() for one in shown]
    scale = Scale.of(np.concatenate([own[~sink] for own, sink in zip(values, sinks, strict=True)]))
    left, sequences = MAX_STATIC, []
    for one, own, sink in zip(shown, values, sinks, strict=True):
        wanted = len(own) if max_tokens is None else min(len(own), max_tokens)
        written = min(wanted, left)
        left -= written
        sequences.append(_sequence(one, own, sink, scale, layer, name, wanted, written))
    return render(
        "show/tokens.html.jinja",
        caption=caption,
        scale=[norm_text(bound) for bound in scale] if scale else None,
        swatches=[(f"l2-c{i}", palette.steps()[i]) for i in range(0, palette.N_STEPS)],
        sinks=sinks_text,
        sink_colour=palette.SINK_COLOUR,
        sequences=sequences,
        inline=inline,
    )


def _sequence(
    one: Shown,
    values: NDArray[np.floating],
    sinks: NDArray[np.bool_],
    scale: Scale | None,
    layer: int,
    name: str,
    wanted: int,
    written: int,
) -> _Sequence:
    by_position: dict[int, list[Event]] = {}
    for event in one.events:
        by_position.setdefault(event.position, []).append(event)
    tokens = [
        _token(one.trace.str_tokens[p], p, float(values[p]), bool(sinks[p]), scale, name, by_position.get(p, ()), layer)
        for p in range(written)
    ]
    lengths: Mapping[str, int] = {name: one.trace.segments.count(name) for name in set(one.trace.segments)}
    segments = [
        _Segment(segment, lengths[segment], [tokens[p] for p in positions])
        for segment, positions in groupby(range(written), key=lambda p: one.trace.segments[p])
    ]
    return _Sequence(one.title, segments, len(values) - wanted, wanted - written)


def _token(
    text: str, position: int, value: float, sink: bool, scale: Scale | None, name: str, events: Sequence[Event], layer: int
) -> _Token:
    measured = bool(np.isfinite(value))
    notes = [f"{name} {norm_text(value)}" if measured else f"{name} not measured", f"position {position}"]
    notes += ["attention sink, off the scale"] * sink + ["part of a character"] * (not text)
    notes += [event_text(event) for event in events]
    step = palette.step_of(scale.place(value)) if scale and measured and not sink else None
    marks = ["l2-sink"] if sink else [] if step is None else [f"l2-c{step}"]
    marks += ["l2-part"] * (not text)
    fired = [event for event in events if event.fired]
    marks += ["l2-event" if any(event.layer == layer for event in fired) else "l2-event-else"] * bool(fired)
    colour = palette.SINK_COLOUR if sink else "#ffffff" if step is None else palette.steps()[step]
    return _Token(short_text(text), ", ".join(notes), " ".join(marks), (colour, palette.ink(colour)), text.count("\n"))


def event_text(event: Event) -> str:
    """What an intervention did, in a line."""
    moved = f", norm {norm_text(event.before)} to {norm_text(event.after)}" if event.fired else ""
    return f"{event.intervention} at layer {event.layer}: {event.decision}{moved}"
