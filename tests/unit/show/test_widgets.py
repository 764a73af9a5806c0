import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.builders import NASTY, make_trace
from tl_l2norm import widgets
from tl_l2norm.core.errors import InputError
from tl_l2norm.show.page import inline_script, write_page
from tl_l2norm.show.widgets import visible_text


class Strips(HTMLParser):
    """The token spans of a page: attributes and text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.spans: list[tuple[dict[str, str], str]] = []
        self.tags: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "span" and str(dict(attrs).get("title")).startswith("norm "):
            self.spans.append(({k: v or "" for k, v in attrs}, ""))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] in ("span", "br") and self.spans and data.strip("\n"):
            attributes, text = self.spans[-1]
            self.spans[-1] = (attributes, text + data)


def spans(widget: widgets.TokensWidget) -> list[tuple[dict[str, str], str]]:
    return Strips(str(widget.fragment())).spans


def places(widget: widgets.TokensWidget) -> list[str]:
    return [attributes["class"] for attributes, _ in spans(widget)]


def test_colour_is_the_place_between_least_and_greatest_norm_and_the_title_is_the_norm() -> None:
    trace = make_trace(["s", "a", "b", "c"], norms=[[25_000, 100, 150, 300]])
    assert [(a["class"], a["title"]) for a, _ in spans(widgets.tokens(trace))] == [
        ("l2-sink", "norm 25,000, position 0, attention sink, off the scale"),
        ("l2-c0", "norm 100, position 1"),
        ("l2-c8", "norm 150, position 2"),  # a quarter of 31 steps
        ("l2-c31", "norm 300, position 3"),
    ]


def test_a_notebook_that_keeps_no_style_sheet_has_the_colours_of_the_classes() -> None:
    trace = make_trace(["s", "a", "b", "c"], norms=[[25_000, 100, 200, 300]])
    widget = widgets.tokens(trace)
    strips = Strips(widget._repr_html_())
    assert [(a["class"], a["style"]) for a, _ in strips.spans] == [
        ("l2-sink", "background-color:#c4c4c4;color:#000000"),
        ("l2-c0", "background-color:#ffffff;color:#000000"),
        ("l2-c16", "background-color:#f4cf98;color:#000000"),
        ("l2-c31", "background-color:#e69f00;color:#000000"),
    ]
    css = widget.styles()[0]
    assert all(f"--l2-c{step}:{colour};" in css for step, colour in ((0, "#ffffff"), (16, "#f4cf98"), (31, "#e69f00")))
    assert "style=" not in widget.fragment(), "a strict policy allows none"


def test_layer_counts_from_the_last_recorded_one() -> None:
    trace = make_trace(["s", "a", "b"], layers=(3, 7))
    assert widgets.tokens(trace).layer == 7
    assert widgets.tokens(trace, layer=-2).scale == (11, 12)
    assert widgets.tokens(trace, layer=7).scale == (110, 120)
    with pytest.raises(ValueError, match="layer 5 was not recorded"):
        widgets.tokens(trace, layer=5)


def test_several_traces_share_one_scale() -> None:
    low, high = (make_trace(["s", "a"], norms=[[25_000, norm]]) for norm in (50, 70))
    assert places(widgets.tokens([low, high])) == ["l2-sink", "l2-c0", "l2-sink", "l2-c31"]


def test_equal_norms_and_sinks_alone_are_drawn() -> None:
    equal = make_trace(["s", "a", "b"], norms=[[25_000, 80, 80]])
    assert places(widgets.tokens(equal)) == ["l2-sink", "l2-c0", "l2-c0"]
    only = widgets.tokens(make_trace(["s"]))
    assert only.scale is None and "only sinks" in repr(only)
    assert "l2-ramp" not in only.fragment()


def test_every_token_is_text_and_nothing_else() -> None:
    widget = widgets.tokens(make_trace(NASTY))
    strips = Strips(str(widget.fragment()))
    assert [text for _, text in strips.spans] == [visible_text(token) for token in NASTY]
    assert not {"img", "svg", "think"} & set(strips.tags) and strips.tags.count("script") == 1


def test_what_cannot_be_seen_is_made_visible() -> None:
    assert visible_text("a\n\n") == "a↵↵"
    assert visible_text("\tx") == "⇥x"
    assert visible_text("   ") == "···"
    assert visible_text(" word") == " word"
    assert visible_text("\x00\x7f") == "␀␡"
    assert visible_text("a\u202eb\x9b\u2028") == "a‹202E›b‹9B›‹2028›", "what turns writing round, or begins a command"
    fragment = widgets.tokens(make_trace(["s", "line\n\n", ""])).fragment()
    assert ">line↵↵<br><br></span>" in fragment
    assert "part of a character" in fragment and "l2-part" in fragment


def test_segments_are_apart_and_labelled() -> None:
    fragment = widgets.tokens(make_trace(["s", "p", "t", "t", "a"], prompt_len=2, think=2)).fragment()
    labels = re.findall(r'<p class="l2-label"><b>(\w+)</b> (\d+)</p>', fragment)
    assert labels == [("prompt", "2"), ("think", "2"), ("answer", "1")]


def test_max_tokens_cuts_and_says_so() -> None:
    widget = widgets.tokens(make_trace(["s", "a", "b", "c", "d"]), max_tokens=3)
    assert len(spans(widget)) == 3
    assert "2 more tokens are not shown" in widget.fragment()
    with pytest.raises(ValueError, match="max_tokens"):
        widgets.tokens(make_trace(["s"]), max_tokens=0)


def test_titles_come_from_labels_or_are_given() -> None:
    trace = make_trace(["s"], labels={"mode": "think", "family": "<i>"})
    assert "mode think, family &lt;i&gt;" in widgets.tokens(trace).fragment()
    assert ">mine<" in widgets.tokens(trace, titles=["mine"]).fragment()
    with pytest.raises(ValueError, match="2 titles for 1 traces"):
        widgets.tokens(trace, titles=["a", "b"])
    with pytest.raises(ValueError, match="no traces"):
        widgets.tokens([])


def test_a_page_is_self_contained(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = widgets.tokens([make_trace(NASTY), make_trace(NASTY)]).save(tmp_path / "new" / "tokens.html")
    page = path.read_text(encoding="utf-8")
    assert path.is_file() and [p.name for p in path.parent.iterdir()] == ["tokens.html"]
    assert page.count('customElements.define("l2-explorer"') == 1
    assert "default-src &#39;none&#39;" in page
    assert not re.search(r"<(link|iframe|img|script[^>]*\bsrc)\b|https?://(?!www\.w3\.org/2000/svg)|import ", page)
    assert page.count("</script>") == page.count("<script") == 2, "the module, and the data of both"
    (data,) = re.findall(r'<script type="text/plain" class="l2-data">(.*?)</script>', page)
    assert re.fullmatch("[A-Za-z0-9+/]+=*", data), "letters of base64, whatever the tokens are"


def test_ten_tokens_are_small() -> None:
    widget = widgets.tokens(make_trace([f" {i}" for i in range(10)]))
    assert len(widget._repr_html_()) < 80_000 and len(widget.fragment()) < 6_000


def test_repr_is_for_a_terminal() -> None:
    widget = widgets.tokens(make_trace(["s", "a", "b"]))
    assert repr(widget) == (
        "TokensWidget(1 sequences, 3 tokens, layer 1, norms 110 to 120, 1 sinks; .save('tokens.html') writes a page)"
    )


def test_scripts_cannot_be_ended_from_within() -> None:
    assert inline_script("x = '</script><script>'") == r"<script>x = '<\/script><script>'</script>"


def test_a_folder_is_not_a_page(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="is a folder"):
        write_page(tmp_path, "x")


def test_a_place_where_nothing_can_be_kept_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="the folder of path is a file: "):
        write_page(tmp_path / "file" / "page.html", "x")
    with pytest.raises(InputError, match="file is a file, and nothing can be kept in it"):
        write_page(tmp_path / "file" / "new" / "page.html", "x")
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write anywhere
    with pytest.raises(InputError, match="nothing may be written to"):
        write_page(tmp_path / "new" / "page.html", "x")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_norms_that_are_no_numbers_are_off_the_scale() -> None:
    trace = make_trace(["s", "a", "b", "c", "d"], norms=[[9e3, math.nan, 2.0, math.inf, 4.0]])
    assert widgets.tokens(trace).scale == (2.0, 4.0) and "norms 2 to 4" in repr(widgets.tokens(trace))
    assert "no finite norms" in repr(widgets.tokens(make_trace(["s", "a"], norms=[[9e3, math.nan]])))


def test_text_that_utf8_cannot_hold_is_replaced(tmp_path) -> None:  # type: ignore[no-untyped-def]
    assert write_page(tmp_path / "p.html", "a\ud800b").read_text(encoding="utf-8") == "a?b"
