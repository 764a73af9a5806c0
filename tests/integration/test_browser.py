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
from tl_l2norm import widgets
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
def tokens_page(tmp_path_factory: Any) -> Path:
    traces = [make_trace(NASTY, prompt_len=3, think=6), make_trace(NASTY)]
    return widgets.tokens(traces).save(tmp_path_factory.mktemp("tokens") / "tokens.html")


@pytest.fixture(scope="module")
def report_page(tmp_path_factory: Any) -> Path:
    nasty = "".join(NASTY)
    problem = Problem(question=nasty, answer=nasty, family="<script>alert(9)</script>", level=3)
    results = [make_result(8, mode, trace=make_trace(NASTY), problem=problem) for mode in ("think", "direct")]  # type: ignore[arg-type]
    return report([*make_results(8), *results], path=tmp_path_factory.mktemp("report") / "report.html", examples=9, title=nasty)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_strip_is_drawn_with_every_token_as_text(visit: Any, tokens_page: Path, scheme: str) -> None:
    seen = visit(tokens_page, drawn=".colored-tokens", scheme=scheme)
    assert seen.messages == []
    assert seen.count(".l2-strip") == seen.count(".l2-strip > .colored-tokens") == 5
    plain = [visible_text(token).replace(" ", "\u00a0") for token in NASTY]
    assert [text.replace(" ", "\u00a0") for text in seen.texts(".colored-tokens > span")] == plain * 2
    assert seen.count(".l2-tokens :is(script, img, svg, think)") == 0
    assert seen.count(".colored-tokens > span > br") == 2
    assert len(set(seen.page.locator("[id]").evaluate_all("all => all.map(e => e.id)"))) == seen.count("[id]")


def test_colours_follow_the_norm_and_sinks_are_grey(visit: Any, tmp_path: Path) -> None:
    path = widgets.tokens(make_trace(["s", "a", "b", "c"], norms=[[25_000, 100, 200, 300]])).save(tmp_path / "p.html")
    seen = visit(path, drawn=".colored-tokens")
    colours = seen.page.locator(".colored-tokens > span > span").evaluate_all("all => all.map(e => e.style.backgroundColor)")
    sink, low, _middle, high = colours
    assert (sink, low, high) == ("rgb(196, 196, 196)", "rgb(255, 255, 255)", "rgb(230, 159, 0)")
    assert seen.count(".colored-tokens .l2-sink") == 1
    outline = seen.page.locator(".colored-tokens .l2-sink").evaluate("e => getComputedStyle(e).outlineStyle")
    assert outline == "dashed"


@pytest.mark.parametrize(("index", "token"), [(1, "<think>"), (2, "<script>alert(1)</script>"), (10, "&lt;")])
def test_the_tooltip_has_the_token_as_text_and_its_norm(visit: Any, tokens_page: Path, index: int, token: str) -> None:
    seen = visit(tokens_page, drawn=".colored-tokens")
    seen.page.locator(".l2-sequence").nth(0).locator(".colored-tokens > span").nth(index).hover()
    tooltip = seen.page.locator(".colored-tokens strong").locator("..")
    tooltip.wait_for()
    assert tooltip.text_content() == f"{token}norm {100 + 10 * index}, position {index}"
    assert seen.messages == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_is_drawn_whole(visit: Any, report_page: Path, scheme: str) -> None:
    seen = visit(report_page, drawn="#figure-heatmap .main-svg", scheme=scheme)
    assert seen.messages == []
    assert seen.count(".l2-plot") == seen.count(".l2-plot.js-plotly-plot:has(.main-svg)") == 6
    assert seen.count(".l2-strip") > 18
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


@pytest.mark.parametrize("page", ["tokens_page", "report_page"])
def test_without_javascript_the_strips_are_there(visit: Any, request: Any, page: str) -> None:
    seen = visit(request.getfixturevalue(page), javascript=False)
    texts = seen.texts(".l2-strip > span")
    assert {visible_text(token) for token in NASTY} <= set(texts)
    assert seen.page.locator(".l2-strip > span").nth(1).get_attribute("title").startswith("norm ")
    drawings, numbers, buttons = (seen.page.locator(f"{name}:visible").count() for name in (".l2-plot", ".l2-keep a", "button"))
    assert (drawings, buttons) == (0, 0) and numbers == (6 if page == "report_page" else 0), "no empty box, and no dead button"


def test_a_phone_needs_no_sideways_scrolling(visit: Any, report_page: Path) -> None:
    seen = visit(report_page, drawn="#figure-heatmap .main-svg", width=390)
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_notebook_output_is_a_frame_that_grows_to_its_content(visit: Any, tmp_path: Path) -> None:
    path = tmp_path / "notebook.html"
    outputs = [widgets.tokens(make_trace(NASTY * 40))._repr_html_(), widgets.tokens(make_trace(NASTY))._repr_html_()]
    path.write_text("<!doctype html><meta charset=utf-8>" + "".join(outputs), encoding="utf-8")
    seen = visit(path)
    long, short = (seen.page.frame_locator(f"iframe >> nth={i}") for i in (0, 1))
    for frame in (long, short):
        frame.locator(".colored-tokens").first.wait_for()
    assert seen.messages == []
    seen.page.wait_for_timeout(200)
    for i in (0, 1):
        frame = seen.page.locator("iframe").nth(i).element_handle().content_frame()
        shown = seen.page.locator("iframe").nth(i).bounding_box()["height"]
        assert shown >= frame.evaluate("document.documentElement.scrollHeight") - 1
