"""The columns of a table, said once: its maker builds it by its schema, its readers check it by the same.

>>> speeds = Schema("speeds", "measure(...)", (Column("car", str, "its name"), Column("speed", float, "km/h")))
>>> speeds.frame([{"car": "a", "speed": 50}])
  car  speed
0   a   50.0
>>> speeds.frame([]).dtypes["speed"]
dtype('float64')
>>> speeds.check(speeds.frame([])[["car"]])
Traceback (most recent call last):
    ...
tl_l2norm.core.errors.InputError: the table of speeds lacks the columns ['speed']: give what measure(...) returns
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd

from tl_l2norm.core.errors import InputError, InputTypeError

types = pd.api.types
_NUMERIC = (Real, Decimal, np.bool_)
_NUMBERS = {int: "int64", float: "float64", bool: "bool"}


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table."""

    name: str
    dtype: type
    """int, float or bool, of which no other is let through; str or object, which stay as they come."""
    meaning: str
    """In words, with its unit."""
    optional: bool = False
    """Whether the table may do without: what it is grouped by, and labels."""

    def of(self, values: pd.Series[Any]) -> pd.Series[Any]:
        """The values in this column's dtype."""
        if self.dtype in _NUMBERS:
            return values.astype(_NUMBERS[self.dtype])
        return values if len(values) else values.astype(self.dtype)

    def complaint(self, values: pd.Series[Any]) -> str | None:
        """What makes these values none of this column, in words; what a CSV file made of them passes."""
        if not len(values):
            return None
        if listed := [value for value in values if not isinstance(value, Hashable)] if values.dtype == object else []:
            return f"holds {listed[0]!r:.80}, which is no single value"
        if self.dtype not in _NUMBERS:
            return None
        missing = values.isna()
        if self.dtype is bool and missing.any():
            return "has missing values"
        if self.dtype is int and missing.any():
            return f"is missing in {missing.sum()} of {len(values)} entries"
        odd = (
            []
            if types.is_numeric_dtype(values) and not types.is_complex_dtype(values)
            else [v for v in values[~missing] if not isinstance(v, _NUMERIC)]
        )
        if odd:
            return f"holds {odd[0]!r:.80}, which is no number"
        if self.dtype is bool and not (either := values.isin([0, 1])).all():
            return f"is 0 or 1, False or True, got {values[~either].iloc[0]}"
        return None


