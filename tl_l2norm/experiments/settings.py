"""What a run was told, as plain values of JSON: it is found again by them, and what differs is named."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np
from torch import Tensor

from tl_l2norm.core.errors import InputTypeError
from tl_l2norm.core.thresholds import Thresholds
from tl_l2norm.interventions.log import Log

_SHOWN = 60  # characters of a value, in a message


def settings_of(value: Any) -> Any:
    """A value as JSON holds it: equal for what does the same, different for what doesn't.

    Tensors stand by shape and hash, a log by the interventions of its run, thresholds by their values.

    Raises:
        TypeError: something that can't be told apart from another of its kind, such as a function.

    Examples:
        >>> settings_of(l2.Suppression({11: 500.0}, scale=0.1))["thresholds"]
        {'values': {'11': 500.0}, 'sink_ratio': None}
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Thresholds):
        return {"values": settings_of(dict(value)), "sink_ratio": value.sink_ratio}
    if isinstance(value, Log):
        return {"log of": settings_of(value.interventions)}
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return _of_array(value)
    if isinstance(value, slice):
        return {"slice": [value.start, value.stop, value.step]}
    if isinstance(value, Mapping):
        return {str(name): settings_of(own) for name, own in value.items()}
    if isinstance(value, Set):
        return sorted(map(settings_of, value))
    if isinstance(value, Sequence):
        return [settings_of(own) for own in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: settings_of(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"kind": type(value).__name__, **fields}
    raise InputTypeError(f"{value!r:.80} can't be told apart from another of its kind, so that its run couldn't be found again")


def _of_array(value: Any) -> Any:
    array = value.detach().cpu().float().numpy() if isinstance(value, Tensor) else np.asarray(value)
    if array.ndim == 0:
        return array.item()
    blob = np.ascontiguousarray(array).tobytes()
    return {"shape": list(array.shape), "sha256": hashlib.sha256(blob).hexdigest()[:16]}


def differences(there: Any, here: Any, name: str = "") -> Iterator[str]:
    """What differs between two settings, each by its name: `arms.ALRR.max_iters (1 there, 2 here)`.

    Examples:
        >>> list(differences({"n": 1, "arms": {"a": [1, 2]}}, {"n": 2, "arms": {"a": [1, 3]}}))
        ['n (1 there, 2 here)', 'arms.a.1 (2 there, 3 here)']
    """
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for key in dict.fromkeys([*there, *here]):
            path = f"{name}.{key}".lstrip(".")
            if key not in there or key not in here:
                yield f"{path} (only {'there' if key in there else 'here'})"
            else:
                yield from differences(there[key], here[key], path)
    elif isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        for i, pair in enumerate(zip(there, here, strict=True)):
            yield from differences(*pair, f"{name}.{i}")
    elif there != here:
        yield f"{name} ({_short(there)} there, {_short(here)} here)"


def _short(value: Any) -> str:
    text = f"{len(value)} of them" if isinstance(value, list | dict) else repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
