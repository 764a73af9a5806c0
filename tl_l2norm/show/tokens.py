"""Tokens coloured by the norm of the residual stream, drawn with CircuitsVis ColoredTokens."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple, SupportsIndex

import torch
from markupsafe import Markup

from tl_l2norm.core.arguments import as_integer, one_or_several
from tl_l2norm.core.errors import InputError
from tl_l2norm.core.trace import Trace, TracesLike, require_comparable, traces_of
from tl_l2norm.show.page import asset, circuitsvis_bundle, inline_script, render, write_page

HIGH_COLOUR, SINK_COLOUR = "#e69f00", "#c4c4c4"
"""White to orange is monotone in lightness, told apart by every kind of sight, and black text is legible on all of it."""

_SINK_PLACE = -1  # ColoredTokens gives negative values a colour of their own

_VISIBLE = {code: chr(0x2400 + code) for code in range(0x20)} | {0x7F: "\u2421", ord("\n"): "↵", ord("\t"): "⇥"}


def visible_text(token: str) -> str:
    """Token text whose newlines, tabs and control characters can be seen, and its blanks where there is nothing else."""
    return (token.replace(" ", "·") if token.isspace() else token).translate(_VISIBLE)


def norm_text(norm: float) -> str:
    """Four digits that a reader can compare: 231.4, 25,094."""
    return f"{norm:,.0f}" if norm >= 1000 else f"{norm:.4g}"


class _Token(NamedTuple):
    text: str
    title: str
    place: float
    """On the colour scale, 0 to 1; negative for a sink."""
    colour: str
    breaks: int
    mark: str


class _Segment(NamedTuple):
    name: str
    tokens: list[_Token]


class _Sequence(NamedTuple):
    title: str
    segments: list[_Segment]
    hidden: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokensWidget:
    """Tokens of one or several sequences on one colour scale. Shows itself in Jupyter; `save` writes a page."""

    traces: tuple[Trace, ...]
    layer: int
    max_tokens: int | None
    titles: tuple[str, ...]
    """[sequence]"""

    @property
    def scale(self) -> tuple[float, float] | None:
        """Least and greatest norm of the tokens that are no sinks; None where all are."""
        norms = torch.cat([trace.at(self.layer)[~self._sinks(trace)] for trace in self.traces])
        return (float(norms.min()), float(norms.max())) if len(norms) else None

    @property
    def n_sinks(self) -> int:
        """Attention sinks at this layer, over all sequences."""
        return sum(int(self._sinks(trace).sum()) for trace in self.traces)

    def fragment(self) -> Markup:
        """HTML for a page that carries `styles` and `scripts` of this class once; legible without JavaScript."""
        scale = self.scale
        return render(
            "show/tokens.html.jinja",
            caption=f"L2 norm of the residual stream after layer {self.layer}, {self.traces[0].provenance.model}",
            scale=[norm_text(bound) for bound in scale] if scale else None,
            sinks=self._sinks_text(),
            sequences=[self._sequence(i, scale or (0.0, 0.0)) for i in range(len(self.traces))],
            high_colour=HIGH_COLOUR,
            sink_colour=SINK_COLOUR,
        )

    @staticmethod
    def styles() -> list[Markup]:
        """Style sheets that fragments need, once per page."""
        return [Markup(asset("show/tokens.css"))]

    @staticmethod
    def scripts() -> list[Markup]:
        """Script elements that fragments need, once per page."""
        return [inline_script(circuitsvis_bundle()), inline_script(asset("show/tokens.js"))]

    def page(self) -> str:
        """A self-contained page."""
        page = render(
            "show/page.html.jinja",
            title=f"Norms at layer {self.layer}",
            styles=[Markup("body { margin: .3rem; }"), *self.styles()],
            scripts=self.scripts(),
            body=self.fragment(),
        )
        return str(page)

    def save(self, path: str | Path) -> Path:
        """Write a self-contained page (1.3 MB, fetches nothing)."""
        return write_page(path, self.page())

    def _repr_html_(self) -> str:
        # A frame keeps ids and styles of many outputs apart; this height holds until its script has measured the content.
        height = 120 + 24 * sum(1 + min(len(trace), self.max_tokens or len(trace)) // 14 for trace in self.traces)
        source = html.escape(self.page())
        return f'<iframe srcdoc="{source}" style="width:100%;height:{height}px;border:0" title="Tokens by norm"></iframe>'

    def __repr__(self) -> str:
        """One line for a terminal."""
        n_tokens = sum(map(len, self.traces))
        norms = "norms {} to {}".format(*map(norm_text, self.scale)) if self.scale else "only sinks"
        return (
            f"TokensWidget({len(self.traces)} sequences, {n_tokens} tokens, layer {self.layer}, {norms}, "
            f"{self.n_sinks} sinks; .save('tokens.html') writes a page)"
        )

    def _sinks(self, trace: Trace) -> torch.Tensor:
        return trace.is_sink[trace.index_of(self.layer)]

    def _sinks_text(self) -> str:
        if not self.n_sinks:
            return ""
        greatest = max(float(t.at(self.layer)[self._sinks(t)].max()) for t in self.traces if self._sinks(t).any())
        what = "an attention sink" if self.n_sinks == 1 else f"{self.n_sinks} attention sinks"
        return f"{what}, norm up to {norm_text(greatest)}, off the scale"

    def _sequence(self, index: int, scale: tuple[float, float]) -> _Sequence:
        trace = self.traces[index]
        shown = len(trace) if self.max_tokens is None else min(len(trace), self.max_tokens)
        segments = groupby(range(shown), key=lambda position: trace.segments[position])
        return _Sequence(
            title=self.titles[index],
            segments=[_Segment(name, [self._token(trace, p, scale) for p in positions]) for name, positions in segments],
            hidden=len(trace) - shown,
        )

    def _token(self, trace: Trace, position: int, scale: tuple[float, float]) -> _Token:
        norm, text = float(trace.at(self.layer)[position]), trace.str_tokens[position]
        low, high = scale
        is_sink = bool(self._sinks(trace)[position])
        place = _SINK_PLACE if is_sink else (norm - low) / (high - low) if high > low else 0.0
        notes = [f"norm {norm_text(norm)}", f"position {position}"]
        notes += ["attention sink, off the scale"] * is_sink + ["part of a character"] * (not text)
        marks = ["l2-sink"] * is_sink + ["l2-part"] * (not text)
        return _Token(
            text=visible_text(text),
            title=", ".join(notes),
            place=round(place, 3),
            colour=SINK_COLOUR if is_sink else _mix(place),
            breaks=text.count("\n"),
            mark=" ".join(marks),
        )


def tokens(
    trace: TracesLike,
    *,
    layer: SupportsIndex = -1,
    max_tokens: int | None = None,
    titles: str | Sequence[str] | None = None,
) -> TokensWidget:
    """Colour tokens by their norm at one layer; several traces share the colour scale.

    Args:
        trace: one, or several of the same model and layers; completions and the `Generations` of a run too.
        layer: a recorded layer; negative counts from the last recorded one.
        max_tokens: show at most so many of each sequence, from its start; default all.
        titles: [sequence] headings; default what the traces' labels say.

    Raises:
        ValueError: no traces, traces that are not comparable, a layer that was not recorded, or titles of another number.

    Examples:
        >>> widget = l2.widgets.tokens([think[0], direct[0]], layer=9)
        >>> widget
        TokensWidget(2 sequences, 53 tokens, layer 9, norms ... to ...; .save('tokens.html') writes a page)
        >>> widget.save("tokens.html").name
        'tokens.html'
    """
    traces = traces_of(trace)
    require_comparable(traces)
    if max_tokens is not None:
        max_tokens = as_integer("max_tokens", max_tokens, least=1)
    titles = None if titles is None else one_or_several(titles, str)
    if titles is not None and len(titles) != len(traces):
        raise InputError(f"{len(titles)} titles for {len(traces)} traces: give one for each")
    return TokensWidget(
        traces=traces,
        layer=traces[0].layers[traces[0].index_of(layer)],
        max_tokens=max_tokens,
        titles=titles if titles is not None else tuple(map(_title, traces)),
    )


def _title(trace: Trace) -> str:
    return ", ".join(f"{name} {value}" for name, value in trace.labels.items())


def _mix(place: float) -> str:
    """From white to the high colour, as CSS."""
    channels = (int(HIGH_COLOUR[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(255 + (channel - 255) * place):02x}" for channel in channels)
