"""Responses as a small table for a notebook."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_l2norm.core.norms import mean_without_sinks
from tl_l2norm.core.trace import Trace
from tl_l2norm.text.inert import inert

_MOST_ROWS, _MOST_CHARACTERS, _MOST_OF_A_PROMPT = 12, 400, 90
_LEVELS = 5
_HIGH = "230,159,0"
"""Over any background, at half its strength, text stays legible in light and dark."""
_CELL = "text-align:left;vertical-align:top;white-space:normal;overflow-wrap:anywhere;unicode-bidi:isolate"


def generations_html(completions: Sequence[Any]) -> str:
    """A row for each response: prompt, text, finish_reason, tokens and the mean norm of its late layers.

    Tokens are coloured by theirs, where it was recorded; responses beyond the first dozen and what is too long are cut.
    """
    shown = completions[:_MOST_ROWS]
    late = [late_norms(one.trace) if one.trace is not None else None for one in shown]
    scale = _scale(late)
    head = "".join(f'<th scope="col" style="text-align:left">{name}</th>' for name in _HEADS)
    rows = "".join(_row(one, norms, scale) for one, norms in zip(shown, late, strict=True))
    more = len(completions) - len(shown)
    note = f"<p>and {more} more: <code>.to_frame()</code> has all of them</p>" if more > 0 else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{note}"


_HEADS = ("prompt", "text", "finish_reason", "tokens", "mean late norm")


def late_norms(trace: Trace) -> Float[Tensor, " pos"]:
    """Mean norm of each token over the recorded late layers, sinks left out; NaN where there is none."""
    rows = [trace.index_of(layer) for layer in trace.late_layers]
    if not rows:
        return torch.full((len(trace),), math.nan)
    return mean_without_sinks(trace.l2_norms[rows], trace.is_sink[rows])


def _scale(late: Sequence[Float[Tensor, " _"] | None]) -> tuple[float, float]:
    known = [norms[norms.isfinite()] for norms in late if norms is not None]
    values = torch.cat(known) if known else torch.empty(0)
    return (float(values.min()), float(values.max())) if len(values) else (0.0, 0.0)


def _row(completion: Any, norms: Float[Tensor, " pos"] | None, scale: tuple[float, float]) -> str:
    prompt = inert(completion.prompt)
    if len(prompt) > _MOST_OF_A_PROMPT:
        prompt = "…" + prompt[-_MOST_OF_A_PROMPT:]
    mean = "–"
    if norms is not None and completion.trace is not None:
        own = norms[completion.trace.is_response]
        mean = f"{float(own.nanmean()):.4g}" if own.isfinite().any() else "–"
    cells = (html.escape(prompt), _text(completion, norms, scale), completion.finish_reason, str(len(completion.tokens)), mean)
    return "<tr>" + "".join(f'<td style="{_CELL}">{cell}</td>' for cell in cells) + "</tr>"


def _text(completion: Any, norms: Float[Tensor, " pos"] | None, scale: tuple[float, float]) -> str:
    """The response's tokens, those of like norm together; the text alone where no norms were recorded."""
    trace = completion.trace
    if trace is None or norms is None:
        return html.escape(_cut(inert(completion.text)))
    low, high = scale
    parts: list[tuple[int, str]] = []
    length = 0
    for position in range(trace.prompt_len, len(trace)):
        text = inert(trace.str_tokens[position])
        place = (float(norms[position]) - low) / (high - low) if high > low else 0.0
        parts.append((round(place * _LEVELS) if place == place else 0, text))
        length += len(text)
        if length > _MOST_CHARACTERS:
            parts.append((0, "…"))
            break
    return "".join(_span(level, "".join(t for _, t in group)) for level, group in groupby(parts, key=lambda part: part[0]))


def _span(level: int, text: str) -> str:
    escaped = html.escape(text)
    return f'<span style="background:rgba({_HIGH},{0.1 * level:.1f})">{escaped}</span>' if level and text else escaped


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else text[:_MOST_CHARACTERS] + "…"
