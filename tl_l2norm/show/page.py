"""Self-contained HTML pages: nothing is fetched, and text of a model never runs as code."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tl_l2norm.core.arguments import as_path
from tl_l2norm.core.errors import InputError
from tl_l2norm.core.storage import replace_file, require_place

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; font-src data:; "
    "base-uri 'none'; form-action 'none'"
)
"""No page of ours may fetch anything; images are what a figure's own download button draws."""


def render(template: str, **context: object) -> Markup:
    """Fill in a template of this package; every value is escaped unless it is `Markup`."""
    return Markup(_environment().get_template(template).render(csp=CONTENT_SECURITY_POLICY, **context))


def asset(name: str) -> str:
    """Source of a style sheet or script of this package."""
    return (Path(__file__).parents[1] / name).read_text(encoding="utf-8")


def inline_script(source: str) -> Markup:
    """A `<script>` element; a `</script` within one of the source's strings doesn't end it."""
    return Markup("<script>" + source.replace("</script", r"<\/script") + "</script>")


def page_path(path: str | Path, name: str = "path") -> Path:
    """Where a page can be written.

    Raises:
        TypeError: something that is no path.
        ValueError: a folder, or a place where nothing can be written.
    """
    target = as_path(name, path)
    if target.is_dir():
        raise InputError(f"{name} is a folder: {target}; name a file, such as {target / 'page.html'}")
    require_place(target.parent, f"the folder of {name}")
    return target


def write_page(path: str | Path, html: str) -> Path:
    """Write a page in one step (a reader sees the old one or the new one), making its folder if need be."""
    target = page_path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    replace_file(target, html.encode("utf-8", errors="replace"))
    return target


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("tl_l2norm", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
