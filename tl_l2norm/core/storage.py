"""Traces on disk: a folder of safetensors and JSON, no pickle."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import warnings
from pathlib import Path
from typing import Any

from torch import Tensor

from tl_l2norm.core.arguments import as_path
from tl_l2norm.core.errors import InputError, MissingFile
from tl_l2norm.core.features import FeatureActs
from tl_l2norm.core.provenance import Provenance
from tl_l2norm.core.trace import Trace, TracesLike, traces_of

FORMAT = "tl_l2norm.traces"
FORMAT_VERSION = 2
"""1 knew a model by its name alone."""
_TENSORS, _INDEX = "traces.safetensors", "traces.json"
_AGAIN = f"delete {_INDEX} and {_TENSORS} there and record the traces again"
_TENSOR_FIELDS = ("tokens", "l2_norms", "embed_l2_norms", "is_sink", "sink_bounds")
_FEATURE_FIELDS = ("starts", "latents", "values")


def save_traces(path: str | Path, traces: TracesLike) -> Path:
    """Write traces to the folder `path`: `traces.safetensors` (norms, tokens) and `traces.json` (the rest, readable).

    A folder that holds traces already is replaced as a whole: each file is written beside the old one first, and the index,
    which carries the tensors' checksum, last.

    Returns:
        The folder.

    Raises:
        ValueError: no traces, or a file where the folder should be.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     loaded = l2.load_traces(l2.save_traces(folder + "/run", think))
        >>> torch.equal(loaded[0].l2_norms, think[0].l2_norms), loaded[0].labels["mode"]
        (True, 'think')
    """
    from safetensors.torch import save

    folder, traces = as_path("save_traces(path, traces): the path, which comes first,", path), traces_of(traces)
    if not traces:
        raise InputError("no traces to save")
    if folder.is_file():
        raise InputError(f"{folder} is a file: give a folder")
    folder.mkdir(parents=True, exist_ok=True)
    blob = save({f"{i}.{name}": tensor for i, trace in enumerate(traces) for name, tensor in _tensors(trace).items()})
    index = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "tensors_sha256": hashlib.sha256(blob).hexdigest(),
        "traces": [_to_json(trace) for trace in traces],
    }
    replace_file(folder / _TENSORS, blob)
    replace_file(folder / _INDEX, json.dumps(index, ensure_ascii=False, indent=1).encode())
    return folder


def load_traces(path: str | Path) -> tuple[Trace, ...]:
    """Read what `save_traces` wrote.

    Raises:
        FileNotFoundError: nothing there, or one of the two files missing.
        ValueError: a damaged or foreign file; the message says which and what is wrong.

    Warns:
        UserWarning: a file from before traces kept a fingerprint of the weights.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     traces = l2.load_traces(l2.save_traces(folder, direct))
        >>> len(traces) == len(direct), traces[0].provenance.comparable(direct[0].provenance)
        (True, True)
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    folder = as_path("path", path)
    index = _read_index(folder)
    blob = _read(folder, _TENSORS)
    if hashlib.sha256(blob).hexdigest() != index.get("tensors_sha256"):
        raise InputError(
            f"{folder / _TENSORS} doesn't match the checksum in {_INDEX}: it is damaged or of another run; {_AGAIN}"
        )
    try:
        tensors = load(blob)
        return tuple(
            _from_json(entry, {name: tensors[f"{i}.{name}"] for name in _names(entry)})
            for i, entry in enumerate(index["traces"])
        )
    except (SafetensorError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder} is not a complete set of traces: {error!r}; {_AGAIN}") from error


