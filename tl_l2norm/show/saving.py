"""Figures as files for a paper, drawn by a Chromium or Chrome on this machine, offline."""

from __future__ import annotations

import base64
import html
import importlib.util
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

import plotly.graph_objects as go
from markupsafe import Markup

from tl_l2norm.core.arguments import as_path, check_choice
from tl_l2norm.core.errors import InputError, InputTypeError, MissingPackage, Unsupported
from tl_l2norm.core.storage import replace_file, require_place
from tl_l2norm.show.embedding import PNG_SCALE, drawing, file_name, on_paper, scripts
from tl_l2norm.show.page import render

Format = Literal["svg", "pdf", "png"]

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
_PLACES = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "C:/Program Files/Google/Chrome/Application/chrome.exe",
    "C:/Program Files (x86)/Microsoft/Edge/Application/msedge.exe",
)
_FLAGS = ("--headless", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync")
_SECONDS = 120


def save(figures: Mapping[str, go.Figure], folder: str | Path, *, format: Format = "svg") -> list[Path]:
    """Write figures as files for a paper: dark on white, 640 pixels (17 cm) wide or as wide as a figure needs.

    They are drawn by Chromium, Chrome or Edge, which is looked for on the PATH and where it is usually installed, and reaches
    no network; where there is none by kaleido (`pip install 'tl_l2norm[figures]'`, then `plotly_get_chrome`), which takes ten
    times as long for the same. Without a browser nothing in Python draws Plotly's figures; in a report that is open in one the
    buttons below each figure keep it as SVG and PNG.

    Args:
        figures: by name, such as `l2.paper.draw_analysis(found)` or `{"curves": l2.figures.norm_curves(curves)}`; files are
            named so.
        folder: it is made if need be; older files of the same names are replaced.
        format: "svg" and "pdf" stay sharp at any size; "png" has 300 pixels to the inch.

    Returns:
        The files, in the order of the figures.

    Raises:
        MissingPackage: neither kaleido nor a browser.

    Examples:
        >>> figure = l2.figures.accuracy_bars(l2.analysis.accuracy_table(results))
        >>> [path.name for path in l2.figures.save({"accuracy": figure}, "figures")]  # doctest: +SKIP
        ['accuracy.svg']
    """
    check_choice("format", format, ("svg", "pdf", "png"))
    folder = as_path("folder", folder)
    require_place(folder)
    if not isinstance(figures, Mapping) or not all(isinstance(figure, go.Figure) for figure in figures.values()):
        raise InputTypeError(f'figures are given by name, {{"curves": figure}}: got {figures!r:.80}')
    names = [file_name(str(name)) for name in figures]
    if len(set(names)) < len(names):
        raise InputError(f"two of the figures would be in one file: {', '.join(sorted(names))}")
    if not figures:
        return []
    browser = _browser()
    if browser is None and importlib.util.find_spec("kaleido") is None:
        raise MissingPackage(
            "drawing a figure as a file needs a browser: install Chromium, Chrome or Edge, or pip install 'tl_l2norm[figures]' "
            "and run `plotly_get_chrome`. Without one, write a report: the buttons below its figures keep them as SVG and PNG"
        )
    drawn = [*figures.values()]
    contents = _by_kaleido(drawn, format) if browser is None else _by_browser(browser, drawn, format)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{format}" for name in names]
    for path, content in zip(paths, contents, strict=True):
        replace_file(path, content)
    return paths


def _by_kaleido(figures: list[go.Figure], format: Format) -> list[bytes]:
    contents = []
    for figure in figures:
        paper = on_paper(figure)
        scale = PNG_SCALE if format == "png" else 1
        drawn = go.Figure(figure).update_layout(paper)
        contents.append(drawn.to_image(format=format, width=paper["width"], height=paper["height"], scale=scale))
    return contents


def _by_browser(browser: str, figures: list[go.Figure], format: Format) -> list[bytes]:
    with tempfile.TemporaryDirectory() as place:
        urls = _pictures(browser, Path(place), figures, "svg" if format == "pdf" else format)
        if format == "png":
            return [base64.b64decode(url.partition(",")[2]) for url in urls]
        pictures = [unquote(url.partition(",")[2]) for url in urls]
        if format == "svg":
            return [picture.encode() for picture in pictures]
        sizes = map(on_paper, figures)
        return [_pdf(browser, Path(place), picture, size) for picture, size in zip(pictures, sizes, strict=True)]


def _pictures(browser: str, place: Path, figures: list[go.Figure], format: str) -> list[str]:
    """Data URLs of figures, as a page of theirs draws them."""
    drawings = Markup('<script type="application/json" class="drawing">{}</script>')
    ask = Markup(
        "<script>Promise.all([...document.querySelectorAll('.drawing')]"
        ".map(drawing => l2Figures.picture(JSON.parse(drawing.textContent), '{}')))"
        ".then(urls => {{ document.getElementById('pictures').textContent = JSON.stringify(urls); }})</script>"
    ).format(Markup(format))
    body = [*(drawings.format(drawing(figure)) for figure in figures), Markup('<pre id="pictures"></pre>')]
    page = render("show/page.html.jinja", title="", styles=[], scripts=[*scripts(), ask], body=Markup("").join(body))
    (place / "figures.html").write_text(page, encoding="utf-8")
    shown = _run(browser, place, "--virtual-time-budget=60000", "--dump-dom", (place / "figures.html").as_uri())
    found = re.search(r'<pre id="pictures">(\[.*?\])</pre>', shown, re.DOTALL)
    if not found:
        raise Unsupported(f"{browser} drew no figure: try another browser, or pip install 'tl_l2norm[figures]'")
    return [str(url) for url in json.loads(html.unescape(found[1]))]


def _pdf(browser: str, place: Path, picture: str, size: Mapping[str, Any]) -> bytes:
    """A picture on a page of its own size."""
    page = Markup(
        '<!doctype html><meta charset="utf-8"><style>@page {{ size: {width}px {height}px; margin: 0; }} '
        "html, body {{ margin: 0; height: {height}px; overflow: hidden; }} svg {{ display: block; }}</style>{picture}"
    ).format(width=size["width"], height=size["height"], picture=Markup(picture))
    source, target = place / "picture.html", place / "picture.pdf"
    source.write_text(page, encoding="utf-8")
    target.unlink(missing_ok=True)
    _run(browser, place, f"--print-to-pdf={target}", "--no-pdf-header-footer", source.as_uri())
    if not target.exists():
        raise Unsupported(f"{browser} printed no PDF: try another browser, or format='svg'")
    return target.read_bytes()


def _run(browser: str, place: Path, *arguments: str) -> str:
    """What a browser without a window writes, with a profile of its own."""
    unboxed = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []  # Chromium refuses root otherwise
    command = [browser, *_FLAGS, *unboxed, f"--user-data-dir={place / 'profile'}", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise Unsupported(f"{browser} took more than {_SECONDS} s: save fewer figures at a time") from error
    return done.stdout


def has_browser() -> bool:
    """Whether figures can be saved on this machine without kaleido."""
    return _browser() is not None


def _browser() -> str | None:
    """The first that is there."""
    on_path = (shutil.which(name) for name in _BROWSERS)
    return next(filter(None, on_path), None) or next((place for place in _PLACES if Path(place).exists()), None)
