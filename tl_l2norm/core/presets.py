"""What suits a model that comes with the library; kept beside its weights, the same from Python and the command line."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tl_l2norm.core.arguments import as_integer, as_number
from tl_l2norm.core.errors import InputError
from tl_l2norm.core.norms import SINK_RATIO

PRESET_FILE = "tl_l2norm.json"
"""In a model's folder, beside its config.json."""

_NAME = "_tl_l2norm_preset"


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """What is taken where a call says None."""

    sink_ratio: float = SINK_RATIO
    batch_size: int = 8
    temperature: float = 1.0
    """Of several samples of a problem: chosen by accuracy alone, so that some of them are right and some wrong."""
    families: str | None = None
    """Problems that it was trained on, for `make_mixture`; None for those that any model may be asked."""
    n_problems: int | None = None
    """How many of them to ask."""


def read_preset(folder: Path) -> Preset | None:
    """The preset in a model's folder; None where there is none."""
    file = folder / PRESET_FILE
    return Preset(**json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None


def keep_preset(model: Any, preset: Preset | None) -> None:
    """Let a model carry its preset; a copy of the model has it too."""
    if preset is not None:
        model.__dict__[_NAME] = preset  # a bridge's __setattr__ looks into the wrapped model


def kept_preset(model: Any) -> Preset | None:
    """The preset that a model carries."""
    preset = model.__dict__.get(_NAME)
    return preset if isinstance(preset, Preset) else None


def sink_ratio_of(model: Any, given: Any = None, *, of: Iterable[float | None] = ()) -> float:
    """The run's sink ratio: what is given, else that of the traces that are handed in, else the model's preset's, else
    `SINK_RATIO`.

    Raises:
        ValueError: traces of several, and none is given.
    """
    if given is not None:
        return check_sink_ratio(given)
    own = sorted({ratio for ratio in of if ratio is not None})
    if len(own) > 1:
        raise InputError(f"the traces were recorded with sink ratios {', '.join(f'{x:g}' for x in own)}: give sink_ratio=")
    return own[0] if own else (kept_preset(model) or Preset()).sink_ratio


def check_sink_ratio(given: Any) -> float:
    """A sink ratio as a float; refused at 1 and below, where ordinary tokens would count as sinks."""
    ratio = as_number("sink_ratio", given, "a number over 1 (times the median norm)")
    if not ratio > 1:
        raise InputError(f"sink_ratio must be over 1 (times the median norm), got {given}")
    return ratio


def batch_size_of(model: Any, given: Any = None) -> int:
    """Sequences at once: what is given, else the model's preset, else 8."""
    return (kept_preset(model) or Preset()).batch_size if given is None else as_integer("batch_size", given, least=1)


def temperature_of(model: Any, given: Any = None) -> float:
    """Temperature of several samples of a problem: what is given, else the model's preset's, else 1."""
    return (kept_preset(model) or Preset()).temperature if given is None else as_number("temperature", given)
