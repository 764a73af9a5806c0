"""The decode loop: owner of the KV cache and of everything that belongs to a sequence while it grows."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from tl_l2norm.core.batch import Batch, Rows
from tl_l2norm.interventions.intervener import Intervener
from tl_l2norm.interventions.log import Log
from tl_l2norm.models.cache_rows import Cache
from tl_l2norm.models.observer import Recorded
from tl_l2norm.recording.completions import FinishReason
from tl_l2norm.recording.sampling import Sampling, choose, score
from tl_l2norm.recording.steps import Steps, stepping
from tl_l2norm.recording.stops import Stops
from tl_l2norm.recording.traces import Recording
from tl_l2norm.text.sequences import TokenSequence, pad_left

_FLUSH_EVERY = 128  # decode steps between copies of what was recorded to the CPU


@dataclass(slots=True, eq=False)
class Growing:
    """A sequence while it grows."""

    number: int
    item: TokenSequence
    prompt: int
    sample: int
    seed: int
    new: list[int] = field(default_factory=list)
    recorded: list[Recorded] = field(default_factory=list)
    n_recorded: int = 0
    """Tokens in them."""
    scores: list[Float[Tensor, "3 token"]] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    forced: list[int] = field(default_factory=list)
    """Places in `new` of tokens that were written in the place of those that were chosen."""


class Decoder:
    """A batch of sequences, their cache and their mask. Tensors have one row per sequence in `rows`, in this order."""

    def __init__(
        self,
        recording: Recording,
        intervening: Intervener | None,
        sampling: Sampling,
        stops: Stops,
        max_new_tokens: int,
        steps: Steps = "eager",
    ) -> None:
        self.backend, self.recording, self.intervening = recording.here, recording, intervening
        self.watching = recording.watching(intervening)
        self.stepping = stepping(self.backend, self.watching, steps)
        self.stops, self.max_new_tokens = stops, max_new_tokens
        self.warpers, self.forcing = sampling.warpers(), sampling.forcing(stops.ids, max_new_tokens)
        self.rows: list[Growing] = []
        self.cache: Cache = None
        self.mask = self.tokens = torch.empty(0)
        self.batch: Batch | None = None
        self.n_waiting = 0  # passes that observers have recorded and not handed out
        self.scores: list[Float[Tensor, "3 batch"]] = []

    @property
    def log(self) -> Log | None:
        """What the interventions decide; None without any."""
        return None if self.intervening is None else self.intervening.log

    def attached(self) -> AbstractContextManager[object]:
        """Keep the hooks of what watches on the model inside the context."""
        return self.watching.attached()

    def run(self, rows: Sequence[Growing], batch_size: int, progress: bool | str) -> Iterator[list[Growing]]:
        """Decode every row to its end; yields those that end together."""
        name = progress if isinstance(progress, str) else "generate"
        with tqdm(total=len(rows), desc=name, unit="seq", disable=not progress, delay=2) as bar:
            read = 0
            for finished in self.passes(rows, batch_size):
                bar.update(len(finished))
                read += max(1, len(self.rows))
                bar.set_postfix(tokens=read, refresh=False)
                if finished:
                    yield finished

    def passes(self, rows: Sequence[Growing], batch_size: int) -> Iterator[list[Growing]]:
        """Decode every row to its end, one forward pass after another; yields those that end with each, often none."""
        apart = self.intervening is not None and self.intervening.acts_on_prompts  # each sample has random draws of its own
        queue = deque(_groups(rows, 1 if apart else batch_size))
        while queue or self.rows:
            if admitted := list(self._admissible(queue, batch_size)):
                self._admit(admitted)
            else:
                self._step()
            yield self._retire()

    def hand_out(self) -> None:
        """Give every row what was recorded of it so far, but for the scores of its tokens, which wait for its end."""
        self._hand_out_recorded()

    def abandon(self) -> None:
        """Leave the rows as they are, and free their cache; the log keeps what outlives them."""
        if self.batch is not None:
            self.watching.leave(self.batch)
        self.rows, self.cache, self.batch = [], None, None
        self.mask = self.tokens = torch.empty(0)

    def _admissible(self, queue: deque[list[Growing]], batch_size: int) -> Iterator[list[Growing]]:
        """Groups that fit: into an empty batch, or one of which a quarter is free, so that prompts are read together."""
        free = batch_size - len(self.rows)
        if self.rows and (4 * free < batch_size or not self.stepping.can_join(self.cache)):
            return
        rows = [*self.rows, *(queue[0] if queue else ())]
        while queue and len(queue[0]) <= free and self._is_far(queue[0][0]) == self._is_far(rows[0]):
            free -= len(queue[0])
            yield queue.popleft()

    def _is_far(self, row: Growing) -> bool:
        """On which side of LongRoPE's boundary a row is, from its prompt to its end: a batch has one set of factors."""
        boundary = self.backend.longrope_boundary
        return boundary is not None and len(row.item) > boundary

    def _admit(self, groups: list[list[Growing]]) -> None:
        """Read the prompts of new rows, one pass for the samples of a prompt, and put them beside the others."""
        self._flush()
        tokens, mask = pad_left([group[0].item.tokens for group in groups], self.backend.device)
        batch = Batch(_rows([group[0] for group in groups], mask))
        self.watching.begin(batch)
        self.watching.next_pass(batch.next_pass(mask.shape[1], tokens=tokens))
        logits, cache = self.backend.forward(tokens, mask, keep_cache=True, logits="last")
        assert logits is not None
        for group, recorded in zip(groups, self.watching.take(len(groups)), strict=True):
            for row in group:
                self._note(row, recorded)
        owner = torch.tensor([i for i, group in enumerate(groups) for _ in group], device=mask.device)
        rows = [row for group in groups for row in group]
        if len(rows) > len(groups):
            cache, logits, mask = self.backend.cache_rows.select(cache, owner), logits[owner], mask[owner]
            batch = _samples(batch.select(owner), rows)
            self.watching.begin(batch)
        tokens = self._choose(rows, logits[:, -1], batch.rows.key)
        self._hand_out_scores(rows)
        if self.batch is not None:
            self.cache = self.stepping.released(self.cache)
            width = max(self.mask.shape[1], mask.shape[1])
            mask = torch.cat([_widen(self.mask, width), _widen(mask, width)])
            cache = self.backend.cache_rows.join(self.cache, cache)
            tokens, batch = torch.cat([self.tokens, tokens]), self.batch.join(batch)
        self.rows, self.cache, self.mask, self.tokens, self.batch = [*self.rows, *rows], cache, mask, tokens, batch

    def _step(self) -> None:
        """Read every row's last token back and choose its next."""
        assert self.batch is not None
        self.watching.next_pass(self.batch.next_pass(1, padded=False, tokens=self.tokens[:, None]))
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.rows), 1)], dim=1)
        logits, self.cache = self.stepping(self.tokens[:, None], self.mask, self.cache)
        self.n_waiting += 1
        if self.n_waiting >= _FLUSH_EVERY:
            self._flush()
        self.tokens = self._choose(self.rows, logits, self.batch.rows.key)

    def _choose(self, rows: list[Growing], logits: Tensor, seeds: Tensor) -> Int[Tensor, " batch"]:
        counts = torch.tensor([len(row.new) for row in rows], device=logits.device) if self.warpers else seeds
        tokens = choose(logits, self.warpers, seeds, counts)
        if self.forcing is not None:
            tokens = self.forcing.over(tokens, [row.number for row in rows], [len(row.new) for row in rows])
        if self.recording.records:
            self.scores.append(score(logits, tokens))
        for row, token in zip(rows, tokens.tolist(), strict=True):
            row.new.append(token)
            if self.stops.reached(row.item.tokens, row.new):
                row.finish_reason = "stop"
            elif len(row.new) == self.max_new_tokens:
                row.finish_reason = "length"
        return tokens

    def _retire(self) -> list[Growing]:
        """Let finished rows leave, and padding that no row needs any longer; returns those that left."""
        alive = [i for i, row in enumerate(self.rows) if row.finish_reason is None]
        left = [row for row in self.rows if row.finish_reason is not None]
        if not left:
            return []
        self._flush()
        if self.forcing is not None:
            for row in left:
                row.forced = self.forcing.places.pop(row.number)
        assert self.batch is not None
        ended = torch.tensor([i for i, row in enumerate(self.rows) if row.finish_reason is not None], device=self.mask.device)
        self.watching.leave(self.batch.select(ended))
        self.rows = [self.rows[i] for i in alive]
        if not alive:
            self.cache = self.batch = None
            return left
        keep = torch.tensor(alive, device=self.mask.device)
        self.cache = self.stepping.released(self.cache)
        self.cache, self.batch = self.backend.cache_rows.select(self.cache, keep), self.batch.select(keep)
        self.mask, self.tokens = self.mask[keep], self.tokens[keep]
        padding = int(self.mask.argmax(1).min())
        if padding and self.backend.cache_rows.can_join(self.cache):
            self.cache, self.mask = self.backend.cache_rows.trim_left(self.cache, padding), self.mask[:, padding:]
        return left

    def _flush(self) -> None:
        """Hand the recorded steps to their rows; before the batch changes, and now and then."""
        self._hand_out_recorded()
        self._hand_out_scores(self.rows)

    def _hand_out_recorded(self) -> None:
        if not self.n_waiting:
            return
        self.n_waiting = 0
        for row, recorded in zip(self.rows, self.watching.take(len(self.rows)), strict=True):
            self._note(row, recorded)

    def _note(self, row: Growing, recorded: Recorded) -> None:
        if self.recording.records:
            row.n_recorded += self.recording.check(recorded, row.prompt, first=row.n_recorded)
        row.recorded.append(recorded)

    def _hand_out_scores(self, rows: Sequence[Growing]) -> None:
        if not self.scores:
            return
        scores = torch.stack(self.scores, dim=2).cpu()
        self.scores = []
        for index, row in enumerate(rows):
            row.scores.append(scores[:, index])


