"""An explorer in a real marimo app: it is drawn, and Python knows what is chosen on the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tl_l2norm as l2
from tests.builders import NASTY, make_trace
from tests.integration import test_browser as shared
from tests.integration.servers import open_page, serve
from tl_l2norm.show.widgets import visible_text

browser = shared.browser
pytestmark = [*shared.pytestmark, pytest.mark.slow]

APP = """
import marimo

app = marimo.App()


@app.cell
def _():
    import marimo as mo

    import tl_l2norm as l2

    explorer = l2.widgets.explorer(l2.load_traces({folder!r}))
    explorer
    return explorer, mo


@app.cell
def _(explorer, mo):
    live = mo.ui.anywidget(explorer.widget())
    live
    return (live,)


@app.cell
def _(live, mo):
    mo.md(f"Python is at layer {{live.layer}}, position {{live.position}}.")


if __name__ == "__main__":
    app.run()
"""


def test_the_explorer_is_drawn_and_python_follows_it(browser: Any, tmp_path: Path) -> None:
    pytest.importorskip("marimo", reason="marimo is not installed")
    layers = (2, 5, 9)
    trace = make_trace(NASTY, norms=[[10.0 + i for i in range(len(NASTY))]] * 3, layers=layers)
    l2.save_traces(tmp_path / "traces", [trace])
    (tmp_path / "app.py").write_text(APP.format(folder=str(tmp_path / "traces")))
    options = ("run", str(tmp_path / "app.py"), "--headless", "--no-token", "--port", "{port}")
    with serve("marimo", *options, alive="/health") as address:
        page, dialogs = open_page(browser, address)
        page.goto(address)
        explorers = page.locator(".l2x")
        explorers.nth(1).locator(".l2-strip > span").first.wait_for()
        assert explorers.count() == 2, "as it shows itself, and as an element of marimo"
        for explorer in explorers.all():
            texts = explorer.locator(".l2-strip > span").all_text_contents()
            assert [text.replace("\u00a0", " ") for text in texts] == [visible_text(text) for text in NASTY]
        explorers.nth(1).get_by_label("Layer", exact=True).press("ArrowLeft")
        page.get_by_text("Python is at layer 5, position -1.").wait_for()
        explorers.nth(1).locator(".l2-strip > span").nth(2).click()
        page.get_by_text("Python is at layer 5, position 2.").wait_for()
        assert dialogs == []
        page.context.close()
