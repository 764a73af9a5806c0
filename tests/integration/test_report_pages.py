"""Reports and the pages of docs/embedding.md in a real browser: printed, kept, and inside of other people's pages."""

from __future__ import annotations

import contextlib
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import tl_l2norm as l2
from tests.builders import make_results
from tests.integration import test_browser as shared
from tests.paper_tables import hostile_analysis
from tests.unit.test_docs import ROOT, snippets
from tl_l2norm.paper.report import analysis_report

pytestmark, browser = shared.pytestmark, shared.browser

SITE = "http://site.test/"
BLANK = r"[\s\u200b]"
DRAWN = ".l2-plot .main-svg"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: Any) -> Path:
    """What the snippets of docs/embedding.md write, of results by hand, and the page of an analysis."""
    results = make_results(9)
    think, direct = results[0].trace, results[1].trace
    folder = tmp_path_factory.mktemp("pages")
    with contextlib.chdir(folder):
        names = {"l2": l2, "results": results, "think": think, "direct": direct}
        for _, source in snippets(ROOT / "docs" / "embedding.md", "python"):
            if "load_model" not in source and "figures.save" not in source:
                exec(source, names)
    analysis_report(hostile_analysis(), path=folder / "analysis.html")
    return folder


@pytest.fixture
def visit(browser: Any, pages: Path) -> Iterator[Callable[..., Any]]:
    """`visit(name)`: a page of that folder, as a site that has nothing else would serve it."""
    contexts = []

    def go(name: str, *, scheme: str = "light", width: int = 1280) -> Any:
        context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900}, accept_downloads=True)
        contexts.append(context)
        seen = context.new_page()
        seen.l2_messages, seen.l2_missing = [], []
        seen.on("console", lambda message: seen.l2_messages.append(message.text))
        seen.on("pageerror", lambda error: seen.l2_messages.append(str(error)))

        def serve(route: Any) -> None:
            path = pages / route.request.url.removeprefix(SITE)
            if not (route.request.url.startswith(SITE) and path.is_file()):
                seen.l2_missing.append(route.request.url)
                route.abort()
                return
            kind = {".css": "text/css"}.get(path.suffix, "text/html")
            route.fulfill(body=path.read_bytes(), content_type=f"{kind}; charset=utf-8")

        context.route("**/*", serve)
        seen.goto(SITE + name)
        return seen

    yield go
    for context in contexts:
        context.close()


def settled(seen: Any) -> Any:
    """The document that has the figures, all of them drawn: the page itself or the frame in it."""
    frame = seen.query_selector("iframe[src]")
    place = frame.content_frame() if frame else seen
    place.wait_for_selector(DRAWN)
    place.wait_for_selector(".l2-plot:not(.js-plotly-plot)", state="detached")
    place.wait_for_timeout(300)
    return place


@pytest.mark.parametrize("name", ["blog.html", "dashboard.html", "host.html"])
@pytest.mark.parametrize("width", [1280, 390])
def test_a_worked_page_of_the_docs_is_drawn_whole(visit: Any, name: str, width: int) -> None:
    seen = visit(name, width=width)
    place = settled(seen)
    assert seen.l2_messages == [] and seen.l2_missing == []
    assert place.evaluate("document.documentElement.scrollWidth") <= width
    figure = place.locator(".l2-figure").first
    ink, own = (figure.locator(".xtick text").first, place.locator("body"))
    fill, colour = ink.evaluate("e => getComputedStyle(e).fill"), own.evaluate("e => getComputedStyle(e).color")
    assert fill == colour, "words of a figure are as dark as the page's own"
    box, frame = figure.locator(".main-svg").first.bounding_box(), figure.bounding_box()
    assert box["x"] >= frame["x"] - 1 and box["x"] + box["width"] <= frame["x"] + frame["width"] + 1
    button = figure.locator(".l2-keep button").first.bounding_box()
    assert button["width"] < 60 and button["height"] < 30, "the page's own buttons are no model for these"
    assert place.locator(".l2-strip").first.inner_text().strip()
    figure.scroll_into_view_if_needed()
    assert len(set(figure.screenshot())) > 100 and len(figure.screenshot()) > 5_000, "not blank"


def test_a_figure_is_kept_from_a_page_and_from_a_frame_without_rights(visit: Any, pages: Path) -> None:
    for name in ("report.html", "host.html"):
        seen = visit(name)
        place = settled(seen)
        figure = place.locator(".l2-figure:has(#figure-curves)")
        kept = {}
        for text in ("CSV", "SVG", "PNG"):
            with seen.expect_download() as download:
                figure.get_by_text(text, exact=True).click()
            assert download.value.suggested_filename == f"by-hand_curves.{text.lower()}"
            kept[text] = download.value.path().read_bytes()
        numbers = pd.read_csv(BytesIO(kept["CSV"]))
        assert numbers["mode"].tolist() == ["think"] * 2 + ["direct"] * 2
        picture = ET.fromstring(kept["SVG"])
        assert (picture.get("width"), picture.get("height")) == ("640", "420")
        words = "".join(picture.itertext())
        assert "late layers" in words and "thinking (n = 9 prompts)" in words
        assert kept["PNG"].startswith(b"\x89PNG") and int.from_bytes(kept["PNG"][16:20], "big") == 3 * 640
        assert seen.l2_messages == []


@pytest.mark.parametrize("name", ["report.html", "analysis.html"])
def test_printing_keeps_every_figure_whole_and_dark_on_white(visit: Any, name: str) -> None:
    pdfium = pytest.importorskip("pypdfium2", reason="pypdfium2 is not installed")
    seen = visit(name, scheme="dark")
    settled(seen)
    seen.evaluate("dispatchEvent(new Event('beforeprint'))")  # narrower figures have fewer ticks
    words = seen.locator(".l2-figure").evaluate_all(
        "all => all.map(f => [...f.querySelectorAll('.xtick text, .ytick text, .legendtext, .g-xtitle, .g-ytitle')]"
        ".map(t => [...t.querySelectorAll('tspan')].map(s => s.textContent).join('') || t.textContent).filter(Boolean))"
    )
    document = pdfium.PdfDocument(seen.pdf(format="A4", print_background=False))
    texts = [re.sub(BLANK, "", page.get_textpage().get_text_bounded()) for page in document]
    assert len(words) == {"report.html": 6, "analysis.html": 11}[name]
    for own in words:
        wanted = {re.sub(BLANK, "", word) for word in own}
        assert any(all(word in text for word in wanted) for text in texts), f"on no page all of {sorted(wanted)}"
    margin = 35  # points; 15 mm are 42
    for page in document:
        width, height = page.get_size()
        text = page.get_textpage()
        for i in range(text.count_chars()):
            if text.get_text_range(i, 1).strip():
                left, bottom, right, top = text.get_charbox(i)
                assert margin < left and right < width - margin and bottom > 0 and top < height
    first = document[0].render(scale=0.5).to_numpy()
    assert first[0, 0].tolist()[:3] == [255] * 3 and first.min() < 80, "dark on white, whatever the screen was"
    document.close()
