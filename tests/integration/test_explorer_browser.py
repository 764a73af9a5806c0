"""The explorer and the token widget in a real browser, from the file system, without a network."""

from __future__ import annotations

import base64
import functools
import hashlib
import html
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from tests.builders import NASTY, make_result, make_trace
from tests.integration import test_browser as shared
from tests.pixels import share_of
from tests.traces import trace_of
from tl_l2norm import widgets
from tl_l2norm.show import palette
from tl_l2norm.show.widgets import visible_text

pytestmark, browser, visit = shared.pytestmark, shared.browser, shared.visit

LAYERS = (2, 5, 9)
THINK = ("<|start|>", " ask", " now", "<think>", " wait", " it", " is", " wa", "iter", "</think>", " four")
DIRECT = ("<|start|>", " ask", " now", " five")
EVENT = ("sequence", "position", "layer", "intervention", "decision", "fired", "l2_norm_before", "l2_norm_after")
DRAWN = ".l2x .l2-strip"


def norms_of(tokens: tuple[str, ...], shift: float) -> list[list[float]]:
    """A sink, then 10, 11, ... at the first layer, falling at the second, equal but for the last token at the third."""
    n = len(tokens) - 1
    rows = [[10.0 + i for i in range(n)], [100.0 - i for i in range(n)], [500.0] * (n - 1) + [1000.0]]
    return [[25_000.0, *(value + shift for value in row)] for row in rows]


@pytest.fixture(scope="module")
def explorer_page(tmp_path_factory: Any) -> Path:
    """Thinking, right, beside direct, wrong; something was suppressed at " it" of the thinking."""
    ids = {text: i for i, text in enumerate(dict.fromkeys(THINK + DIRECT))}
    same = [{"tokens": torch.tensor([ids[text] for text in texts]), "layers": LAYERS} for texts in (THINK, DIRECT)]
    think = make_trace(THINK, norms=norms_of(THINK, 0), prompt_len=3, think=7, **same[0])
    direct = make_trace(DIRECT, norms=norms_of(DIRECT, 3), prompt_len=3, **same[1])
    results = [make_result(8, "think", trace=think, correct=True), make_result(8, "direct", trace=direct, correct=False)]
    events = pd.DataFrame([(0, 5, 5, "Suppression", "scaled", True, 96.0, 9.6)], columns=EVENT)
    return widgets.explorer(results, events=events).save(tmp_path_factory.mktemp("explorer") / "explorer.html")


@pytest.fixture(scope="module")
def nasty_page(tmp_path_factory: Any) -> Path:
    traces = [make_trace((*NASTY, "x" * 10_000), prompt_len=3, think=6), make_trace(NASTY)]
    return widgets.explorer(traces).save(tmp_path_factory.mktemp("nasty") / "nasty.html")


def background(seen: Any, selector: str, index: int = 0) -> str:
    found = seen.page.locator(selector).nth(index).evaluate("e => getComputedStyle(e).backgroundColor")
    return "#" + "".join(f"{int(part):02x}" for part in re.findall(r"\d+", found)[:3])


def token(seen: Any, text: str) -> Any:
    return seen.page.locator(f"{DRAWN} > span").get_by_text(text, exact=True).first


