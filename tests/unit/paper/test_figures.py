"""Figures from small frames made by hand: what is drawn is what the frame says."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from tests.paper_tables import TABLES, analysis_of
from tl_l2norm.analysis.correlation import PAPER_RHO
from tl_l2norm.paper.figures import (
    MAX_POINTS,
    amplification_by_level,
    assumption_matrix,
    attribution_bars,
    bound_scatter,
    correlation_bars,
    curves_by_layer,
    draw_analysis,
    entropies_by_layer,
    pressure_against_norm,
    spike_by_family,
    suppression_curve,
)

NAMES = ["curves", "entropies", "correlations", "attribution", "feature_attribution", "bound", "assumptions", "pressure",
         "causal", "spike_by_family", "amplification_by_level"]  # fmt: skip


def titles(figure: go.Figure) -> list[str]:
    return [note.text for note in figure.layout.annotations]


def lines(figure: go.Figure) -> list[go.Scatter]:
    return [trace for trace in figure.data if trace.mode == "lines+markers"]


def test_everything_is_drawn_in_the_order_of_the_page_and_says_model_and_n() -> None:
    figures = draw_analysis(analysis_of())
    assert list(figures) == NAMES
    for figure in figures.values():
        assert "m &lt;b&gt;" in figure.layout.title.text and "n = " in figure.layout.title.text
        assert "<b>" not in figure.to_json().replace("\\u003c", "<")


@pytest.mark.parametrize("missing", ["curves", "correlations", "bound_points", "assumptions", "pressure_tokens", "causal"])
def test_a_missing_table_leaves_its_figure_out(missing: str) -> None:
    drawn = draw_analysis(analysis_of({name: frame for name, frame in TABLES.items() if name != missing}))
    assert set(NAMES) - set(drawn) == {
        "curves": {"curves", "entropies"},
        "bound_points": {"bound"},
        "pressure_tokens": {"pressure"},
    }.get(missing, {missing})


@pytest.mark.parametrize("name", [*TABLES])
def test_an_empty_table_leaves_its_figure_out(name: str) -> None:
    assert len(draw_analysis(analysis_of({name: TABLES[name].iloc[:0]}))) == 0


def test_a_table_of_other_columns_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"lacks the columns \['n_tokens', 'source'\]: give what layer_curve"):
        draw_analysis(analysis_of({"curves": TABLES["curves"].drop(columns=["source", "n_tokens"])}))


def test_no_tables_no_figures() -> None:
    assert draw_analysis(analysis_of({})) == {}


INTERVALS = ("low", "high", "spike_low", "spike_high", "amplification_low", "amplification_high")


def blank(tables: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    return {name: frame.assign(**{c: np.nan for c in INTERVALS if c in frame}) for name, frame in tables.items()}


def test_without_intervals_all_is_drawn_and_is_valid_json() -> None:
    figures = draw_analysis(analysis_of(blank(TABLES)))
    assert list(figures) == NAMES
    assert not any("NaN" in figure.to_json() for figure in figures.values())
    assert not any(trace.fill == "toself" for trace in figures["curves"].data)


def test_curves_stand_beside_each_other_with_their_controls_below() -> None:
    figure = curves_by_layer(TABLES["curves"])
    assert titles(figure)[:3] == ["the norm", "reasoning features, trained SAE", "control: shuffled modes"]
    think, direct, *_ = lines(figure)
    assert list(think.y) == [10, 20, 30, 40] and list(direct.y) == [5, 10, 15, 20]
    assert think.line.dash != direct.line.dash and think.marker.symbol != direct.marker.symbol
    assert [line.showlegend for line in lines(figure)] == [True, True, False, False, False, False]
    assert {(shape.x0, shape.x1) for shape in figure.layout.shapes} == {(2.5, 3.5)}, "the late layer of four"
    assert len(lines(entropies_by_layer(TABLES["curves"]))) == 2
    alone = curves_by_layer(TABLES["curves"][TABLES["curves"]["quantity"] == "l2_norm"])
    assert titles(alone)[:2] == ["the norm", "late layers"]


def test_correlations_have_the_papers_range_beside_them_as_theirs() -> None:
    figure = correlation_bars(TABLES["correlations"])
    norm, entropy = (figure.data[0].y[i] for i in (0, 1))
    assert (norm, entropy) == (0.5, -0.25)
    assert figure.data[0].marker.pattern.shape != figure.data[1].marker.pattern.shape
    assert titles(figure).count("paper: 84 to 88") == titles(figure).count("paper: 52 to 67, best entropy") == 3
    bands = {(shape.y0, shape.y1) for shape in figure.layout.shapes if shape.type == "rect"}
    assert bands == {(low / 100, high / 100) for low, high in PAPER_RHO.values()}
    assert "over tokens, late layers (no rho: shuffled modes)" in titles(figure)


def test_the_bound_names_where_its_premise_fails() -> None:
    figure = bound_scatter(TABLES["bound_points"])
    points, diagonal, holds, fails, counts = figure.data
    assert list(points.x) == [3.0, 4.0] and list(points.y) == [6.0, 8.0]
    assert list(diagonal.x) == [0, 4]
    assert list(holds.y) == [2, 0] and list(fails.y) == [0, 2] and list(counts.text) == ["", "2"]
    assert holds.marker.pattern.shape != fails.marker.pattern.shape
    nowhere = bound_scatter(TABLES["bound_points"].assign(premise=False, right=np.nan))
    assert "the premise holds nowhere: there is no right side" in titles(nowhere)


def test_assumptions_have_a_mark_for_what_holds() -> None:
    (heat,) = assumption_matrix(TABLES["assumptions"]).data
    assert [list(line) for line in heat.text] == [["✗<br>0.09", "?<br>0.02"], ["✓<br>0.99", "–<br>"]]
    assert heat.y[0].endswith("< 0.02") and heat.y[1].endswith("> 0.95")
    assert "control (random &lt;b&gt; directions) 0.07" in heat.customdata[0][0]


def test_dots_have_their_intervals_and_a_line_of_no_difference() -> None:
    figure = spike_by_family(TABLES["dynamics_by_family"])
    (dots,) = figure.data
    assert list(dots.x) == [-5, 2] and list(dots.y) == ["a&lt;b&gt; (n = 9)", "c (n = 3)"]
    assert dots.error_x.array[0] == pytest.approx(1) and dots.error_x.arrayminus[0] == pytest.approx(2)
    assert figure.layout.shapes[0].x0 == 0
    level = amplification_by_level(TABLES["dynamics_by_level"])
    assert list(level.data[0].y) == [0.5, 1.5] and level.layout.shapes[0].y0 == 1


def test_pressure_leaves_sinks_out_and_draws_no_more_than_a_page_can_bear() -> None:
    figure = pressure_against_norm(TABLES["pressure_tokens"])
    norm, probability = figure.data
    assert list(norm.x) == [100, 200] and list(norm.y) == list(probability.y) == [1e-3, 1e-2]
    assert list(probability.x) == [0.01, 0.1]
    assert "&lt;think&gt;, position 3" in norm.customdata[0]
    assert figure.layout.yaxis.type == "log"
    many = pd.concat([TABLES["pressure_tokens"].iloc[:2].assign(l2_norm=float(i)) for i in range(2000)])
    drawn, again, other = (pressure_against_norm(many, seed=seed).data[0].x for seed in (0, 0, 1))
    assert len(drawn) == MAX_POINTS and list(drawn) == list(again) and list(drawn) != list(other)


def test_suppression_has_a_line_for_each_arm_in_order_of_positions() -> None:
    none, high, random = suppression_curve(TABLES["causal"]).data
    assert none.mode == "markers" and list(none.y) == [1.0]
    assert list(high.x) == [1, 5] and list(high.y) == [0.9, 0.5]
    assert high.error_y.arrayminus[0] == pytest.approx(0.1)
    assert high.line.dash != random.line.dash and high.marker.symbol != random.marker.symbol


def test_attribution_shows_each_way_of_matching_and_says_where_there_is_none() -> None:
    figure = attribution_bars(TABLES["attribution"])
    read, chosen = figure.data
    assert list(read.x) == [10, 2] and list(read.y) == ["all tokens", "tokens of the same types"]
    assert chosen.x[0] == 8 and np.isnan(chosen.x[1])
    assert titles(figure) == ["too few such tokens"]
    assert read.marker.pattern.shape != chosen.marker.pattern.shape
