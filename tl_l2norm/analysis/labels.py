"""What a trace is labelled with, as the kind of value that is needed."""

from __future__ import annotations

from tl_l2norm.core.arguments import as_integer, as_number, check_finite
from tl_l2norm.core.errors import InputError
from tl_l2norm.core.trace import Trace


def label(trace: Trace, name: str) -> object:
    """What a trace is labelled with; a ValueError says how to label it."""
    if name not in trace.labels:
        raise InputError(f"a trace lacks the label {name!r}: trace.with_labels({name}=...), as run_modes gives it")
    return trace.labels[name]


def number(trace: Trace, name: str) -> float:
    """A label that is a finite number; text and None are none."""
    value, what = label(trace, name), _called(trace, name)
    check_finite(what, value)
    return as_number(what, value)


def place(trace: Trace, name: str) -> int:
    """A label that is a position, or the one behind the last."""
    return as_integer(_called(trace, name), label(trace, name), least=0, most=len(trace))


def truth(trace: Trace, name: str) -> bool:
    """A label that is True or False, or 1 or 0."""
    value = label(trace, name)
    if not (isinstance(value, int | float) and value in (0, 1)):
        raise InputError(f"{_called(trace, name)} must be True or False, got {value!r:.80}")
    return bool(value)


def _called(trace: Trace, name: str) -> str:
    return f"the label {name!r} of a response to prompt {trace.labels.get('prompt')!r}"