def _rows(rows: Sequence[Growing], mask: Int[Tensor, "batch total"]) -> Rows:
    device = mask.device
    return Rows.of(
        number=torch.tensor([row.number for row in rows], device=device),
        key=torch.tensor([row.seed for row in rows], device=device),
        prompt_len=torch.tensor([len(row.item) for row in rows], device=device),
        padding=mask.argmax(1),
    )


def _samples(batch: Batch, rows: Sequence[Growing]) -> Batch:
    """Rows that share what was read so far, each under its own number and seed."""
    device = batch.rows.device
    batch.rows.number = torch.tensor([row.number for row in rows], device=device)
    batch.rows.key = torch.tensor([row.seed for row in rows], device=device)
    return batch


def _groups(rows: Sequence[Growing], size: int) -> list[list[Growing]]:
    """Samples of a prompt that share a pass over it, `size` at most; longest prompts first, so a lack of memory shows early."""
    by_prompt: dict[int, list[Growing]] = {}
    for row in rows:
        by_prompt.setdefault(row.prompt, []).append(row)
    order = sorted(by_prompt.values(), key=lambda group: -len(group[0].item))
    return [group[start : start + size] for group in order for start in range(0, len(group), size)]


def _widen(mask: Int[Tensor, "batch total"], width: int) -> Int[Tensor, "batch width"]:
    return torch.nn.functional.pad(mask, (width - mask.shape[1], 0))
