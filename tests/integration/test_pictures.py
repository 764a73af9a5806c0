"""Screenshots of docs/ show what is drawn today: the command that takes them takes them again."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration import test_browser as shared
from tests.pixels import share_of_others

pytestmark = [*shared.pytestmark, pytest.mark.slow]
browser = shared.browser

ROOT = Path(__file__).parents[2]
FONTS = "DejaVu"
"""In which docs/ were taken; elsewhere letters are others."""
SAME = 0.0005
"""Of the pixels: the date of a report is a twentieth of that, one other word in a headline more."""


def test_pictures_of_the_docs_are_what_is_drawn(browser: Any, tmp_path: Path) -> None:
    if not shutil.which("fc-match") or FONTS not in subprocess.check_output(["fc-match", "sans-serif"], text=True):
        pytest.skip(f"pages are not drawn in {FONTS} here")
    subprocess.run([sys.executable, "-m", "benchmarks.pictures", "--out", tmp_path], cwd=ROOT, check=True, capture_output=True)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in (ROOT / "docs").glob("*.png")}
    page = browser.new_page()
    explorer, report = ((tmp_path / name).read_bytes() for name in ("explorer.png", "report.png"))
    for taken, name in ((explorer, "explorer.png"), (report, "report.png")):
        assert share_of_others(page, taken, (ROOT / "docs" / name).read_bytes()) < SAME, name
    assert share_of_others(page, explorer, report) == 1


def test_a_word_that_differs_is_seen(browser: Any) -> None:
    page = browser.new_page(viewport={"width": 1200, "height": 2180})
    page.set_content("<p style='font-size: 22px'>Thinking norms are lower than direct ones in the late layers</p>")
    before = page.screenshot()
    page.set_content("<p style='font-size: 22px'>Thinking norms are higher than direct ones in the late layers</p>")
    assert share_of_others(page, before, page.screenshot()) > SAME
