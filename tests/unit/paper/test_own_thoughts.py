"""The verdict on a model's own thoughts, on tables made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.paper_tables import filled
from tl_l2norm.paper.claims import claims_table

UNTESTED = "can't be tested here"


def verdict(**changed: float) -> pd.Series[Any]:
    """With 5 of 200 more than every other text, at p 0.002 and 0.003 without any one family; `changed` of another's."""
    fixed = {"scope": "thought", "layer": "late", "own": 200.0, "difference": 5.0, "p": 0.002, "p_families": 0.003, "n": 40}
    entries = [{**fixed, "text": text} for text in ("filler", "shuffled")]
    if changed.get("n") != 0:
        entries.append({**fixed, "text": "another's", **changed})
    tables = {"thought_texts": filled("thought_texts", pd.DataFrame(entries))}
    return claims_table(tables, {}).set_index("number").loc[17]


@pytest.mark.parametrize(
    ("changed", "expected", "p", "why"),
    [
        ({}, "supported", 0.003, "whichever of several families is left out"),
        ({"p": 0.2}, "not supported", 0.2, ""),
        ({"p_families": 0.3}, "not supported", 0.3, "whichever of several families is left out"),  # one family makes it
        ({"difference": -2.0}, "not supported", 0.003, ""),
        ({"p_families": np.nan}, UNTESTED, np.nan, "it would rest on one family: without it fewer than 8 problems are left"),
        ({"p": np.nan}, UNTESTED, np.nan, ""),
        ({"n": 7}, UNTESTED, np.nan, "only 7 problems share family and length of thought with another"),
        ({"n": 0}, UNTESTED, np.nan, "only 0 problems share family and length of thought with another"),
    ],
)
def test_own_thoughts_must_be_louder_in_more_than_one_family(
    changed: dict[str, float], expected: str, p: float, why: str
) -> None:
    claim = verdict(**changed)
    assert claim["verdict"] == expected and claim["p"] == pytest.approx(p, nan_ok=True)
    assert why in claim["why"] and claim["n"] == changed.get("n", 40)


def test_differences_are_told_in_per_cent_of_the_own_norm() -> None:
    assert "filler 5 none (2.5%), shuffled 5 none (2.5%), another's 5 none (2.5%)" in verdict()["measured"]
