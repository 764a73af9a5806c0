import re
import xml.etree.ElementTree as ET
from pathlib import Path

import plotly.graph_objects as go
import pytest

from tl_l2norm.core.errors import InputError, MissingPackage
from tl_l2norm.show import saving
from tl_l2norm.show.saving import has_browser, save

needs_browser = pytest.mark.skipif(not has_browser(), reason="no chromium, chrome or edge")


def figure(**layout: object) -> go.Figure:
    """Two points, with a name that is markup if nobody cares."""
    return go.Figure(go.Scatter(x=[1, 2], y=[3, 4], name="a </script> &lt;b"), {"showlegend": True, **layout})


@pytest.mark.browser
@needs_browser
def test_figures_are_kept_dark_on_white_in_the_size_of_a_page(tmp_path: Path) -> None:
    figures = {"Plain one": figure(), "wide": figure(height=300, meta={"min_width": 900}, font_color="#eee")}
    plain, wide = save(figures, tmp_path / "new" / "folder")
    assert (plain.name, wide.name) == ("plain-one.svg", "wide.svg")
    pictures = [ET.fromstring(path.read_text()) for path in (plain, wide)]
    assert [(picture.get("width"), picture.get("height")) for picture in pictures] == [("640", "420"), ("900", "300")]
    assert "a </script> <b" in "".join(pictures[1].itertext())
    assert "fill: rgb(28, 28, 28)" in wide.read_text() and "238" not in wide.read_text(), "whatever the page's words look like"
    pngs = [path.read_bytes() for path in save(figures, tmp_path, format="png")]
    assert [int.from_bytes(png[16:20], "big") for png in pngs] == [3 * 640, 3 * 900]
    (path,) = save({"wide": figures["wide"]}, tmp_path, format="pdf")
    box = re.search(rb"/MediaBox ?\[0 0 ([\d.]+) ([\d.]+)\]", path.read_bytes())
    assert box and [round(float(side)) for side in box.groups()] == [675, 225], "points"
    assert re.search(rb"/Count 1\b", path.read_bytes()), "one page"


def test_without_a_browser_it_is_said_what_would_be_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "_browser", lambda: None)
    monkeypatch.setattr(saving.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackage, match=r"install Chromium.*tl_l2norm\[figures\].*buttons below"):
        save({"a": figure()}, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_kaleido_is_asked_where_there_is_no_browser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(saving, "_browser", lambda: None)
    monkeypatch.setattr(saving.importlib.util, "find_spec", lambda name: name == "kaleido")
    monkeypatch.setattr(go.Figure, "to_image", lambda self, **how: asked.append((self.layout.font.color, how)) or b"drawn")
    before = figure(font_color="#eee")
    (path,) = save({"a": before}, tmp_path, format="png")
    assert path.read_bytes() == b"drawn" and before.layout.font.color == "#eee"
    assert asked == [("#1c1c1c", {"format": "png", "width": 640, "height": 420, "scale": 3})]


def test_a_browser_that_draws_nothing_is_no_empty_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "_browser", lambda: "/bin/true")
    with pytest.raises(InputError, match="/bin/true drew no figure"):
        save({"a": figure()}, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_no_folder_of_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "_browser", lambda: pytest.fail("it went on"))
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="folder is a file: "):
        save({"a": go.Figure()}, tmp_path / "file")


def test_what_is_no_figure_by_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="in one file: a-b, a-b"):
        save({"a b": figure(), "A/b": figure()}, tmp_path)
    assert save({}, tmp_path / "none") == []
