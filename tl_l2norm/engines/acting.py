"""Interventions on passes that read tokens of many requests at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_l2norm.core.batch import Batch
from tl_l2norm.core.errors import Unsupported
from tl_l2norm.core.norms import l2_norms, sink_bounds
from tl_l2norm.core.thresholds import AdaptiveIQR
from tl_l2norm.engines.parts import Asked, Part, rows_of
from tl_l2norm.interventions.intervener import BOUNDS, Intervener
from tl_l2norm.interventions.rule import Rule
from tl_l2norm.interventions.suppress import Suppression
from tl_l2norm.models.described import Described


def require_exact(interventions: Iterable[Rule], *, whole_prompts: bool) -> None:
    """Refuse by name what an engine can't do exactly.

    Args:
        interventions: of a run.
        whole_prompts: whether every prompt is read in one pass.
    """
    for x in interventions:
        if isinstance(x.thresholds, AdaptiveIQR) and x.thresholds.scope == "run":
            raise Unsupported(
                "AdaptiveIQR(scope='run') counts the tokens of all responses in the order in which they are read, and an "
                f"engine reads them in an order of its own: {x!r} needs scope='sequence', or a model of load_model"
            )
        if x.needs_resid_mid:
            raise Unsupported(f"an engine doesn't see the stream before the MLP's write: {x!r} needs a model of load_model")
        if x.positions != "decode" and not whole_prompts:
            raise Unsupported(
                "what a sink is shows when a whole prompt is read, and vLLM may read prompts in parts: load the engine with "
                f"enable_chunked_prefill=False for {x!r}, or use a model of load_model"
            )


def _decides_alone(x: Rule) -> bool:
    """Whether what becomes of a token hangs on that token alone."""
    return type(x) is Suppression and x.match is None and x.how != "swap" and not isinstance(x.thresholds, AdaptiveIQR)


class Acting:
    """Interventions at work on the requests of an engine: each is a row of a batch, with a memory of its own.

    A token that is read again, after a preemption, is changed again as it was, and is neither judged nor logged again. What it
    became is kept for that where interventions remember anything, and computed anew where each token is decided alone.
    """

    def __init__(
        self, model: Described, interventions: Sequence[Rule], *, sink_ratio: float, whole_prompts: bool = False
    ) -> None:
        require_exact(interventions, whole_prompts=whole_prompts)
        self.first, self._again = (Intervener(model, interventions, sink_ratio=sink_ratio) for _ in range(2))
        self.keeps = not all(map(_decides_alone, interventions))
        self.layers = tuple(self.first.sites)
        self.requests: dict[str, Asked] = {}
        self._order: list[str] = []
        """Whose last token was read in the last pass, in the order of the batch's rows."""
        self._batch: Batch | None = None
        self._now: list[tuple[Asked, int, int]] = []
        self._parts: list[Part] = []
        self._back: dict[int, tuple[Int[Tensor, " some"], Float[Tensor, "some d_model"]]] = {}
        self._judged: list[Float[Tensor, " token"]] = []

    def expect(self, request: str, number: int, key: int, prompt_len: int) -> None:
        """A request that is to come.

        Raises:
            ValueError: an intervention can't begin with it, such as one that is matched to the log of other sequences.
        """
        one = Asked(number, key, prompt_len)
        rows = rows_of([one], np.zeros(1, dtype=np.int64), torch.device("cpu"))
        for layer in self.layers[: 1 if self.requests else None]:
            for site in self.first.sites[layer]:
                site.intervention.new_state(layer, rows, self.first.backend.d_model)
        self.requests[request] = one
        self.first.log.begin(rows)

    def begin(
        self,
        requests: Sequence[str],
        lengths: Int[np.ndarray, " row"],
        positions: Int[np.ndarray, " token"],
        tokens: Int[np.ndarray, " token"],
        device: torch.device,
    ) -> None:
        """A pass starts, over so many tokens of each request; of each its position and id."""
        asked = [self.requests[request] for request in requests]
        firsts = np.cumsum(lengths) - lengths
        self._now = [(one, int(positions[at]), int(n)) for one, at, n in zip(asked, firsts, lengths, strict=True)]
        self._judged, self._parts, self._back = [], [], {}
        ids = torch.from_numpy(tokens.astype(np.int64)).to(device)
        written, prompts = self._first_read(requests, firsts)
        if written:
            self._take_turns(list(written), device)
            assert self._batch is not None
            index = np.array([[written[request]] for request in self._order])
            rows = [self.requests[request] for request in self._order]
            self._parts.append(Part(self.first, self._batch, rows, index, len(tokens), ids))
        if prompts:
            self._read_prompts(prompts, ids)
        if self.keeps:
            self._bring_back(device)
        else:
            self._judge_again(positions, lengths, ids)

    def _first_read(self, requests: Sequence[str], firsts: Int[np.ndarray, " row"]) -> tuple[dict[str, int], dict[str, int]]:
        """Where in the pass the tokens are that are read for the first time: a response's newest, and a prompt's first where
        something acts on prompts.
        """
        written, prompts = dict[str, int](), dict[str, int]()
        for request, at, (one, start, n) in zip(requests, firsts.tolist(), self._now, strict=True):
            known = max(one.n_read, one.prompt_len)
            if start + n > known + 1:
                raise RuntimeError(f"{start + n - known} new tokens of response {one.number} in one pass")
            if start + n > known:
                written[request] = at + n - 1
            elif self.first.acts_on_prompts and one.n_read < one.prompt_len:
                if (start, n) != (0, one.prompt_len):
                    raise RuntimeError(f"{n} of {one.prompt_len} tokens of prompt {one.number} were read, from {start} on")
                prompts[request] = at
        return written, prompts

    def _take_turns(self, requests: Sequence[str], device: torch.device) -> None:
        """Make a batch of these; the memory of those that leave it waits with them."""
        rows = {request: row for row, request in enumerate(self._order)}
        if rows.keys() == set(requests):
            return
        for request in rows.keys() - set(requests):
            self.requests[request].home = self._row(rows[request])
        stay = [request for request in self._order if request in requests]
        others = [request for request in requests if request not in rows]
        groups, known = [], [request for request in others if self.requests[request].home is not None]
        if stay:
            assert self._batch is not None
            groups.append(self._batch.select(torch.tensor([rows[request] for request in stay], device=device)))
        for request in known:
            one = self.requests[request]
            assert one.home is not None
            groups.append(one.home)
            one.home = None
        if new := [request for request in others if request not in known]:
            asked = [self.requests[request] for request in new]
            groups.append(self._begun(asked, np.array([max(one.n_read, one.prompt_len) for one in asked]), device))
        self._batch, self._order = reduce(Batch.join, groups), [*stay, *known, *new]

    def _row(self, row: int) -> Batch:
        assert self._batch is not None
        return self._batch.select(torch.tensor([row], device=self._batch.rows.device))

    def _begun(self, asked: Sequence[Asked], positions: Int[np.ndarray, " row"], device: torch.device) -> Batch:
        """A batch of requests whose prompts were read."""
        batch = Batch(rows_of(asked, positions, device))
        none = torch.full((len(self.layers),), torch.inf)
        bounds = torch.stack([none if one.bounds is None else one.bounds for one in asked], dim=1).to(device)
        for layer, own in zip(self.layers, bounds, strict=True):
            batch.keep((BOUNDS, layer), own)
        return batch

    def _read_prompts(self, prompts: Mapping[str, int], ids: Int[Tensor, " token"]) -> None:
        """Whole prompts that begin there, padded on their left."""
        asked = [self.requests[request] for request in prompts]
        lengths = np.array([one.prompt_len for one in asked])
        padding = lengths.max() - lengths
        columns = np.arange(lengths.max()) - padding[:, None]
        index = np.where(columns < 0, -1, columns + np.array([*prompts.values()])[:, None])
        batch = Batch(rows_of(asked, -padding, ids.device))
        self._parts.append(Part(self.first, batch, asked, index, len(ids), ids))

    def _bring_back(self, device: torch.device) -> None:
        """What the tokens became that are read again."""
        at, back = 0, dict[int, list[tuple[int, Tensor]]]()
        for one, start, n in self._now:
            if start < one.n_read:
                for layer, position, state in one.changed.between(start, min(start + n, one.n_read)):
                    back.setdefault(layer, []).append((at + position - start, state))
            at += n
        for layer, states in back.items():
            index = torch.tensor([place for place, _ in states], device=device)
            self._back[layer] = index, torch.stack([state for _, state in states]).to(device)

    def _judge_again(
        self, positions: Int[np.ndarray, " token"], lengths: Int[np.ndarray, " row"], ids: Int[Tensor, " token"]
    ) -> None:
        """Decide anew on the tokens that are read again, each a row of its own."""
        n_read = np.repeat([one.n_read for one, _, _ in self._now], lengths)
        places = np.flatnonzero(positions < n_read)
        if len(places):
            owners = np.repeat(np.arange(len(lengths)), lengths)[places]
            asked = [self._now[owner][0] for owner in owners]
            batch = self._begun(asked, positions[places], ids.device)
            self._parts.append(Part(self._again, batch, asked, places[:, None], len(ids), ids))

    def visit(self, layer: int, stream: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_model"] | None:
        """The stream behind a layer after all interventions there; None where they change nothing."""
        self._judged.append(l2_norms(stream))
        after = stream.index_copy(0, *self._back[layer]) if layer in self._back else stream
        for part in self._parts:
            after = part.visit(layer, stream, after, keeps=self.keeps)
        return None if after is stream else after

    def end(self) -> Float[Tensor, "layer token"]:
        """The pass is over; returns the norms that were judged, before anything was changed at their layer."""
        judged = torch.stack(self._judged)
        for part in self._parts:
            part.end(parts=part.batch is not self._batch and part.intervener is self.first)
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

    def leave(self, request: str) -> None:
        """A request has ended: the log keeps what outlives it."""
        one = self.requests.pop(request)
        if request in self._order:
            row = self._order.index(request)
            one.home = self._row(row)
            self._order.pop(row)
            rest = [other for other in range(len(self._order) + 1) if other != row]
            assert self._batch is not None
            self._batch = self._batch.select(torch.tensor(rest, device=self._batch.rows.device)) if rest else None
        if one.home is not None:
            self.first.leave(one.home)
