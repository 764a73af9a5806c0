"""The page of an evaluation: what its contents lead to, and the numbers that its figures keep."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
from pathlib import Path

import pandas as pd
import pytest

import tl_l2norm as l2
from tl_l2norm.experiments import Results
from tl_l2norm.show.evaluation_page import evaluation_page


@pytest.fixture(scope="module")
def found() -> Results:
    model = l2.load_model("tiny-reasoner", device="cpu")
    hot = {"n": 2, "sampling": {"temperature": 2.0}}
    scaled = [l2.Arm(f"={tau}", l2.Suppression({11: tau})) for tau in (300.0, 400.0)]
    arms = [l2.Arm("baseline"), *scaled, l2.Arm("shortest", selection="shortest", **hot)]
    return l2.evaluate(model, l2.make_mixture(2, families="compact"), arms, max_new_tokens=40, progress=False)


@pytest.fixture(scope="module")
def page(found: Results, tmp_path_factory: pytest.TempPathFactory) -> str:
    return evaluation_page(found, path=tmp_path_factory.mktemp("page") / "evaluation.html").read_text(encoding="utf-8")


def kept(page: str) -> dict[str, pd.DataFrame]:
    links = re.findall(r'<a href="data:text/csv;charset=utf-8;base64,([^"]+)" download="tiny-reasoner_(\w+)\.csv"', page)
    return {name: pd.read_csv(io.BytesIO(base64.b64decode(data))) for data, name in links}


def test_contents_lead_to_every_section_in_its_order(page: str) -> None:
    headings = re.findall(r'<h2 id="(\w+)">', page)
    assert headings == ["run", "differences", "selection", "suppression", "costs", "decisions"]
    assert re.findall(r'<li><a href="#(\w+)">', page) == headings and page.count("<h2") == len(headings)


def test_every_figure_keeps_the_numbers_that_it_shows(found: Results, page: str) -> None:
    numbers = kept(page)
    assert list(numbers) == re.findall(r'id="figure-(\w+)"', page) == ["differences", "selection", "suppression", "costs"]
    assert numbers["selection"]["responses"].tolist() == [1, 2]
    assert set(numbers["suppression"]["arm"]) == {"baseline", "'=300.0", "'=400.0"}, "a spreadsheet would run it"
    assert numbers["differences"]["difference"].tolist() == pytest.approx(found.to_frame()["difference"].tolist(), nan_ok=True)
    gains = numbers["costs"].set_index("arm")
    assert list(gains.index) == ["'=300.0", "'=400.0", "shortest"] and 1.5 < gains["times"]["shortest"] < 3


def test_a_page_without_selection_and_interventions_has_no_empty_sections(found: Results, tmp_path: Path) -> None:
    less = dataclasses.replace(found, curves=found.curves.head(0), decisions=found.decisions.head(0))
    page = evaluation_page(less, path=tmp_path / "e.html").read_text(encoding="utf-8")
    assert re.findall(r'<h2 id="(\w+)">', page) == ["run", "differences", "costs"]
