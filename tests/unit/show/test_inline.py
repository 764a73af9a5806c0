"""Figures of a notebook: the JSON that Plotly leaves, and HTML beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import plotly.graph_objects as go
import plotly.io
import pytest

from tl_l2norm.show.inline import inline


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = plotly.io.renderers.default
    yield
    plotly.io.renderers.default = before


def bundle(figure: go.Figure) -> dict[str, object]:
    return dict(figure._repr_mimebundle_(None, None))


def test_a_figure_is_there_as_html_too(capsys: pytest.CaptureFixture[str]) -> None:
    plotly.io.renderers.default = "plotly_mimetype"
    inline()
    assert "HTML object" in capsys.readouterr().out, "what draws figures is shown once, here"
    title = "<script>alert(1)</script>"
    shown = [bundle(go.Figure(layout={"title": title}).add_scatter(x=[1, 2], y=[3, 5])) for _ in range(2)]
    assert all(own.keys() == {"application/vnd.plotly.v1+json", "text/html"} for own in shown)
    pages = [str(own["text/html"]) for own in shown]
    assert len({re.search(r'id="([^"]+)"', page)[1] for page in pages}) == 2  # type: ignore[index]
    (text,) = re.findall(r'class="l2-drawing">(.*?)</script>', pages[0])
    drawn = json.loads(text)["figure"]
    assert drawn["layout"]["title"]["text"] == title and drawn["data"][0]["y"] == [3, 5]
    assert "alert" not in re.sub(r'(?s)<script type="application/json".*?</script>', "", pages[0])


def test_colab_keeps_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    plotly.io.renderers.default = "colab"
    inline()
    assert plotly.io.renderers.default == "colab" and capsys.readouterr().out == ""
