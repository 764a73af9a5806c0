"""Tables of single tokens as statistics take them: whole, of one call, each token once."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd

from tl_l2norm.core.errors import InputError, Unmeasurable
from tl_l2norm.core.schema import Schema

_APART = (
    'each call numbers its sequences from 0: renumber them before tables are joined, table["sequence"] += '
    '1 + other["sequence"].max(), or give the tables one by one'
)


def as_tokens(
    schema: Schema, table: object, names: Sequence[str], *, by: Sequence[str] = (), gaps: Collection[str] = ()
) -> pd.DataFrame:
    """The table with these columns in their own dtypes, and all others as they are.

    Args:
        schema: of the table.
        table: whatever was given for it.
        names: columns that are needed, sequence, position and prompt among them.
        by: by what the table may hold a token again, such as the layer.
        gaps: columns in which a value may be missing, or infinite.

    Raises:
        InputTypeError: no frame.
        InputError: columns or values that are missing, infinite values, truths that are none; a token that stands there twice,
            several prompts under one number, several models or seeds.
        Unmeasurable: an empty table.
    """
    checked = schema.check(table, *names)
    if checked.empty:
        raise Unmeasurable(f"the table of {schema.name} is empty")
    columns = {name: _column(schema, checked, name, name in gaps) for name in names}
    whole = checked.assign(**columns).reset_index(drop=True)
    for name, what in (("model", "models"), ("seed", "seeds")):
        if name in whole and whole[name].nunique() > 1:
            several = ", ".join(map(str, whole[name].unique()[:3]))
            raise InputError(f"the table of {schema.name} is of several {what} ({several}): give those of one at a time")
    _require_each_once(schema, whole, [*by, "sequence", "position"])
    return whole


def _column(schema: Schema, table: pd.DataFrame, name: str, gaps: bool) -> pd.Series:  # type: ignore[type-arg]
    values, column = table[name], schema[name]
    if not gaps:
        odd = values.isna()
        if column.dtype in (int, float):
            odd |= np.isinf(values.astype(np.float64))
        if odd.any():
            where = f"sequence {table['sequence'][odd.to_numpy()].iloc[0]}"
            raise InputError(
                f"the table of {schema.name}: {name} is missing or infinite in {odd.sum()} of {len(odd)} tokens, such as one "
                f"of {where}: drop these, or give what {schema.maker} returns"
            )
    return column.of(values)


def _require_each_once(schema: Schema, table: pd.DataFrame, keys: list[str]) -> None:
    twice = table.duplicated(keys)
    if twice.any():
        one = ", ".join(f"{key} {table.loc[twice, key].iloc[0]}" for key in keys)
        raise InputError(f"the table of {schema.name}: {twice.sum()} tokens stand there twice, such as {one}; {_APART}")
    prompts = table.groupby("sequence")["prompt"].nunique()
    if (prompts > 1).any():
        raise InputError(f"the table of {schema.name}: sequence {prompts.idxmax()} is of {prompts.max()} prompts; {_APART}")
