"""What a view shows of a response while it is written: each token's norm, its place among those so far, and what it came to."""

from __future__ import annotations

import bisect
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, SupportsIndex, runtime_checkable

from tl_l2norm.core.errors import InputError
from tl_l2norm.core.layers import as_layer, layer_ranges
from tl_l2norm.core.norms import mean_without_sinks
from tl_l2norm.core.trace import Trace
from tl_l2norm.interventions.log import Log
from tl_l2norm.recording.completions import Completion
from tl_l2norm.recording.token_stream import TokenStep
from tl_l2norm.show.tokens import norm_text

SPARKS, ASCII_SPARKS = "▁▂▃▄▅▆▇█", "_.,-=+*#"
_LOW, _HIGH = 0.05, 0.95
"""Quantiles of the norms so far at the ends of the scale: a single spike doesn't flatten the rest."""


@runtime_checkable
class Written(Protocol):
    """What a view draws: a `TokenStream`."""

    prompt: str
    layers: tuple[int, ...]
    late_layers: tuple[int, ...]

    @property
    def trace(self) -> Trace | None:
        """Of what was read back so far."""

    @property
    def completion(self) -> Completion | None:
        """None unless it was written to its end."""

    @property
    def log(self) -> Log | None:
        """What interventions decided; None without."""

    def __iter__(self) -> Iterator[TokenStep]:
        """Steps as they come."""

    def close(self) -> None:
        """End it where it is."""


class RunningScale:
    """Where a norm lies among those so far."""

    def __init__(self) -> None:
        self._ordered: list[float] = []

    def add(self, value: float) -> None:
        """Another norm; NaN is none."""
        if value == value:
            bisect.insort(self._ordered, value)

    @property
    def ends(self) -> tuple[float, float]:
        """The norms at its ends; NaN before the first."""
        last = len(self._ordered) - 1
        if last < 0:
            return math.nan, math.nan
        return self._ordered[round(_LOW * last)], self._ordered[round(_HIGH * last)]

    def place(self, value: float) -> float:
        """From 0 to 1; NaN of what has no norm."""
        return self.places([value])[0]

    def places(self, values: Sequence[float]) -> list[float]:
        """Of several norms."""
        low, high = self.ends
        if not high > low:
            return [0.0 if value == value else value for value in values]
        width = high - low
        return [min(1.0, max(0.0, (value - low) / width)) if value == value else value for value in values]


def sparkline(places: Sequence[float], width: int, sparks: str = SPARKS) -> str:
    """Places from 0 to 1 as bars, at most `width` of them: beyond that each stands for the greatest of several."""
    n = len(places)
    parts = places if n <= width else [_greatest(places[i * n // width : (i + 1) * n // width]) for i in range(width)]
    top = len(sparks) - 1
    return "".join(" " if place != place else sparks[round(place * top)] for place in parts)


def _greatest(places: Sequence[float]) -> float:
    return max((place for place in places if place == place), default=math.nan)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a response came to."""

    n_tokens: int
    end: Literal["stop", "length", "interrupted"]
    seconds: float
    """From the first token on."""
    of_what: str
    """Which norms: "late norm (layers 9-11)"."""
    values: tuple[float, ...]
    """[token] NaN where a token has none."""
    places: tuple[float, ...]
    """[token] on the scale as it was at the end."""
    fired: tuple[tuple[str, int], ...]
    """How often each intervention did something."""

    def __str__(self) -> str:
        """Two or three lines."""
        ended = {"stop": "it stopped", "length": "cut off at max_new_tokens", "interrupted": "interrupted"}[self.end]
        speed = f", {(self.n_tokens - 1) / self.seconds:.1f} tokens/s" if self.n_tokens > 1 and self.seconds > 0 else ""
        lines = [f"{self.n_tokens} tokens, {ended}{speed}"]
        if known := [value for value in self.values if value == value]:
            mean = sum(known) / len(known)
            ends = f"mean {norm_text(mean)}, {norm_text(min(known))} to {norm_text(max(known))}"
            lines.append(f"{self.of_what}: {ends}")
        lines += [f"{name}: {n} states changed" if n else f"{name}: nothing changed" for name, n in self.fired]
        return "\n".join(lines)


class Following:
    """Follows a stream: norms of late layers, or of one, and what interventions did."""

    def __init__(self, tokens: Written, *, layer: SupportsIndex | None = None, scale: RunningScale | None = None) -> None:
        self._tokens, self._row = tokens, None if layer is None else _row(tokens.layers, layer)
        self.scale = RunningScale() if scale is None else scale
        self.values: list[float] = []
        self._fired: Counter[str] = Counter()
        self._n_tokens, self._began = 0, time.perf_counter()

    @property
    def of_what(self) -> str:
        """Which norms these are."""
        if self._row is not None:
            return f"norm (layer {self._tokens.layers[self._row]})"
        return f"late norm (layers {layer_ranges(self._tokens.late_layers)})"

    def add(self, step: TokenStep) -> float:
        """The norm of the next token; NaN of a sink, and of the last, which isn't read."""
        if not self._n_tokens:
            self._read_prompt()
            self._began = time.perf_counter()
        self._n_tokens += 1
        value = self._value(step)
        if step.l2_norms is not None:
            self.values.append(value)
            self.scale.add(value)
        self._fired.update(event["intervention"] for event in step.events if event["fired"])
        return value

    def _value(self, step: TokenStep) -> float:
        if self._row is None or step.l2_norms is None or step.is_sink is None:
            return step.late_l2_norm
        return math.nan if step.is_sink[self._row] else float(step.l2_norms[self._row])

    def _read_prompt(self) -> None:
        """The scale begins with the prompt's norms: the first token has a place, too."""
        trace = self._tokens.trace
        if trace is None:
            return
        rows = [self._row] if self._row is not None else [trace.index_of(layer) for layer in self._tokens.late_layers]
        if rows:
            norms = mean_without_sinks(trace.l2_norms[rows], trace.is_sink[rows])
            for value in norms[: trace.prompt_len].tolist():
                self.scale.add(value)

    def outcome(self, whole: bool) -> Outcome:
        """What it came to; `whole`: nobody interrupted it."""
        done, names = self._tokens.completion, () if self._tokens.log is None else self._tokens.log.names
        return Outcome(
            n_tokens=self._n_tokens,
            end=done.finish_reason if whole and done is not None else "interrupted",
            seconds=time.perf_counter() - self._began,
            of_what=self.of_what,
            values=tuple(self.values),
            places=tuple(self.scale.places(self.values)),
            fired=tuple((name, self._fired[name]) for name in names),
        )


def _row(layers: Sequence[int], layer: SupportsIndex) -> int:
    given = as_layer(layer)
    if -len(layers) <= given < 0:
        return len(layers) + given
    if given not in layers:
        raise InputError(f"layer {given} is not among those of the model: {layer_ranges(layers)}")
    return layers.index(given)