@pytest.mark.parametrize(("kind", "scheme"), [("explorer", "dark"), ("tokens", "light")])
def test_hostile_tokens_are_text(visit: Any, nasty_page: Path, tmp_path: Path, kind: str, scheme: str) -> None:
    page = (
        nasty_page if kind == "explorer" else widgets.tokens([make_trace(NASTY), make_trace(NASTY)]).save(tmp_path / "t.html")
    )
    seen = visit(page, drawn=DRAWN, scheme=scheme)
    assert seen.messages == []
    texts, plain = seen.texts(f"{DRAWN} > span"), [visible_text(text) for text in NASTY]
    assert [text for text in texts if not text.startswith("xxx")] == (plain * 2)
    assert seen.count("main :is(img, svg:not(.l2x-curve), think)") == 0 and len(seen.page.context.pages) == 1
    if kind == "explorer":
        seen.page.locator(f"{DRAWN} > span").get_by_text("<img src=x onerror=alert(2)>").first.hover()
        assert seen.page.locator(".l2x-tip .l2x-token").text_content() == "<img src=x onerror=alert(2)>"
        before = token(seen, "··").bounding_box()
        assert token(seen, "${alert(4)}").bounding_box()["x"] < before["x"], "what stands beside the override keeps its order"
        assert seen.messages == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_are_those_of_the_legend_and_the_picture_is_not_blank(visit: Any, explorer_page: Path, scheme: str) -> None:
    seen = visit(explorer_page, drawn=DRAWN, scheme=scheme)
    steps = palette.steps(dark=scheme == "dark")
    legend = [background(seen, ".l2x .l2-ramp i", i) for i in (0, 31)]
    assert legend == [steps[0], steps[-1]] == [background(seen, f"{DRAWN} > .l2-c{i}") for i in (0, 31)]
    sink = {"light": palette.SINK_COLOUR, "dark": palette.DARK_SINK}[scheme]
    assert background(seen, f"{DRAWN} > .l2-sink") == sink, "of the prompt, too, which is drawn in full colour"
    opacity = seen.page.locator(f"{DRAWN} > span").evaluate_all("all => all.map(e => getComputedStyle(e).opacity)")
    assert set(opacity) == {"1"}
    seen.page.mouse.move(0, 0)
    for part in (".l2x-heatmap", ".l2x-items"):
        share = share_of(seen.page, seen.page.locator(part).screenshot(), (0xE6, 0x9F, 0x00))
        assert 0.001 < share < 0.5, f"{part}: the highest norm is there, and is not all"


def test_the_slider_goes_through_the_layers(visit: Any, explorer_page: Path) -> None:
    seen = visit(explorer_page, drawn=DRAWN)
    slider, page = seen.page.get_by_label("Layer", exact=True), seen.page
    script = "all => all.map(e => +(/l2-c(\\d+)/.exec(e.className) ?? [0, -1])[1])"
    places = functools.partial(page.locator(f"{DRAWN} > span").evaluate_all, script)
    assert page.locator(".l2x-layer").text_content() == "9"
    assert [place for place in places() if place > 0] == [31, 31], "1,000 of at most 1,003"
    slider.press("ArrowLeft")
    assert page.locator(".l2x-layer").text_content() == "5" and page.locator(".l2x .l2-event").count() == 2  # token, legend
    slider.press("ArrowLeft")
    assert page.locator(".l2x-layer").text_content() == "2" and page.locator(f"{DRAWN} .l2-event-else").count() == 1
    values = [*norms_of(THINK, 0)[0][1:], *norms_of(DIRECT, 3)[0][1:]]
    expected = [palette.step_of((value - 10) / (19 - 10)) for value in values]  # least 10, greatest 19, over both
    assert [place for place in places() if place >= 0] == expected
    assert "10" in seen.texts(".l2x .l2-caption")[0] and "layer 2" in seen.texts(".l2x .l2-caption")[0]
    assert seen.messages == []


def test_hovering_shows_the_values_and_links_text_heatmap_and_curve(visit: Any, explorer_page: Path) -> None:
    seen = visit(explorer_page, drawn=DRAWN)
    token(seen, " it").hover()
    tip = seen.page.locator(".l2x-tip")
    norm, where, event = tip.locator("b, span:not(.l2x-token)").all_text_contents()
    assert norm == "norm 500 · 1 × median"
    assert (where, event) == ("layer 9, position 5, think", "Suppression at layer 5: scaled, norm 96 to 9.6")
    token(seen, " four").hover()
    assert tip.locator("b").text_content() == "norm 1,000 · 2 × median", "of all tokens that are no sinks"
    token(seen, " it").hover()
    assert seen.page.locator(".l2x-overview figcaption").nth(1).text_content() == "“ it” over the layers"
    assert seen.page.locator(".l2x-curve polyline.l2x-own").get_attribute("points").count(",") == len(LAYERS)
    box = seen.page.locator(".l2x-heatmap").bounding_box()
    left, width, height = box["x"] + 30, box["width"] - 30, box["height"] - 18
    seen.page.mouse.move(left + width * 4.5 / len(THINK), box["y"] + height * 5 / 6)  # the fifth token, the lowest layer
    assert seen.page.locator(".l2x-at").text_content() == " wait"
    assert "norm 13 · " in seen.page.locator(".l2x-readout").text_content()
    assert "layer 2, position 4" in seen.page.locator(".l2x-readout").text_content()
    seen.page.mouse.click(left + width * 4.5 / len(THINK), box["y"] + height * 5 / 6)
    assert seen.page.locator(".l2x-layer").text_content() == "2" and seen.page.locator(".l2x-pin").text_content() == " wait"
    token(seen, " ask").hover()
    assert seen.texts(".l2x-same") == [" ask"], "the same token of the direct response"
    assert seen.messages == []


