from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from tests.builders import NASTY, make_trace
from tests.unit.analysis.test_arms import outcomes, single
from tl_l2norm.analysis.arms import Comparison, arm_table, cost_table
from tl_l2norm.analysis.curves import LayerCurve
from tl_l2norm.analysis.sinks import layer_medians, norms_without_sinks, sink_table
from tl_l2norm.show.arm_figures import selection_curves, suppression_curves
from tl_l2norm.show.figures import accuracy_bars, arm_costs, arm_differences, curves_table, norm_curves, token_heatmap


def curve(mode: str, mean: list[float], **fields: Any) -> LayerCurve:
    values = np.array(mean)
    defaults = {
        "layers": tuple(range(len(mean))),
        "late": (len(mean) - 1,),
        "low": values - 1,
        "high": values + 2,
        "n": 9,
        "n_tokens": 90,
        "seed": 0,
        "model": "m",
    }
    return LayerCurve(mode=mode, mean=values, **{**defaults, **fields})


THINK, DIRECT = curve("think", [10.0, 20.0, 40.0, 80.0]), curve("direct", [9.0, 21.0, 38.0, 70.0])


def test_curves_show_mean_and_band_and_differ_without_colour() -> None:
    band, think, _, direct = norm_curves([THINK, DIRECT]).data
    assert list(think.x) == [0, 1, 2, 3] and list(think.y) == [10, 20, 40, 80]
    assert list(band.y) == [12, 22, 42, 82, 79, 39, 19, 9]
    assert (think.name, direct.name) == ("thinking (n = 9 prompts)", "direct (n = 9 prompts)")
    assert think.line.dash != direct.line.dash and think.marker.symbol != direct.marker.symbol


def test_curves_without_interval_have_no_band() -> None:
    nan = np.full(4, np.nan)
    (line,) = norm_curves([curve("think", [1.0, 2, 3, 4], low=nan, high=nan, n=1)]).data
    assert list(line.y) == [1, 2, 3, 4]


def test_late_layers_are_shaded_and_the_axis_may_be_logarithmic() -> None:
    figure = norm_curves([THINK], log_y=True)
    (shade,) = figure.layout.shapes
    assert (shade.x0, shade.x1) == (2.5, 3.5)
    assert figure.layout.yaxis.type == "log"
    with pytest.raises(ValueError, match="no curves"):
        norm_curves([])


def test_heatmap_is_relative_to_the_median_of_tokens_that_are_no_sinks() -> None:
    trace = make_trace(["s", "a", "b", "c"], norms=[[25_000, 10, 20, 40], [25_000, 300, 100, 200]])
    (heat,) = token_heatmap(trace).data
    np.testing.assert_array_equal(heat.z, [[np.nan, 0.5, 1, 2], [np.nan, 1.5, 0.5, 1]])
    (heat,) = token_heatmap(trace, relative_to=None).data
    np.testing.assert_array_equal(heat.z, [[np.nan, 10, 20, 40], [np.nan, 300, 100, 200]])
    (heat,) = token_heatmap(trace, include_sinks=True).data
    np.testing.assert_array_equal(heat.z[:, 0], [1250, 125])
    (heat,) = token_heatmap(trace, max_tokens=2).data
    np.testing.assert_array_equal(heat.z, [[np.nan, 0.5], [np.nan, 1.5]])
    with pytest.raises(Exception, match="relative_to"):  # the runtime type checker of the tests may come first
        token_heatmap(trace, relative_to="mean")  # type: ignore[arg-type]


def test_heatmap_of_sinks_alone_is_blank() -> None:
    (heat,) = token_heatmap(make_trace(["s"])).data
    assert np.isnan(np.asarray(heat.z, dtype=float)).all()


def test_markup_in_tokens_is_text() -> None:
    (heat,) = token_heatmap(make_trace(["s", "<b>bold</b>", ""])).data
    assert heat.customdata[0][1] == "position 1, &lt;b&gt;bold&lt;/b&gt;<br>norm 11"
    assert heat.customdata[1][2] == "position 2, (part of a character)<br>norm 120"
    assert not any("<script" in cell for layer in token_heatmap(make_trace(NASTY)).data[0].customdata for cell in layer)


def test_segments_are_marked() -> None:
    figure = token_heatmap(make_trace(["s", "p", "t", "t", "a"], prompt_len=2, think=2))
    assert [note.text for note in figure.layout.annotations] == ["prompt (2)", "think (2)", "answer (1)"]
    assert [shape.x0 for shape in figure.layout.shapes] == [-0.5, 1.5, 3.5]


def test_accuracy_bars_have_their_intervals() -> None:
    table = pd.DataFrame(
        {
            "family": ["<b>", "<b>"],
            "mode": ["think", "direct"],
            "accuracy": [0.5, 0.25],
            "low": [0.3, 0.1],
            "high": [0.8, 0.5],
            "n": [8, 8],
        }
    )
    think, direct = accuracy_bars(table).data
    assert (think.x[0], think.y[0], direct.y[0]) == ("&lt;b&gt;", 0.5, 0.25)
    assert think.error_y.array[0] == pytest.approx(0.3) and think.error_y.arrayminus[0] == pytest.approx(0.2)
    assert think.marker.pattern.shape != direct.marker.pattern.shape
    assert accuracy_bars(table.drop(columns="family")).data[1].x[0] == "direct"
    with pytest.raises(ValueError, match=r"lacks the columns \['high', 'low'\]"):
        accuracy_bars(table.drop(columns=["low", "high"]))


