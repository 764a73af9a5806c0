"""Parse a GGUF file once, however often its reader asks for it."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

_one_at_a_time = threading.Lock()


@contextmanager
def parsed_once() -> Iterator[None]:
    """Inside, the `gguf` package parses a file once, and makes its table of tensors' names once.

    transformers has the file parsed anew for the configuration, for the weights and for the tokenizer, and the same table made
    for every module of the model, which is most of the time that it needs. It goes on to do all of the reading, so that what is
    read is the same. Afterwards `gguf` is as it was, and nothing is kept; threads take turns.
    """
    import gguf

    parsed: dict[tuple[str, str], dict[str, Any]] = {}

    class Reader(gguf.GGUFReader):
        def __init__(self, path: str | os.PathLike[str], mode: Any = "r") -> None:
            key = (os.fspath(path), mode)
            if key not in parsed:
                super().__init__(path, mode)
                parsed[key] = vars(self)
            self.__dict__ = parsed[key]

        def __setattr__(self, name: str, value: Any) -> None:
            """The file's bytes as a plain array: a slice of a memmap, of which there are a million, takes far longer."""
            super().__setattr__(name, value.view(np.ndarray) if isinstance(value, np.memmap) else value)

    with _one_at_a_time:
        before = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
        vars(gguf).update(GGUFReader=Reader, get_tensor_name_map=functools.cache(before["get_tensor_name_map"]))
        try:
            yield
        finally:
            vars(gguf).update(before)
            parsed.clear()
