"""Made-up responses to the same prompts in two modes, with an effect planted where the caller says, or none."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.traces import Array, response
from tl_l2norm.core.trace import Trace

__all__ = ["Array", "both_modes", "made", "response"]


def both_modes(n: int, make: Callable[[int, str], Trace]) -> tuple[list[Trace], list[Trace]]:
    """`make(prompt, mode)` for n prompts in each mode."""
    return [make(i, "think") for i in range(n)], [make(i, "direct") for i in range(n)]


def made(
    value: Callable[[int, str], Array],
    n: int = 12,
    lengths: Callable[[int, str], int] | None = None,
    **labels: Callable[[int], object],
) -> tuple[list[Trace], list[Trace]]:
    """Responses in both modes with the norms value(prompt, mode) [layer] at each token; labels are functions of the prompt."""

    def make(i: int, mode: str) -> Trace:
        k = 2 if lengths is None else lengths(i, mode)
        named = {name: of(i) for name, of in labels.items()}
        return response(np.tile(value(i, mode)[:, None], (1, k)), prompt=str(i), mode=mode, labels=named)

    return both_modes(n, make)
