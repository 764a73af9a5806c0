import numpy as np
import pandas as pd
import pytest

from tests.builders import make_result, make_results, make_trace
from tl_l2norm.analysis.responses import (
    highest_norm_tokens,
    norms_by_correctness,
    norms_by_position,
    response_table,
)
from tl_l2norm.core.errors import InputError, Unmeasurable
from tl_l2norm.tasks.results import Result


def long(index: int, norms: list[float], mode: str = "think", **fields: object) -> Result:
    """A response of these norms at the late layer, after a prompt of two tokens; the early layer is all ones."""
    tokens = ["s", "q", *(f"t{i}" for i in range(len(norms)))]
    late = [25_000.0, 50.0, *norms]
    trace = make_trace(tokens, norms=[[1.0] * len(tokens), late], prompt_len=2, think=len(norms) if mode == "think" else 0)
    return make_result(index, mode, trace=trace, **fields)  # type: ignore[arg-type]


def test_a_response_is_as_long_as_it_was_written_and_as_loud_as_its_late_tokens() -> None:
    table = response_table([long(0, [10.0, 20.0, 60.0]), make_result(1, "direct", correct=None)])
    assert table["length"].tolist() == [4, 3], "the last token is never read back"
    assert table["l2_norm"].tolist() == [30.0, (10 * 11.0 + 10 * 13.0) / 2]
    assert table["correct"].tolist() == [True, None] and table["mode"].tolist() == ["think", "direct"]


def test_positions_are_means_over_prompts_not_over_responses() -> None:
    """Of a prompt that was asked three times the responses count as one."""
    often = [long(0, [10.0, 20.0]) for _ in range(3)]
    table = norms_by_position([*often, *(long(i, [30.0, 40.0]) for i in range(1, 9))])
    assert table["position"].tolist() == [0, 1] and table["n"].tolist() == [9, 9]
    assert table["mean"].tolist() == pytest.approx([(10 + 8 * 30) / 9, (20 + 8 * 40) / 9])
    assert (table["low"] < table["mean"]).all() and (table["high"] > table["mean"]).all()


def test_places_that_few_prompts_reach_are_left_out() -> None:
    results = [long(i, [10.0] * (3 if i < 7 else 2)) for i in range(20)]
    assert norms_by_position(results)["position"].tolist() == [0, 1]
    assert norms_by_position(results[:7])["position"].tolist() == [0, 1, 2], "all there are, where that is fewer than 8"


def test_long_responses_are_binned_into_at_most_sixty_places() -> None:
    norms = np.arange(150.0)
    table = norms_by_position([long(i, norms.tolist()) for i in range(8)])
    assert len(table) == 50 and table["position"].tolist() == list(range(0, 150, 3))
    assert table["mean"].tolist() == norms.reshape(50, 3).mean(1).tolist()


def test_a_sink_in_the_response_counts_nowhere() -> None:
    trace = make_trace(["s", "q", "a", "b"], norms=[[9.0, 9.0, 5.0, 7.0]], prompt_len=2, sinks=[0, 2])
    sunk = [make_result(i, "think", trace=trace) for i in range(8)]
    assert norms_by_position(sunk)[["position", "mean"]].values.tolist() == [[1, 7.0]]
    assert response_table(sunk)["l2_norm"].tolist() == [7.0] * 8
    assert highest_norm_tokens(sunk)["token"].tolist() == ["b"]


def test_right_and_wrong_are_apart_and_unknown_ones_left_out() -> None:
    results = [*make_results(8), make_result(8, "think", correct=None)]  # even ones are right; problem i has norm 10 (11 + i)
    table = norms_by_correctness(results).set_index(["mode", "correct"])
    assert table["n"].tolist() == table["n_responses"].tolist() == [4] * 4
    assert table.loc[("think", True), "mean"] == np.mean([10 * (11 + i) + 10 for i in (0, 2, 4, 6)])
    assert table.loc[("direct", False), "mean"] == np.mean([10 * (10 + i) + 10 for i in (1, 3, 5, 7)])


def test_the_highest_tokens_are_by_type_and_by_part_of_the_response() -> None:
    results = [long(0, [100.0, 10.0]), long(1, [300.0, 20.0]), long(2, [250.0, 30.0], "direct")]
    table = highest_norm_tokens(results)
    assert table[["token", "part", "mean", "max", "times", "prompts"]].values.tolist() == [
        ["t0", "direct", 250.0, 250.0, 1, 1],
        ["t0", "thought", 200.0, 300.0, 2, 2],
        ["t1", "direct", 30.0, 30.0, 1, 1],
        ["t1", "thought", 15.0, 20.0, 2, 2],
    ]
    assert table["ratio"].tolist() == [norm / 65 for norm in (250, 200, 30, 15)], "the median of 10, 20, 30, 100, 250, 300"
    assert (highest_norm_tokens(results, layer=0)["mean"] == 1).all() and len(highest_norm_tokens(results, n=1)) == 1


def test_nothing_to_tell_is_said() -> None:
    silent = make_result(0, "think", trace=make_trace(["s", "p"], prompt_len=2))
    with pytest.raises(Unmeasurable, match="ask for longer responses"):
        highest_norm_tokens(silent)
    assert norms_by_position(silent).empty and norms_by_correctness(silent).empty
    assert pd.isna(response_table(silent)["l2_norm"]).all()
    with pytest.raises(InputError, match="no results"):
        response_table([])
