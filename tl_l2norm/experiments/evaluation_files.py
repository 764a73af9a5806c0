"""The folder of an evaluation: what was asked of it, and every response as it ends; the same call goes on from there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor, tensor

from tl_l2norm.analysis.arm_curves import LIVE
from tl_l2norm.core.errors import InputError
from tl_l2norm.experiments.settings import differences
from tl_l2norm.interventions.log import Log
from tl_l2norm.models.described import Described
from tl_l2norm.recording.completions import Completion
from tl_l2norm.recording.saved import Journal, begin

_SCORES = ("logprobs", "self_certainty", "token_confidence")
"""What is measured of each token beside its norms."""
_NAMED = 5  # differences in one message


def require_same(folder: Path | None, what: Mapping[str, Any]) -> None:
    """Refuse a folder that holds an evaluation with other settings, as far as they are known by now.

    Raises:
        InputError: what differs, each by its name.
    """
    if folder is None or not (file := folder / "run.json").is_file():
        return
    try:
        there = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(there, dict):
            raise ValueError("it holds no table of settings")
    except ValueError as error:
        raise InputError(f"{file} is damaged: {error}; delete the folder to start anew, nothing was changed") from error
    here = json.loads(json.dumps(what))
    found = list(differences({name: there.get(name) for name in here}, here))
    if found:
        more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        raise InputError(
            f"{folder} holds an evaluation with other settings: {', '.join(found[:_NAMED])}{more}; give those again, or "
            "another folder"
        )


def open_journal(folder: Path | None, what: Mapping[str, Any], backend: Described) -> Journal:
    """The responses that are there; in memory alone without a folder.

    Raises:
        InputError: as `require_same`.
    """
    if folder is None:
        return Journal()
    require_same(folder, what)
    return begin(folder, what, backend)


def entry_of(completion: Completion, problem: str, *, seconds: float, scores: bool) -> dict[str, Any]:
    """What is written of a response; what its probabilities say only where they are asked for."""
    entry: dict[str, Any] = {
        "problem": problem,
        "sample": completion.sample,
        "tokens": list(completion.tokens),
        "finish_reason": completion.finish_reason,
        "text": completion.text,
        "seconds": seconds,
        "decisions": [],
        "reruns": 0,
    }
    if scores:
        entry |= {name: _floats(getattr(completion, name)) for name in _SCORES}
    return entry


def _floats(values: Tensor | None) -> list[float] | None:
    return None if values is None else values.tolist()


def scores_of(entry: Mapping[str, Any]) -> dict[str, Tensor | None]:
    """The probabilities' part of an entry, for a `Completion`."""
    return {name: None if entry.get(name) is None else tensor(entry[name]) for name in _SCORES}


def decisions_of(log: Log, numbers: list[int], *, events: bool) -> dict[int, dict[str, Any]]:
    """What the log says of these sequences, by number: how often what was decided, how many layers ran again and, with
    `events`, where, for an arm that is matched to this one.
    """
    frame = log.events_of(numbers)
    counts = frame.groupby(["sequence", "intervention", "decision", "fired"], sort=True).size()
    found: dict[int, dict[str, Any]] = {number: {"decisions": [], "reruns": 0} for number in numbers}
    for index, name in enumerate(log.names):
        live = _live(log, index)
        for number in numbers:
            found[number]["decisions"].append([name, LIVE, False, sum(live.get(number, {}).values())])
            if events:
                own = [[layer, n] for layer, n in sorted(live.get(number, {}).items())]
                found[number].setdefault("live", []).append(own)
    for (number, name, decision, fired), n in counts.items():
        found[int(number)]["decisions"].append([name, decision, bool(fired), int(n)])
    if "reruns" in frame:
        for number, n in frame.groupby("sequence")["reruns"].sum().items():
            found[int(number)]["reruns"] = int(n)
    if events:
        for number in numbers:
            found[number]["events"] = _events(frame[frame["sequence"] == number])
    return found


def _live(log: Log, index: int) -> dict[int, dict[int, int]]:
    by_sequence: dict[int, dict[int, int]] = {}
    for (number, layer), n in log.live(index).items():
        by_sequence.setdefault(number, {})[layer] = n
    return by_sequence


def _events(frame: pd.DataFrame) -> list[list[Any]]:
    """Intervention, decision, fired, layer, position and, of a block that ran again, how often."""
    reruns = frame["reruns"].fillna(0).astype(int) if "reruns" in frame else [0] * len(frame)
    names = ("intervention", "decision", "fired", "layer", "position")
    return [list(event) for event in zip(*(frame[name].tolist() for name in names), list(reruns), strict=True)]
