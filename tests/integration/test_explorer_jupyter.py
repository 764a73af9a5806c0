"""Widgets in a real JupyterLab, in a notebook that is trusted and in one that isn't; no kernel runs, outputs are saved ones."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import nbformat
import pytest
from nbformat.sign import NotebookNotary

from tests.builders import NASTY, make_trace
from tests.integration import test_browser as shared
from tests.integration.servers import open_page, serve
from tests.integration.test_notebooks import NOTEBOOKS, executed
from tl_l2norm import widgets
from tl_l2norm.show.widgets import visible_text

browser = shared.browser
pytestmark = [*shared.pytestmark, pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]
DEMO = NOTEBOOKS[-1]
OPTIONS = ("no-browser", "port={port}", "IdentityProvider.token=", "ServerApp.allow_root=True", "LabApp.news_url=")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: Any, once: Any) -> Iterator[str]:
    """Address of a server with a notebook of hostile tokens and an executed one, each trusted and not."""
    pytest.importorskip("jupyterlab", reason="jupyterlab is not installed")
    folder, data = tmp_path_factory.mktemp("notebooks"), tmp_path_factory.mktemp("data")
    shown = [widgets.explorer(make_trace(NASTY)), widgets.tokens(make_trace(NASTY))]
    cells = [
        nbformat.v4.new_code_cell(str(i), outputs=[nbformat.v4.new_output("display_data", {"text/html": one._repr_html_()})])
        for i, one in enumerate(shown)
    ]
    demo = executed(DEMO, once, tmp_path_factory.mktemp("run"))
    for name, notebook in {"hostile": nbformat.v4.new_notebook(cells=cells), "demo": demo}.items():
        for trust in ("trusted", "untrusted"):
            notebook.metadata["title"] = f"{name}, {trust}"  # a signature is one of what a notebook says
            nbformat.write(notebook, folder / f"{name}_{trust}.ipynb")
        NotebookNotary(data_dir=str(data)).sign(nbformat.read(folder / f"{name}_trusted.ipynb", 4))
    options = [f"--{option}" for option in (*OPTIONS, f"ServerApp.root_dir={folder}")]
    own = {"JUPYTER_DATA_DIR": str(data), "JUPYTER_CONFIG_DIR": str(data)}
    with serve("jupyterlab", *options, alive="/api", environment=own) as address:
        yield address


def opened(browser: Any, lab: str, name: str) -> tuple[Any, list[str]]:
    page, dialogs = open_page(browser, lab)
    page.goto(f"{lab}/lab/tree/{name}.ipynb?reset")  # else it opens what was open before, too
    return page, dialogs


@pytest.mark.parametrize("trusted", [True, False])
def test_hostile_tokens_are_text(browser: Any, lab: str, trusted: bool) -> None:
    page, dialogs = opened(browser, lab, "hostile_trusted" if trusted else "hostile_untrusted")
    where = ".l2x .l2-strip > span" if trusted else "span[title^='norm ']"
    page.locator(f".jp-OutputArea {where}").first.wait_for()
    page.wait_for_function("() => document.querySelectorAll('.jp-OutputArea-output').length === 2")
    texts = page.locator(f".jp-OutputArea {where}").all_text_contents()
    assert [text.replace("\u00a0", " ") for text in texts] == [visible_text(text) for text in NASTY] * 2
    assert page.locator(".jp-OutputArea .l2x").count() == (2 if trusted else 0)
    last = page.locator(f".jp-OutputArea {where}").nth(len(NASTY) - 1)
    assert last.evaluate("e => getComputedStyle(e).backgroundColor") == "rgb(230, 159, 0)" and dialogs == []
    page.context.close()


def test_a_trusted_notebook_has_the_explorer(browser: Any, lab: str) -> None:
    page, dialogs = opened(browser, lab, "demo_trusted")
    explorer = page.locator(".jp-OutputArea .l2x").first
    explorer.locator(".l2-strip > span").first.wait_for()
    slider, layer = explorer.get_by_label("Layer", exact=True), explorer.locator(".l2x-layer")
    before = int(layer.text_content())
    slider.press("ArrowLeft")
    assert int(layer.text_content()) == before - 1 and dialogs == []
    page.context.close()


def test_an_untrusted_notebook_has_the_text_with_its_values(browser: Any, lab: str) -> None:
    page, _ = opened(browser, lab, "demo_untrusted")
    first = page.locator(".jp-OutputArea-output:has(span[title^='norm '])").first
    first.wait_for()
    saved = nbformat.read(DEMO.parent / DEMO.name, as_version=4)
    assert saved.cells and page.locator(".jp-OutputArea .l2x").count() == 0
    titles = first.locator("span[title^='norm ']").evaluate_all("all => all.map(e => e.title)")
    assert len(titles) > 50 and all(re.match(r"norm [\d.,]+", title) for title in titles)
    colours = first.locator("span[title^='norm ']").evaluate_all("all => all.map(e => getComputedStyle(e).backgroundColor)")
    assert len(set(colours)) > 5
    page.context.close()
