"""Long runs that outlive their process: what is finished is on disk within a step, and the same call goes on from there.

A run has a folder, named by a hash of all that its responses depend on. In it `run.json` says what that is, `responses.jsonl`
has one line for each response, written and synced as it ends, and `parts/` one folder for each batch of recorded traces.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tl_l2norm.core.arguments import as_path
from tl_l2norm.core.errors import InputError
from tl_l2norm.core.identity import UNKNOWN
from tl_l2norm.core.layers import Layers
from tl_l2norm.core.protocols import SparseAutoencoder
from tl_l2norm.core.storage import content_key, load_traces, replace_file, save_traces
from tl_l2norm.core.trace import Label, Trace
from tl_l2norm.models.backend import Backend
from tl_l2norm.models.backends import backend_of
from tl_l2norm.models.described import Described
from tl_l2norm.models.provenance import library_versions
from tl_l2norm.recording.collect import collect
from tl_l2norm.recording.engine import Engine
from tl_l2norm.text.sequences import batches_by_length, tokenize

_MARK = b"\xef\xbb\xbf"  # of byte order, which some editors write
_BEGIN = b'{"key": '
_MEASURED = "norms are measured again, the responses are kept"
_AGAIN = "responses whose norms can't be read are written again"
_PROBE = 1 << 20  # bytes that have to fit before a run begins


class Journal:
    """Finished pieces of work by key, one JSON line each; appended and synced. Without a file, in memory alone.

    A last line that a killed process left unfinished is dropped; what an editor adds (a byte order mark, other line ends, blank
    lines) is passed over. One process writes at a time: use inside `locked`.
    """

    def __init__(self, file: Path | None = None) -> None:
        """Read what is there.

        Raises:
            ValueError: a damaged line; the message says which and what to do, and the file stays as it is.
        """
        self.file, self.entries = file, dict[str, dict[str, Any]]()
        if file is not None and file.exists():
            self._read(file, file.read_bytes())

    def _read(self, file: Path, content: bytes) -> None:
        *lines, last = content.removeprefix(_MARK).split(b"\n")
        for number, line in enumerate(lines, start=1):
            if line.strip():
                self._note(_parse(line.strip()), file, number)
        if _parse(last.strip()) is not None:  # whole but for the end of the line
            self._note(_parse(last.strip()), file, len(lines) + 1)
            self._append(b"\n")
        elif _is_begun(last):
            os.truncate(file, len(content) - len(last))
        elif last.strip():
            self._note(None, file, len(lines) + 1)

    def _note(self, entry: dict[str, Any] | None, file: Path, number: int) -> None:
        if entry is None:
            raise InputError(
                f"{file} is damaged at line {number}: delete that line to have its response made again, or the folder to start "
                "anew; nothing was changed"
            )
        self.entries[entry["key"]] = entry["value"]

    def add(self, entries: Mapping[str, Mapping[str, Any]]) -> None:
        """Append entries; they are on the disk when this returns."""
        self._append(b"".join(_line(key, value) for key, value in entries.items()))
        self.entries.update({key: dict(value) for key, value in entries.items()})

    def _append(self, content: bytes) -> None:
        if self.file is None:
            return
        with self.file.open("ab") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())


def _line(key: str, value: Mapping[str, Any]) -> bytes:
    body = json.dumps({"key": key, "value": value}, ensure_ascii=False)
    return f"{zlib.crc32(body.encode()):08x} {body}\n".encode()


def _is_begun(line: bytes) -> bool:
    """Whether this is the beginning of a line of ours, which a killed process left."""
    checksum, space, body = line.partition(b" ")
    if not line or checksum.strip(b"0123456789abcdef") or (len(checksum) != 8 if space else len(checksum) > 8):
        return False
    return body.startswith(_BEGIN) and not _is_json(body) if len(body) > len(_BEGIN) else _BEGIN.startswith(body)


def _is_json(body: bytes) -> bool:
    try:
        json.loads(body)
    except ValueError:
        return False
    return True


def _parse(line: bytes) -> dict[str, Any] | None:
    """What a line holds; None if it is not whole."""
    checksum, _, body = line.partition(b" ")
    if checksum != b"%08x" % zlib.crc32(body) or not body:
        return None
    return dict(json.loads(body))


@contextmanager
def locked(*folders: Path) -> Iterator[None]:
    """Make these folders and keep other processes out of them; the lock goes with the process, however it ends.

    Raises:
        ValueError: another process works there, or the folder can't be written to.
    """
    from filelock import FileLock, Timeout

    with ExitStack() as stack:
        for folder in folders:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                _probe(folder)
                stack.enter_context(FileLock(folder / ".lock", timeout=0))
            except Timeout:
                raise InputError(f"another process works in {folder}: wait for it, or give another folder to save to") from None
            except OSError as error:
                raise InputError(f"can't keep anything in {folder}: {error}; give another folder to save to") from error
        yield


def _probe(folder: Path) -> None:
    """See that something can be written, before hours are spent on what can't."""
    file = folder / f".probe-{os.getpid()}"
    try:
        with file.open("wb") as stream:
            stream.write(bytes(_PROBE))
            stream.flush()
            os.fsync(stream.fileno())
    finally:
        file.unlink(missing_ok=True)


