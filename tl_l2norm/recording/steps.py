"""How a step of decoding is run: as it comes, in tensors that keep their places, replayed as a CUDA graph, or compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from tl_l2norm.core.arguments import check_choice
from tl_l2norm.core.errors import InputError, Unsupported
from tl_l2norm.models.agreement import TOLERANCE, or_refused
from tl_l2norm.models.backend import Backend
from tl_l2norm.models.cache_rows import Cache
from tl_l2norm.models.hooks import silenced
from tl_l2norm.models.lean import LeanBackend, why_not_lean
from tl_l2norm.models.observer import Observers
from tl_l2norm.models.slots import Slots, columns_for, takes

Steps = Literal["eager", "static", "graph", "compiled"]
_BUCKET = 8  # rows: a graph is of one shape, and fewer shapes are captured than rows leave


def check_steps(steps: Any, backend: Any, acts: bool, watches: bool) -> None:
    """Refuse what a way to run steps can't do exactly.

    Args:
        steps: one of `Steps`.
        backend: what runs.
        acts: whether interventions are at work.
        watches: whether anything but norms is recorded.

    Raises:
        ValueError: an unknown way, or a CUDA graph without CUDA.
        NotImplementedError: what isn't exact there; the message names it.
    """
    check_choice("steps", steps, get_args(Steps))
    if steps == "eager":
        return
    if not isinstance(backend, Backend):
        raise Unsupported(
            f"steps={steps!r} is of models that run here: an engine runs its steps in its own way, leave steps out"
        )
    if not isinstance(backend, LeanBackend):
        raise Unsupported(
            f"steps={steps!r} runs a bridge's model without the bridge, which can't be done here ({why_not_lean(backend)}): "
            "leave steps out"
        )
    if steps == "graph" and backend.device.type != "cuda":
        raise InputError(f"steps='graph' replays CUDA graphs, and the model is on {backend.device}: leave it out")
    if steps != "static" and (acts or watches):
        what = "interventions decide" if acts else "SAEs and observers run"
        raise Unsupported(f"{what} in Python at each step, which steps={steps!r} leaves out: steps='static' or 'eager'")


class Stepping:
    """Runs each step through the model as it is, on a cache that grows."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def __call__(
        self, tokens: Int[Tensor, "batch 1"], mask: Int[Tensor, "batch total"], cache: Cache
    ) -> tuple[Float[Tensor, "batch d_vocab"], Cache]:
        """Logits of the next token of every row, and the cache with this step in it."""
        logits, cache = self._backend.forward(tokens, mask, cache=cache, logits="last")
        assert logits is not None
        return logits[:, -1], cache

    def can_join(self, cache: Cache) -> bool:
        """Whether rows of another cache can come to it."""
        return self._backend.cache_rows.can_join(cache)

    def released(self, cache: Cache) -> Cache:
        """The cache as `CacheRows` takes it."""
        return cache


