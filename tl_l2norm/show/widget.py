"""What all widgets of tokens have in common: they are HTML, a page, an output of a notebook, or a live widget."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from functools import cache
from pathlib import Path
from typing import Any

from markupsafe import Markup

from tl_l2norm.core.errors import MissingPackage
from tl_l2norm.show.packing import as_text
from tl_l2norm.show.page import asset, render, write_page
from tl_l2norm.show.palette import palette_css

_PARTS = ("data", "theme", "plots", "text", "words", "view", "element")


@cache
def styles() -> str:
    """The style sheet of static text, which is that of the module too."""
    return "\n".join([palette_css(), asset("show/tokens.css")])


@cache
def module() -> str:
    """Source of the ES module that draws: it defines `<l2-explorer>`, and exports what anywidget calls.

    Its parts share one scope; its style sheet is in it, and is adopted as an object, which no content security policy forbids.
    """
    source = "\n".join(asset(f"show/explorer_{part}.js") for part in _PARTS)
    css = json.dumps("\n".join([styles(), asset("show/explorer.css")]))
    return source.replace('"{{ css }}"', css)


@cache
def _live_class() -> Any:
    try:
        import anywidget
        import traitlets
    except ImportError as error:
        raise MissingPackage("live widgets need anywidget: pip install anywidget") from error
    traits = {
        "data": traitlets.Bytes(),
        "layer": traitlets.Int(None, allow_none=True),
        "quantity": traitlets.Unicode(None, allow_none=True),
        "sequence": traitlets.Int(-1),
        "position": traitlets.Int(-1),
    }
    synced = {name: trait.tag(sync=True) for name, trait in traits.items()}
    return type("Explorer", (anywidget.AnyWidget,), {"_esm": module(), **synced})


class TokensHTML(ABC):
    """A widget of tokens. Shows itself in Jupyter; `save` writes a page."""

    __slots__ = ()

    @abstractmethod
    def _static(self, *, inline: bool) -> Markup:
        """Its text, for where no script may run."""

    @abstractmethod
    def _packed(self) -> bytes:
        """What the module draws from."""

    @abstractmethod
    def _heading(self) -> str:
        """Title of its page."""

    def fragment(self) -> Markup:
        """HTML for a page that carries `styles` and `scripts` of this class once; legible without JavaScript."""
        return self._element(inline=False)

    @staticmethod
    def styles() -> list[Markup]:
        """Style sheets that fragments need, once per page."""
        return [Markup(styles())]

    @staticmethod
    def scripts() -> list[Markup]:
        """Script elements that fragments need, once per page."""
        return [Markup('<script type="module">{}</script>').format(Markup(module()))]

    @staticmethod
    def module() -> str:
        """Source of the ES module, for a page that loads it as a file of its own."""
        return module()

    def page(self) -> str:
        """A self-contained page."""
        page = render(
            "show/page.html.jinja",
            title=self._heading(),
            styles=[Markup(asset("show/tokens_page.css")), *self.styles()],
            scripts=self.scripts(),
            body=Markup("<main><h1>{}</h1>{}</main>").format(self._heading(), self.fragment()),
        )
        return str(page)

    def save(self, path: str | Path) -> Path:
        """Write a self-contained page that fetches nothing."""
        return write_page(path, self.page())

    def widget(self) -> Any:
        """The same as an anywidget, which tells Python what is chosen: for Jupyter and marimo, `pip install anywidget`.

        Its traits `layer`, `quantity`, `sequence` and `position` (-1 where nothing is pinned) go both ways.

        Raises:
            ImportError: anywidget is not installed.
        """
        return _live_class()(data=self._packed())

    def _repr_html_(self) -> str:
        # A notebook that isn't trusted keeps neither <style> nor <script>, and drops the element around the text, not the text.
        style = Markup("<style>{}</style>").format(Markup(styles()))
        return str(Markup("").join([style, self._element(inline=True), *self.scripts()]))

    def _display_(self) -> Any:
        """What marimo shows, which runs no script of an HTML output: the live widget, or the text where there is none."""
        try:
            return self.widget()
        except MissingPackage:
            from marimo import Html  # type: ignore[import-not-found]  # only marimo asks

            return Html(str(self._static(inline=True)))

    def _element(self, *, inline: bool) -> Markup:
        data = Markup('<script type="text/plain" class="l2-data">{}</script>').format(as_text(self._packed()))
        return Markup('<l2-explorer role="region" aria-label="{}">{}{}</l2-explorer>').format(
            self._heading(), self._static(inline=inline), data
        )
