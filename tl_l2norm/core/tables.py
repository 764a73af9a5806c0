"""Frames as text: for a terminal, for a spreadsheet, and as HTML for a notebook."""

from __future__ import annotations

import html
import io
import re
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

WIDTH = 100
_FORMULA = re.compile(r"[=@\t\r\n＝＠＋－]|[+-](?![\d.,%\s\[\]+-]*$)")
"""How text begins that a spreadsheet runs; one of figures and signs alone, such as an interval, does no harm."""


def render_table(frame: pd.DataFrame, *, title: str | None = None, width: int = WIDTH) -> str:
    """A frame as text of at most `width` columns; numbers on the right, floats to four figures.

    Examples:
        >>> print(render_table(pd.DataFrame({"layer": [0, 11], "l2_norm": [83.2154, 539.4321]})))
        layer   l2_norm
        ───────────────
            0     83.22
           11     539.4
    """
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in frame.columns:
        numeric = pd.api.types.is_numeric_dtype(frame[name])
        table.add_column(str(name), justify="right" if numeric else "left")
    for entry in frame.itertuples(index=False):
        table.add_row(*(_cell(value) for value in entry))
    out = io.StringIO()
    console = Console(  # it would write past the file into a notebook, and take colours or a width from the environment
        file=out,
        width=width,
        color_system=None,
        force_jupyter=False,
        force_terminal=False,
        markup=False,
        highlight=False,
        emoji=False,
    )
    console.print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()).strip("\n")


def html_table(frame: pd.DataFrame) -> str:
    """A frame as HTML of which nothing is cut, as pandas cuts text of over 50 characters; floats to four figures.

    Examples:
        >>> html_table(pd.DataFrame({"claim": ["1 < 2"]})).partition("<tbody>")[2]
        '<tr><td style="text-align:left">1 &lt; 2</td></tr></tbody></table>'
    """
    styles = ["" if pd.api.types.is_numeric_dtype(frame[name]) else ' style="text-align:left"' for name in frame.columns]
    head = "".join(f'<th scope="col"{s}>{html.escape(str(n))}</th>' for n, s in zip(frame.columns, styles, strict=True))
    rows = [
        "".join(f"<td{style}>{html.escape(_cell(value))}</td>" for value, style in zip(entry, styles, strict=True))
        for entry in frame.itertuples(index=False)
    ]
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: object) -> str:
    if value is None or value is pd.NA or (isinstance(value, float) and value != value):
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def csv_text(frame: pd.DataFrame, **options: Any) -> str:
    """A frame as CSV that a spreadsheet can open: text that it would run as a formula has an apostrophe before it.

    Tokens are such text: `=`, `@x`, `-SUM(A1)`. Numbers stay numbers.

    Args:
        frame: any.
        **options: of `DataFrame.to_csv`.

    Examples:
        >>> print(csv_text(pd.DataFrame({"token": ["=1+1", " and"], "l2_norm": [-1.5, 2.0]})))
        token,l2_norm
        '=1+1,-1.5
         and,2.0
    """
    guarded = frame.copy(deep=False)
    for name, column in frame.items():
        if not pd.api.types.is_numeric_dtype(column):
            guarded[name] = column.astype(object).map(_guarded)
    guarded.columns = [_guarded(name) for name in frame.columns]  # observers and labels are named by whoever likes
    text: str = guarded.to_csv(index=False, **options)
    return text


def _guarded(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value
