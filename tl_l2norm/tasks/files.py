"""Rows of a table, each with the place that it stands at: from JSONL, JSON, CSV, TSV and Parquet, or from memory."""

from __future__ import annotations

import codecs
import csv
import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tl_l2norm.core.errors import InputError, InputTypeError, MissingFile, MissingPackage

_CONTAINERS = ("data", "examples", "problems", "questions", "rows")
_DECIMAL_COMMA = re.compile(r"\s*-?\d+,\d+\s*")
FORMATS = ".jsonl, .json, .csv, .tsv and .parquet"


class Row(NamedTuple):
    """One row by column names in lower case; cells that hold nothing are None."""

    place: str
    """Where it stands, for messages: "line 3", "row 3"."""
    cells: dict[str, Any]


class Table(NamedTuple):
    """Rows and what they came from."""

    name: str
    """The path, or "the table"."""
    rows: Iterator[Row]
    """Read one after the other: a broken row raises when it is reached."""


def open_table(source: Any) -> Table:
    """Rows of a file, by its name's ending (JSONL by default), or of a DataFrame, a `datasets.Dataset` or a list of dicts.

    Raises:
        InputError: no such file, an encoding or form that can't be read, with the line.
    """
    if not isinstance(source, str | Path):
        return Table("the table", _of_memory(source))
    path = Path(source)
    if not path.is_file():
        raise MissingFile(f"no problems at {path}: a JSONL file is expected, one object with a question per line, or {FORMATS}")
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


def _of_json(path: Path) -> Iterator[Row]:
    """An array of objects, an object that holds one under a usual name, or an object a line."""
    text = read_text(path)
    if not text.lstrip().startswith("[") and path.suffix.lower() != ".json":
        return _of_lines(path, text)
    try:
        whole = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            return _of_lines(path, text)
        raise InputError(f"{path}, line {error.lineno}: not JSON ({error.msg} at column {error.colno})") from None
    if isinstance(whole, dict):
        whole = next((whole[name] for name in _CONTAINERS if isinstance(whole.get(name), list)), [whole])
    return _of_records(whole, str(path))


def _of_lines(path: Path, text: str) -> Iterator[Row]:
    # Not splitlines(): U+2028 and the like may stand in a string.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, {place}: not JSON ({error.msg} at column {error.colno})") from None
        if not isinstance(record, dict):
            raise InputError(f"{path}, {place}: expected an object, got {json.dumps(record)[:60]}")
        yield _row(place, record)


def _of_csv(path: Path) -> Iterator[Row]:
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
            yield _row(f"line {line}", {name: _typed(name, cell) for name, cell in zip(names, cells, strict=True)})


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


def _of_parquet(path: Path) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingPackage("reading Parquet needs pyarrow: pip install pyarrow") from error
    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: not Parquet ({error})") from None
    return _of_records(table.to_pylist(), str(path))


def _of_memory(source: Any) -> Iterator[Row]:
    if hasattr(source, "to_dict") and hasattr(source, "columns"):  # a DataFrame
        source = source.to_dict("records")
    if isinstance(source, Mapping):
        named = ", ".join(map(str, source))
        raise InputTypeError(f"problems are rows, got a mapping with {named}: pass a list of dicts, or one split of a data set")
    if isinstance(source, bytes) or not isinstance(source, Iterable):
        raise InputTypeError(f"problems are a path, a table or a list of dicts, got {type(source).__name__}")
    return _of_records(source, "the table")


def _of_records(records: Iterable[Any], name: str) -> Iterator[Row]:
    for number, record in enumerate(records, start=1):
        if not isinstance(record, Mapping):
            raise InputTypeError(f"{name}, row {number}: expected an object with a question, got {record!r:.60}")
        yield _row(f"row {number}", record)


def _row(place: str, record: Mapping[Any, Any]) -> Row:
    names = _distinct(list(map(str, record)), place)
    return Row(place, {name.strip().casefold(): _clean(value) for name, value in zip(names, record.values(), strict=True)})


def _clean(value: Any) -> Any:
    """Missing values are None; arrays are lists, NumPy's numbers are Python's."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, float) and math.isnan(value):
        return None
    return None if type(value).__name__ in ("NAType", "NaTType") else value
