"""Self-contained HTML pages: nothing is fetched, and text of a model never runs as code."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tl_l2norm.core.errors import InputError
from tl_l2norm.core.storage import replace_file

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


def write_page(path: str | Path, html: str) -> Path:
    """Write a page in one step (a reader sees the old one or the new one), making its folder if need be."""
    target = Path(path)
    if target.is_dir():
        raise InputError(f"{target} is a folder: give the name of a file, such as {target / 'page.html'}")
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
