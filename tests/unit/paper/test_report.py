import base64
import re
from io import BytesIO
from pathlib import Path

import pandas as pd
import pytest

from tests.paper_tables import HOSTILE, TABLES, analysis_of, filled, hostile_analysis
from tests.texts import text_of
from tests.unit.paper.test_claims import NORM
from tl_l2norm.paper.finding import DESCRIBED, SUPPORTED, UNTESTED
from tl_l2norm.paper.report import analysis_report
from tl_l2norm.paper.result import Analysis
from tl_l2norm.paper.summary import summary


def written(tmp_path: Path, analysis: Analysis, **kwargs: object) -> str:
    return analysis_report(analysis, path=tmp_path / "page.html", **kwargs).read_text(encoding="utf-8")  # type: ignore[arg-type]


def test_each_claim_has_its_row_with_its_verdict_in_words_and_a_mark(tmp_path: Path) -> None:
    analysis = hostile_analysis()
    page, claims = written(tmp_path, analysis), analysis.claims()
    rows = re.findall(r'(?s)<tr class="(\w+)">(.*?)</tr>', page)
    assert len(rows) == len(claims) == 18
    for (kind, row), claim in zip(rows, claims.to_dict("records"), strict=True):
        assert claim["verdict"] in text_of(row).replace("&#39;", "'")
        assert {"supported": "✓", "failed": "✗", "untested": "–", "uninformative": "≈", "described": "·"}[kind] in row
        assert claim["why"].split("<")[0][:20].replace("'", "&#39;") in row
    judged = claims[~claims["verdict"].isin([UNTESTED, DESCRIBED])]
    ours, theirs = (judged[(judged["paper"] == "") == own]["verdict"] for own in (True, False))
    supported = [(own == SUPPORTED).sum() for own in (theirs, ours)]
    headline = f"paper's claims {supported[0]} of {len(theirs)} that could be tested are supported on this model, of our own"
    for text in (text_of(page).replace("&#39;", "'"), summary(claims, analysis.tables)):
        assert f"{headline} {supported[1]} of {len(ours)}" in " ".join(text.split())


def test_figures_stand_with_their_tables_and_what_is_left_stands_by_itself(tmp_path: Path) -> None:
    text = text_of(written(tmp_path, hostile_analysis()))
    for heading in ("Norm and reasoning features by layer", "The theorem: both sides", "What suppression does to accuracy"):
        assert heading in text
    for name, frame in TABLES.items():
        assert f"Table {name} ({len(frame)} rows)" in text
    assert "Other tables Table top_tokens (1 row)" in text
    assert "With tokens of the response: Thinking is higher, but not when matched by &lt;i&gt;token&lt;/i&gt;." in text


def test_the_contents_lead_to_each_section_and_claims_come_first(tmp_path: Path) -> None:
    page = written(tmp_path, hostile_analysis())
    anchors, links = re.findall(r'<h2 id="(\w+)"', page), re.findall(r'<li><a href="#(\w+)"', page)
    assert anchors == links and links[:2] == ["claims", "run"] and len(links) == 11 + 5


def test_a_table_too_long_for_a_page_is_kept_as_it_is_drawn(tmp_path: Path) -> None:
    table = pd.concat([TABLES["bound_points"]] * 600, ignore_index=True)
    table = table.assign(prompt=[f"p{i}" for i in range(len(table))])
    page = written(tmp_path, analysis_of({**TABLES, "bound_points": table}))
    (encoded,) = re.findall(r'base64,([^"]*)" download="[^"]*_bound.csv"', page)
    kept = pd.read_csv(BytesIO(base64.b64decode(encoded)))
    assert list(kept) == ["line", "x", "y"] and len(table) > 2000


def test_a_table_whose_figure_is_missing_is_still_there(tmp_path: Path) -> None:
    text = text_of(written(tmp_path, analysis_of({"explained": pd.DataFrame({"layer": [3], "residual": [0.25]})})))
    assert "Other tables Table explained (1 row) CSV layer residual 3 0.25" in text
    assert "theorem's assumptions" not in text


def test_a_long_table_is_cut_and_says_so(tmp_path: Path) -> None:
    page = written(tmp_path, analysis_of({"latents": pd.DataFrame({"latent": range(1234), "name": "x" * 300})}))
    assert "Table latents (the first 200 of 1,234 rows)" in page
    assert "x" * 300 in page and "<td>199</td>" in page and "<td>200</td>" not in page


def test_what_could_not_be_measured_is_said_with_its_reason(tmp_path: Path) -> None:
    notes = {"causal_outcomes": "the causal test was left out (quantiles=())"}
    text = text_of(written(tmp_path, analysis_of({}, notes=notes)))
    assert "What could not be measured causal outcomes the causal test was left out (quantiles=())" in text
    assert "Of the paper&#39;s claims 0 of 0 that could be tested are supported" in text
    assert "of our own 0 of 0; 18 can&#39;t be tested here." in text
    assert "Every table could be made." in text_of(written(tmp_path, analysis_of()))


def test_the_page_fetches_nothing(tmp_path: Path) -> None:
    page = written(tmp_path, hostile_analysis())
    assert page.count("plotly.js (cartesian - minified) v") == 1 and page.count("<figure ") == 11
    markup = re.sub(r"(?s)<script\b.*?</script>", "", page)
    assert not re.search(r"https?://|\bsrc=(?!x)|\bhref=(?!\"(#|data:text/csv))|url\(|@import", markup)
    assert "default-src &#39;none&#39;" in markup


@pytest.mark.parametrize("what", ["<img", "<think>", "<i>token", "m <b>"])
def test_text_of_tables_and_notes_is_never_markup(tmp_path: Path, what: str) -> None:
    page = written(tmp_path, hostile_analysis(), title=HOSTILE)
    body = re.sub(r"(?s)<script>.*?</script>", "", page)
    assert what not in body and what.replace("<", "&lt;").replace(">", "&gt;") in body
    assert page.count("<script") - page.count('"<script') >= page.count("</script>") - 2


def test_the_summary_is_as_wide_as_a_terminal() -> None:
    lines = repr(hostile_analysis()).splitlines()
    assert max(map(len, lines)) <= 100 and repr(hostile_analysis()).endswith("direct")
    assert sum("can't be tested here" in line for line in lines[1:]) >= 3
    assert any(line.startswith("12 ") for line in lines)


def test_the_summary_says_why_a_claim_is_untested_or_fails_beside_what_was_measured() -> None:
    stages = {name: filled(name, frame) for name, frame in NORM.items() if name != "mode_effects"}
    notes = {"mode_effects": "mode can't be told from length, position and token type"}
    blocks = repr(analysis_of(stages, notes=notes)).split("\n\n")
    block = " ".join(next(text for text in blocks if text.startswith("2 ")).split())
    assert "– can't be tested here: mode can't be told from length, position and token type measured: 70%" in block
    worse = NORM["mode_effects"].assign(effect=-1.0)
    tables = {**stages, "mode_effects": filled("mode_effects", worse)}
    block = " ".join(next(text for text in repr(analysis_of(tables)).split("\n\n") if text.startswith("2 ")).split())
    assert "✗ not supported; not met: thinking above direct at every layer, all else equal (p is two-sided" in block
    assert "above at 0 of 2, below at 2 95% interval: sharpness [60%, 90%]" in block and "p: 0.01" in block
