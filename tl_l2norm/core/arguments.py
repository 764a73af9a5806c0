"""Checks of single arguments: refused at once, by name, with what was given."""

from __future__ import annotations

import math
import operator
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsFloat, SupportsIndex

from tl_l2norm.core.errors import InputError, InputTypeError
from tl_l2norm.core.layers import did_you_mean
from tl_l2norm.core.protocols import is_several

Integer = SupportsIndex
"""An integer of Python, NumPy or torch."""

OnePerRow = Integer | Iterable[Integer]
"""An integer for each sequence, as a list, an array or a tensor; one alone for one sequence."""


_SURROGATE = re.compile("[\ud800-\udfff]")


def as_integer(name: str, value: Any, *, least: int | None = None, most: int | None = None) -> int:
    """An integer, of NumPy or torch too; a bool or a float isn't one.

    Raises:
        TypeError: of another kind.
        ValueError: too small or too large.
    """
    integer = _index(value)
    if integer is None:
        raise InputTypeError(f"{name} must be an integer{_at_least(least)}, got {_shown(value)}")
    if least is not None and integer < least:
        raise InputError(f"{name} must be at least {least}, got {integer}")
    if most is not None and integer > most:
        raise InputError(f"{name} must be at most {most:,}, got {integer}")
    return integer


def as_seed(value: Any, name: str = "seed") -> int:
    """What random numbers are drawn by: an integer from 0 on, that a table can hold."""
    seed = as_integer(name, value, least=0)
    if seed >= 2**63:
        raise InputError(f"{name} must be under 2**63, got {seed}")
    return seed


def as_integers(name: str, given: Any) -> list[int]:
    """Integers, one for each sequence; one alone counts as a list of it."""
    alone = _index(given)
    if alone is not None:
        return [alone]
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise InputTypeError(f"{name} are integers, one for each sequence, got {_shown(given)}")
    return [as_integer(f"{name}[{i}]", value) for i, value in enumerate(given)]


def as_number(name: str, value: Any, expected: str = "a number") -> float:
    """A number as a float; text, a bool or None isn't one."""
    if _is_bool(value) or not isinstance(value, SupportsFloat):
        raise InputTypeError(f"{name} must be {expected}, got {_shown(value)}")
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:  # an array of several
        raise InputTypeError(f"{name} must be {expected}, got {_shown(value)}") from error


def as_share(name: str, value: Any) -> float:
    """A number between 0 and 1, as a float."""
    number = as_number(name, value, "between 0 and 1")
    if not 0 <= number <= 1:
        raise InputError(f"{name} must be between 0 and 1, got {value}")
    return number


def check_share(name: str, value: Any) -> None:
    """Refuse what is not between 0 and 1."""
    as_share(name, value)


def as_path(name: str, value: Any) -> Path:
    """A path, given as one or as text; `~` is the home folder, as in a shell."""
    if not isinstance(value, str | os.PathLike):
        raise InputTypeError(f"{name} must be a path, got {_shown(value)}")
    if not os.fspath(value).strip():
        raise InputError(f"{name} is empty: give a path")
    return Path(value).expanduser()


def check_text(name: str, value: Any) -> None:
    """Refuse what is no text, and half characters, which JSON can hold and UTF-8 can't."""
    if not isinstance(value, str):
        raise InputTypeError(f"{name} must be text, got {_shown(value)}")
    if half := _SURROGATE.search(value):
        raise InputError(
            f"{name} holds a lone surrogate, {half[0]!a}, half a character: mend it where it is read, as in "
            "text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')"
        )


def as_names(name: str, given: Any) -> tuple[str, ...]:
    """Names, one or several, each once."""
    names = one_or_several(given, str) if _is_listed(given) else (given,)
    if odd := [one for one in names if not isinstance(one, str)]:
        raise InputTypeError(f"{name} must be a name or a list of names, got {_shown(odd[0])}")
    return tuple(dict.fromkeys(names))


def check_listed(name: str, given: Any, expected: str) -> None:
    """Refuse what iterates over something else than is meant: the numbers of bytes, the keys of a dict, a table's columns."""
    if not _is_listed(given):
        raise InputTypeError(f"{name} must be {expected}, got {_shown(given)}")


