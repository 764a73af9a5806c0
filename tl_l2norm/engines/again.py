"""Blocks of an engine's model that run again in a pass, without a trace in its cache."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from tl_l2norm.core.errors import Unsupported
from tl_l2norm.core.norms import l2_norms
from tl_l2norm.engines.stream import Carried, stream_of
from tl_l2norm.models.block_calls import BlockRun, BlockRuns

Slots = MutableMapping[str, Tensor]
"""By attention layer, where in the cache each token's key and value are written; -1 is nowhere, and so is no entry."""
_NOWHERE = -1
_CLOSE = 0.05  # of what the block adds, beside what rounding the stream moves


class BlockAgain:
    """A block that notes what it is given in each pass, and can be run again on another stream."""

    def __init__(self, block: nn.Module, carried: Carried, attention: Sequence[str], slots: Callable[[], Slots]) -> None:
        """`attention`: names of its attention layers; `slots`: those of the pass under way."""
        self.block, self.carried, self.attention, self.slots = block, carried, tuple(attention), slots
        self.signature = inspect.signature(block.forward)
        self.is_checked = False

    def attach(self) -> RemovableHandle:
        """Note every pass from now on."""
        return self.block.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.given = self.signature.bind(*args, **kwargs)
        states, residual = self.given.arguments["hidden_states"], self.given.arguments.get("residual")
        self.states = states.clone()  # the block writes into both
        self.residual = residual.clone() if isinstance(residual, Tensor) else None

    def run(self, stream: Float[Tensor, "token d_model"], own: Bool[Tensor, " token"] | None) -> Float[Tensor, "token d_model"]:
        """Its output where it reads `stream` instead.

        Queries attend to the keys and values of the first pass; for the tokens `own` to those of the re-run at their own
        position. What the first pass wrote is there again afterwards.
        """
        with self._writing(own):
            made = self._run(stream, None)
        if own is not None:
            with self._writing(own):
                self._run(self.states, self.residual)
        return made

    def check(self, stream: Float[Tensor, "token d_model"]) -> None:
        """Once, that it gives its own output again where it reads its own input.

        Raises:
            NotImplementedError: it doesn't.
        """
        if self.is_checked:
            return
        read = self.states if self.residual is None or self.carried == "first" else self.states + self.residual
        with self._writing(None):
            made = self._run(read, None)[: len(stream)]
        rounding = 4 * torch.finfo(stream.dtype).eps * l2_norms(stream)
        error, most = l2_norms(made - stream), _CLOSE * l2_norms(stream - read[: len(stream)]) + rounding
        if not (error < most).float().mean() > 0.5:  # rounding may send single tokens to other experts
            raise Unsupported(
                f"{type(self.block).__name__} isn't what it was when it runs again: ALRR and Rerun need a model of load_model"
            )
        self.is_checked = True

    def _run(self, stream: Float[Tensor, "some d_model"], residual: Tensor | None) -> Float[Tensor, "padded d_model"]:
        """Past `__call__`, where hooks are."""
        given = inspect.BoundArguments(self.signature, self.given.arguments.copy())  # type: ignore[arg-type]
        stream = torch.nn.functional.pad(stream, (0, 0, 0, len(self.states) - len(stream)))
        given.arguments["hidden_states"] = stream.to(self.states.dtype, copy=True)
        if "residual" in given.arguments:
            given.arguments["residual"] = None if residual is None else residual.clone()
        return stream_of(self.block.forward(*given.args, **given.kwargs), self.carried)

    @contextmanager
    def _writing(self, own: Bool[Tensor, " token"] | None) -> Iterator[None]:
        """Write keys and values of these tokens alone, or of none."""
        slots = self.slots()
        before = {name: slots.pop(name) for name in self.attention}
        try:
            if own is not None:
                for name, places in before.items():
                    slots[name] = places.where(torch.nn.functional.pad(own, (0, len(places) - len(own))), _NOWHERE)
            yield
        finally:
            slots.update(before)


class Reruns(BlockRuns):
    """The pass of an engine's blocks over some of its tokens."""

    def __init__(self, layers: Sequence[int]) -> None:
        super().__init__({layer: nn.Identity() for layer in layers})
        self.known: dict[int, BlockAgain] = {}
        """By layer, told where the model is."""
        self._here: tuple[Tensor, Tensor] | None = None

    def over(self, stream: Float[Tensor, "token d_model"], index: Int[Tensor, "row pos"]) -> None:
        """What a block wrote, and which of it is visited next."""
        self._here = stream, index

    @override
    def take(self, layer: int) -> BlockRun:
        assert self._here is not None
        return _Rerun(self.known[layer], *self._here)


class _Rerun(BlockRun):
    def __init__(self, block: BlockAgain, written: Tensor, index: Tensor) -> None:
        self.block, self.written, self.index = block, written, index

    @override
    def again(
        self,
        stream: Float[Tensor, "batch pos d_model"],
        rows: Int[Tensor, " hits"],
        columns: Int[Tensor, " hits"],
        *,
        fresh: bool,
    ) -> Float[Tensor, "hits d_model"]:
        self.block.check(self.written)
        places = self.index[rows, columns]
        shown = self.written.index_copy(0, places, stream[rows, columns])
        if not fresh:
            return self.block.run(shown, None)[places]
        seen: Counter[int] = Counter()
        turns = []
        for row in rows.tolist():  # of a sequence one at a time has a key and value of its own
            turns.append(seen[row])
            seen[row] += 1
        turn, made = torch.tensor(turns, device=places.device), torch.empty_like(stream[rows, columns])
        for now in range(max(turns) + 1):
            own = torch.zeros(len(shown), dtype=torch.bool, device=places.device)
            own[places[turn == now]] = True
            made[turn == now] = self.block.run(shown, own)[places[turn == now]]
        return made
