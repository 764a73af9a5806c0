"""Types are checked as functions of ours run, as jaxtyping's plugin for pytest does it, at a fraction of its cost.

It checks arguments twice, and in a scope for names of axes around every function; here once, and in a scope where annotations
name axes.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any, get_args, get_type_hints

import jaxtyping
from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray, jaxtyped

_check = beartype(conf=BeartypeConf(violation_type=TypeError))


def install() -> None:
    """Put it in place of jaxtyping's decorator, which its plugin writes before every function that is imported from here on."""
    jaxtyping.jaxtyped = checked


def checked(what: Any = None, *, typechecker: Any = None) -> Any:
    """A function, or a dataclass and how it is made, that refuses what its annotations don't allow."""
    if what is None:
        return functools.partial(checked, typechecker=typechecker)
    if isinstance(what, type):
        if dataclasses.is_dataclass(what) and "__init__" in vars(what):
            what.__init__ = checked(what.__init__)  # type: ignore[misc]
        return what
    if not isinstance(what, FunctionType) or inspect.isgeneratorfunction(what):  # beartype looks when a generator begins
        return jaxtyped(what, typechecker=typechecker)
    return _checked(what)


def _checked(function: Any) -> Any:
    if "__wrapped__" in vars(function):  # by now
        return function
    hints = {name: _resolved(hint, function.__globals__) for name, hint in function.__annotations__.items()}
    function.__annotations__ = hints
    own = _check(function)
    return _with_axes(own) if any(map(_names_axes, hints.values())) else own


def _resolved(hint: Any, names: dict[str, Any]) -> Any:
    """What it stands for; anything, where that is imported for type checkers alone."""

    def of(value: Any) -> None: ...

    of.__annotations__ = {"value": hint}
    try:
        return get_type_hints(of, names, include_extras=True)["value"]
    except Exception:
        return Any


def _names_axes(hint: Any) -> bool:
    return (isinstance(hint, type) and issubclass(hint, AbstractArray)) or any(map(_names_axes, get_args(hint)))


def _with_axes(function: Callable[..., Any]) -> Any:
    @functools.wraps(function)
    def in_scope(*args: Any, **kwargs: Any) -> Any:
        with jaxtyped("context"):  # type: ignore[call-overload]
            return function(*args, **kwargs)

    return in_scope
