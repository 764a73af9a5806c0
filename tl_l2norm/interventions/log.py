"""What the interventions of a run decided, and what it came to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int8
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from tl_l2norm.core.batch import Places, Rows
from tl_l2norm.core.errors import InputError
from tl_l2norm.core.layers import as_layer, layer_ranges
from tl_l2norm.core.norms import l2_norms
from tl_l2norm.core.tables import html_table
from tl_l2norm.interventions.rule import Rule

_FLUSH_EVERY = 2048  # entries between copies to the CPU


class Entry(NamedTuple):
    """One intervention's decisions at one layer in one forward pass."""

    layer: int
    places: Places
    live: Bool[Tensor, "batch pos"]
    decision: Int8[Tensor, "batch pos"]
    tau: Float[Tensor, "batch pos"] | float
    before: Float[Tensor, "batch pos"]
    after: Float[Tensor, "batch pos"]
    columns: Mapping[str, Float[Tensor, "batch pos"]]


class FinalThreshold(NamedTuple):
    """An adaptive threshold as it was at the end."""

    owner: int | str
    """Number of the sequence, or "run" where all share it."""
    threshold: float
    n_samples: int


class Log:
    """Every decision of a run: one event for each token and layer at which something was done, or nearly done.

    A sequence's number is its place among the run's sequences: prompt after prompt, each with its samples; under plain
    `model.generate` row after row of each call.
    """

    def __init__(self, interventions: Sequence[Rule], *, sink_ratio: float | None = None) -> None:
        self.interventions = tuple(interventions)
        self.sink_ratio = sink_ratio
        """Of the run, if it is known."""
        self.names = _distinct([type(x).__name__ for x in interventions])
        self.keys: dict[int, int] = {}
        """Key of each sequence's random draws."""
        self.prompt_lens: dict[int, int] = {}
        self.paces: Mapping[int, float] = {}
        """How many times faster than here a run that is matched to this one is to use up what it takes, by sequence; 1 where
        nothing is said."""
        self.kept: list[dict[int, dict[int, Any]]] = [{} for _ in interventions]
        """For each intervention what outlived each sequence at each layer, such as the banks of `ERSS(keep_banks=True)`."""
        self.final_thresholds: dict[tuple[int, int], list[FinalThreshold]] = {}
        """By intervention and layer."""
        self.heard: list[tuple[int, Entry]] | None = None
        """What is decided, each with its intervention, for who takes it from here while it comes; None where nobody does."""
        self._columns = tuple(dict.fromkeys(name for x in interventions for name in x.COLUMNS))
        self._entries: list[list[Entry]] = [[] for _ in interventions]
        self._parts: list[list[pd.DataFrame]] = [[] for _ in interventions]
        self._live: list[Counter[tuple[int, int]]] = [Counter() for _ in interventions]
        self._places: list[Places] = []
        self._read: list[NDArray[np.int32]] = []

    def begin(self, rows: Rows) -> None:
        """These sequences are read from now on."""
        numbers = rows.number.tolist()
        self.keys.update(zip(numbers, rows.key.tolist(), strict=True))
        self.prompt_lens.update(zip(numbers, rows.prompt_len.tolist(), strict=True))

    def note(self, places: Places) -> None:
        """These places are read in the next pass."""
        if places.tokens is not None:
            self._places.append(places)
            if len(self._places) >= _FLUSH_EVERY:
                self._flush_places()

    def add(self, index: int, entry: Entry) -> None:
        """Note what intervention `index` decided."""
        if self.heard is not None:
            self.heard.append((index, entry))
        self._entries[index].append(entry)
        if len(self._entries[index]) >= _FLUSH_EVERY:
            self._flush(index)

    def events(self) -> pd.DataFrame:
        """One entry per decision, in the order of sequences, positions and layers.

        Columns: sequence, position, layer, intervention, decision, fired, threshold, l2_norm_before, l2_norm_after, then those
        of the interventions, NaN where they are another's: reruns (ALRR: how often the block ran again), cosine (ERSS: to the
        bank's closest state).
        """
        for index in range(len(self.interventions)):
            self._flush(index)
        frame = self._joined([part for parts in self._parts for part in parts])
        order = ["sequence", "position", "layer"]
        return frame.sort_values(order, kind="stable", ignore_index=True)

    def events_of(self, sequences: Collection[int]) -> pd.DataFrame:
        """The events of these sequences alone, which needn't wait for the others."""
        for index in range(len(self.interventions)):
            self._flush(index)
        parts = [part[part["sequence"].isin(sequences)] for parts in self._parts for part in parts]
        return self._joined(parts)

    def _joined(self, parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
        return pd.concat(parts, ignore_index=True) if parts else _frame(0, self._columns, {})

    def counts(self) -> pd.DataFrame:
        """How often each intervention decided what: intervention, decision, fired, n.

        "live tokens" is how many tokens, layer by layer, it had to judge.
        """
        events, entries = self.events(), []
        for index, (name, intervention) in enumerate(zip(self.names, self.interventions, strict=True)):
            mine = events.loc[events["intervention"] == name, "decision"].value_counts()
            entries.append((name, "live tokens", False, sum(self._live[index].values())))
            entries += [(name, d.name, d.fired, int(mine.get(d.name, 0))) for d in intervention.DECISIONS]
        return pd.DataFrame(entries, columns=["intervention", "decision", "fired", "n"])

    def fired(self, index: int = 0) -> dict[tuple[int, int], int]:
        """How often an intervention fired, by (sequence, layer)."""
        events = self.events()
        mine = events[(events["intervention"] == self.names[index]) & events["fired"]]
        return {(int(s), int(layer)): int(n) for (s, layer), n in mine.groupby(["sequence", "layer"]).size().items()}

    def reruns(self, index: int = 0) -> dict[tuple[int, int], int]:
        """How often an intervention ran a block again, by (sequence, layer), also where it kept the state as it was.

        Raises:
            InputError: an intervention that runs none.
        """
        if "reruns" not in self.interventions[index].COLUMNS:
            raise InputError(f"{self.names[index]} runs no block again: fired() says how many tokens it changed")
        events = self.events()
        mine = events[(events["intervention"] == self.names[index]) & (events["reruns"] > 0)]
        return {(int(s), int(layer)): int(n) for (s, layer), n in mine.groupby(["sequence", "layer"])["reruns"].sum().items()}

    def live(self, index: int = 0) -> dict[tuple[int, int], int]:
        """How many tokens an intervention had to judge, by (sequence, layer)."""
        self._flush(index)
        return dict(self._live[index])

    def fired_at(self, index: int = 0) -> NDArray[np.int64]:
        """Where an intervention fired: [3, event], sequence, layer and position."""
        events = self.events()
        mine = events[(events["intervention"] == self.names[index]) & events["fired"]]
        at: NDArray[np.int64] = mine[["sequence", "layer", "position"]].to_numpy(dtype=np.int64).T
        return at

    def read(self) -> NDArray[np.int64]:
        """What was read, where its ids are known: [3, token], sequence, position and token id."""
        self._flush_places()
        return np.concatenate([np.empty((3, 0), dtype=np.int64), *self._read], axis=1, dtype=np.int64)

    def thresholds(self) -> pd.DataFrame:
        """Adaptive thresholds as they were at the end; columns intervention, layer, owner, threshold, n_samples."""
        entries = [(self.names[i], layer, *owner) for (i, layer), owners in self.final_thresholds.items() for owner in owners]
        return pd.DataFrame(entries, columns=["intervention", "layer", "owner", "threshold", "n_samples"])

    def bank(self, layer: SupportsIndex, *, sequence: int | None = None) -> Float[Tensor, "states d_model"]:
        """States that `ERSS(keep_banks=True)` had stored at a layer when a sequence ended, those of largest norm first.

        Args:
            layer: which block's.
            sequence: which sequence's bank; all of them, one after the other, by default.

        Raises:
            InputError: no bank was kept, or not there.
        """
        kept = [own for x, own in zip(self.interventions, self.kept, strict=True) if getattr(x, "keep_banks", False)]
        if not any(kept):
            raise InputError("no bank was kept: ERSS(..., keep_banks=True) keeps one for each sequence that has ended")
        layer = as_layer(layer)
        banks = [by_layer for own in kept for n, by_layer in own.items() if sequence in (None, n)]
        states = [by_layer[layer] for by_layer in banks if layer in by_layer]
        if not states:
            layers = layer_ranges(sorted({one for own in kept for by_layer in own.values() for one in by_layer}))
            numbers = sorted({n for own in kept for n in own})
            raise InputError(
                f"no bank at layer {layer}{'' if sequence is None else f' of sequence {sequence}'}: there are those of layers "
                f"{layers}, and of sequences {layer_ranges(numbers)}"
            )
        together = torch.cat(states)
        return together[l2_norms(together).argsort(descending=True, stable=True)]

    def idle(self) -> list[str]:
        """Names of interventions that never fired."""
        for index in range(len(self.interventions)):
            self._flush(index)
        return [name for name, parts in zip(self.names, self._parts, strict=True) if not any(p["fired"].any() for p in parts)]

    def __repr__(self) -> str:
        """The counts, one line for each decision."""
        return str(self.counts().to_string(index=False))

    def _repr_html_(self) -> str:
        return html_table(self.counts())

    def _flush_places(self) -> None:
        places, self._places = self._places, []
        if places:
            columns = zip(
                *((p.rows.number[:, None].expand_as(p.real), p.positions, p.tokens, p.real) for p in places), strict=True
            )
            *known, real = (torch.cat([part.flatten() for part in column if part is not None]) for column in columns)
            self._read.append(torch.stack(known)[:, real].to(torch.int32).cpu().numpy())

    def _flush(self, index: int) -> None:
        entries, self._entries[index] = self._entries[index], []
        if not entries:
            return
        columns = _columns(entries, self.interventions[index].COLUMNS)
        live = columns.pop("live")
        pairs, n = np.unique(np.stack([columns["sequence"][live], columns["layer"][live]]), axis=1, return_counts=True)
        self._live[index].update({(s, layer): k for s, layer, k in zip(*pairs.tolist(), n.tolist(), strict=True)})
        kept = columns["decision"] != 0
        if not kept.any():
            return
        columns = {name: values[kept] for name, values in columns.items()}
        decisions = self.interventions[index].DECISIONS
        code = columns["decision"].astype(int) - 1
        if (odd := code[(code < 0) | (code >= len(decisions))]).size:
            name = type(self.interventions[index]).__name__
            raise InputError(f"{name}.act decided {odd[0] + 1}, its DECISIONS are 1 to {len(decisions)}, and 0 is for nothing")
        frame = _frame(
            len(code),
            self._columns,
            columns
            | {
                "intervention": self.names[index],
                "decision": np.array([d.name for d in decisions], dtype=object)[code],
                "fired": np.array([d.fired for d in decisions])[code],
            },
        )
        self._parts[index].append(frame)


class Tally(Log):
    """What one intervention took of the sequences of another run: what a matched control needs of its log."""

    def __init__(
        self,
        intervention: Rule,
        *,
        keys: Mapping[int, int],
        prompt_lens: Mapping[int, int],
        paces: Mapping[int, float],
        fired_at: NDArray[np.int64],
        read: NDArray[np.int64],
    ) -> None:
        super().__init__([intervention])
        self.keys, self.prompt_lens, self.paces = dict(keys), dict(prompt_lens), paces
        self._known = fired_at, read

    @override
    def fired_at(self, index: int = 0) -> NDArray[np.int64]:
        return self._known[0]

    @override
    def read(self) -> NDArray[np.int64]:
        return self._known[1]


def _columns(entries: Sequence[Entry], own: Sequence[str]) -> dict[str, np.ndarray]:
    """Of every token and layer that was judged, in the order of the entries."""

    def flat(values: Sequence[Tensor]) -> np.ndarray:
        return torch.cat([value.detach().flatten().cpu() for value in values]).numpy()

    shapes = [entry.decision.shape for entry in entries]
    sizes = [shape.numel() for shape in shapes]

    def spread(value: Tensor | float | None, shape: torch.Size) -> Tensor:
        if isinstance(value, Tensor):
            return value.expand(shape)
        return torch.full(shape, torch.nan if value is None else value)

    return {
        "sequence": flat([e.places.rows.number[:, None].expand(s) for e, s in zip(entries, shapes, strict=True)]),
        "position": flat([e.places.positions for e in entries]),
        "layer": np.repeat([e.layer for e in entries], sizes),
        "live": flat([e.live for e in entries]),
        "decision": flat([e.decision for e in entries]),
        "threshold": flat([spread(e.tau, s).float() for e, s in zip(entries, shapes, strict=True)]),
        "l2_norm_before": flat([e.before for e in entries]),
        "l2_norm_after": flat([e.after for e in entries]),
        **{name: flat([spread(e.columns.get(name), s).float() for e, s in zip(entries, shapes, strict=True)]) for name in own},
    }


def _frame(n: int, own: Sequence[str], columns: Mapping[str, Any]) -> pd.DataFrame:
    """A table of `n` events; `own`: the columns that interventions have of their own, NaN where they have no value."""
    types: Mapping[str, Any] = {
        "sequence": int,
        "position": int,
        "layer": int,
        "intervention": object,
        "decision": object,
        "fired": bool,
        "threshold": float,
        "l2_norm_before": float,
        "l2_norm_after": float,
        **dict.fromkeys(own, float),
    }
    values = {name: columns.get(name, np.nan if n else []) for name in types}
    return pd.DataFrame(values, index=range(n)).astype(types)


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Names with a number where one occurs several times: ALRR, ALRR 2."""
    seen: Counter[str] = Counter()
    distinct = []
    for name in names:
        seen[name] += 1
        distinct.append(name if seen[name] == 1 else f"{name} {seen[name]}")
    return tuple(distinct)
