"""Claims in a notebook: whole, with verdict, reason and control, and no markup of a model's."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from tests.paper_tables import hostile_analysis
from tl_l2norm.paper.claims import CLAIMS
from tl_l2norm.paper.summary import headline, verdict_text


def test_a_notebook_has_every_claim_whole() -> None:
    analysis = hostile_analysis()
    claims = analysis.claims()
    root = ET.fromstring(f"<div>{analysis._repr_html_()}</div>")
    rows = [[cell.text or "" for cell in row.iter("td")] for row in root.iter("tr")][1:]
    assert len(rows) == len(CLAIMS) == len(claims)
    for cells, entry in zip(rows, claims.to_dict("records"), strict=True):
        number, claim, verdict, measured, interval, control, *_ = cells
        assert (number, claim) == (str(entry["number"]), entry["claim"])
        assert verdict[2:] == verdict_text(entry)
        assert (measured, interval, control) == (entry["measured"], entry["interval"], entry["control"])
    assert headline(claims) in [paragraph.text for paragraph in root.iter("p")]
    assert {element.tag for element in root.iter()} == {"div", "p", "table", "thead", "tbody", "tr", "th", "td"}
