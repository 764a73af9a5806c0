"""Pictures of docs/, taken of what the library draws: `python -m benchmarks.pictures` (needs Chromium and playwright).

A test takes them elsewhere (`--out FOLDER`): those in docs/ are what is drawn today.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

import tl_l2norm as l2
from tl_l2norm.cli import main as command

DOCS = Path(__file__).parents[1] / "docs"
_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def explorer() -> Any:
    """The tiny reasoner thinking, as it is and with its tokens of high norm suppressed."""
    model = l2.load_model("tiny-reasoner", device="cpu")
    problems = l2.make_problems("pointers", 4, level=4, split="test")
    prompts = [l2.chat_prompt(model.tokenizer, problem.question, mode="think") for problem in problems]
    plain = l2.generate(model, prompts, max_new_tokens=96, progress=False)
    suppression = l2.Suppression(l2.quantile_thresholds(plain, q=0.95), which="high", how="clamp")
    suppressed = l2.generate(model, prompts, max_new_tokens=96, interventions=[suppression], progress=False)
    return l2.widgets.explorer({"plain": plain, "suppressed": suppressed}, layer=8)


def take(browser: Any, widget: Any, path: Path) -> None:
    """A picture of a widget with the pointer at the end of a thought."""
    with tempfile.TemporaryDirectory() as folder:
        page = browser.new_context(offline=True, viewport={"width": 1180, "height": 900}, device_scale_factor=2).new_page()
        page.goto(widget.save(Path(folder, "explorer.html")).as_uri())
        page.wait_for_selector(".l2x .l2-strip")
        page.locator(".l2x .l2-think").nth(1).locator(".l2-strip > span").last.hover()
        page.locator("l2-explorer").screenshot(path=path)
        page.context.close()


def take_report(browser: Any, report: Path, path: Path) -> None:
    """A picture of the top of a report, once its figures are drawn."""
    page = browser.new_context(offline=True, color_scheme="light", viewport={"width": 1200, "height": 2180}).new_page()
    page.goto(report.resolve().as_uri(), timeout=120_000)
    page.wait_for_selector(".l2-plot .main-svg")
    page.wait_for_selector(".l2-plot:not(.js-plotly-plot)", state="detached")
    page.screenshot(path=path)
    page.context.close()


def main() -> None:
    """Take them all."""
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=DOCS, metavar="FOLDER", help="where to; docs/ by default")
    folder = parser.parse_args().out
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=_FLAGS)
        take(browser, explorer(), folder / "explorer.png")
        with tempfile.TemporaryDirectory() as place:
            report = Path(place, "report.html")
            command(["report", "--out", str(report)])
            take_report(browser, report, folder / "report.png")
        browser.close()


if __name__ == "__main__":
    main()