def test_the_keyboard_does_all_of_it(visit: Any, explorer_page: Path) -> None:
    seen = visit(explorer_page, drawn=DRAWN)
    page, readout = seen.page, seen.page.locator(".l2x-readout")
    page.locator(DRAWN).first.focus()
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Tab")
    assert readout.text_content().startswith("<|start|>")
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    assert readout.text_content().startswith(" wait norm 500 · ") and "position 4, think" in readout.text_content()
    assert page.evaluate("document.querySelector('l2-explorer').shadowRoot.activeElement.ariaLabel").endswith("think, 7 tokens")
    page.keyboard.press("ArrowDown")
    assert page.locator(".l2x-layer").text_content() == "5" and "norm 97" in readout.text_content()
    page.keyboard.press("Enter")
    assert page.locator(".l2x-pin").text_content() == " wait"
    page.keyboard.press("End")
    assert readout.text_content().startswith(" four") and page.locator(".l2x-pin").text_content() == " wait"
    page.keyboard.press("Escape")
    assert page.locator(".l2x-pin").count() == 0 and page.locator(".l2x-tip").is_hidden()


def test_search_finds_text_over_tokens_and_goes_through_what_it_found(visit: Any, explorer_page: Path) -> None:
    seen = visit(explorer_page, drawn=DRAWN)
    search, count = seen.page.get_by_label("Find"), seen.page.locator(".l2x-count")
    search.fill("WAIT")
    assert count.text_content() == "2" and seen.texts(".l2x-hit") == [" wait", " wa", "iter"]
    for expected, pinned in (("1 of 2", " wait"), ("2 of 2", " wa"), ("1 of 2", " wait")):
        search.press("Enter")
        assert count.text_content() == expected and seen.texts(".l2x-pin") == [pinned]
    search.fill("nowhere")
    assert count.text_content() == "none" and seen.count(".l2x-hit") == 0


def test_filters_leave_what_they_say(visit: Any, explorer_page: Path) -> None:
    seen = visit(explorer_page, drawn=DRAWN)
    assert [one["name"] for one in seen.page.locator("select[data-filter]").evaluate_all(
        "all => all.map(e => ({name: e.dataset.filter}))")] == ["mode", "answer"]  # fmt: skip
    seen.page.get_by_label("Answer", exact=True).select_option("wrong")
    assert seen.texts(f"{DRAWN} > span:visible") == list(DIRECT) and seen.texts(".l2x-tally") == ["1 of 2 sequences"]
    assert "direct" in seen.texts(".l2x-overview figcaption")[0], "the heatmap is of what is shown"
    seen.page.get_by_label("Answer", exact=True).select_option("")
    assert seen.page.locator(f"{DRAWN} > span:visible").count() == len(THINK) + len(DIRECT)


def test_the_colour_can_be_another_quantity(visit: Any, explorer_page: Path) -> None:
    seen = visit(explorer_page, drawn=DRAWN)
    seen.page.get_by_label("Colour", exact=True).select_option("change")
    coloured = seen.page.locator(f"{DRAWN} > span[class*=l2-c]").all_text_contents()
    assert coloured == [" ask", " now"], "of the direct response: those that the thinking one has, too"
    seen.page.get_by_label("Colour", exact=True).select_option("norm")
    seen.page.get_by_label("Layer", exact=True).fill("0")
    linear = background(seen, f"{DRAWN} > span", 4)
    seen.page.get_by_label("Scale", exact=True).select_option("log")
    assert linear == palette.steps()[palette.step_of((13 - 10) / 9)]
    assert background(seen, f"{DRAWN} > span", 4) == palette.steps()[palette.step_of(np.log(13 / 10) / np.log(19 / 10))]


