"""What a widget of tokens shows: sequences with their titles and labels, side by side or one below the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import Any, NamedTuple

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from tl_l2norm.core.errors import InputError, InputTypeError
from tl_l2norm.core.protocols import is_several
from tl_l2norm.core.trace import HasTrace, Trace, TracesLike, require_comparable, traces_of

MAX_COLUMNS = 3
"""So many sequences of a list stand side by side; more stand one below the other."""

_EVENT_COLUMNS = ("sequence", "position", "layer", "intervention", "decision", "fired", "l2_norm_before", "l2_norm_after")
_QUIET_LABELS = {"prompt", "answer_at"}  # hashes and positions: nothing that a title is read for
_PLAIN_LABELS = {"mode", "family"}
_MAX_MATCHED = 3000  # tokens; longer ones are aligned by what they begin with, for matching takes a second from here on


class Event(NamedTuple):
    """What an intervention decided at one token and layer."""

    position: int
    layer: int
    intervention: str
    decision: str
    fired: bool
    before: float
    after: float


class Block(NamedTuple):
    """So many tokens that two sequences have in common, from these places on."""

    first: int
    other: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shown:
    """One sequence of a widget."""

    trace: Trace
    title: str
    labels: Mapping[str, str] = field(default_factory=dict)
    item: int = 0
    """Sequences of one item stand side by side."""
    column: int = 0
    events: tuple[Event, ...] = ()
    logprobs: Float[Tensor, " token"] | None = None
    """Of the response's tokens, nats; None where they aren't known."""
    blocks: tuple[Block, ...] = ()
    """What it has in common with the first sequence of its item."""


def sequences_of(
    given: TracesLike | Mapping[Any, TracesLike], *, titles: Sequence[str] | None = None, events: pd.DataFrame | None = None
) -> tuple[Shown, ...]:
    """The sequences of a widget, item by item.

    Columns stand side by side, and so do the responses to one problem or prompt, and two or three traces.

    Raises:
        ValueError: none, some that are not comparable, columns of different lengths, titles of another number.
        TypeError: something that carries no traces, events that are no table.
    """
    if events is not None and isinstance(given, Mapping):
        raise InputError("events of which column? Those of each `Generations` are found by themselves; leave events away")
    named = given.items() if isinstance(given, Mapping) else [("", given)]
    columns = [_column(str(name), part, events) for name, part in named]  # a name may be a threshold, or a seed
    lengths = {len(column) for column in columns}
    if len(lengths) > 1:
        counts = ", ".join(f"{len(column)} in {name!r}" for name, column in zip(given, columns, strict=True))  # type: ignore[arg-type]
        raise InputError(f"columns must have as many sequences each, got {counts}: give the same prompts to each")
    shown = [(i, one) for i, row in enumerate(zip(*columns, strict=True)) for one in row]
    require_comparable([one["trace"] for _, one in shown])
    if titles is not None and len(titles) != len(shown):
        raise InputError(f"{len(titles)} titles for {len(shown)} traces: give one for each")
    keys = [i if len(columns) > 1 else one["asked"] for i, one in shown]
    firsts: dict[int, Trace] = {}
    found = []
    for k, ((item, column), (_, one)) in enumerate(zip(_places(keys, len(columns)), shown, strict=True)):
        first = firsts.setdefault(item, one["trace"])
        blocks = () if first is one["trace"] else aligned(first.tokens.tolist(), one["trace"].tokens.tolist())
        fields = {name: value for name, value in one.items() if name != "asked"}
        title = {} if titles is None else {"title": titles[k]}
        found.append(Shown(**{**fields, **title}, item=item, column=column, blocks=blocks))
    return tuple(sorted(found, key=lambda one: (one.item, one.column)))


def _places(keys: Sequence[object], n_columns: int) -> list[tuple[int, int]]:
    """Item and column of each sequence: what answers the same (of equal keys that are not None) stands side by side, and so
    does all of a short list.
    """
    if set(keys) == {None}:
        return [(0, k) if len(keys) <= MAX_COLUMNS else (k, 0) for k in range(len(keys))]
    most = max(n_columns, MAX_COLUMNS)
    crowded = {key for key, n in Counter(keys).items() if n > most}
    items: dict[object, int] = {}
    taken: Counter[int] = Counter()
    places = []
    for k, key in enumerate(keys):
        item = items.setdefault((key, k) if key in crowded or key is None else key, len(items))
        places.append((item, taken[item]))
        taken[item] += 1
    return places


def title_of(trace: Trace) -> str:
    """What a trace's labels say."""
    return ", ".join(f"{name} {value}" for name, value in trace.labels.items() if name not in _QUIET_LABELS)


