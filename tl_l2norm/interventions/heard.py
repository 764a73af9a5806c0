"""What interventions decide at one token, while it comes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from tl_l2norm.interventions.log import Entry, Log


def events_at(log: Log, heard: Sequence[tuple[int, Entry]]) -> tuple[Mapping[str, Any], ...]:
    """What was decided at the one token of a pass, as entries of the table of `Log.events`."""
    own = dict.fromkeys((name for intervention in log.interventions for name in intervention.COLUMNS), math.nan)
    return tuple(_entry(log, index, entry, own) for index, entry in heard if int(entry.decision[0, 0]))


def _entry(log: Log, index: int, entry: Entry, own: Mapping[str, float]) -> Mapping[str, Any]:
    decision = log.interventions[index].DECISIONS[int(entry.decision[0, 0]) - 1]
    tau = entry.tau
    return MappingProxyType(
        {
            "sequence": int(entry.places.rows.number[0]),
            "position": int(entry.places.positions[0, 0]),
            "layer": entry.layer,
            "intervention": log.names[index],
            "decision": decision.name,
            "fired": decision.fired,
            "threshold": float(tau.expand(1, 1)[0, 0] if isinstance(tau, Tensor) else torch.tensor(tau, dtype=torch.float32)),
            "l2_norm_before": float(entry.before[0, 0]),
            "l2_norm_after": float(entry.after[0, 0]),
            **own,
            **{name: float(values.expand(1, 1)[0, 0]) for name, values in entry.columns.items()},
        }
    )
