"""Records of problems, each with the place that it stands at: from JSONL, JSON, CSV, TSV and Parquet, or from memory."""

from __future__ import annotations

import codecs
import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tl_l2norm.core.errors import InputError, InputTypeError, MissingFile, MissingPackage

_CONTAINERS = ("data", "examples", "problems", "questions", "rows")
_DECIMAL_COMMA = re.compile(r"\s*-?\d+,\d+\s*")
_NARROW = re.compile(
    r"(half|float16)|\bfloat(?:32)?\b", re.IGNORECASE
)  # names of types, as pandas, Arrow and datasets write them
FORMATS = ".jsonl, .json, .csv, .tsv and .parquet"


class Record(NamedTuple):
    """One problem as it is written: cells by column names in lower case; cells that hold nothing are None."""

    place: str
    """Where it stands, for messages: "line 3", "row 3"."""
    cells: dict[str, Any]


class Table(NamedTuple):
    """Records and what they came from."""

    name: str
    """The path, or "the table"."""
    records: Iterator[Record]
    """Read one after the other: a broken one raises when it is reached."""


def open_table(source: Any) -> Table:
    """Records of a file, by its name's ending (JSONL by default), or of a DataFrame, a `datasets.Dataset` or a list of dicts.

    Raises:
        InputError: no such file, an encoding or form that can't be read, with the line.
    """
    if not isinstance(source, str | Path):
        return Table("the table", _of_memory(source))
    path = Path(source).expanduser()
    try:
        is_file = path.is_file()
    except (OSError, ValueError):  # a text too long for a path, or with a NUL in it
        is_file = False
    if not is_file:
        raise MissingFile(
            f"no problems at {str(path)[:200]}: a JSONL file is expected, one object with a question per line, or {FORMATS}"
        )
    match path.suffix.lower():
        case ".parquet":
            return Table(str(path), _of_parquet(path))
        case ".csv" | ".tsv":
            return Table(str(path), _of_csv(path))
        case ".gz" | ".zip" | ".bz2" | ".xz" | ".zst" | ".xlsx" | ".xls" | ".arrow" | ".feather" | ".pkl":
            raise InputError(f"{path}: {path.suffix} can't be read: unpack it, or save it as one of {FORMATS}")
        case ".jsonl" | ".json":
            return Table(str(path), _of_json(path))
    try:
        return Table(str(path), iter(list(_of_json(path))))
    except InputError as error:
        raise type(error)(f"{error} (the endings that are known are {FORMATS}: a file with another is read as JSONL)") from None


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 with its byte order mark; line ends are those of Unix."""
    data = path.read_bytes()
    is_wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if is_wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line, byte = data.count(b"\n", 0, error.start) + 1, data[min(error.start, len(data) - 1)]
        name = "UTF-16" if is_wide else "UTF-8"
        raise InputError(f"{path}, line {line}: the byte 0x{byte:02x} is not {name}: save the file as UTF-8") from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise InputError(f"{path}, line {line}: a NUL character: save the file as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _of_json(path: Path) -> Iterator[Record]:
    """An array of objects, an object that holds one under a usual name, or an object a line."""
    text = read_text(path)
    if not text.lstrip().startswith("[") and path.suffix.lower() != ".json":
        return _of_lines(path, text)
    try:
        whole = _read_json(text, str(path))
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            return _of_lines(path, text)
        raise InputError(f"{path}, line {error.lineno}: not JSON ({error.msg} at column {error.colno})") from None
    if isinstance(whole, dict):
        whole = next((whole[name] for name in _CONTAINERS if isinstance(whole.get(name), list)), [whole])
    return _of_records(whole, str(path))


def _read_json(text: str, place: str) -> Any:
    """JSON, but that a key which an object holds twice is refused: only the last would be kept."""

    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if twice := [name for name, n in Counter(name for name, _ in pairs).items() if n > 1]:
            raise InputError(f"{place}: an object has the key {twice[0]!r} twice")
        return dict(pairs)

    return json.loads(text, object_pairs_hook=distinct)


def _of_lines(path: Path, text: str) -> Iterator[Record]:
    # Not splitlines(): U+2028 and the like may stand in a string.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"line {number}"
        try:
            record = _read_json(line, f"{path}, {place}")
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, {place}: not JSON ({error.msg} at column {error.colno})") from None
        if not isinstance(record, dict):
            raise InputError(f"{path}, {place}: expected an object, got {json.dumps(record)[:60]}")
        yield _record(place, record)


def _of_csv(path: Path) -> Iterator[Record]:
    text = read_text(path)
    first = text.partition("\n")[0]
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise InputError(f"{path}, line {line}: not CSV ({error})") from None
        if cells is None:
            return
        if not any(cell.strip() for cell in cells):
            continue
        if names is None:
            names = _distinct(cells, f"{path}, line {line}")
        elif len(cells) != len(names):
            raise InputError(f"{path}, line {line}: {len(cells)} cells where the first line names {len(names)} columns")
        elif delimiter == ";" and (number := next(filter(_DECIMAL_COMMA.fullmatch, cells), None)):
            raise InputError(f"{path}, line {line}: {number} has a decimal comma: write {number.strip().replace(',', '.')}")
        else:
            yield _record(f"line {line}", {name: _typed(name, cell) for name, cell in zip(names, cells, strict=True)})


def _distinct(names: list[str], place: str) -> list[str]:
    folded = [name.strip().casefold() for name in names if name.strip()]
    if len(set(folded)) < len(folded):
        raise InputError(f"{place}: two columns have the same name: {', '.join(names)}")
    return names


def _typed(name: str, cell: str) -> Any:
    """A cell of a CSV file is text; only a level is a number, and lists and dicts are written as JSON."""
    if not cell.strip():
        return None
    if name.strip().casefold() == "level" and cell.strip().isdecimal():
        return int(cell)
    if cell.lstrip().startswith(("[{", '["', '{"')):
        try:
            return json.loads(cell)
        except json.JSONDecodeError:
            return cell
    return cell


def _of_parquet(path: Path) -> Iterator[Record]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingPackage("reading Parquet needs pyarrow: pip install pyarrow") from error
    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: not Parquet ({error})") from None
    types = {field.name: field.type for field in table.schema}
    return _of_records(_shortest(table.to_pylist(), types), str(path))


def _of_memory(source: Any) -> Iterator[Record]:
    if hasattr(source, "to_dict") and hasattr(source, "columns"):  # a DataFrame
        _distinct([str(name) for name in source.columns], "the table")  # as records it would keep the last of two
        source = _shortest(source.to_dict("records"), dict(source.dtypes))
    elif isinstance(types := getattr(source, "features", None), Mapping):  # a datasets.Dataset
        source = _shortest(source, types)
    if isinstance(source, Mapping):
        named = ", ".join(map(str, source))
        raise InputTypeError(f"problems are rows, got a mapping with {named}: pass a list of dicts, or one split of a data set")
    if isinstance(source, bytes) or not isinstance(source, Iterable):
        raise InputTypeError(f"problems are a path, a table or a list of dicts, got {type(source).__name__}")
    return _of_records(source, "the table")


def _of_records(records: Iterable[Any], name: str) -> Iterator[Record]:
    for number, record in enumerate(records, start=1):
        if not isinstance(record, Mapping):
            raise InputTypeError(f"{name}, row {number}: expected an object with a question, got {record!r:.60}")
        yield _record(f"row {number}", record)


def _record(place: str, cells: Mapping[Any, Any]) -> Record:
    names = _distinct(list(map(str, cells)), place)
    return Record(place, {name.strip().casefold(): _clean(value) for name, value in zip(names, cells.values(), strict=True)})


def _shortest(records: Iterable[dict[str, Any]], types: Mapping[Any, Any]) -> Iterator[dict[str, Any]]:
    """Records whose columns of half and single precision hold what was meant: 0.1, which is 0.10000000149011612 as a double."""
    narrow = {
        name: np.float16 if match[1] else np.float32 for name, type_ in types.items() if (match := _NARROW.search(str(type_)))
    }
    for record in records:
        yield {name: _as_meant(value, narrow[name]) if name in narrow else value for name, value in record.items()}


def _as_meant(value: Any, kind: type[np.floating[Any]]) -> Any:
    """Floats that were of a kind, by the shortest digits that tell them apart there; those in lists and dicts too."""
    if isinstance(value, float):
        return float(str(kind(value)))
    if isinstance(value, list):
        return [_as_meant(one, kind) for one in value]
    return {name: _as_meant(one, kind) for name, one in value.items()} if isinstance(value, dict) else value


def _clean(value: Any) -> Any:
    """Missing values are None; arrays are lists, NumPy's numbers are Python's, also inside of lists and dicts."""
    if hasattr(value, "tolist"):
        kind = getattr(value, "dtype", None)
        value = _as_meant(value.tolist(), kind.type) if kind in (np.float16, np.float32) else value.tolist()
    if isinstance(value, Mapping):
        return {name: _clean(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_clean(one) for one in value]
    if isinstance(value, float) and math.isnan(value):
        return None
    return None if type(value).__name__ in ("NAType", "NaTType") else value
