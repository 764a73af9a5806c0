"""What an intervention declares and what it makes of a visit, checked before a model or a log meets it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tl_l2norm.core.errors import InputError
from tl_l2norm.interventions.rule import Decision, Effect, Rule, Visit

LOG_COLUMNS = (
    *("sequence", "position", "layer", "intervention", "decision", "fired"),
    *("threshold", "l2_norm_before", "l2_norm_after"),
)
"""The columns that every log's events have."""

_MOST_DECISIONS = torch.iinfo(torch.int8).max


def check_declared(intervention: Rule) -> None:
    """Refuse decisions that aren't `Decision`s, and columns whose names aren't free or that aren't a tuple of names.

    Raises:
        InputError: with the intervention's name.
    """
    name, decisions, columns = type(intervention).__name__, getattr(intervention, "DECISIONS", None), intervention.COLUMNS
    good = isinstance(decisions, tuple | list) and 0 < len(decisions) <= _MOST_DECISIONS
    if not good or not all(isinstance(d, Decision) and isinstance(d.name, str) for d in decisions):  # type: ignore[union-attr]
        shown = "none" if decisions is None else f"{decisions!r:.80}"
        raise InputError(f"{name}.DECISIONS are what it may decide, as in (Decision('halved', True),), got {shown}")
    if not isinstance(columns, tuple | list) or not all(isinstance(column, str) and column for column in columns):
        raise InputError(f"{name}.COLUMNS is a tuple of names, as in ('removed',), got {columns!r:.80}")
    if taken := sorted({column for column in columns if column in (*LOG_COLUMNS, "live") or columns.count(column) > 1}):
        raise InputError(f"{name}.COLUMNS has {taken}, which the log's events have already: call them otherwise")


def check_effect(intervention: Rule, effect: Any, visit: Visit) -> None:
    """Refuse what is no `Effect`, or doesn't fit the visit or what the intervention declares.

    Nothing is read back from the device: decisions out of range show when the log is written.

    Raises:
        InputError: with the intervention's name and the layer.
    """
    where, shape = f"{type(intervention).__name__}.act at layer {visit.layer}", visit.norms.shape
    if not isinstance(effect, Effect):
        raise InputError(f"{where} returned {effect!r:.80}: give Effect(stream, decision)")
    _check_tensor(f"{where}: the stream", effect.stream, visit.stream.shape, like=visit.stream)
    _check_tensor(f"{where}: the decision", effect.decision, shape)
    if effect.decision.is_floating_point():
        raise InputError(
            f"{where}: decisions are integers, 0 for nothing and i + 1 for DECISIONS[i], got {effect.decision.dtype}"
        )
    if set(effect.columns) != set(intervention.COLUMNS):
        given, declared = sorted(map(str, effect.columns)), sorted(intervention.COLUMNS)
        raise InputError(f"{where} returned the columns {given}, its COLUMNS are {declared}: declare what it returns")
    for name, values in effect.columns.items():
        _check_tensor(f"{where}: the column {name!r}", values, shape)


def _check_tensor(what: str, given: Any, shape: torch.Size, like: Tensor | None = None) -> None:
    if not isinstance(given, Tensor):
        raise InputError(f"{what} is {given!r:.80}, expected a tensor {tuple(shape)}")
    if given.shape != shape:
        raise InputError(f"{what} has shape {tuple(given.shape)}, expected {tuple(shape)}, one for each sequence and position")
    if given.is_complex():
        raise InputError(f"{what} is complex, expected real numbers")
    if like is not None and (given.dtype, given.device) != (like.dtype, like.device):
        raise InputError(
            f"{what} is {given.dtype} on {given.device}, the model's is {like.dtype} on {like.device}: give it back as it "
            "came, by .to(visit.stream)"
        )
