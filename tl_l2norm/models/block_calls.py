"""Run a block again: what it was called with, and the keys and values that it saw, on both kinds of model."""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformer_lens.hook_points import HookPoint

from tl_l2norm.core.errors import Unsupported
from tl_l2norm.models.cache import positions_held
from tl_l2norm.models.hooks import hook_points, silenced

_CACHE_NAMES = ("past_kv_cache_entry", "past_key_values", "cache", "layer_past", "past_key_value")
_CHUNK = 32  # rows of a re-run in which each has keys and values of its own


@dataclass(frozen=True, slots=True, eq=False)
class BlockCall:
    """What a block was called with: everything that running it again needs."""

    block: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def stream(self) -> Float[Tensor, "batch pos d_model"]:
        """The residual stream that the block read."""
        stream: Tensor = self.args[0] if self.args else self.kwargs["hidden_states"]
        return stream

    def with_stream(self, stream: Float[Tensor, "rows pos d_model"]) -> BlockCall:
        """The same call on another stream."""
        return self.with_argument(0 if self.args else "hidden_states", stream)

    def with_argument(self, place: int | str, value: Any) -> BlockCall:
        """The same call with another argument at a place that `find` gave."""
        if isinstance(place, str):
            return replace(self, kwargs={**self.kwargs, place: value})
        return replace(self, args=(*self.args[:place], value, *self.args[place + 1 :]))

    def find(self, *names: str) -> tuple[int | str, Any]:
        """Place and value of an argument of any of these names: GPT-2 gets its cache by position, NeoX as `layer_past`."""
        for name in names:
            if name in self.kwargs:
                return name, self.kwargs[name]
        parameters = _parameters(type(self._inner))  # type: ignore[arg-type]
        for index, name in enumerate(parameters[: len(self.args)]):
            if name in names:
                return index, self.args[index]
        return next((name for name in names if name in parameters), names[0]), None

    @property
    def cache(self) -> Any:
        """The cache that the block was given, its own or that of all blocks; None without."""
        _, cache = self.find(*_CACHE_NAMES)
        while isinstance(cache, _Recorder):
            cache = cache.cache
        return cache

    @property
    def offset(self) -> int:
        """Number of cached positions before this call."""
        held = positions_held(self.cache)
        if held is None:
            raise Unsupported(f"a {type(self.cache).__name__} doesn't say how many positions it holds: use tl_l2norm.generate")
        return held

    @property
    def is_real(self) -> Bool[Tensor, "rows pos"] | None:
        """Which positions are not padding, read off the mask that the block got; None where it got none."""
        _, mask = self.find("attention_mask")
        n_pos = self.stream.shape[1]
        if mask is None:
            return None
        if mask.ndim == 2:
            real: Tensor = mask[:, -n_pos:].bool()
            return real
        own: Tensor = mask[:, 0, :, -n_pos:].diagonal(dim1=-2, dim2=-1)  # whether a position sees itself: padding sees nothing
        return own if own.dtype == torch.bool else own > torch.finfo(own.dtype).min / 2

    def take_rows(self, rows: Int[Tensor, " rows"]) -> BlockCall | None:
        """The same call for these rows of its batch; None if an argument's rows can't be told."""
        batch = self.stream.shape[0]
        try:
            args = tuple(_take_rows(value, rows, batch) for value in self.args)
            return replace(self, args=args, kwargs={k: _take_rows(v, rows, batch) for k, v in self.kwargs.items()})
        except _NoRows:
            return None

    def run(self) -> Float[Tensor, "rows pos d_model"]:
        """The block's output. Past `__call__`: there transformers would note it as another hidden state."""
        parameters = _parameters(type(self._inner))  # type: ignore[arg-type]
        kwargs = self.kwargs if "**" in parameters else {k: v for k, v in self.kwargs.items() if k in parameters}
        out = self._inner.forward(*self.args, **kwargs)
        stream: Tensor = out if isinstance(out, Tensor) else out[0]
        return stream

    @property
    def _inner(self) -> nn.Module:
        original = getattr(self.block, "original_component", None)
        return self.block if original is None else original


class _Seen(NamedTuple):
    """Keys and values that a block's first pass attended to; positions along `dim`."""

    keys: Tensor
    values: Tensor
    dim: int
    end: Any
    """Positions in use; a cache in tensors that keep their places has idle ones behind them."""


class _Recorder:
    """Stands in for a block's cache in its first pass and notes what the block attends to. Changes nothing.

    `update` is what Hugging Face's layers call, `past_keys` and `append` what HookedTransformer's do.
    """

    def __init__(self, cache: Any) -> None:
        self.cache = cache
        self.seen: _Seen | None = None

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.cache is not None:  # a sliding-window layer returns more than it keeps
            keys, values = self.cache.update(keys, values, *args, **kwargs)
        column = getattr(self.cache, "column", None)
        self.seen = _Seen(keys, values, dim=2, end=keys.shape[2] if column is None else column + 1)
        return keys, values

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if self.cache is not None:
            keys, values = self.cache.append(keys, values)
        self.seen = _Seen(keys, values, dim=1, end=keys.shape[1])
        return keys, values

    @property
    def past_keys(self) -> Tensor:
        return torch.empty(1, 0) if self.cache is None else self.cache.past_keys

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["cache"], name)


