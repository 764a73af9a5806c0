"""Screenshots of docs/ show what is drawn today: the command that takes them takes them again."""

from __future__ import annotations

import base64
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration import test_browser as shared

pytestmark = [*shared.pytestmark, pytest.mark.slow]
browser = shared.browser

ROOT = Path(__file__).parents[2]
FONTS = "DejaVu"
"""In which docs/ were taken; elsewhere letters are others."""
SAME = 0.0005
"""Of the pixels: the date of a report is a twentieth of that, one other word in a headline more."""
OTHERS = """async (texts) => {
    const draw = async (text) => {
        const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
        const image = await createImageBitmap(new Blob([bytes])), canvas = new OffscreenCanvas(image.width, image.height);
        const context = canvas.getContext("2d");
        context.drawImage(image, 0, 0);
        return context.getImageData(0, 0, image.width, image.height);
    };
    const [one, two] = await Promise.all(texts.map(draw));
    if (one.width !== two.width || one.height !== two.height) return 1;
    let n = 0;
    for (let i = 0; i < one.data.length; i += 4) n += [0, 1, 2].some((k) => Math.abs(one.data[i + k] - two.data[i + k]) > 64);
    return 4 * n / one.data.length;
}"""


def share_of_others(browser: Any, *pictures: bytes) -> float:
    """How many pixels of two pictures are plainly different; all of them where the sizes are. The browser reads them."""
    return float(browser.new_page().evaluate(OTHERS, [base64.b64encode(picture).decode() for picture in pictures]))


def test_pictures_of_the_docs_are_what_is_drawn(browser: Any, tmp_path: Path) -> None:
    if not shutil.which("fc-match") or FONTS not in subprocess.check_output(["fc-match", "sans-serif"], text=True):
        pytest.skip(f"pages are not drawn in {FONTS} here")
    subprocess.run([sys.executable, "-m", "benchmarks.pictures", "--out", tmp_path], cwd=ROOT, check=True, capture_output=True)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in (ROOT / "docs").glob("*.png")}
    explorer, report = ((tmp_path / name).read_bytes() for name in ("explorer.png", "report.png"))
    for taken, name in ((explorer, "explorer.png"), (report, "report.png")):
        assert share_of_others(browser, taken, (ROOT / "docs" / name).read_bytes()) < SAME, name
    assert share_of_others(browser, explorer, report) == 1


def test_a_word_that_differs_is_seen(browser: Any) -> None:
    page = browser.new_page(viewport={"width": 1200, "height": 2180})
    page.set_content("<p style='font-size: 22px'>Thinking norms are lower than direct ones in the late layers</p>")
    before = page.screenshot()
    page.set_content("<p style='font-size: 22px'>Thinking norms are higher than direct ones in the late layers</p>")
    assert share_of_others(browser, before, page.screenshot()) > SAME
