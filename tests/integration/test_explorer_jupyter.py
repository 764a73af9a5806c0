"""Widgets in a real JupyterLab, in a notebook that is trusted and in one that isn't; no kernel runs, outputs are saved ones."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.builders import NASTY, make_trace
from tests.integration import test_browser as shared
from tl_l2norm import widgets
from tl_l2norm.show.widgets import visible_text

browser = shared.browser
pytestmark = [*shared.pytestmark, pytest.mark.slow]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: Any) -> Iterator[str]:
    """Address of a server with `trusted.ipynb` and `untrusted.ipynb`."""
    pytest.importorskip("jupyterlab", reason="jupyterlab is not installed")
    nbformat, sign = pytest.importorskip("nbformat"), pytest.importorskip("nbformat.sign")
    folder, data = tmp_path_factory.mktemp("notebooks"), tmp_path_factory.mktemp("data")
    shown = [widgets.explorer(make_trace(NASTY)), widgets.tokens(make_trace(NASTY))]
    cells = [
        nbformat.v4.new_code_cell(str(i), outputs=[nbformat.v4.new_output("display_data", {"text/html": one._repr_html_()})])
        for i, one in enumerate(shown)
    ]
    for name in ("untrusted", "trusted"):
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"title": name}), folder / f"{name}.ipynb")
    sign.NotebookNotary(data_dir=str(data)).sign(nbformat.read(folder / "trusted.ipynb", 4))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = [
        "no-browser",
        f"port={port}",
        "IdentityProvider.token=",
        "ServerApp.allow_root=True",
        f"ServerApp.root_dir={folder}",
    ]
    command = [sys.executable, "-m", "jupyterlab", *(f"--{option}" for option in [*options, "LabApp.news_url="])]
    server = subprocess.Popen(command, env={**os.environ, "JUPYTER_DATA_DIR": str(data), "JUPYTER_CONFIG_DIR": str(data)})
    try:
        wait_for(f"http://127.0.0.1:{port}/api")
        yield f"http://127.0.0.1:{port}/lab/tree"
    finally:
        server.terminate()
        server.wait()


def wait_for(address: str) -> None:
    for _ in range(120):
        try:
            urllib.request.urlopen(address).close()
            return
        except urllib.error.URLError:
            time.sleep(0.5)
    pytest.fail(f"nothing answers at {address}")


@pytest.mark.parametrize("trusted", [True, False])
def test_a_saved_notebook_shows_its_tokens(browser: Any, lab: str, trusted: bool, tmp_path: Path) -> None:
    page = browser.new_context(viewport={"width": 1300, "height": 1000}).new_page()
    dialogs: list[str] = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    page.goto(f"{lab}/{'trusted' if trusted else 'untrusted'}.ipynb?reset")  # else it opens what was open before, too
    where = ".l2x .l2-strip > span" if trusted else "span[title^='norm ']"
    page.locator(f".jp-OutputArea {where}").first.wait_for(timeout=60_000)
    page.wait_for_function("() => document.querySelectorAll('.jp-OutputArea-output').length === 2")
    texts = page.locator(f".jp-OutputArea {where}").all_text_contents()
    assert [text.replace("\u00a0", " ") for text in texts] == [visible_text(text) for text in NASTY] * 2
    assert page.locator(".jp-OutputArea .l2x").count() == (2 if trusted else 0)
    last = page.locator(f".jp-OutputArea {where}").nth(len(NASTY) - 1)
    assert last.evaluate("e => getComputedStyle(e).backgroundColor") == "rgb(230, 159, 0)" and dialogs == []
    page.context.close()