def test_a_strict_policy_breaks_nothing(visit: Any, tmp_path: Path) -> None:
    """Of hashes alone: no inline style, no eval, nothing that is fetched."""
    widget = widgets.explorer([make_trace(THINK), make_trace(DIRECT)])
    css, module = widget.styles()[0], widget.module()
    style, script = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (css, module))
    policy = f"default-src 'none'; script-src 'sha256-{script}'; style-src 'sha256-{style}'; base-uri 'none'"
    path = tmp_path / "strict.html"
    meta = f'<!doctype html><meta charset=utf-8><meta http-equiv="Content-Security-Policy" content="{html.escape(policy)}">'
    path.write_text(f'{meta}<style>{css}</style><script type="module">{module}</script>{widget.fragment()}', encoding="utf-8")
    seen = visit(path, drawn=DRAWN)
    token(seen, " it").hover()
    assert seen.messages == [] and seen.page.locator(".l2x-tip").is_visible()
    plain = visit(path, javascript=False)
    assert background(plain, ".l2-strip > .l2-c31") == palette.HIGH_COLOUR and plain.messages == []


def test_without_javascript_the_text_has_its_values(visit: Any, nasty_page: Path) -> None:
    seen = visit(nasty_page, javascript=False)
    spans = seen.page.locator(".l2-strip > span")
    assert seen.count(".l2-strip > span:visible") == 2 * len(NASTY) + 1
    assert all(re.match(r"norm [\d,.]+, position \d+", title) for title in spans.evaluate_all("all => all.map(e => e.title)"))


def test_print_is_light_and_whole(visit: Any, tmp_path: Path) -> None:
    long = make_trace([f" w{i}" for i in range(400)], prompt_len=2)
    seen = visit(widgets.explorer([long, long, long, long]).save(tmp_path / "p.html"), drawn=DRAWN, scheme="dark")
    seen.page.emulate_media(media="print", color_scheme="dark")
    seen.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert background(seen, ".l2x .l2-ramp i", 0) == "#ffffff"
    assert seen.page.locator(".l2x-items").evaluate("e => e.scrollHeight - e.clientHeight") <= 1
    assert seen.page.locator(".l2x-bar").is_hidden()
    assert len(seen.page.pdf()) > 20_000


def test_twenty_thousand_tokens_are_drawn_within_a_second(browser: Any, tmp_path: Path) -> None:
    n, rng = 20_000, np.random.default_rng(0)
    norms = np.exp(rng.normal(5, 0.4, (28, n)))
    texts = tuple(f" {word}" for word in rng.integers(0, 1000, n))
    trace = trace_of(norms, prompt_len=100, think=19_000, str_tokens=texts)
    path = widgets.explorer(trace).save(tmp_path / "long.html")
    assert path.stat().st_size < 3_000_000
    context = browser.new_context(offline=True)
    page, spans = context.new_page(), f"{DRAWN} > span"
    session = context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})  # of the page's thread alone: others share these cores
    page.goto(path.as_uri())
    page.wait_for_selector(DRAWN)
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
    seconds = {metric["name"]: metric["value"] for metric in session.send("Performance.getMetrics")["metrics"]}
    assert 0.01 < seconds["TaskDuration"] < 1
    assert page.locator(spans).count() < 2_000, "long thoughts fold"
    page.get_by_role("option", name=re.compile("tokens folded")).first.click()
    assert page.locator(spans).count() > 18_000
    context.close()


def test_a_phone_needs_no_sideways_scrolling(visit: Any, explorer_page: Path) -> None:
    seen = visit(explorer_page, drawn=DRAWN, width=390)
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= 390
    token(seen, " it").hover()
    there = token(seen, " it").bounding_box()
    seen.page.mouse.move(1, 1)
    assert token(seen, " it").bounding_box() == there, "what is said of a token moves no text"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(browser: Any, explorer_page: Path, scheme: str) -> None:
    package = pytest.importorskip("axe_playwright_python")
    source = Path(package.__file__).with_name("axe.min.js").read_text(encoding="utf-8")
    page = browser.new_context(offline=True, bypass_csp=True, color_scheme=scheme).new_page()
    page.goto(explorer_page.as_uri())
    page.wait_for_selector(DRAWN)
    page.evaluate(source)
    found = page.evaluate("axe.run()")
    assert [(one["id"], one["impact"]) for one in found["violations"]] == []
    page.context.close()


