"""Frames as HTML are whole: nothing is cut, nothing is markup."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import numpy as np
import pandas as pd

from tl_l2norm.core.tables import html_table


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
