import pandas as pd
import pytest

from tests.builders import make_result, make_results
from tl_l2norm.analysis.accuracy import accuracy_table, wilson_interval


def test_a_response_that_is_given_several_times_counts_once() -> None:
    results = make_results(6)
    once = accuracy_table(results)
    assert once["n"].tolist() == [6, 6]
    for more in ([*results] * 3, [*results, *results[:3]], [*results, results[0], results[0]]):
        pd.testing.assert_frame_equal(accuracy_table(more), once)


def test_several_responses_to_a_problem_count_by_the_share_of_them_that_is_right() -> None:
    right = {0: [True, False], 1: [True], 2: [False, False, True, None], 3: [None]}
    results = [make_result(i, "think", correct=c) for i, corrects in right.items() for c in corrects]
    entry = accuracy_table(results).iloc[0]
    assert entry["n"] == 3, "problems of which something is known"
    assert entry["accuracy"] == pytest.approx((1 / 2 + 1 + 1 / 3) / 3)
    assert (entry["low"], entry["high"]) == wilson_interval(1 / 2 + 1 + 1 / 3, 3)


@pytest.mark.parametrize("by", ["family", "level"])
def test_both_modes_of_a_problem_are_one_problem_where_they_are_not_told_apart(by: str) -> None:
    results = [make_result(i, mode, correct=mode == "think") for i in range(5) for mode in ("think", "direct")]
    entry = accuracy_table(results, by=by).iloc[0]
    assert (entry["n"], entry["accuracy"]) == (5, 0.5)


def test_the_shares_beside_accuracy_are_of_problems_too() -> None:
    results = [make_result(0, "direct", finish_reason="length", direct=False)] * 3 + [make_result(1, "direct")]
    entry = accuracy_table(results).iloc[0]
    assert (entry["cut_off"], entry["not_direct"]) == (0.5, 0.5)
