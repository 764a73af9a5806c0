"""What the explorer shows and packs; that a browser draws it is tests/integration/test_explorer_browser.py's matter."""

from __future__ import annotations

import base64
import json
import math
import re
import sys
import zlib
from difflib import SequenceMatcher
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.builders import make_result, make_trace
from tl_l2norm import widgets
from tl_l2norm.core.errors import InputError
from tl_l2norm.core.features import FeatureActs
from tl_l2norm.show import packing, palette
from tl_l2norm.show.shown import aligned
from tl_l2norm.show.widget import _live_class

EVENT = {
    "sequence": 1,
    "position": 2,
    "layer": 0,
    "intervention": "Suppression",
    "decision": "scaled",
    "fired": True,
    "l2_norm_before": 200.04,
    "l2_norm_after": 20.004,
}


def read(widget: widgets.ExplorerWidget) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Header and values of a fragment, read as the page does, but by other code."""
    (text,) = re.findall(r'class="l2-data">(.*?)</script>', widget.fragment())
    raw = zlib.decompress(base64.b64decode(text))
    size = int.from_bytes(raw[:4], "little")
    header, planes = json.loads(raw[4 : 4 + size]), raw[4 + size :]
    total, found = sum(len(one["tokens"]) for one in header["sequences"]), {}
    for quantity in header["quantities"]:
        rows = max(1, len(quantity["layers"]))
        high, low, planes = planes[: rows * total], planes[rows * total : 2 * rows * total], planes[2 * rows * total :]
        decades = 3 if quantity["signed"] else 6
        values = np.empty((rows, total))
        for i, (h, l) in enumerate(zip(high, low, strict=True)):  # noqa: E741
            code, top = 256 * h + l, quantity["tops"][i // total]
            sign = -1 if quantity["signed"] and code >= 0x8000 and code < 0xFFFE else 1
            decade, mantissa = divmod(code - 0x8000 * (sign < 0), 10_000)
            number = sign * float(f"{mantissa}e{decade + top - decades + 1 - 3}")
            values.flat[i] = {0xFFFF: np.nan, 0xFFFE: np.inf}.get(code, number)
        found[quantity["name"]] = values
    assert planes == b""
    return header, found


@given(arrays(np.float32, (2, 7), elements=st.floats(0, 2**20, width=32) | st.sampled_from([np.nan, np.inf])))
def test_four_digits_of_six_decades_are_kept(values: np.ndarray) -> None:
    got = packing.unpack(packing.pack(values))
    for row, own in zip(got, values.astype(float), strict=True):
        finite = own[np.isfinite(own)]
        greatest = finite.max(initial=0.0)
        for one, value in zip(row, own, strict=True):
            if not np.isfinite(value):
                assert np.isnan(one) == np.isnan(value) and np.isinf(one) == np.isinf(value)
            elif value >= 1e-4 * greatest:
                assert abs(one - value) <= 0.500001e-3 * 10 ** np.floor(np.log10(value)) if value else one == 0
            else:
                assert abs(one - value) <= 1e-8 * greatest


@pytest.mark.parametrize("value", [231.44999, 9999.6, 0.99996, 25_094.0, 1e-3, 12.0])
def test_a_page_shows_the_digits_that_python_shows(value: float) -> None:
    assert float(f"{packing.unpack(packing.pack(np.array([[value]])))[0, 0]:.4g}") == float(f"{value:.4g}")


def test_signed_values_keep_their_sign() -> None:
    got = packing.unpack(packing.pack(np.array([[-3.1416, 0.0, 2.5, -0.0123, np.nan]])))
    assert got[0, :4] == pytest.approx([-3.142, 0.0, 2.5, -0.0123], abs=1e-9) and np.isnan(got[0, 4])


@pytest.mark.parametrize("dark", [False, True])
def test_ink_is_legible_on_every_step_and_steps_are_of_one_hue(dark: bool) -> None:
    steps = palette.steps(dark=dark)
    luminance = [palette.contrast(step, "#000000") for step in steps]
    assert len(steps) == palette.N_STEPS and luminance == sorted(luminance, reverse=not dark)
    assert min(palette.contrast(step, palette.ink(step)) for step in steps) >= 4.5
    lab = np.array([palette._oklab(step) for step in steps])
    hues = np.degrees(np.arctan2(lab[:, 2], lab[:, 1]))[np.hypot(lab[:, 1], lab[:, 2]) > 0.02]
    assert np.ptp(hues) < 12
    assert palette.contrast("#000000", "#ffffff") == pytest.approx(21)
    assert palette.contrast("#777777", "#ffffff") == pytest.approx(4.478, abs=1e-3)  # WCAG's own well-known example


@given(st.lists(st.integers(0, 3), max_size=12), st.lists(st.integers(0, 3), max_size=12))
def test_aligned_tokens_are_the_same_and_in_order(first: list[int], other: list[int]) -> None:
    pairs = [(a + k, b + k) for a, b, n in aligned(first, other) for k in range(n)]
    assert all(first[a] == other[b] for a, b in pairs)
    assert pairs == sorted(pairs) and len({a for a, _ in pairs}) == len({b for _, b in pairs}) == len(pairs)
    same = next((i for i, (a, b) in enumerate(zip(first, other, strict=False)) if a != b), min(len(first), len(other)))
    assert pairs[:same] == [(i, i) for i in range(same)]
    assert len(pairs) >= sum(
        block.size for block in SequenceMatcher(None, first[same:], other[same:], False).get_matching_blocks()
    )


def test_everything_that_was_recorded_can_colour() -> None:
    entropy, heads = (
        torch.tensor([[0.5, 1.5, 2.5], [1, 2, 3]]),
        torch.tensor([[[1.0, 2, 3], [3, 4, 5]], [[0, 0, 0], [1, 1, 1]]]),
    )
    acts = FeatureActs.of_dense(torch.tensor([[0, 0, 4.0], [0, 2.0, 1.0], [0, 0, 0]]))
    norms = [[25_000.0, 100.25, 300.5], [25_000.0, 10.0, 20.0]]
    trace = make_trace(
        ["s", "a", "b"], norms=norms, metrics={"hidden_entropy": entropy, "attention": heads}, features={1: acts}
    )
    header, values = read(widgets.explorer(trace, features={1: [1, 2]}))
    assert values["norm"].tolist() == [[25_000, 100.2, 300.5], [25_000, 10, 20]], "float32's 100.25 is a tie, to even"
    assert values["hidden_entropy"].tolist() == entropy.tolist()
    assert values["attention"].tolist() == [[2, 3, 4], [0.5, 0.5, 0.5]]
    assert values["feature_sum"].tolist() == [[4, 3, 0]] and values["feature_l0"].tolist() == [[1, 2, 0]]
    assert values["feature 1/1"].tolist() == [[0, 2, 0]] and values["feature 1/2"].tolist() == [[4, 1, 0]]
    assert header["medians"] == [200.375, 15], "of the tokens that are no sinks"
    assert header["sinks"] == [0, 3], "layer * tokens + token"
    kept, _ = read(widgets.explorer(trace, quantities="attention"))
    assert [quantity["name"] for quantity in kept["quantities"]] == ["norm", "attention"]


def test_responses_to_one_problem_stand_side_by_side() -> None:
    results = [make_result(i, mode) for mode in ("think", "direct") for i in range(2)]  # type: ignore[arg-type]
    header, _ = read(widgets.explorer(results))
    assert [(one["item"], one["column"], one["labels"]["mode"]) for one in header["sequences"]] == [
        (0, 0, "think"),
        (0, 1, "direct"),
        (1, 0, "think"),
        (1, 1, "direct"),
    ]
    assert [one["labels"]["answer"] for one in header["sequences"]] == ["right", "right", "wrong", "wrong"]
    assert header["sequences"][0]["title"] == "think, sums, level 1, answer right"


def test_columns_are_asked_for_by_name_and_few_traces_stand_together() -> None:
    traces = [make_trace(["s", "a"]) for _ in range(4)]
    places = [[(s["item"], s["column"], s["title"]) for s in read(widgets.explorer(given))[0]["sequences"]] for given in (
        {"plain": traces[:2], "ALRR": traces[2:]}, traces[:3], traces)]  # fmt: skip
    assert places[0] == [(0, 0, "plain"), (0, 1, "ALRR"), (1, 0, "plain"), (1, 1, "ALRR")]
    assert [place[:2] for place in places[1]] == [(0, 0), (0, 1), (0, 2)]
    assert [place[:2] for place in places[2]] == [(0, 0), (1, 0), (2, 0), (3, 0)]


def test_columns_may_be_called_by_numbers() -> None:
    header, _ = read(widgets.explorer({0.8: make_trace(["s", "a"]), 0: make_trace(["s", "a"])}))
    assert [one["title"] for one in header["sequences"]] == ["0.8", "0"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sequence": 2}, r"events of sequence 2, but the traces are numbered from 0 to 1"),
        ({"sequence": -1}, r"events of sequence -1"),
        ({"position": 3}, r"an event at position 3 of sequence 1, which has 3 tokens: events of another run"),
        ({"position": -1}, r"an event at position -1"),
        ({"position": math.nan}, r"events hold what is no number"),
        ({"layer": "late"}, r"events hold what is no number"),
    ],
)
def test_events_of_another_run_are_refused(change: dict[str, Any], message: str) -> None:
    traces = [make_trace(["s", "a", "b"]), make_trace(["s", "a", "c"])]
    with pytest.raises(InputError, match=message):
        widgets.explorer(traces, events=pd.DataFrame([{**EVENT, **change}]))


def test_events_belong_to_their_token() -> None:
    traces = [make_trace(["s", "a", "b"]), make_trace(["s", "a", "c"])]
    widget = widgets.explorer(traces, events=pd.DataFrame([EVENT]), layer=0)
    header, _ = read(widget)
    assert [one["events"] for one in header["sequences"]] == [[], [[2, 0, "Suppression", "scaled", 1, 200, 20]]]
    marked = re.findall(r'<span title="([^"]*)" class="([^"]*)">c', widget.fragment())
    assert marked == [("norm 12, position 2, Suppression at layer 0: scaled, norm 200 to 20", "l2-c31 l2-event")]


class Run(list[Any]):
    """What an explorer looks at in the `Generations` of a run with an intervention."""

    log = SimpleNamespace(prompt_lens={0: 1, 1: 1})

    def events(self) -> pd.DataFrame:
        return pd.DataFrame([EVENT])


def test_events_of_a_whole_run_are_found_and_those_of_a_part_are_not_guessed() -> None:
    run = Run([make_trace(["s", "a", "b"]), make_trace(["s", "a", "c"])])
    header, _ = read(widgets.explorer({"plain": list(run), "suppressed": run}))
    assert [len(one["events"]) for one in header["sequences"]] == [0, 0, 0, 1]
    with pytest.raises(ValueError, match=r"1 of the 2 responses of a run: .* events=out\.events\(\)"):
        widgets.explorer(Run(run[:1]))


def test_surprise_is_that_of_the_response() -> None:
    trace = make_trace(["s", "a", "b", "c"], prompt_len=2)
    completion = SimpleNamespace(trace=trace, logprobs=torch.tensor([-0.5, -1.25, -9.0]))  # the last was never read back
    _, values = read(widgets.explorer(completion))
    assert np.isnan(values["surprise"][0, :2]).all() and values["surprise"][0, 2:].tolist() == [0.5, 1.25]


def test_long_texts_are_cut_and_what_is_beyond_the_static_text_is_said() -> None:
    widget = widgets.explorer(make_trace(["s", "x" * 10_000, *["y"] * 2_100]))
    assert "x" * 201 not in widget.fragment() and "… (10,000 characters)" in widget.fragment()
    assert "102 more tokens are drawn where scripts may run" in widget.fragment()
    header, _ = read(widget)
    assert len(header["sequences"][0]["tokens"]) == 2_102


def test_the_first_view_is_chosen() -> None:
    trace = make_trace(["s", "a", "b", "c"], layers=(3, 7))
    assert widgets.explorer(trace).layer == 7 and widgets.explorer(trace, layer=-2).layer == 3
    assert 'title="ratio 1, position 2"' in widgets.explorer(trace, quantity="ratio").fragment()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer": 5}, "layer 5 was not recorded"),
        ({"quantity": "nrom"}, "quantity must be one of.*did you mean 'norm'"),
        ({"quantities": ["entropy"]}, "quantities must be one of"),
        ({"features": {1: [0]}}, "features of layer 1 were not recorded: .*saes="),
        ({"titles": ["a", "b"]}, "2 titles for 1 traces"),
        ({"events": pd.DataFrame({"sequence": []})}, "lacks the columns"),
    ],
)
def test_bad_input_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        widgets.explorer(make_trace(["s", "a"]), **change)


def test_columns_must_match() -> None:
    one, two = make_trace(["s"]), [make_trace(["s"]), make_trace(["s"])]
    with pytest.raises(ValueError, match=r"1 in 'a', 2 in 'b'"):
        widgets.explorer({"a": one, "b": two})
    with pytest.raises(ValueError, match="no traces"):
        widgets.explorer([])


def test_a_live_widget_carries_the_same_module(monkeypatch: pytest.MonkeyPatch) -> None:
    widget = widgets.explorer(make_trace(["s", "a"]))
    _live_class.cache_clear()  # another test may have made it
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "anywidget", None)
        with pytest.raises(ImportError, match="pip install anywidget"):
            widget.widget()
    pytest.importorskip("anywidget")
    live = widget.widget()
    assert (live.layer, live.quantity, live.sequence, live.position) == (None, None, -1, -1)
    assert str(live._esm) == widget.module() and live.data == widget._packed()
