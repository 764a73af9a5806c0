"""The explorer and a report in Firefox, from the file system, without a network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.firefox import ARROW_RIGHT, END, FIREFOX, HOME, TAB, Firefox
from tests.integration import test_browser, test_explorer_browser
from tests.integration.test_explorer_browser import DIRECT, LAYERS, THINK
from tl_l2norm.show import palette

explorer_page, report_page = test_explorer_browser.explorer_page, test_browser.report_page

pytestmark = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.skipif(FIREFOX is None, reason="no firefox-esr or firefox on PATH"),
]

WIDGET = "document.querySelector('l2-explorer').shadowRoot"
TOKENS = f"[...{WIDGET}.querySelectorAll('.l2x .l2-strip > span')]"


@pytest.fixture(scope="module")
def firefox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Firefox]:
    pytest.importorskip("tornado", reason="tornado, which ipykernel brings, is not installed")
    browser = Firefox(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


def background(firefox: Firefox, selector: str) -> str:
    found = firefox.value(f"getComputedStyle({WIDGET}.querySelector({selector!r})).backgroundColor")
    return "#" + "".join(f"{int(part):02x}" for part in found.removeprefix("rgb(").removesuffix(")").split(","))


def test_the_explorer_draws_tokens_in_their_colours_and_obeys_keys(firefox: Firefox, explorer_page: Path) -> None:
    firefox.open(explorer_page)
    assert firefox.until(f"{TOKENS}.map(e => e.textContent)") == [*THINK, *DIRECT]
    steps, ends = palette.steps(), [".l2-strip > .l2-c0", ".l2-strip > .l2-c31", ".l2-strip > .l2-sink"]
    assert [background(firefox, end) for end in ends] == [steps[0], steps[-1], palette.SINK_COLOUR]
    layer = f"{WIDGET}.querySelector('.l2x-layer').textContent"
    assert firefox.value(layer) == str(LAYERS[-1])
    firefox.value(f"{WIDGET}.querySelector('input[type=range]').focus()")
    firefox.press(HOME)
    assert firefox.value(layer) == str(LAYERS[0])
    first = firefox.value(f"{TOKENS}.map(e => e.className)")
    firefox.press(ARROW_RIGHT)
    assert firefox.value(layer) == str(LAYERS[1]) and firefox.value(f"{TOKENS}.map(e => e.className)") != first
    for _ in range(12):  # over the other controls
        if firefox.value(f"{WIDGET}.activeElement.getAttribute('role')") == "listbox":
            break
        firefox.press(TAB)
    firefox.press(END)
    assert firefox.value(f"{WIDGET}.querySelector('.l2x-readout').textContent").startswith(" four")
    assert firefox.messages == []


def test_a_report_draws_every_figure_and_every_token(firefox: Firefox, report_page: Path) -> None:
    firefox.open(report_page)
    plots = "[...document.querySelectorAll('.l2-plot')].map(e => e.querySelectorAll('.main-svg').length)"
    assert all(firefox.until(plots, all)) and len(firefox.value(plots)) == 6
    strips = "[...document.querySelectorAll('l2-explorer')].map(e => e.shadowRoot?.querySelectorAll('.l2-strip').length)"
    assert all(firefox.until(strips, all)) and firefox.value(strips)
    firefox.value("document.querySelector('#figure-curves').scrollIntoView({ behavior: 'instant' })")
    drawn = firefox.picture()
    firefox.value("document.querySelectorAll('.l2-plot').forEach(e => { e.style.visibility = 'hidden' })")
    assert drawn.startswith(b"\x89PNG") and len(drawn) > 1.3 * len(firefox.picture()), "not blank"
    assert firefox.messages == []
