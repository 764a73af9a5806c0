"""Frames as HTML are whole: nothing is cut, nothing is markup; as CSV nothing of them is run by a spreadsheet."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ET

import numpy as np
import pandas as pd
import pytest

from tl_l2norm.core.tables import csv_text, html_table


def test_nothing_is_cut_and_nothing_is_markup() -> None:
    long = "among thinking responses to one problem, " * 20
    frame = pd.DataFrame({"claim <b>": [long, "<script>alert(1)</script>"], "p": [0.123456, np.nan], "n": [12, 3]})
    table = ET.fromstring(html_table(frame))
    assert [cell.text for cell in table.iter("th")] == ["claim <b>", "p", "n"]
    assert [cell.text for cell in table.iter("td")] == [long, "0.1235", "12", "<script>alert(1)</script>", "-", "3"]
    assert {element.tag for element in table.iter()} == {"table", "thead", "tbody", "tr", "th", "td"}


def test_text_stands_on_the_left() -> None:
    cells = list(ET.fromstring(html_table(pd.DataFrame({"arm": ["ALRR"], "n": [12]}))).iter("td"))
    assert [cell.get("style") for cell in cells] == ["text-align:left", None]


@pytest.mark.parametrize("text", ["=1+1", "@SUM(A1)", "+cmd|' /C calc'!A0", "-2+3+A1", "-->", "＝1", "\t=1", "+x"])
def test_text_that_a_spreadsheet_would_run_is_made_text(text: str) -> None:
    (read,) = pd.read_csv(io.StringIO(csv_text(pd.DataFrame({"x": [text]}))))["x"]
    assert read == f"'{text}"


@pytest.mark.parametrize("text", [" =1", "a=b", "'=1", "-0.30 [-0.33, -0.27]", "-5%", "-", "", "1-2", "数学"])
def test_other_text_stays_as_it_is(text: str) -> None:
    frame = pd.DataFrame({"x": [text, "end"]})
    assert pd.read_csv(io.StringIO(csv_text(frame)), keep_default_na=False).equals(frame)


def test_numbers_stay_numbers_of_whatever_type_the_column_is() -> None:
    frame = pd.DataFrame({"f": [-1.5, np.nan], "i": [-3, 4], "b": [True, False], "mixed": [-2.5, "=x"]})
    assert csv_text(frame).splitlines()[1:] == ["-1.5,-3,True,-2.5", ",4,False,'=x"]
    assert csv_text(frame[["f"]], float_format="%.1f").splitlines()[1] == "-1.5"
    kinds = pd.DataFrame({"text": pd.array(["=a", None], dtype="string"), "kind": pd.Categorical(["=a", "b"])})
    assert csv_text(kinds).splitlines()[1:] == ["'=a,'=a", ",b"]


def test_names_of_columns_are_text_too() -> None:
    assert csv_text(pd.DataFrame({"=cmd|x": [1], 0: [2]})).splitlines() == ["'=cmd|x,0", "1,2"]


def test_the_frame_is_not_changed() -> None:
    frame = pd.DataFrame({"x": ["=1"]})
    csv_text(frame)
    assert frame["x"].tolist() == ["=1"]
