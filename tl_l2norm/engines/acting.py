"""Interventions on passes that read tokens of many requests at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_l2norm.core.batch import Batch, Rows
from tl_l2norm.core.errors import Unsupported
from tl_l2norm.core.norms import l2_norms, sink_bounds
from tl_l2norm.core.thresholds import AdaptiveIQR
from tl_l2norm.interventions.intervener import BOUNDS, Intervener
from tl_l2norm.interventions.rule import Rule
from tl_l2norm.interventions.suppress import Suppression
from tl_l2norm.models.described import Described


@dataclass(slots=True, eq=False)
class Asked:
    """A request, as interventions know it."""

    number: int
    key: int
    prompt_len: int
    n_read: int = 0
    """How many of its tokens were read, and judged, at least once."""
    bounds: Float[Tensor, " layer"] | None = None
    """Of sinks; None while its prompt is read."""
    prompt: list[Float[Tensor, "layer pos"]] = field(default_factory=list)
    """Norms of as much of the prompt as was read."""


def require_stateless(interventions: Iterable[Rule]) -> None:
    """Refuse by name what an engine can't do exactly: what remembers, re-runs a block, or acts on prompts."""
    for x in interventions:
        simple = type(x) is Suppression and x.match is None and x.how != "swap"
        if not simple or x.positions != "decode" or isinstance(x.thresholds, AdaptiveIQR):
            raise Unsupported(
                f"an engine does Suppression(...) with fixed thresholds, which='high', 'low' or 'random', how='scale' or "
                f"'clamp', on decode positions: {x!r} needs a model of load_model"
            )


class Acting:
    """Stateless interventions at work, every token of a pass a row of its own.

    A token that is read again, after a preemption, is changed again as it was, and isn't logged again.
    """

    def __init__(self, model: Described, interventions: Sequence[Rule], *, sink_ratio: float) -> None:
        require_stateless(interventions)
        self.first, self._again = (Intervener(model, interventions, sink_ratio=sink_ratio) for _ in range(2))
        self.layers = tuple(self.first.sites)
        self.requests: dict[str, Asked] = {}
        self._now: list[tuple[Asked, int, int]] = []
        self._parts: list[tuple[Intervener, Int[Tensor, " some"]]] = []
        self._judged: list[Float[Tensor, " token"]] = []

    def expect(self, request: str, number: int, key: int, prompt_len: int) -> None:
        """A request that is to come."""
        self.requests[request] = Asked(number, key, prompt_len)
        log = self.first.log
        log.keys[number], log.prompt_lens[number] = key, prompt_len

    def begin(
        self,
        requests: Sequence[str],
        lengths: Int[np.ndarray, " row"],
        positions: Int[np.ndarray, " token"],
        device: torch.device,
    ) -> None:
        """A pass starts, over so many tokens of each request."""
        asked = [self.requests[request] for request in requests]
        firsts = np.cumsum(lengths) - lengths
        self._now = [(one, int(positions[at]), int(n)) for one, at, n in zip(asked, firsts, lengths, strict=True)]
        columns = np.array([(one.number, one.key, one.prompt_len, one.n_read) for one in asked]).T
        number, key, prompt_len, n_read = np.repeat(columns, lengths, axis=1)
        none = torch.full((len(self.layers),), torch.inf)
        by_row = torch.stack([none if one.bounds is None else one.bounds for one in asked], dim=1)
        bounds = by_row.repeat_interleave(torch.from_numpy(lengths.astype(np.int64)), dim=1).to(device)
        rows = [torch.from_numpy(column).to(device) for column in (number, key, prompt_len, positions.astype(np.int64))]
        fresh = positions >= n_read
        self._judged, self._parts = [], []
        for intervener, chosen in ((self.first, fresh), (self._again, ~fresh)):
            if chosen.any():
                index = torch.from_numpy(np.flatnonzero(chosen)).to(device)
                self._parts.append((intervener, index))
                self._begin_part(intervener, [column[index] for column in rows], bounds[:, index])

    def _begin_part(self, intervener: Intervener, rows: list[Tensor], bounds: Float[Tensor, "layer some"]) -> None:
        number, key, prompt_len, position = rows
        finished = torch.zeros_like(number, dtype=torch.bool)
        batch = Batch(Rows(number=number, key=key, prompt_len=prompt_len, position=position, finished=finished))
        for layer, own in zip(self.layers, bounds, strict=True):
            batch.keep((BOUNDS, layer), own)
        intervener.next_pass(batch.next_pass(1, padded=False))

    def visit(self, layer: int, stream: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_model"] | None:
        """The stream behind a layer after all interventions there; None where they change nothing."""
        self._judged.append(l2_norms(stream))
        changed = None
        for intervener, index in self._parts:
            whole = len(index) == len(stream)  # as nearly always
            new = intervener.visit(layer, (stream if whole else stream[index])[:, None], None)
            if new is not None and whole:
                changed = new[:, 0]
            elif new is not None:
                changed = (stream if changed is None else changed).index_copy(0, index, new[:, 0])
        return changed

    def end(self) -> Float[Tensor, "layer token"]:
        """The pass is over; returns the norms that were judged, before anything was changed at their layer."""
        judged = torch.stack(self._judged)
        at = 0
        for one, start, n in self._now:
            if one.bounds is None:
                one.prompt = [*(one.prompt if start else ()), judged[:, at : at + n]]
                if start + n >= one.prompt_len:
                    norms = torch.cat(one.prompt, dim=1).cpu()
                    one.bounds = sink_bounds(norms, prompt_len=one.prompt_len, ratio=self.first.sink_ratio)
                    one.prompt = []
            one.n_read, at = max(one.n_read, start + n), at + n
        return judged
