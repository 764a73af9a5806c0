"""Write the pictures of docs/ from the pages that they show, as they are now.

python -m benchmarks.pictures        docs/report.png, from what `tl-l2norm report` writes

Needs the extra dev (Playwright) and Chromium or Chrome.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from tl_l2norm.cli import main as command

DOCS = Path(__file__).parents[1] / "docs"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTH, HEIGHT = 1200, 2000


def shoot(page: Path, path: Path, *, width: int = WIDTH, height: int = HEIGHT) -> Path:
    """The top of a page as PNG, in a browser without a network, once its figures are drawn."""
    from playwright.sync_api import sync_playwright

    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.exit(f"a picture needs one of {', '.join(BROWSERS)} on the PATH")
    with sync_playwright() as driver:
        window = driver.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        context = window.new_context(viewport={"width": width, "height": height}, offline=True, color_scheme="light")
        shown = context.new_page()
        shown.goto(page.resolve().as_uri(), timeout=120_000)
        shown.wait_for_selector(".l2-plot .main-svg")
        shown.wait_for_selector(".l2-plot:not(.js-plotly-plot)", state="detached")
        shown.screenshot(path=path)
        window.close()
    return path


def main() -> int:
    """Run the default report and take its picture."""
    with tempfile.TemporaryDirectory() as place:
        page = Path(place) / "report.html"
        if failed := command(["report", "--out", str(page)]):
            return failed
        print(shoot(page, DOCS / "report.png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
