"""What is wrong with a model's files, before anything is loaded of them."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tl_l2norm.core.errors import InputError
from tl_l2norm.models.sources import Source

_POINTER = b"version https://git-lfs"
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
_MOST_HEADER = 100 * 2**20


class Finding(NamedTuple):
    """Something that was looked at."""

    about: str
    says: str
    remedy: str = ""
    """What to do about it; "" where nothing is to be done."""
    is_fault: bool = False
    """Whether nothing right comes of it until that is done; else it is advice."""


class Files(NamedTuple):
    """What is known of a model's files."""

    findings: tuple[Finding, ...]
    n_parameters: int | None
    """None where the files don't say."""


def model_files(source: Source) -> Files:
    """Where they are, whether they are whole, and how many parameters they hold. Nothing is downloaded."""
    if source.kind == "gguf":
        return _gguf(Path(source.where))
    folder = Path(source.where) if source.kind == "folder" else _cached(source.where)
    if folder is None:
        return Files((_not_cached(source.where),), None)
    weights = _weights(folder)
    findings = [Finding("files", f"{folder}: {len(weights)} safetensors, {_size(sum(map(_length, weights)))}")]
    broken = [*_shards(folder), *(fault for file in weights if (fault := _broken(file)))]
    n_parameters = None if broken or not weights else sum(map(_parameters, weights))
    return Files((*findings, *broken, *_beside(folder, bool(weights))), n_parameters)


def _gguf(file: Path) -> Files:
    with file.open("rb") as stream:
        start = stream.read(len(_POINTER))
    if start == _POINTER:
        return Files((_pointer(file),), None)
    if not start.startswith(b"GGUF"):
        says = f"{file} doesn't begin as a GGUF file does"
        return Files((Finding("files", says, "download it again; a page was saved in its place, perhaps", True),), None)
    return Files((Finding("files", f"{file}: {_size(_length(file))}"),), None)


def _cached(name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, "config.json")
    return Path(config).parent if isinstance(config, str) else None


def _not_cached(name: str) -> Finding:
    offline = [name for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if os.environ.get(name, "0") not in ("0", "")]
    says = f"{name} is not in the cache of Hugging Face"
    if not offline:
        return Finding("files", f"{says}: it is downloaded as it is loaded")
    remedy = f"unset {' and '.join(offline)} to download it, or copy its folder here and name that: --model FOLDER"
    return Finding("files", f"{says}, and {offline[0]} forbids to download it", remedy, True)


def _weights(folder: Path) -> list[Path]:
    """The files that are read: those of an index, else the one of the usual name, else all."""
    try:
        index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
        named = {folder / name for name in index["weight_map"].values()}
        return sorted(file for file in named if file.is_file())
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # an index that can't be read is told of elsewhere
        usual = folder / "model.safetensors"
        return [usual] if usual.is_file() else sorted(folder.glob("*.safetensors"))


def _shards(folder: Path) -> Iterator[Finding]:
    """Faults of an index whose files aren't all there."""
    for index in sorted(folder.glob("*.safetensors.index.json")):
        try:
            named = {str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
        except (ValueError, TypeError, KeyError, AttributeError):
            yield Finding("files", f"{index.name} can't be read", "download it again", True)
            continue
        if missing := sorted(name for name in named if not (folder / name).is_file()):
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            yield Finding("files", f"{missing[0]}{more} of {index.name} isn't there", "download the model again", True)


def _broken(file: Path) -> Finding | None:
    """The fault of a file that isn't whole."""
    try:
        header, length = _header(file)
    except InputError as error:
        return _pointer(file) if _is_pointer(file) else Finding("files", str(error), "download it again", True)
    ends = [value["data_offsets"][1] for name, value in header.items() if name != "__metadata__"]
    expected = length + max(ends, default=0)
    if _length(file) != expected:
        says = f"{file.name} has {_length(file):,} bytes of {expected:,}: a download that was cut off"
        return Finding("files", says, "delete it and download it again", True)
    return None


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """What a safetensors file says of its tensors, and how long it is until their data."""
    with file.open("rb") as stream:
        first = stream.read(8)
        size = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
        text = stream.read(size) if 0 < size <= _MOST_HEADER else b""
    try:
        header = json.loads(text)
    except ValueError:
        header = None
    if not isinstance(header, dict) or not all(_is_tensor(value) for name, value in header.items() if name != "__metadata__"):
        raise InputError(f"{file.name} is no safetensors file, or its beginning is missing")
    return header, 8 + size


def _is_tensor(entry: Any) -> bool:
    """Whether a header says of a tensor what is read of it."""
    lists: list[Any] = [entry.get(name) for name in ("shape", "data_offsets")] if isinstance(entry, dict) else [None]
    return all(isinstance(own, list) and all(isinstance(n, int) for n in own) for own in lists) and len(lists[-1]) == 2


def _parameters(file: Path) -> int:
    header, _ = _header(file)
    return sum(math.prod(value["shape"]) for name, value in header.items() if name != "__metadata__")


def _is_pointer(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(len(_POINTER)) == _POINTER


def _pointer(file: Path) -> Finding:
    return Finding("files", f"{file.name} is a pointer of Git LFS, not the weights", "git lfs pull, in that folder", True)


def _beside(folder: Path, has_weights: bool) -> Iterator[Finding]:
    """What should lie beside the weights."""
    if not has_weights:
        pickled = any(folder.glob("*.bin"))
        says = f"no *.safetensors in {folder}"
        yield Finding("files", says, "save them as safetensors (save_pretrained)" if pickled else "download the weights", True)
    if (folder / "adapter_config.json").is_file():  # its base has the rest
        return
    if not (folder / "config.json").is_file():
        yield Finding("files", f"no config.json in {folder}", "give the folder that has it beside the weights", True)
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        yield Finding("tokenizer", "none beside the weights", "copy tokenizer.json there; without, prompts are token ids")
    elif not _has_template(folder):
        yield Finding("tokenizer", "it has no chat template", "give plain text, or set model.tokenizer.chat_template")


def _has_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    try:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and bool(config.get("chat_template"))


def _length(file: Path) -> int:
    return file.stat().st_size


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.1f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.1f} MiB"
