"""What the library raises on purpose; anything else that comes out of it is a bug and keeps its traceback."""

from __future__ import annotations


class InputError(ValueError):
    """Something that was handed in can't be used; the message says what to do instead."""


class InputTypeError(InputError, TypeError):
    """A value of the wrong kind was handed in."""


class MissingFile(InputError, FileNotFoundError):
    """A path that isn't there, or not what it should be."""


class MissingPackage(InputError, ImportError):
    """A package that an option needs isn't installed; the message says how to install it."""


class Unsupported(InputError, NotImplementedError):
    """This model can't do what was asked for, or the library can't do it with this model."""


class Unmeasurable(ValueError):
    """The data at hand can't answer what was asked: too few prompts, nothing of the kind, nothing that varies."""