class _Reader:
    """Stands in for a block's cache when it runs again: hands out what the first pass saw, and stores nothing.

    With `own`, each row's position at this column gets the key and value of the re-run itself.
    """

    def __init__(self, seen: _Seen, n_pos: int, own: Int[Tensor, " rows"] | None) -> None:
        self.seen, self.n_pos, self.own = seen, n_pos, own

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return self._merge(self.seen.keys, keys), self._merge(self.seen.values, values)

    append = update

    @property
    def past_keys(self) -> Tensor:
        return self.seen.keys[:, : self.seen.keys.shape[1] - self.n_pos]

    def _merge(self, seen: Tensor, new: Tensor) -> Tensor:
        if self.own is None:
            return seen
        seen, new = seen.transpose(1, self.seen.dim), new.transpose(1, self.seen.dim)
        rows = torch.arange(len(new), device=new.device)
        merged = seen.index_put((rows, self.seen.end - self.n_pos + self.own), new[rows, self.own])
        return merged.transpose(1, self.seen.dim)


class BlockRun:
    """A block's last pass, which can be run again on other streams."""

    def __init__(self, call: BlockCall, points: Sequence[HookPoint]) -> None:
        self._points = points
        self._place, cache = call.find(*_CACHE_NAMES)
        self._recorder = _Recorder(cache)
        self.call = call.with_argument(self._place, self._recorder)

    def again(
        self,
        stream: Float[Tensor, "batch pos d_model"],
        rows: Int[Tensor, " hits"],
        columns: Int[Tensor, " hits"],
        *,
        fresh: bool,
    ) -> Float[Tensor, "hits d_model"]:
        """The block's output at some positions when it reads `stream` instead, without a trace in any cache.

        Queries attend to the keys and values of the first pass; with `fresh`, for their own position to their own. Only the
        rows that are asked for are computed, and nobody's hooks inside the block hear it.

        Raises:
            NotImplementedError: a block that keeps no keys and values of its own.
        """
        seen = self._recorder.seen
        if seen is None:
            raise Unsupported(
                "this block wrote no keys and values (it shares another's, or is recurrent): it can't be run again"
            )
        with silenced(self._points):
            if fresh:
                parts = zip(torch.split(rows, _CHUNK), torch.split(columns, _CHUNK), strict=True)
                return torch.cat([self._run(stream, seen, r, c)[torch.arange(len(r), device=r.device), c] for r, c in parts])
            distinct, index = torch.unique(rows, return_inverse=True)
            return self._run(stream, seen, distinct, None)[index, columns]

    def _run(self, stream: Tensor, seen: _Seen, rows: Tensor, own: Tensor | None) -> Tensor:
        """These rows, or the whole batch where an argument's rows can't be told apart (BLOOM's ALiBi bias)."""
        call = self.call.with_argument(self._place, None)
        if own is None and len(rows) == len(stream):
            return self._with(call, stream, seen, None)
        taken = call.take_rows(rows)
        if taken is not None:
            seen = seen._replace(keys=seen.keys[rows], values=seen.values[rows])
            return self._with(taken, stream[rows], seen, own)
        if own is None:
            return self._with(call, stream, seen, None)[rows]
        everybody = torch.ones(len(stream), dtype=own.dtype, device=own.device)
        return torch.stack([self._with(call, stream, seen, c * everybody)[r] for r, c in zip(rows, own, strict=True)])

    def _with(self, call: BlockCall, stream: Tensor, seen: _Seen, own: Tensor | None) -> Tensor:
        return call.with_stream(stream).with_argument(self._place, _Reader(seen, stream.shape[1], own)).run()


class _NoRows(Exception):
    """Neither one row for all nor one row for each."""


def _take_rows(value: Any, rows: Tensor, batch: int) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(_take_rows(item, rows, batch) for item in value)
    if not isinstance(value, Tensor) or value.ndim < 2:
        return value
    if value.shape[0] == batch:
        return value[rows]
    if value.shape[0] == 1:
        return value
    raise _NoRows


@lru_cache(maxsize=64)
def _parameters(kind: Hashable) -> tuple[str, ...]:
    """Names of what a kind of block takes, in order; `"**"` for anything else."""
    parameters = list(inspect.signature(kind.forward).parameters.values())[1:]  # type: ignore[attr-defined]
    return tuple("**" if p.kind is inspect.Parameter.VAR_KEYWORD else p.name for p in parameters)


class BlockRuns:
    """The last pass of each of these blocks, until somebody takes it."""

    def __init__(self, blocks: Mapping[int, nn.Module]) -> None:
        self.blocks = dict(blocks)
        self._runs: dict[int, BlockRun] = {}
        self._points = {layer: hook_points(block) for layer, block in blocks.items()}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Note every call of the blocks inside the context."""
        with ExitStack() as stack:
            for layer, block in self.blocks.items():
                stack.callback(block.register_forward_pre_hook(partial(self._note, layer), with_kwargs=True).remove)
            yield
        self._runs.clear()

    def record_next(self, layer: int) -> RemovableHandle:
        """Note the next call of one block, and only that; returns the handle of the hook that does."""

        def once(*call: Any) -> Any:
            handle.remove()
            return self._note(layer, *call)

        handle = self.blocks[layer].register_forward_pre_hook(once, with_kwargs=True)
        return handle

    def _note(self, layer: int, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        run = BlockRun(BlockCall(block, args, kwargs), self._points[layer])
        self._runs[layer] = run
        return run.call.args, dict(run.call.kwargs)

    def take(self, layer: int) -> BlockRun:
        """The last pass of a block.

        Raises:
            RuntimeError: the block did not run since it was last taken.
        """
        if layer not in self._runs:
            raise RuntimeError(f"the call of block {layer} was not seen: attach the intervention before the model runs")
        return self._runs.pop(layer)
