"""Pages in a real browser, from the file system, without a network."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.builders import NASTY, make_result, make_results
from tests.paper_tables import HOSTILE, hostile_analysis
from tests.traces import make_trace
from tl_l2norm.paper.claims import CLAIMS
from tl_l2norm.paper.report import analysis_report
from tl_l2norm.show.report import report
from tl_l2norm.show.widgets import visible_text
from tl_l2norm.tasks.problems import Problem

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on PATH"),
]


@dataclass
class Visit:
    """A page and what went wrong on it."""

    page: Any
    requests: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    """Console messages, uncaught errors, breaches of the content security policy, and dialogs that scripts opened."""

    def count(self, selector: str) -> int:
        return self.page.locator(selector).count()

    def texts(self, selector: str) -> list[str]:
        return self.page.locator(selector).all_text_contents()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Any]:
    contexts = []

    def go(path: Path, *, drawn: str | None = None, javascript: bool = True, scheme: str = "light", width: int = 1280) -> Visit:
        context = browser.new_context(
            offline=True, java_script_enabled=javascript, color_scheme=scheme, viewport={"width": width, "height": 900}
        )
        contexts.append(context)
        visit = Visit(context.new_page())
        visit.page.on("request", lambda request: visit.requests.append(request.url))
        visit.page.on("console", lambda message: visit.messages.append(message.text))
        visit.page.on("pageerror", lambda error: visit.messages.append(str(error)))
        visit.page.on("dialog", lambda dialog: (visit.messages.append(dialog.message), dialog.dismiss()))
        visit.page.goto(path.as_uri())
        if drawn:
            visit.page.wait_for_selector(drawn, state="attached")
            visit.page.wait_for_timeout(300)  # for what an injected element would do
        assert visit.requests == [path.as_uri()]
        return visit

    yield go
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def report_page(tmp_path_factory: Any) -> Path:
    nasty = "".join(NASTY)
    problem = Problem(question=nasty, answer=nasty, family="<script>alert(9)</script>", level=3)
    results = [make_result(8, mode, trace=make_trace(NASTY), problem=problem) for mode in ("think", "direct")]  # type: ignore[arg-type]
    return report([*make_results(8), *results], path=tmp_path_factory.mktemp("report") / "report.html", examples=9, title=nasty)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_is_drawn_whole(visit: Any, report_page: Path, scheme: str) -> None:
    seen = visit(report_page, drawn="#figure-heatmap .main-svg", scheme=scheme)
    assert seen.messages == []
    assert seen.count(".l2-plot") == seen.count(".l2-plot.js-plotly-plot:has(.main-svg)") == 6
    seen.page.wait_for_selector(".l2x .l2-strip")
    assert seen.count(".l2x .l2-strip") == seen.page.evaluate("document.querySelectorAll('.l2-strip').length") > 18
    assert seen.count("main :is(img, think)") == 0
    assert seen.page.locator("h1").text_content() == "".join(NASTY).replace("\x00", "")  # which no HTML page can hold
    ink = seen.page.locator("#figure-curves .xtick text").first.evaluate("e => getComputedStyle(e).fill")
    assert ink == {"light": "rgb(28, 28, 28)", "dark": "rgb(230, 230, 230)"}[scheme]


@pytest.fixture(scope="module")
def paper_page(tmp_path_factory: Any) -> Path:
    return analysis_report(hostile_analysis(), path=tmp_path_factory.mktemp("paper") / "analysis.html", title=HOSTILE)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_of_an_analysis_is_drawn_whole(visit: Any, paper_page: Path, scheme: str) -> None:
    seen = visit(paper_page, drawn="#figure-amplification_by_level .main-svg", scheme=scheme)
    assert seen.messages == []
    assert seen.count(".l2-plot") == seen.count(".l2-plot.js-plotly-plot:has(.main-svg)") == 11
    assert seen.count(".claims tbody tr") == len(CLAIMS) and seen.count(".claims .mark") == len(CLAIMS)
    assert seen.count("main :is(img, think)") == 0
    assert seen.page.locator("h1").text_content() == HOSTILE
    assert HOSTILE in seen.page.locator("details td", has_text="onerror").first.text_content()
    ink = seen.page.locator("#figure-curves .x2tick text").first.evaluate("e => getComputedStyle(e).fill")
    assert ink == {"light": "rgb(28, 28, 28)", "dark": "rgb(230, 230, 230)"}[scheme]
    buttons = seen.page.locator(".modebar [data-title]").evaluate_all("all => all.map(e => e.dataset.title)")
    assert set(buttons) == {"Reset axes"}


def test_the_page_of_an_analysis_fits_a_phone(visit: Any, paper_page: Path) -> None:
    seen = visit(paper_page, drawn="#figure-amplification_by_level .main-svg", width=390)
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= 390
    wide = seen.page.locator(".l2-frame:has(#figure-curves)").evaluate("e => [e.clientWidth, e.scrollWidth]")
    assert wide[0] < 390 and wide[1] >= 640, "a figure scrolls in its own frame"


def test_hovering_over_the_heatmap_shows_tokens_as_text(visit: Any, tmp_path: Path) -> None:
    bold = make_trace(["<|start|>", "<b>bold</b>"])
    seen = visit(report([make_result(0, "think", trace=bold)], path=tmp_path / "r.html"), drawn="#figure-heatmap .main-svg")
    seen.page.locator("#figure-heatmap").scroll_into_view_if_needed()
    area = seen.page.locator("#figure-heatmap .nsewdrag").first.bounding_box()
    seen.page.mouse.move(area["x"] + 0.75 * area["width"], area["y"] + 0.75 * area["height"])
    label = seen.page.locator("#figure-heatmap .hovertext")
    label.wait_for()
    assert "<b>bold</b>" in label.text_content()


def test_without_javascript_the_strips_are_there(visit: Any, report_page: Path) -> None:
    seen = visit(report_page, javascript=False)
    texts = seen.texts(".l2-strip > span")
    assert {visible_text(token) for token in NASTY} <= set(texts)
    assert seen.page.locator(".l2-strip > span").nth(1).get_attribute("title").startswith("norm ")
    drawings, numbers, buttons = (seen.page.locator(f"{name}:visible").count() for name in (".l2-plot", ".l2-keep a", "button"))
    assert (drawings, buttons) == (0, 0) and numbers == 6, "no empty box, and no dead button"


def test_a_phone_needs_no_sideways_scrolling(visit: Any, report_page: Path) -> None:
    seen = visit(report_page, drawn="#figure-heatmap .main-svg", width=390)
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= 390
