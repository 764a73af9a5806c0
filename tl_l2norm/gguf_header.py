"""The few entries of a GGUF file's header that transformers doesn't read."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path

_TURN_ENDS = ("tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")  # of a turn, of a message that calls a tool
_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


def turn_end_ids(file: Path) -> frozenset[int]:
    """Tokens that end a turn or a message, beside eos. The `gguf` package takes seconds: it makes an array of each token."""
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return frozenset(value for key, value in _numbers(data) if key in _TURN_ENDS)


def _numbers(data: mmap.mmap) -> Iterator[tuple[str, int]]:
    """The entries that are one number; none of versions other than 2 and 3, little-endian, which nobody writes any longer."""
    _, version, _, entries = struct.unpack_from("<4sIQQ", data)
    at = 24
    for _ in range(entries if version in (2, 3) else 0):
        (length,) = struct.unpack_from("<Q", data, at)
        key, at = data[at + 8 : at + 8 + length].decode(), at + 8 + length
        (kind,) = struct.unpack_from("<I", data, at)
        if kind in _FORMATS:
            yield key, struct.unpack_from(f"<{_FORMATS[kind]}", data, at + 4)[0]
        at = _end(data, at + 4, kind)


def _end(data: mmap.mmap, at: int, kind: int) -> int:
    """Where a value of this kind that starts here ends."""
    if kind == _STRING:
        return at + 8 + int(struct.unpack_from("<Q", data, at)[0])
    if kind != _ARRAY:
        return at + struct.calcsize(f"<{_FORMATS[kind]}")
    inner, count = struct.unpack_from("<IQ", data, at)
    at += 12
    if inner in _FORMATS:
        return at + int(count) * struct.calcsize(f"<{_FORMATS[inner]}")
    for _ in range(count):
        at = _end(data, at, inner)
    return at
