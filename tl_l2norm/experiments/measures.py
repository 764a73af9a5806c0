"""What checks of models and of engines have in common: texts, bounds, how a difference is measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

TEXTS = (
    "The norm of the residual stream is the length of a vector that every block reads and writes.",
    "Seventeen and twenty-five make forty-two.",
)
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Relative, on norms: half precision rounds differently in a batch, with a cache and alone."""


class Measure(NamedTuple):
    """A figure to take of a model."""

    name: str
    meaning: str
    exact: bool
    """Whether it has to be 0."""
    take: Callable[[], float]
    missing: str | None = None
    """Why it can't be taken."""


def tolerance(dtype: torch.dtype) -> float:
    """How far two norms may be apart, relative."""
    return _TOLERANCE.get(dtype, 1e-1)


def relative(values: Tensor, truth: Tensor) -> float:
    """The largest relative error."""
    return float(((values.float() - truth.float()).abs() / truth.float().abs().clamp_min(1e-6)).max())
