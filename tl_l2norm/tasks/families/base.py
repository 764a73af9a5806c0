"""What a family of problems is."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple


class Draft(NamedTuple):
    """A question with its answer, before it becomes the `Problem` of a family and a level."""

    question: str
    answer: str
    options: tuple[str, ...] = ()


class Family(NamedTuple):
    """A kind of problem; `make(rng, level)` draws one."""

    name: str
    levels: int
    description: str
    make: Callable[[random.Random, int], Draft]
    think: Callable[[str], str] | None = None
    """The steps that lead from a question to its answer, where we write them."""