def _read_index(folder: Path) -> dict[str, Any]:
    try:
        index = json.loads(_read(folder, _INDEX))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{folder / _INDEX} is damaged: {error}; {_AGAIN}") from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise InputError(f"{folder / _INDEX} was not written by tl_l2norm.save_traces")
    version = index.get("version")
    if version == 1:
        warnings.warn(
            f"{folder / _INDEX} was written before traces kept a fingerprint of the weights: its model is known by name alone",
            stacklevel=3,
        )
    elif version != FORMAT_VERSION:
        raise InputError(
            f"{folder / _INDEX} has format version {version}, this library reads 1 to {FORMAT_VERSION}: use the tl_l2norm that "
            "wrote it"
        )
    return index


def _read(folder: Path, name: str) -> bytes:
    if not folder.is_dir():
        raise MissingFile(f"no folder of traces at {folder}")
    file = folder / name
    if not file.is_file():
        raise MissingFile(f"{folder} holds no {name}: it is not a folder of traces, or incomplete")
    return file.read_bytes()


def replace_file(file: Path, content: bytes) -> None:
    """Write a file beside the old one, then put it in its place."""
    draft = file.with_name(file.name + ".part")
    draft.write_bytes(content)
    os.replace(draft, file)


def require_place(place: str | Path, name: str = "folder", *, writes: bool = True) -> None:
    """Refuse a folder that can't be made or, if it `writes`, be written to, before there is anything to lose.

    Raises:
        ValueError: a file stands where it or a folder above it should be, or nothing may be written there.
    """
    path = as_path(name, place)
    if path.is_file():
        raise InputError(f"{name} is a file: {path}; name a folder")
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not there.is_dir():
        raise InputError(f"{there} is a file, and nothing can be kept in it: name another place than {path}")
    if (writes or there != path) and not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"nothing may be written to {there}: name another place than {path}")


def content_key(what: object) -> str:
    """Short hash of what a saved result depends on, by which it is found again."""
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=list).encode()).hexdigest()[:16]


def _tensors(trace: Trace) -> dict[str, Tensor]:
    tensors = {name: getattr(trace, name) for name in _TENSOR_FIELDS}
    tensors |= {f"{layer}.{name}": getattr(acts, name) for layer, acts in trace.features.items() for name in _FEATURE_FIELDS}
    tensors |= {_metric_name(metric): values for metric, values in trace.metrics.items()}
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _metric_name(metric: str) -> str:
    return f"metrics.{metric}"


def _names(entry: dict[str, Any]) -> list[str]:
    """Tensors of a trace; files from before there were features or metrics lack those keys."""
    features = [f"{layer}.{name}" for layer in entry.get("features", {}) for name in _FEATURE_FIELDS]
    return [*_TENSOR_FIELDS, *features, *map(_metric_name, entry.get("metrics", ()))]


def _to_json(trace: Trace) -> dict[str, Any]:
    skipped = (*_TENSOR_FIELDS, "provenance", "labels", "features", "metrics")
    names = [f.name for f in dataclasses.fields(trace) if f.name not in skipped]
    return {
        **{name: getattr(trace, name) for name in names},
        "labels": dict(trace.labels),
        "metrics": list(trace.metrics),
        "features": {layer: {"d_sae": acts.d_sae, "sae": acts.sae} for layer, acts in trace.features.items()},
        "provenance": {f.name: getattr(trace.provenance, f.name) for f in dataclasses.fields(trace.provenance)}
        | {"versions": dict(trace.provenance.versions), "options": dict(trace.provenance.options)},
    }


def _from_json(entry: dict[str, Any], tensors: dict[str, Any]) -> Trace:
    fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in entry.items()}
    fields["features"] = {
        int(layer): FeatureActs(**described, **{name: tensors.pop(f"{layer}.{name}") for name in _FEATURE_FIELDS})
        for layer, described in entry.get("features", {}).items()
    }
    fields["metrics"] = {metric: tensors.pop(_metric_name(metric)) for metric in entry.get("metrics", ())}
    source = entry["provenance"]
    fields["provenance"] = Provenance(**source | {"interventions": tuple(source.get("interventions", ()))})
    return Trace(**fields, **tensors)