def describe_run(backend: Backend | Engine, **what: Any) -> dict[str, Any]:
    """All that responses of a model depend on beside the prompts, for `run_folder`."""
    identity = backend.identity()
    return {
        "weights": identity.weights,
        "tokenizer": identity.tokenizer,
        "chat_template": identity.chat_template,
        "backend": backend.name,
        "dtype": str(backend.dtype).removeprefix("torch."),
        "device": backend.device.type,
        "eos": sorted(backend.eos_token_ids()),
        "versions": library_versions() | dict(backend.versions),
        **({"options": dict(backend.options)} if backend.options else {}),
        **what,
    }


def run_folder(parent: Path, name: str, what: Mapping[str, Any]) -> Path:
    """The folder of the run that `what` describes."""
    return parent / f"{name}-{content_key(what)}"


def begin(place: Path, what: Mapping[str, Any], backend: Described) -> Journal:
    """Note what the run in this folder is, and read which responses it has."""
    note = json.dumps({"model": backend.model_name, **what}, indent=1, default=str, sort_keys=True)
    replace_file(place / "run.json", note.encode())
    return Journal(place / "responses.jsonl")


def may_save(backend: Described, save_to: str | Path | None, name: str = "save_to") -> Path | None:
    """Where to save; None, with a warning, where what is saved could be taken for another model's."""
    if save_to is None:
        return None
    folder = as_path(name, save_to)
    identity = backend.identity()
    reason = ""
    if identity.foreign_hooks:
        reason = (
            f"{identity.foreign_hooks} hooks or SAEs that aren't this run's are on the model: what they change can't be told "
            "from a file (model.reset_hooks() removes hooks)"
        )
    elif identity.weights == UNKNOWN:
        reason = "the model's weights can't be read here (offloaded?), so that another model's responses could be taken for its"
    if reason:
        warnings.warn(f"nothing is read from or kept in {save_to}: {reason}", stacklevel=4)
        return None
    return folder


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReadOptions:
    """How finished responses are read again: `collect`'s arguments of the same names."""

    layers: Layers = None
    saes: Mapping[int, SparseAutoencoder] | None = None
    metrics: tuple[str, ...] = ()
    sink_ratio: float | None = None
    batch_size: int
    progress: bool = True

    def collect(self, model: Any, sequences: Sequence[Any], labels: Sequence[Mapping[str, Label]]) -> tuple[Trace, ...]:
        """A trace of each sequence, in one pass."""
        return collect(
            model,
            sequences,
            labels=labels,
            layers=self.layers,
            saes=self.saes,
            metrics=self.metrics,
            sink_ratio=self.sink_ratio,
            batch_size=self.batch_size,
            progress=self.progress,
        )


def collected(
    place: Path | None,
    model: Any,
    sequences: Sequence[Any],
    *,
    labels: Sequence[Mapping[str, Label]],
    reading: ReadOptions,
) -> tuple[Trace, ...]:
    """`collect`, kept in a folder batch by batch: batches that are there already are not read again.

    Batches are those of `collect`, so the numbers are the same, bit for bit, whether a run was interrupted or not.
    """
    if place is None:
        return reading.collect(model, sequences, labels)
    items = tokenize(backend_of(model), sequences)
    whole = _kept_traces(place)
    if whole is not None and [tuple(trace.tokens.tolist()) for trace in whole] == [item.tokens for item in items]:
        return tuple(trace.with_labels(**own) for trace, own in zip(whole, labels, strict=True))
    traces: dict[int, Trace] = {}
    for number, batch in enumerate(batches_by_length(items, reading.batch_size)):
        part = place / "parts" / f"{number:05d}-{content_key([items[i].tokens for i in batch])}"
        own = _kept_traces(part)
        if own is None:
            one_batch = dataclasses.replace(reading, batch_size=len(batch))
            own = one_batch.collect(model, [sequences[i] for i in batch], [labels[i] for i in batch])
            save_traces(part, own)
        traces.update(zip(batch, own, strict=True))
    in_order = tuple(traces[i] for i in range(len(items)))
    (place / "traces.json").unlink(missing_ok=True)  # of fewer sequences: never the index of one beside the norms of the other
    save_traces(place, in_order)
    shutil.rmtree(place / "parts", ignore_errors=True)
    return in_order


def keep_recorded(place: Path, entries: Mapping[str, Mapping[str, Any]], traces: Sequence[Trace]) -> dict[str, dict[str, Any]]:
    """Keep traces that were recorded while decoding; returns the journal's entries with where their traces are."""
    part = content_key(list(entries))
    save_traces(place / "parts" / part, traces)
    return {key: {**entry, "trace": [part, i]} for i, (key, entry) in enumerate(entries.items())}


def kept_recorded(place: Path, entries: Mapping[str, Mapping[str, Any]]) -> dict[str, Trace]:
    """What `keep_recorded` kept, by the journal's keys; without what can't be read."""
    parts = {part: _kept_traces(place / "parts" / part, _AGAIN) for part in {entry["trace"][0] for entry in entries.values()}}
    where = {key: (parts[entry["trace"][0]], entry["trace"][1]) for key, entry in entries.items()}
    return {key: traces[i] for key, (traces, i) in where.items() if traces is not None}


def _kept_traces(place: Path, what_now: str = _MEASURED) -> tuple[Trace, ...] | None:
    """What an earlier run kept here; None where there is nothing, or nothing whole."""
    if not (place / "traces.json").is_file():
        return None
    try:
        return load_traces(place)
    except InputError as error:
        warnings.warn(f"{what_now}: {error}", stacklevel=4)
        return None