def check_callable(name: str, value: Any) -> None:
    """Refuse what can't be called."""
    if not callable(value):
        raise InputTypeError(f"{name} must be a function, got {_shown(value)}")


def check_progress(value: Any) -> None:
    """Refuse what is neither a flag nor the name of a progress bar."""
    if not isinstance(value, str):
        check_flag("progress", value)


def check_count(name: str, value: Any, least: int) -> None:
    """Refuse what is no integer, and a count that is too small."""
    as_integer(name, value, least=least)


def check_finite(name: str, value: Any, *, least: float | None = None, over: float | None = None) -> None:
    """Refuse NaN, infinity and what is too small."""
    bound = "" if least is None and over is None else f" and at least {least}" if over is None else f" and over {over}"
    number = as_number(name, value)
    good = math.isfinite(number) and (least is None or number >= least) and (over is None or number > over)
    if not good:
        raise InputError(f"{name} must be finite{bound}, got {value}")


def check_choice(name: str, value: Any, choices: Sequence[str | None]) -> None:
    """Refuse an unknown word."""
    if not (value is None or isinstance(value, str)) or value not in choices:
        close = did_you_mean(value, [c for c in choices if c]) if isinstance(value, str) else ""
        raise InputError(f"{name} must be one of {', '.join(map(repr, choices))}, got {_shown(value)}{close}")


def check_flag(name: str, value: Any, *, optional: bool = False) -> None:
    """Refuse what is neither True nor False (nor None, where that means something): "no" would count as true."""
    if not (_is_bool(value) or (optional and value is None)):
        choices = "True, False or None" if optional else "True or False"
        raise InputTypeError(f"{name} must be {choices}, got {_shown(value)}")


def one_or_several(given: Any, kind: type | tuple[type, ...]) -> tuple[Any, ...]:
    """What is given as a tuple: empty for None, of one for one of the kind or what doesn't iterate, else of all in it."""
    if given is None:
        return ()
    if isinstance(given, kind):
        return (given,)
    return tuple(given) if is_several(given) else (given,)


def as_labels(given: Any, n: int, what: str = "sequences") -> list[dict[str, Any]] | None:
    """What is kept with each sequence, a dict for each; one dict counts as a list of it.

    Raises:
        TypeError: something else than dicts.
        ValueError: another number of them.
    """
    if given is None:
        return None
    labels = one_or_several(given, Mapping)
    if odd := [own for own in labels if not isinstance(own, Mapping)]:
        raise InputTypeError(f"labels are dicts, one for each, as in [{{'mode': 'think'}}, ...], got {_shown(odd[0])}")
    if len(labels) != n:
        raise InputError(f"labels has {len(labels)} entries for {n} {what}")
    return [plain_labels(own) for own in labels]


def plain_labels(labels: Mapping[str, Any]) -> dict[str, Any]:
    """Labels with Python's own scalars for NumPy's and torch's, which no file of ours could hold.

    Raises:
        TypeError: what is no scalar, and would have no place in a table or a file.
    """
    plain = {str(name): value.item() if _is_scalar_array(value) else value for name, value in labels.items()}
    for name, value in plain.items():
        if not (value is None or isinstance(value, str | int | float)):
            raise InputTypeError(f"a label is a text, a number, True or False: {name!r} is {_shown(value)}")
    return plain


def _index(value: Any) -> int | None:
    """A whole number, None if it is none. Arrays and tensors of one dimension or more have none, whatever their length."""
    if _is_bool(value) or getattr(value, "ndim", None):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def _is_scalar_array(value: Any) -> bool:
    return hasattr(value, "item") and getattr(value, "ndim", None) == 0


def _is_listed(given: Any) -> bool:
    return not (isinstance(given, bytes | bytearray | Mapping) or hasattr(given, "columns"))


def _is_bool(value: Any) -> bool:
    """Of Python, NumPy or torch."""
    return isinstance(value, bool) or (hasattr(value, "dtype") and "bool" in str(value.dtype))


def _at_least(least: int | None) -> str:
    return "" if least is None else f" of at least {least}"


def _shown(value: Any) -> str:
    return f"{value!r:.80}"