class StaticStepping(Stepping):
    """Runs steps in tensors that keep their places, so that they can be compiled, or replayed as CUDA graphs.

    What a replay records comes out of the tensors that the observers of norms filled while the graph was captured.
    """

    def __init__(self, backend: LeanBackend, watching: Observers, steps: Steps) -> None:
        super().__init__(backend)
        self._lean, self._watching = backend, watching
        self._pads, self._replays = steps != "static", steps != "static" and backend.device.type == "cuda"
        self._run: Callable[..., Tensor] = _compiled(backend, bool(watching.members)) if steps == "compiled" else backend.step
        self._slots: Slots | None = None
        self._checked = False
        self._n, self._total = 0, 0
        """Rows and columns in use; no rows where the cache is not in the slots."""
        self._views: dict[int, Any] = {}
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor, list[object]]] = {}

    @override
    def __call__(
        self, tokens: Int[Tensor, "batch 1"], mask: Int[Tensor, "batch total"], cache: Cache
    ) -> tuple[Float[Tensor, "batch d_vocab"], Cache]:
        n, total = mask.shape
        if cache is not self or not self._slots or total > self._slots.columns:
            self._take(self.released(cache), n, total)
        assert self._slots is not None
        self._n, self._total = n, total
        rows = self._padded(n) if self._pads else n
        self._slots.write(tokens, mask, rows)
        if not self._checked:
            self._check(tokens, mask)
        logits, held = self._replay(rows) if self._replays else (self._logits(rows), None)
        if self._pads:
            self._watching.replayed(held or self._watching.held(), n)
        return logits[:n], self

    @override
    def can_join(self, cache: Cache) -> bool:
        return cache is self or super().can_join(cache)

    @override
    def released(self, cache: Cache) -> Cache:
        if cache is not self:
            return cache
        assert self._slots is not None
        return self._slots.dynamic(self._n, self._total)

    def _take(self, cache: Cache, n: int, total: int) -> None:
        if not takes(cache):
            raise Unsupported("steps in tensors that keep their places are for models whose layers all attend to all positions")
        if self._slots is None or not self._slots.fits(n, total):
            had = self._slots
            rows = max(self._padded(n), had.rows if had else 0)
            self._slots = None  # before its successor needs the memory
            self._views, self._graphs = {}, {}
            self._slots = Slots(cache, rows, columns_for(total))
        self._slots.take(cache)

    def _check(self, tokens: Int[Tensor, "batch 1"], mask: Int[Tensor, "batch total"]) -> None:
        """Once for each run: a step here gives the logits that the model gives on a cache that grows."""
        assert self._slots is not None
        slots, (n, total) = self._slots, mask.shape
        with silenced(self._lean.points):
            truth, _ = super().__call__(tokens, mask, slots.dynamic(n, total - 1))
            with or_refused("A cache in tensors that keep their places", self._lean.model_name, "steps='eager' can"):
                mine = self._lean.step(slots.tokens[:n], slots.mask[:n], slots.positions[:n], slots.view(n))[:, -1]
        gap = float((mine - truth).abs().max() / truth.std().clamp_min(1e-6))
        if not gap <= 10 * TOLERANCE.get(self._lean.dtype, 1e-1):
            raise Unsupported(f"logits of {self._lean.model_name} are off by {gap:.1%} of their spread there: steps='eager'")
        self._checked = True

    def _padded(self, n: int) -> int:
        return n if n <= 2 else -(-n // _BUCKET) * _BUCKET

    def _logits(self, rows: int) -> Float[Tensor, "batch d_vocab"]:
        assert self._slots is not None
        if rows not in self._views:
            self._views[rows] = self._slots.view(rows)
        slots = self._slots
        return self._run(slots.tokens[:rows], slots.mask[:rows], slots.positions[:rows], self._views[rows])[:, -1]

    def _replay(self, rows: int) -> tuple[Float[Tensor, "batch d_vocab"], list[object]]:
        if rows not in self._graphs:
            self._graphs[rows] = self._captured(rows)
        graph, logits, held = self._graphs[rows]
        graph.replay()
        return logits, held

    def _captured(self, rows: int) -> tuple[torch.cuda.CUDAGraph, Tensor, list[object]]:
        stream = torch.cuda.Stream(self._lean.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self._lean.device))
        with torch.cuda.stream(stream):
            for _ in range(3):  # what is set up at first use isn't part of a step; each time the same column is written
                self._logits(rows)
        torch.cuda.current_stream(self._lean.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = self._logits(rows)
            held = self._watching.held()  # puts norms together: in the graph, or no replay would
        return graph, logits, held


def _compiled(backend: LeanBackend, heard: bool) -> Callable[..., Tensor]:
    """A compiled step. What is compiled is known by its code and not by hooks: with and without are two functions."""

    def with_hooks(*inputs: Any) -> Tensor:
        return backend.step(*inputs)

    def without(*inputs: Any) -> Tensor:
        return backend.step(*inputs)

    return torch.compile(with_hooks if heard else without, dynamic=False)


def stepping(backend: Backend, watching: Observers, steps: Steps) -> Stepping:
    """How the steps of a run are run."""
    if steps == "eager":
        return Stepping(backend)
    assert isinstance(backend, LeanBackend)
    return StaticStepping(backend, watching, steps)
