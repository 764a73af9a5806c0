"""Figures that stay in a notebook: as HTML beside the JSON that only some viewers draw."""

from __future__ import annotations

import itertools
from typing import Any

import plotly.graph_objects as go
import plotly.io
from markupsafe import Markup
from plotly.io.base_renderers import MimetypeRenderer

from tl_l2norm.core.errors import MissingPackage
from tl_l2norm.show.embedding import fragment, scripts, styles

_NAME, _OTHERS = "tl_l2norm", "plotly_mimetype"
_WAKE = Markup("<script>window.l2Figures?.wake()</script>")  # for a figure that comes after its page


class _Renderer(MimetypeRenderer):  # type: ignore[misc]  # plotly has no types
    """A figure as a fragment of HTML; what draws it is in the notebook once."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)

    def to_mimebundle(self, fig_dict: dict[str, Any]) -> dict[str, str]:
        """What Plotly asks a renderer for."""
        figure = go.Figure(fig_dict, skip_invalid=True)
        return {"text/html": str(fragment(figure, str(next(self._numbers))) + _WAKE)}


def inline() -> None:
    """Keep the figures of a notebook in it, so that they are drawn wherever it is looked at, offline too.

    Plotly leaves JSON in a notebook, which JupyterLab and VS Code draw and `nbconvert --to html` drops. From here on figures
    are there as HTML as well; what draws them, 1.5 MB, is the output of the cell that calls this. Colab shows each output
    in a frame of its own, and is left as it is.

    Raises:
        ImportError: IPython is not installed.

    Examples:
        >>> l2.figures.inline()
        <IPython.core.display.HTML object>
    """
    try:
        from IPython.display import HTML, display
    except ImportError as error:
        raise MissingPackage("figures are kept in notebooks, and IPython is not installed: pip install ipython") from error
    if plotly.io.renderers.default == "colab":
        return
    plotly.io.renderers[_NAME] = _Renderer()
    plotly.io.renderers.default = f"{_OTHERS}+{_NAME}"
    page = Markup("<style>{}</style>").format(Markup("").join(styles())) + Markup("").join(scripts())
    display(HTML(page))  # type: ignore[no-untyped-call]