def aligned(first: Sequence[int], other: Sequence[int]) -> tuple[Block, ...]:
    """Runs of tokens that two sequences have in common, in order; for long ones only what they begin with.

    Args:
        first: [pos] token ids.
        other: [pos] token ids.
    """
    same = common_start(first, other)
    blocks = [Block(0, 0, same)] * (same > 0)
    rest, others = first[same:], other[same:]
    if rest and others and max(len(rest), len(others)) <= _MAX_MATCHED:
        matched = SequenceMatcher(None, rest, others, autojunk=False).get_matching_blocks()
        blocks += [Block(same + m.a, same + m.b, m.size) for m in matched if m.size]
    return tuple(blocks)


def common_start(first: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences begin with in common."""
    return next((i for i, (a, b) in enumerate(zip(first, other, strict=False)) if a != b), min(len(first), len(other)))


def _column(name: str, given: Any, events: pd.DataFrame | None) -> list[dict[str, Any]]:
    """The fields of each sequence that a user gave, as traces or as what carries them."""
    carriers = _carriers(given)
    traces = traces_of(carriers)
    table = _events_of(given, len(traces)) if events is None else events
    by_sequence = _by_sequence(table, traces) if table is not None else {}
    return [
        {
            "trace": trace,
            "title": ", ".join(filter(None, (name, _words(labels)))),
            "labels": {**({"run": name} if name else {}), **labels},
            "events": by_sequence.get(i, ()),
            "logprobs": getattr(carrier, "logprobs", None),
            "asked": _asked(carrier),
        }
        for i, (carrier, trace) in enumerate(zip(carriers, traces, strict=True))
        for labels in [_labels(carrier, trace)]
    ]


def _carriers(given: Any) -> list[Any]:
    """One by one, so that an iterator is read once; what isn't of our kind is refused by `traces_of`."""
    alone = isinstance(given, Trace | HasTrace | str | Tensor | Mapping) or not is_several(given)
    return [given] if alone else list(given)


def _asked(carrier: Any) -> object:
    """What a response answers: a problem, or a prompt of a run; None where it isn't known."""
    problem = getattr(carrier, "problem", None)
    return getattr(carrier, "prompt_index", None) if problem is None else problem.id


def _labels(carrier: Any, trace: Trace) -> dict[str, str]:
    """Of the trace, and what a `Result` says of its problem."""
    labels = {name: str(value) for name, value in trace.labels.items() if name not in _QUIET_LABELS}
    if (problem := getattr(carrier, "problem", None)) is not None:
        labels |= {"mode": str(carrier.mode), "family": str(problem.family), "level": str(problem.level)}
    if (prompt := getattr(carrier, "prompt_index", None)) is not None:
        labels |= {"prompt": str(prompt), **({"sample": str(carrier.sample)} if carrier.sample else {})}
    if hasattr(carrier, "correct"):
        labels["answer"] = {True: "right", False: "wrong", None: "not known"}[carrier.correct]
    return labels


def _words(labels: Mapping[str, str]) -> str:
    """Labels in few words: some values say by themselves what they are."""
    return ", ".join(value if name in _PLAIN_LABELS else f"{name} {value}" for name, value in labels.items())


def _events_of(given: Any, n: int) -> pd.DataFrame | None:
    """Of a whole run; of a slice of one it isn't known which sequences they belong to."""
    log = getattr(given, "log", None)
    if log is None or not hasattr(given, "events"):
        return None
    if len(log.prompt_lens) != n:
        raise InputError(
            f"{n} of the {len(log.prompt_lens)} responses of a run: give the whole run, or chosen traces with "
            "events=out.events(), numbered as they are given"
        )
    return pd.DataFrame(given.events())


def _by_sequence(table: Any, traces: Sequence[Trace]) -> dict[int, tuple[Event, ...]]:
    if not isinstance(table, pd.DataFrame):
        raise InputTypeError(f"events is a table as out.events() gives it, got {table!r:.80}")
    if missing := [name for name in _EVENT_COLUMNS if name not in table]:
        raise InputError(f"events lacks the columns {missing}: give out.events() as it is")
    try:
        found = {
            int(number): tuple(
                Event(int(p), int(layer), str(name), str(decision), bool(fired), float(before), float(after))
                for _, p, layer, name, decision, fired, before, after in own[list(_EVENT_COLUMNS)].itertuples(index=False)
            )
            for number, own in table.groupby("sequence")
        }
    except (TypeError, ValueError) as error:
        raise InputError(f"events hold what is no number ({error}): give out.events() as it is") from error
    _check_events(found, traces)
    return found


def _check_events(found: Mapping[int, Sequence[Event]], traces: Sequence[Trace]) -> None:
    """Refuse what can't have happened in these traces: it would be marked at tokens of another response."""
    if other := sorted(number for number in found if not 0 <= number < len(traces)):
        raise InputError(
            f"events of sequence {other[0]}, but the traces are numbered from 0 to {len(traces) - 1}: keep those of the traces "
            f"that are shown, as in events[events.sequence == {other[0]}].assign(sequence=0)"
        )
    for number, events in found.items():
        n = len(traces[number])
        if beyond := next((event.position for event in events if not 0 <= event.position < n), None):
            raise InputError(f"an event at position {beyond} of sequence {number}, which has {n} tokens: events of another run")