def test_outputs_of_a_notebook_share_a_page(visit: Any, tmp_path: Path) -> None:
    """Each carries the module; the first defines the element, and every widget is drawn once."""
    outputs = [widgets.tokens(make_trace(NASTY))._repr_html_(), widgets.explorer(make_trace(NASTY))._repr_html_()]
    path = tmp_path / "notebook.html"
    path.write_text("<!doctype html><meta charset=utf-8>" + "".join(outputs), encoding="utf-8")
    seen = visit(path, drawn=DRAWN)
    seen.page.wait_for_function("document.querySelectorAll('l2-explorer').length === 2")
    assert seen.count(f"{DRAWN} > span") == 2 * len(NASTY) and seen.messages == []


def test_an_output_that_is_not_trusted_keeps_text_and_colours(visit: Any, tmp_path: Path) -> None:
    """JupyterLab's sanitizer takes script and style out with what is in them, and elements and classes that it doesn't know."""
    shown = re.sub(r"(?s)<(script|style)\b.*?</\1>", "", widgets.explorer(make_trace(NASTY))._repr_html_())
    shown = re.sub(r' class="[^"]*"', "", re.sub(r"</?l2-explorer[^>]*>", "", shown))
    path = tmp_path / "untrusted.html"
    path.write_text(f"<!doctype html><meta charset=utf-8><body style='background:#111'>{shown}", encoding="utf-8")
    seen = visit(path)
    assert seen.texts("span[title^='norm ']") == [visible_text(text) for text in NASTY]
    assert background(seen, "span[title^='norm ']", 15) == palette.HIGH_COLOUR and seen.messages == []


def test_the_theme_is_that_of_the_page_around_it(visit: Any, tmp_path: Path) -> None:
    path = tmp_path / "site.html"
    shown = widgets.tokens(make_trace(THINK))._repr_html_()
    path.write_text(f"<!doctype html><meta charset=utf-8><body style='background: oklch(0.2 0 0)'>{shown}", encoding="utf-8")
    seen = visit(path, drawn=DRAWN)
    root = seen.page.locator(".l2x")
    assert root.get_attribute("data-theme") == "dark"
    seen.page.evaluate("document.body.style.background = 'white'")
    seen.page.wait_for_function("document.querySelector('l2-explorer').shadowRoot.firstChild.dataset.theme === 'light'")


def test_python_and_the_page_tell_each_other_what_is_chosen(visit: Any, tmp_path: Path) -> None:
    """What anywidget asks of a module: `render`, with a model that has `get`, `set` of a name and a value, `on` and `off`."""
    (tmp_path / "empty.html").write_text("<!doctype html><title>a notebook</title><body></body>", encoding="utf-8")
    seen = visit(tmp_path / "empty.html")
    widget = widgets.explorer([make_trace(THINK, layers=LAYERS[:2]), make_trace(DIRECT, layers=LAYERS[:2])])
    script = """async ([source, text]) => {
        const { default: module } = await import(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
        const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)), listeners = {};
        const values = { data: new DataView(bytes.buffer), layer: 2, quantity: "ratio", sequence: -1, position: -1 };
        window.model = {
            get: (name) => values[name],
            set: (name, value) => { values[name] = value; },
            on: (name, call) => { listeners[name] = call; },
            off: (name) => { delete listeners[name]; },
            save_changes: () => { window.saved = { ...values, data: null }; },
            say: (name, value) => { values[name] = value; listeners[`change:${name}`](); },
            left: () => Object.keys(listeners).length,
        };
        window.stop = await module.render({ model: window.model, el: document.body });
    }"""
    seen.page.evaluate(script, [widget.module(), base64.b64encode(widget._packed()).decode()])
    layer = seen.page.locator(".l2x-layer")
    assert layer.text_content() == "2" and seen.page.get_by_label("Colour", exact=True).input_value() == "ratio"
    seen.page.get_by_label("Layer", exact=True).press("ArrowRight")
    token(seen, " five").click()
    assert seen.page.evaluate("saved") == {"data": None, "layer": 5, "quantity": "ratio", "sequence": 1, "position": 3}
    seen.page.evaluate("model.say('layer', 2); model.say('position', 1)")
    assert layer.text_content() == "2" and seen.texts(".l2x-pin") == [" ask"]
    seen.page.evaluate("stop()")
    assert seen.page.evaluate("model.left()") == 0 and seen.messages == []
