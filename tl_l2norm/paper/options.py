"""What an analysis is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of `analyse`, checked and with their defaults filled in."""

    controls: frozenset[str]
    control_states: int
    quantiles: tuple[float, ...]
    max_new_tokens: int | None
    max_direct_tokens: int
    sink_ratio: float
    batch_size: int
    samples: int
    """Of each problem, thinking; 0 leaves them out."""
    temperature: float
    """Of those samples."""
    swapped_tokens: int
    """Of each thinking response; 0 leaves the swap of single tokens out."""
    seed: int
    progress: bool
    tables: Path | None
    """The folder that tables are written to."""
    readings: Path | None
    """The folder that what is read off the model is kept in; None as well where somebody's hooks are on the model."""
