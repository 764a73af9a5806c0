"""Where the residual stream is in what a block of vLLM's models hands on."""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tl_l2norm.core.errors import Unsupported

Carried = Literal["first", "sum"]
"""The stream is the first tensor that a block returns, or that and the second together: most models leave the addition to the
norm that comes next; Cohere's returns two as well, and its norm leaves the second alone.
"""

_CLOSE = 0.05  # of a norm's output: bfloat16 moves it by 0.01, the other way of reading by about 1


def stream_of(output: Any, carried: Carried) -> Float[Tensor, "token d_model"]:
    """The residual stream behind a block, of what it returns."""
    first, second = _parts(output)
    return first if second is None or carried == "first" else first + second


def with_stream(
    output: Any, carried: Carried, before: Float[Tensor, "token d_model"], after: Float[Tensor, "token d_model"]
) -> Any:
    """What a block returns, with another stream where one was changed; other tokens keep their bits.

    Args:
        output: as it was returned.
        carried: how it carries the stream.
        before: the stream of the tokens without padding.
        after: what became of it.
    """
    first, second = _parts(output)
    hit = torch.nn.functional.pad((after != before).any(-1), (0, len(first) - len(before)))[:, None]
    first = torch.where(hit, torch.nn.functional.pad(after, (0, 0, 0, len(first) - len(before))), first)
    if not isinstance(output, tuple | list):
        return first
    if second is not None and carried == "sum":
        second = second.masked_fill(hit, 0.0)
    return (first, second) if len(output) == 2 else (first,)


def _parts(output: Any) -> tuple[Tensor, Tensor | None]:
    given = output if isinstance(output, tuple | list) else (output,)
    if len(given) in (1, 2) and isinstance(given[0], Tensor) and given[0].ndim == 2:
        second = given[1] if len(given) == 2 else None
        if second is None or (isinstance(second, Tensor) and second.shape == given[0].shape):
            return given[0], second
    shapes = [tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__ for part in given]
    raise Unsupported(f"a block of vLLM's model returns {shapes}: which of it is the residual stream isn't known")


class StreamProbe:
    """Finds out in one pass how a model's blocks carry the stream: by what its final norm makes of it."""

    def __init__(self, model: nn.Module, blocks: nn.ModuleList) -> None:
        self.kind = type(model).__name__
        self.carried: Carried | None = None
        self._last: tuple[Tensor, Tensor, Tensor] | None = None
        owner = next(module for module in model.modules() if any(child is blocks for child in module.children()))
        self.handles = [child.register_forward_hook(self._after) for child in owner.children() if child is not blocks]
        self.handles.append(blocks[-1].register_forward_hook(self._note))

    def _note(self, block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        first, second = _parts(output)
        if second is None:
            self.carried = "first"
        else:
            self._last = output[0], first.clone(), second.clone()  # the norm writes into them

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._last is None or not args or args[0] is not self._last[0]:
            return
        made = _parts(output)[0].float()
        ways: dict[Carried, Tensor] = {"first": self._last[1], "sum": self._last[1] + self._last[2]}
        for carried, stream in ways.items():
            alone = _parts(module.forward(stream))[0].float()
            if torch.dist(alone, made) < _CLOSE * made.norm():
                self.carried = carried

    def found(self) -> Carried:
        """How the stream is carried; the hooks are gone.

        Raises:
            NotImplementedError: the final norm doesn't tell.
        """
        for handle in self.handles:
            handle.remove()
        if self.carried is None:
            raise Unsupported(f"what the final norm of vLLM's {self.kind} reads isn't known, and so its residual stream")
        return self.carried
