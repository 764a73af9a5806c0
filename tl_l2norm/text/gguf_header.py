"""The header of a GGUF file, of which transformers reads only a part."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_TURN_ENDS = ("tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")  # of a turn, of a message that calls a tool
_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_BEGIN = 24  # of the entries


class Header(NamedTuple):
    """What a file says of its model."""

    architecture: str
    entries: dict[str, int | float | str]
    """Those of the architecture that are one number or text, by their name without the architecture."""
    lists: frozenset[str]
    """Names of those that are arrays, such as one number for each block."""
    tensors: frozenset[str]


def read_header(file: Path) -> Header:
    """The architecture's entries and the names of the tensors."""
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        listed = list(_entries(data))
        architecture = str(next((value for key, value, _ in listed if key == "general.architecture"), ""))
        own = {key.removeprefix(f"{architecture}."): value for key, value, _ in listed if key.startswith(f"{architecture}.")}
        entries = {key: value for key, value in own.items() if value is not None}
        tensors = _tensor_names(data, listed[-1][2] if listed else _BEGIN)
        return Header(architecture, entries, frozenset(own.keys() - entries.keys()), frozenset(tensors))


def turn_end_ids(file: Path) -> frozenset[int]:
    """Tokens that end a turn or a message, beside eos. The `gguf` package takes seconds: it makes an array of each token."""
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return frozenset(int(value) for key, value, _ in _entries(data) if key in _TURN_ENDS and value is not None)


def _entries(data: mmap.mmap) -> Iterator[tuple[str, int | float | str | None, int]]:
    """Key, value (None for an array) and where the next one begins; none of versions other than 2 and 3, little-endian, which
    nobody writes any longer.
    """
    _, version, _, entries = struct.unpack_from("<4sIQQ", data)
    at = _BEGIN
    for _ in range(entries if version in (2, 3) else 0):
        key, at = _text(data, at)
        (kind,) = struct.unpack_from("<I", data, at)
        end = _end(data, at + 4, kind)
        if kind in _FORMATS:
            yield key, struct.unpack_from(f"<{_FORMATS[kind]}", data, at + 4)[0], end
        else:
            yield key, _text(data, at + 4)[0] if kind == _STRING else None, end
        at = end


def _tensor_names(data: mmap.mmap, at: int) -> Iterator[str]:
    """From where the entries end."""
    _, version, tensors, _ = struct.unpack_from("<4sIQQ", data)
    for _ in range(tensors if version in (2, 3) else 0):
        name, at = _text(data, at)
        (axes,) = struct.unpack_from("<I", data, at)
        at += 4 + 8 * axes + 4 + 8  # the shape, the kind of number, the offset
        yield name


def _text(data: mmap.mmap, at: int) -> tuple[str, int]:
    end = _end(data, at, _STRING)
    return data[at + 8 : end].decode(errors="replace"), end


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
