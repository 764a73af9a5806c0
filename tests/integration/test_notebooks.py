"""Every notebook in demos/ runs once, offline; then what it leaves is read: its outputs, and its page in a browser."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from functools import reduce
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tests.integration import test_browser as shared
from tests.pixels import share_where

browser, visit = shared.browser, shared.visit
NOTEBOOKS = sorted((Path(__file__).parents[2] / "demos").glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
backwards = pytest.mark.parametrize("path", NOTEBOOKS[::-1], ids=lambda path: path.stem)
"""From the other end: two processes meet in the middle, and don't wait for each other's notebook."""
EXECUTE = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": sys.argv[2]}}).execute()
nbformat.write(notebook, sys.stdout)
"""
OFFLINE = {"require_js_url": "", "mathjax_url": ""}
"""nbconvert's own links; nothing of ours needs what they lead to."""

Once = Callable[[str, Callable[[], str]], str]


def marked(*marks: Any) -> Callable[[Any], Any]:
    return lambda test: reduce(lambda marked, mark: mark(marked), marks, test)


def executed(path: Path, once: Once, tmp_path: Path) -> Any:
    """The notebook with its outputs; one process of a run makes them for all, in another, as nbclient leaves its event loop."""

    def run() -> str:
        done = subprocess.run([sys.executable, "-c", EXECUTE, path, tmp_path], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return nbformat.reads(once(path.name, run), as_version=4)


def html_of(notebook: Any) -> list[str]:
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    return [out["data"]["text/html"] for out in outputs if "text/html" in out.get("data", {})]


class Cells(HTMLParser):
    """Texts of the cells of all tables."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self._inside = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag in ("td", "th"):
            self._inside = True
            self.texts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.texts[-1] += data


def test_there_are_eight_of_one_question_each() -> None:
    titles = [nbformat.read(path, as_version=4).cells[0].source.splitlines()[0] for path in NOTEBOOKS]
    assert len(titles) == 8 and all(re.fullmatch(r"# [^?]+\?", title) for title in titles), titles


@each_notebook
def test_it_has_no_outputs_and_installs_the_library_on_colab_first(path: Path) -> None:
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells)
    assert 'if "google.colab" in sys.modules:\n    %pip install' in cells[0].source


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@each_notebook
def test_it_runs_without_a_warning_and_nothing_is_cut(path: Path, once: Once, tmp_path: Path) -> None:
    notebook = executed(path, once, tmp_path)
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    assert [out for out in outputs if out.output_type == "error" or out.get("name") == "stderr"] == []
    assert "widgets" not in notebook.metadata, "progress bars: a saved page can't draw them"
    tables = [html for html in html_of(notebook) if "<table" in html]
    texts = [text.strip() for html in tables for text in Cells(html).texts]
    assert [text for text in texts if text.endswith("...")] == [] and bool(tables) == any(texts)


@marked(*shared.pytestmark, pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning"), backwards)
def test_its_page_is_whole_without_a_network(path: Path, once: Once, tmp_path: Path, visit: Any) -> None:
    exporters = pytest.importorskip("nbconvert", reason="nbconvert is not installed")
    notebook = executed(path, once, tmp_path)
    page = tmp_path / f"{path.stem}.html"
    page.write_text(exporters.HTMLExporter(**OFFLINE).from_notebook_node(notebook)[0])
    seen = visit(page)  # which refuses whatever is asked for besides the page
    shown = "".join(html_of(notebook))
    explorers, figures = shown.count("<l2-explorer "), shown.count('<figure class="l2-figure"')
    assert explorers + figures > 0 and (explorers, figures) == (seen.count("l2-explorer"), seen.count(".l2-figure"))
    for drawn, n in ((".l2x:has(.l2-strip > span)", explorers), (".l2-figure .l2-plot:has(.main-svg)", figures)):
        if n:
            seen.page.locator(drawn).nth(n - 1).wait_for(state="attached", timeout=90_000)
        assert seen.count(drawn) == n
    assert seen.messages == []
    for heatmap in seen.page.locator(".l2x-heatmap").all()[:1]:
        coloured = share_where(seen.page, heatmap.screenshot(), "([...pixel]) => Math.max(...pixel) - Math.min(...pixel) > 40")
        assert coloured > 0.003, "axes and nothing between them"
    for drawing in seen.page.locator(".l2-figure .main-svg:first-of-type").all():
        box = drawing.bounding_box()
        assert box["width"] > 300 and box["height"] > 150