@dataclass(frozen=True, slots=True)
class Schema:
    """The columns of a table, in their order."""

    name: str
    """What the entries are, in the plural, as messages say it."""
    maker: str
    """The function that returns such a table."""
    columns: tuple[Column, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the columns that every such table has."""
        return tuple(column.name for column in self.columns if not column.optional)

    def frame(
        self,
        entries: Iterable[Mapping[str, Any]] | Mapping[str, Any] | pd.DataFrame,
        *,
        by: Sequence[str] = (),
        **constants: Any,
    ) -> pd.DataFrame:
        """A table of exactly these columns in their order and dtypes, also where it has no entry.

        Args:
            entries: one mapping per entry, or whole columns by name.
            by: optional columns that this table has; they come first, in this order.
            constants: columns that are the same in every entry, such as seed and model.

        Raises:
            KeyError: a column that is missing, or not of this schema: the maker and its schema disagree.
        """
        given = pd.DataFrame(entries if isinstance(entries, Mapping | pd.DataFrame) else list(entries)).assign(**constants)
        names = [*by, *self.names]
        if odd := set(given.columns) ^ set(names) if len(given) else set(given.columns) - set(names):
            raise KeyError(f"the table of {self.name} and its schema differ in {sorted(odd)}")
        return pd.DataFrame({name: self[name].of(given.get(name, pd.Series(dtype=object))) for name in names})

    def check(self, frame: Any, *names: str) -> pd.DataFrame:
        """The frame, if it has these columns; by default all that every such table has; in NumPy's dtypes, by `plain`.

        Raises:
            InputTypeError: no frame.
            InputError: columns that are missing or there twice, text where numbers belong, a list in a cell, or a truth or an
                integer that is missing.
            KeyError: a name that the schema doesn't know: a reader asks for what no maker writes.
        """
        wanted = [self[name].name for name in names or self.names]
        if not isinstance(frame, pd.DataFrame):
            raise InputTypeError(f"the table of {self.name} is a DataFrame, what {self.maker} returns, got {frame!r:.80}")
        if missing := sorted(set(wanted) - set(frame.columns)):
            raise InputError(f"the table of {self.name} lacks the columns {missing}: give what {self.maker} returns")
        if twice := frame.columns[frame.columns.duplicated()].tolist():
            raise InputError(f"the table of {self.name} has the column {twice[0]!r} twice: give what {self.maker} returns")
        frame = plain(frame)
        for name in wanted:
            if complaint := self[name].complaint(frame[name]):
                raise InputError(f"the table of {self.name}: {name} {complaint}; give what {self.maker} returns")
        return frame

    def plus(self, *columns: Column) -> Schema:
        """The same with further columns behind."""
        return dataclasses.replace(self, columns=(*self.columns, *columns))

    def __getitem__(self, name: str) -> Column:
        """A column by its name."""
        return {column.name: column for column in self.columns}[name]


def plain(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with NumPy's dtypes for pandas' own (Int64, boolean, string, category, Arrow's) and for objects that are all
    numbers, NaN for what is missing, and no index that is called like a column; the frame itself where it is so already.

    >>> plain(pd.DataFrame({"x": pd.array([1, None], "Int64"), "y": pd.array([True, False], "boolean")})).dtypes.tolist()
    [dtype('float64'), dtype('bool')]
    """
    if set(frame.index.names) & set(frame.columns):
        frame = frame.reset_index(drop=True)
    given = [frame.iloc[:, i] for i in range(frame.shape[1])]
    columns = list(map(_plain, given))
    return frame if all(map(operator.is_, columns, given)) else pd.concat(columns, axis=1)


def _plain(values: pd.Series[Any]) -> pd.Series[Any]:
    if values.dtype == object:
        made = _of_objects(values)
        return made if types.is_numeric_dtype(made) or any(value is pd.NA for value in values) else values
    of_text = isinstance(values.dtype, pd.StringDtype) and values.dtype.na_value is not pd.NA  # as pandas 3 reads it
    if of_text or isinstance(values.dtype, np.dtype):
        return values
    if isinstance(values.dtype, pd.CategoricalDtype):
        return pd.Series(np.asarray(values.array), index=values.index, name=values.name)
    if types.is_bool_dtype(values.dtype) or types.is_numeric_dtype(values.dtype):
        whole = not values.isna().any()
        kind = "bool" if types.is_bool_dtype(values.dtype) else "int64" if types.is_integer_dtype(values.dtype) else "float64"
        made = values.to_numpy(dtype=kind) if whole else values.to_numpy(dtype="float64", na_value=np.nan)
    elif types.is_string_dtype(values.dtype):
        made = values.to_numpy(dtype=object, na_value=np.nan)
    else:  # Arrow's null among them
        return _of_objects(values.astype(object))
    return pd.Series(made, index=values.index, name=values.name)


def _of_objects(values: pd.Series[Any]) -> pd.Series[Any]:
    return values.where(values.notna(), np.nan).infer_objects()


def ends(column: str, *, prefix: bool = False, kind: str = "95% interval over prompts") -> tuple[Column, Column]:
    """The columns of both ends of a column's interval: low and high or, with prefix, x_low and x_high of a column x."""
    low, high = (f"{column}_{end}" if prefix else end for end in ("low", "high"))
    return Column(low, float, f"lower end of {column}, {kind}"), Column(high, float, f"upper end of {column}, {kind}")


# Columns that most tables have.
LAYER = Column("layer", int, "block whose output the stream is, from 0")
QUANTITY = Column("quantity", str, "what was read off the traces")
N = Column("n", int, "prompts that count")
SEED = Column("seed", int, "of the resampling")
MODEL = Column("model", str, "name of the model")
