"""What interventions see of passes that read tokens of many requests at once: rows of requests, and what is known of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_l2norm.core.batch import Batch, Rows
from tl_l2norm.engines.again import Reruns
from tl_l2norm.interventions.intervener import Intervener


class Changed:
    """What tokens of a request became, by layer and position, on the CPU."""

    def __init__(self) -> None:
        self._states: dict[int, dict[int, Float[Tensor, " d_model"]]] = {}

    def keep(self, layer: int, position: int, state: Float[Tensor, " d_model"]) -> None:
        """Keep a state."""
        self._states.setdefault(layer, {})[position] = state

    def between(self, start: int, end: int) -> Iterator[tuple[int, int, Float[Tensor, " d_model"]]]:
        """Layer, position and state of those that were changed from one position up to another."""
        for layer, states in self._states.items():
            for position in sorted(position for position in states if start <= position < end):
                yield layer, position, states[position]


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
    home: Batch | None = None
    """What interventions remember of it while it is in no batch."""
    changed: Changed = field(default_factory=Changed)


def rows_of(asked: Sequence[Asked], positions: Int[np.ndarray, " row"], device: torch.device) -> Rows:
    """A row for each, whose next token stands at this position."""
    columns = np.array([(one.number, one.key, one.prompt_len) for one in asked], dtype=np.int64).reshape(-1, 3).T
    number, key, prompt_len, position = torch.from_numpy(np.concatenate([columns, positions[None].astype(np.int64)])).to(device)
    finished = torch.zeros_like(number, dtype=torch.bool)
    return Rows(number=number, key=key, prompt_len=prompt_len, position=position, finished=finished)


class Part:
    """Some tokens of a pass, as an intervener's pass over a batch of its own."""

    def __init__(
        self,
        intervener: Intervener,
        batch: Batch,
        asked: Sequence[Asked],
        index: Int[np.ndarray, "row pos"],
        n_tokens: int,
        ids: Int[Tensor, " token"],
    ) -> None:
        """Begin the pass.

        Args:
            intervener: whose pass it is.
            batch: its rows.
            asked: the request of each row.
            index: of the tokens among those of the whole pass, -1 for padding.
            n_tokens: of the whole pass.
            ids: of its tokens.
        """
        self.intervener, self.batch, self.asked = intervener, batch, tuple(asked)
        self.index = torch.from_numpy(np.maximum(index, 0)).to(ids.device)
        self.is_padded = bool((index < 0).any())
        self.is_whole = index.shape == (n_tokens, 1) and bool((index[:, 0] == np.arange(n_tokens)).all())
        self._real: Bool[Tensor, "row pos"] = torch.from_numpy(index >= 0).to(ids.device)
        self._starts = batch.rows.position
        self._changed: list[tuple[int, Bool[Tensor, "row pos"], Float[Tensor, "row pos d_model"]]] = []
        intervener.next_pass(batch.next_pass(index.shape[1], padded=self.is_padded, tokens=ids[self.index]))
        self.reading = intervener.reading

    def visit(
        self, layer: int, stream: Float[Tensor, "token d_model"], after: Float[Tensor, "token d_model"], *, keeps: bool
    ) -> Float[Tensor, "token d_model"]:
        """What becomes of the pass' tokens behind a layer.

        Args:
            layer: at which interventions act.
            stream: as the block wrote it.
            after: with what other parts made of it.
            keeps: whether what is changed is kept, too.
        """
        self.intervener.reading = self.reading
        if isinstance(self.intervener.blocks, Reruns):
            self.intervener.blocks.over(stream, self.index)
        shown = stream[:, None] if self.is_whole else stream[self.index]
        made = self.intervener.visit(layer, shown, None)
        if made is None:
            return after
        if keeps:
            self._changed.append((layer, (made != shown).any(-1) & self._real, made))
            if made.shape[1] > 1:  # prompts are long, and layers many
                self._keep()
        if self.is_whole:
            return made[:, 0]
        if self.is_padded:
            return after.index_copy(0, self.index[self._real], made[self._real])
        return after.index_copy(0, self.index.flatten(), made.flatten(0, 1))

    def end(self, *, parts: bool) -> None:
        """The pass is over. `parts`: whether its requests go their own ways from here."""
        self._keep()
        for row, one in enumerate(self.asked if parts else ()):
            one.home = self.batch.select(torch.tensor([row], device=self.index.device))

    def _keep(self) -> None:
        """Hand what was changed to the requests; here, so that a device is waited for once."""
        changed, self._changed = self._changed, []
        if not changed:
            return
        starts = self._starts.tolist()
        hits = torch.stack([hit for _, hit, _ in changed]).cpu().nonzero().tolist()
        states = torch.stack([changed[i][2][row, column] for i, row, column in hits]).cpu() if hits else ()
        for (i, row, column), state in zip(hits, states, strict=True):
            self.asked[row].changed.keep(changed[i][0], starts[row] + column, state)