def test_the_table_of_curves() -> None:
    lines = curves_table([THINK, DIRECT]).splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0].split() == ["layer", "thinking", "(n", "=", "9)", "direct", "(n", "=", "9)", "thinking", "-", "direct"]
    assert lines[-1].split() == ["3", "80", "[79,", "82]", "70", "[69,", "72]", "+10"]
    assert curves_table([curve("think", [5.0], low=np.array([np.nan]), high=np.array([np.nan]))]).splitlines()[-1].split() == [
        "0",
        "5",
    ]
    with pytest.raises(ValueError, match="different layers"):
        curves_table([THINK, curve("direct", [1.0])])


def test_norms_without_sinks_and_their_medians() -> None:
    trace = make_trace(["s", "a", "b"], norms=[[25_000, 10, 30], [9, 7, 6]], sinks=())
    trace.is_sink[0, 0] = True
    np.testing.assert_array_equal(norms_without_sinks(trace), [[np.nan, 10, 30], [9, 7, 6]])
    np.testing.assert_array_equal(layer_medians(trace), [20, 7])


def test_sinks_are_listed_by_position_and_token() -> None:
    bounds = torch.tensor([100.0, 100.0])
    plain = make_trace(["s", "a", "b"], norms=[[50, 10, 20], [400, 10, 20]], sink_bounds=bounds)
    odd = make_trace(["s", "a", "\n"], norms=[[50, 10, 700], [500, 10, 800]], sink_bounds=bounds, sinks=(0, 2))
    table = sink_table([plain, odd])
    assert table.to_dict("records") == [
        {"position": 0, "token": "s", "sequences": 2, "n": 2, "layers": (1,), "max_norm": 500},
        {"position": 2, "token": "\n", "sequences": 1, "n": 2, "layers": (0, 1), "max_norm": 800},
    ]


def test_no_sinks_give_an_empty_table() -> None:
    table = sink_table([make_trace(["a", "b"], norms=[[1, 2]], sinks=())])
    assert list(table.columns) == ["position", "token", "sequences", "n", "layers", "max_norm"] and table.empty


def test_arms_stand_with_their_intervals_and_costs() -> None:
    nasty = "".join(NASTY)
    made = outcomes({"plain": single(20), nasty: single(32), "down": single(8)})
    made.loc[made["arm"] == nasty, "layer_passes"] = 300
    table = arm_table(made, [Comparison(arm=nasty, against=("plain", "down")), Comparison(arm="down", against=("plain",))])
    helps, harms = arm_differences(table).data
    assert (helps.name, harms.name) == ("helps", "harms") and helps.marker.symbol != harms.marker.symbol
    assert list(helps.x) == pytest.approx([30, 60]) and list(harms.x) == pytest.approx([-30])
    mine = table[table["arm"] == nasty]
    assert list(helps.x + helps.error_x.array) == pytest.approx((100 * mine["difference_high"]).tolist())
    assert list(helps.x - helps.error_x.arrayminus) == pytest.approx((100 * mine["difference_low"]).tolist())
    assert not any("<script" in name for name in helps.y)
    points = arm_costs(table, cost_table(made)).data
    assert [(*one.x, *one.y) for one in points] == [pytest.approx((2.5, 30)), pytest.approx((1.0, -30))]
    assert "<script" not in points[0].name and points[0].marker != points[1].marker


def test_accuracies_stand_against_responses_and_against_what_was_suppressed() -> None:
    at = {"accuracy": [0.4, 0.6], "low": [0.2, 0.5], "high": [0.7, 0.9], "n": 9}
    curves = pd.concat([pd.DataFrame({"arm": arm, "responses": [1, 4], **at}) for arm in ("a<b", "vote")])
    first, second = selection_curves(curves).data
    assert (first.name, second.name) == ("a&lt;b", "vote") and list(first.x) == [1, 4] and list(second.y) == [0.4, 0.6]
    assert list(first.error_y.array) == pytest.approx([0.3, 0.3]) and list(first.error_y.arrayminus) == pytest.approx(
        [0.2, 0.1]
    )
    arms = [("plain", "", 0.0), ("much", "high", 0.4), ("some", "high", 0.1), ("low", "low", 0.2)]
    table = pd.DataFrame(arms, columns=["arm", "kind", "share"]).assign(accuracy=[0.8, 0.3, 0.5, 0.7], low=0.2, high=0.9, n=9)
    high, low, baseline = suppression_curves(table).data
    assert list(high.x) == [0, 10, 40] and list(high.y) == [0.8, 0.5, 0.3] and list(high.text) == ["", "some", "much"]
    assert list(low.x) == [0, 20] and list(baseline.y) == [0.8]
