"""Scores are worked out by hand in the comments; norms are small integers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from markupsafe import escape

from tests.builders import make_trace
from tests.traces import PROVENANCE
from tl_l2norm.analysis.accuracy import wilson_interval
from tl_l2norm.core.errors import InputError
from tl_l2norm.core.provenance import Provenance
from tl_l2norm.core.random_draws import uniform
from tl_l2norm.core.thresholds import Thresholds, iqr_thresholds
from tl_l2norm.core.trace import Trace
from tl_l2norm.experiments.candidates import Unscorable
from tl_l2norm.experiments.scores import BASELINES, NORM_SCORES, SCORES
from tl_l2norm.experiments.selection import ScoreTable, score_table, select
from tl_l2norm.recording.completions import Completion, Generations
from tl_l2norm.recording.signals import Signals
from tl_l2norm.tasks.problems import Problem

SEVEN = Problem(question="3 + 4?", answer="7", family="sums")


def signals(change: float = 1.0, settled: Sequence[int] = (1,), state: Sequence[float] = (0.0,), **fields: Any) -> Signals:
    """Of a model of 4 layers: each token's prediction settles at one of them, counted from 1."""
    divergence = torch.tensor([[0.9 if layer < at else 0.0 for at in settled] for layer in range(1, 5)])
    changes = dict.fromkeys(("net_change", "cumulative_change", "aligned_change"), torch.tensor([change, change + 1.0]))
    defaults: dict[str, Any] = {"layers": (0, 1), "segment_tokens": 2, "state_layers": (3,), "divergence": divergence}
    return Signals(mean_state=torch.tensor([list(state)]), **{**defaults, **changes, **fields})


def trace_of_response(*norms: Sequence[float], **fields: Any) -> Trace:
    """A trace with these norms [layer][pos of the response] behind one token of prompt, a sink."""
    rows = [[25_000.0, *layer] for layer in norms]
    return make_trace(["<s>", *(f"t{i}" for i in range(len(norms[0])))], norms=rows, **fields)


def completion(
    *norms: Sequence[float],
    prompt: int = 0,
    sample: int = 0,
    text: str = "",
    asked: str = "",
    trace: Trace | None = None,
    **fields: Any,
) -> Completion:
    """A response with these norms [layer][pos], and one more token that was never read back."""
    trace = trace_of_response(*norms) if norms else trace
    n_tokens = fields.pop("n_tokens", len(norms[0]) + 1 if norms else 1)
    defaults: dict[str, Any] = {"logprobs": None, "self_certainty": None}
    return Completion(
        prompt=asked,
        text=text,
        answer=text,
        prompt_tokens=(0,),
        tokens=tuple(range(n_tokens)),
        finish_reason="stop",
        prompt_index=prompt,
        sample=sample,
        seed=0,
        trace=trace,
        **(defaults | fields),
    )


def plain(*texts: str, **fields: Any) -> list[Completion]:
    """Responses of prompt 0 without traces."""
    return [completion(sample=i, text=text, **fields) for i, text in enumerate(texts)]


def scores_of(completions: Sequence[Completion], name: str, **options: Any) -> list[float]:
    return score_table(completions, **options).scores[name].tolist()


def chosen(completions: Sequence[Completion], by: str, **options: Any) -> list[int]:
    return [completion.sample for completion in select(completions, by=by, **options)]


# Norm scores


ONE, TWO = [12.0, 8.0, 14.0, 11.0], [10.0, 20.0, 9.0]
"""With tau = 10: sums 45 and 39, areas 2 + 4 + 1 = 7 and 10, counts 3 and 1, late areas (t >= 3 of 4, t >= 3 of 3) 1 and 0;
per token 45/4 and 13, 7/4 and 10/3, 3/4 and 1/3, 1/1 and 0."""


@pytest.mark.parametrize(
    ("name", "winner"),
    [
        ("norm_sum", 0),
        ("event_area", 1),
        ("event_count", 0),
        ("late_area", 0),
        ("norm_sum_per_token", 1),
        ("event_area_per_token", 1),
        ("event_count_per_token", 0),
        ("late_area_per_token", 0),
    ],
)
def test_the_higher_of_two_scores_plus_one_and_is_selected(name: str, winner: int) -> None:
    pair = [completion(ONE, sample=0), completion(TWO, sample=1)]
    expected = [1.0, -1.0] if winner == 0 else [-1.0, 1.0]
    assert scores_of(pair, name, thresholds={0: 10.0}) == pytest.approx(expected)
    assert chosen(pair, name, thresholds={0: 10.0}) == [winner]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("norm_sum", [45, 39, 30]),
        ("event_area", [7, 10, 0]),
        ("event_count", [3, 1, 0]),
        ("late_area", [1, 0, 0]),
        ("norm_sum_per_token", [45 / 4, 13, 6]),
        ("event_area_per_token", [7 / 4, 10 / 3, 0]),
        ("event_count_per_token", [3 / 4, 1 / 3, 0]),
        ("late_area_per_token", [1, 0, 0]),
    ],
)
def test_three_candidates_are_standardised_by_their_population_deviation(name: str, values: list[float]) -> None:
    three = [completion(ONE, sample=0), completion(TWO, sample=1), completion([6.0] * 5, sample=2)]
    mean = sum(values) / 3
    deviation = (sum((v - mean) ** 2 for v in values) / 3) ** 0.5
    assert scores_of(three, name, thresholds={0: 10.0}) == pytest.approx([(v - mean) / deviation for v in values])


def test_the_late_part_is_the_last_three_of_ten_and_the_last_four_of_eleven() -> None:
    # ceil(7.0) = 7 of 10 leaves 3, ceil(7.7) = 8 of 11 leaves 3
    for length, first in [(4, 3), (10, 7), (11, 8), (13, 10), (20, 14), (100, 70)]:
        outside, inside = [1.0] * length, [1.0] * length
        outside[first - 1], inside[first] = 50.0, 50.0
        pair = [completion(outside, sample=0), completion(inside, sample=1)]
        assert scores_of(pair, "late_area", thresholds={0: 10.0}) == [-1.0, 1.0], length


def test_a_norm_at_its_threshold_is_no_event() -> None:
    pair = [completion([10.0, 10.0], sample=0), completion([10.5, 1.0], sample=1)]
    assert scores_of(pair, "event_count", thresholds={0: 10.0}) == [-1.0, 1.0]


def test_the_prompt_and_sinks_are_left_out_at_their_layer() -> None:
    high = trace_of_response([10.0, 900.0, 10.0], [1.0, 2.0, 3.0])
    is_sink = high.is_sink.clone()
    is_sink[0, 2] = True
    first = completion(trace=replace(high, is_sink=is_sink), sample=0)
    # layer 0: sums 20 (two positions) and 21 (three), per token 10 and 7; layer 1: 6 and 3, per token 2 and 1
    pair = [first, completion([7.0, 7.0, 7.0], [1.0, 1.0, 1.0], sample=1)]
    assert scores_of(pair, "norm_sum", thresholds={0: 8.0, 1: 8.0}, layers=[0]) == [-1.0, 1.0]
    assert scores_of(pair, "norm_sum_per_token", thresholds={0: 8.0, 1: 8.0}, layers=[0]) == [1.0, -1.0]
    assert scores_of(pair, "event_count_per_token", thresholds={0: 9.0, 1: 2.5}, layers="all") == [1.0, -1.0]
    assert scores_of(pair, "norm_sum", thresholds={0: 8.0, 1: 8.0}, layers="all") == [0.0, 0.0]
    other = completion([7.0, 7.0, 7.0], [2.0, 2.0, 1.0], sample=1)
    assert scores_of([first, other], "norm_sum", layers=[1]) == [1.0, -1.0]  # the sink of layer 0 counts here: 6 against 5


def test_a_sink_has_no_area_and_is_not_counted_among_the_late() -> None:
    # of ten positions the last three are late; here one of those is a sink: area 10 + 6, late area 6, per late token 6 / 2
    trace = trace_of_response([1.0, 20.0, *[1.0] * 6, 900.0, 16.0])
    is_sink = trace.is_sink.clone()
    is_sink[0, 9] = True
    first = completion(trace=replace(trace, is_sink=is_sink), sample=0)
    higher, lower = ([first, completion([1.0] * 7 + [last] * 3, sample=1)] for last in (16.0, 12.5))
    assert scores_of(higher, "event_area", thresholds={0: 10.0}) == [-1.0, 1.0]  # 16 against 18
    assert scores_of(higher, "late_area", thresholds={0: 10.0}) == [-1.0, 1.0]  # 6 against 18
    assert scores_of(lower, "late_area_per_token", thresholds={0: 10.0}) == [1.0, -1.0]  # 3 against 2.5


def test_the_late_area_per_token_is_over_the_late_tokens() -> None:
    # one late token of four and three of ten: 3 and 8.25, per late token 3 and 2.75 (per token of all 0.75 and 0.825)
    pair = [completion([1.0, 1.0, 1.0, 13.0], sample=0), completion([1.0] * 7 + [12.75] * 3, sample=1)]
    assert scores_of(pair, "late_area", thresholds={0: 10.0}) == [-1.0, 1.0]
    assert scores_of(pair, "late_area_per_token", thresholds={0: 10.0}) == [1.0, -1.0]


def test_layers_are_standardised_before_they_are_averaged() -> None:
    """A layer whose norms are a hundred times larger counts no more than another."""
    three = [completion([a], [b], sample=i) for i, (a, b) in enumerate([(1.0, 300.0), (2.0, 200.0), (3.0, 100.0)])]
    assert scores_of(three, "norm_sum", layers="all") == pytest.approx([0, 0, 0])
    z = 1.5**0.5  # of 1, 2, 3
    assert scores_of(three, "norm_sum", layers=[1]) == pytest.approx([z, 0, -z])


def test_candidates_are_compared_within_their_prompt() -> None:
    pairs = [(1.0, 2.0), (900.0, 800.0)]
    rows = [completion([norm], prompt=prompt, sample=i) for prompt, pair in enumerate(pairs) for i, norm in enumerate(pair)]
    assert scores_of(rows, "norm_sum") == [-1.0, 1.0, 1.0, -1.0]
    assert chosen(rows, "norm_sum") == [1, 0]


def test_a_single_candidate_scores_zero_and_is_selected() -> None:
    only = [completion(ONE)]
    assert all(scores_of(only, name, thresholds={0: 10.0}) == [0.0] for name in NORM_SCORES)
    assert chosen(only, "event_area") == [0]


def test_a_response_that_was_never_read_back_has_empty_sums() -> None:
    empty = completion(trace=make_trace(["<s>"], norms=[[25_000.0]]), sample=0)
    for name in NORM_SCORES:  # the other has one of everything; of one position none is late
        expected = [0.0, 0.0] if name.startswith("late") else [-1.0, 1.0]
        assert scores_of([empty, completion([20.0], sample=1)], name, thresholds={0: 10.0}) == expected
    table = score_table([empty, replace(empty, sample=1)])
    assert (table.scores[list(NORM_SCORES)] == 0).all(axis=None)
    assert dict(table.thresholds) == {0: float("inf")}


def test_rounding_is_not_taken_for_a_difference() -> None:
    pair = [completion([10.1] * 3, sample=0), completion([10.1] * 10, sample=1)]
    excess = float(np.float32(10.1)) - 0.1
    assert np.full(3, excess).mean() != np.full(10, excess).mean()
    assert scores_of(pair, "event_area_per_token", thresholds={0: 0.1}) == [0.0, 0.0]


# Thresholds and layers


def test_by_default_thresholds_come_from_the_candidates() -> None:
    rows = [completion([1.0, 2.0, 3.0, 4.0], sample=0), completion([5.0, 6.0, 7.0, 40.0], sample=1)]
    table = score_table(rows)
    assert dict(table.thresholds) == dict(iqr_thresholds([one.trace for one in rows if one.trace]))
    # of 1 to 7 and 40: Q1 = 2.75, Q3 = 6.25, tau = 6.25 + 1.5 * 3.5 = 11.5
    assert dict(table.thresholds) == {0: 11.5}
    assert table.scores["event_count"].tolist() == [-1.0, 1.0]


def test_late_is_the_last_quarter_of_the_model() -> None:
    rows = [completion(*([[float(i)]] * 8), sample=i) for i in range(2)]
    assert score_table(rows).layers == (6, 7)
    assert score_table(rows, layers=5).layers == (5,)
    assert score_table(rows, layers=[3, -1, 3]).layers == (3, 7)
    assert score_table(rows, layers=slice(2, 4)).layers == (2, 3)


def test_late_and_slices_are_of_the_model_where_only_a_part_was_recorded() -> None:
    rows = [completion(trace=trace_of_response(*([[float(i)]] * 3), layers=(1, 6, 7)), sample=i) for i in range(2)]
    assert score_table(rows).layers == (6, 7)
    assert score_table(rows, layers=slice(4, 7)).layers == (6,)
    with pytest.raises(ValueError, match=r"layers 2-5 of the model .* were not recorded: this trace has layers 1, 6-7"):
        select(rows, by="norm_sum", layers=slice(2, 6))
    assert score_table(rows, layers="all").layers == (1, 6, 7)
    assert score_table(rows, layers=7).layers == (7,)
    with pytest.raises(ValueError, match="layer 2 was not recorded"):
        select(rows, by="norm_sum", layers=2)
    with pytest.raises(ValueError, match="no layers given"):
        select(rows, by="norm_sum", layers=[])


def test_thresholds_that_lack_a_layer_or_are_of_another_model_are_refused() -> None:
    rows = [completion([1.0], [2.0], [3.0], sample=i) for i in range(2)]
    with pytest.raises(ValueError, match=r"no threshold for layers 0, 2: give one each for 0-2"):
        select(rows, by="event_area", thresholds={1: 5.0}, layers="all")
    with pytest.raises(ValueError, match="threshold of layer 2 must be a norm"):
        select(rows, by="event_area", thresholds={2: float("nan")})
    other = Thresholds({2: 5.0}, provenance=Provenance(**{**PROVENANCE, "dtype": "bfloat16"}))
    with pytest.raises(ValueError, match=r"by hand \(bfloat16\), the completions of by hand \(float32\)"):
        select(rows, by="event_area", thresholds=other)


# Baselines


def test_length_order_and_chance() -> None:
    rows = [completion(prompt=p, sample=i, n_tokens=n) for p in (0, 1) for i, n in enumerate([5, 3, 8, 3])]
    table = score_table(rows, seed=4).scores
    assert table["first"].tolist() == [0, -1, -2, -3] * 2
    assert table["shortest"].tolist() == [-5, -3, -8, -3] * 2
    assert table["longest"].tolist() == [5, 3, 8, 3] * 2
    assert table["random"].tolist() == [float(uniform(4, p, i)) for p in (0, 1) for i in range(4)]
    assert chosen(rows, "first") == [0, 0]
    assert chosen(rows, "shortest") == [1, 1]  # the earlier of two
    assert chosen(rows, "longest") == [2, 2]
    assert table["prompt_index"].tolist() == [0] * 4 + [1] * 4


def test_random_takes_each_candidate_about_as_often() -> None:
    rows = [completion(prompt=p, sample=i) for p in range(400) for i in range(4)]
    counts = np.bincount(chosen(rows, "random", seed=1), minlength=4)
    assert counts.min() > 70  # 100 expected, deviation 8.7
    assert chosen(rows, "random", seed=1) == chosen(rows[::-1], "random", seed=1) != chosen(rows, "random", seed=2)


@pytest.mark.parametrize(("name", "field"), [("logprob", "logprobs"), ("self_certainty", "self_certainty")])
def test_confidence_is_a_mean_over_tokens(name: str, field: str) -> None:
    values = [torch.tensor([-1.0, -3.0]), torch.tensor([-1.5]), torch.tensor([-1.0, -1.0, -4.0])]
    rows = [completion(sample=i, n_tokens=len(v), **{field: v}) for i, v in enumerate(values)]
    assert scores_of(rows, name) == [-2.0, -1.5, -2.0]
    assert chosen(rows, name) == [1]
    with pytest.raises(Unscorable, match=f"prompt 0, sample 1 has no {field}"):
        select([rows[0], replace(rows[1], **{field: None})], by=name)
    with pytest.raises(ValueError, match=f"the {name} of prompt 0, sample 1 is NaN"):
        select([rows[0], replace(rows[1], **{field: torch.tensor([float("nan")])})], by=name)


DECREASING = torch.tensor([9.0, 8, 7, 6, 5, 4, 3, 2, 1, 0, 1, 9])
"""Means of all 11 windows of 2: 8.5, 7.5, 6.5, 5.5, 4.5, 3.5, 2.5, 1.5, 0.5, 0.5, 5."""


def test_deepconfs_confidences_by_hand() -> None:
    rows = [completion(token_confidence=DECREASING, sample=0), completion(token_confidence=torch.full((30,), 2.0), sample=1)]
    for name, expected in [("confidence", 55 / 12), ("bottom_confidence", 0.5), ("lowest_confidence", 0.5)]:
        assert scores_of(rows, name, window=2) == pytest.approx([expected, 2.0])
    assert scores_of(rows, "tail_confidence", window=2) == [5.0, 2.0]
    for name in ("confidence", "bottom_confidence", "lowest_confidence", "tail_confidence"):  # all is one group of 2048
        assert scores_of(rows, name) == pytest.approx([55 / 12, 2.0])
    twenty = [completion(token_confidence=torch.arange(20.0), sample=0)]  # a tenth of 20 groups: the two lowest
    assert scores_of(twenty, "bottom_confidence", window=1) == [0.5] and scores_of(twenty, "lowest_confidence", window=1) == [0]
    with pytest.raises(InputError, match="window must be an integer of 1 or more|window"):
        select(rows, by="confidence", window=0)


def test_confidence_weighs_votes() -> None:
    sure = [
        completion(sample=i, text=t, token_confidence=torch.tensor([c]))
        for i, (t, c) in enumerate([("8", 5.0), ("7", 2.0), ("7.0", 2.0), ("no idea", 9.0)])
    ]
    assert chosen(sure, "majority", problems=[SEVEN]) == [1]
    assert scores_of(sure, "confidence_vote", problems=[SEVEN]) == pytest.approx([5 / 18, 4 / 18, 4 / 18, 0])
    assert chosen(sure, "confidence_vote", problems=[SEVEN]) == [0]


def test_confidence_that_was_not_kept_says_so() -> None:
    old = [completion(logprobs=torch.zeros(1), self_certainty=torch.zeros(1))]
    with pytest.raises(Unscorable, match="sample 0 has no token_confidence: it was recorded by a version that didn't keep it"):
        select(old, by="tail_confidence")
    with pytest.raises(Unscorable, match="sample 0 has no token_confidence: call generate with record=True"):
        select(plain("7"), by="confidence_vote")
    assert "didn't keep it" in score_table(old).left_out["lowest_confidence_vote"]


def test_think_at_n_votes_among_the_upper_half_by_deep_thinking() -> None:
    # late is layer ceil(0.85 * 4) = 4 of 4: ratios 0, 1/2, 1, 1/2; those of 1/2 tie at the half
    settled = [(1, 3), (4, 1), (4, 4), (2, 4)]
    rows = [
        completion(sample=i, text=t, signals=signals(settled=s)) for i, (t, s) in enumerate(zip("7788", settled, strict=True))
    ]
    assert scores_of(rows, "deep_thinking_ratio") == [0, 0.5, 1, 0.5]
    assert scores_of(rows, "think_at_n", problems=[SEVEN]) == pytest.approx([0, 1 / 3, 2 / 3, 2 / 3])
    assert chosen(rows, "think_at_n", problems=[SEVEN]) == [2]
    with pytest.raises(Unscorable, match=r"sample 0 has no signals: call read_signals\(model, completions\)"):
        select(plain("7"), by="think_at_n")
    with pytest.raises(Unscorable, match="no divergence: call .* with divergence=True"):
        select([completion(signals=signals(divergence=None))], by="deep_thinking_ratio")


def test_changes_are_means_over_layers_and_less_cumulative_change_is_better() -> None:
    rows = [completion(sample=i, signals=signals(change)) for i, change in enumerate([1.0, 3.0])]
    assert scores_of(rows, "net_change") == scores_of(rows, "aligned_change") == [1.5, 3.5]
    assert scores_of(rows, "cumulative_change") == [-1.5, -3.5] and chosen(rows, "cumulative_change") == [0]


def test_a_few_thoughts_too_short_for_a_change_come_last_and_many_leave_no_score() -> None:
    for score in ("net_change", "cumulative_change", "aligned_change"):
        rows = [completion(sample=i, signals=signals(float("nan") if i == 0 else -1.0 * i)) for i in range(20)]
        scores = scores_of(rows, score)
        assert min(scores) == scores[0] < min(scores[1:]) and chosen(rows, score) == [19 if score == "cumulative_change" else 1]
        assert score_table(rows).scores[score].iloc[0] == -np.inf
        broken = replace(signals(float("nan")), mean_state=torch.full((1, 1), torch.nan))
        with pytest.raises(InputError, match="the states of prompt 0, sample 20 are NaN"):
            select([*rows, completion(sample=20, signals=broken)], by=score)
        short = [*rows[:19], completion(sample=19, signals=signals(float("nan")))]
        with pytest.raises(Unscorable, match=r"10% of the thoughts .* less than two segments of 2 tokens: .*_tokens="):
            select(short, by=score)


def test_a_probe_is_fitted_on_other_problems() -> None:
    """The sign of the state tells in all problems but one, whose labels are the other way round: it doesn't learn those."""
    problems = [Problem(question=f"{i} + 0?", answer=str(i), family="sums") for i in range(10)]
    rows = [
        completion(prompt=i, sample=j, text=str(i if (j == 0) != (i == 3) else -1), signals=signals(state=[1.0 - 2 * j, j * i]))
        for i in range(10)
        for j in range(2)
    ]
    assert chosen(rows, "probe", problems=problems) == [0] * 10
    assert select(rows, by="probe", problems=problems)[3].answer == "-1"
    with pytest.raises(Unscorable, match="learns from right and wrong responses to other problems, and here are 1 with known"):
        select(rows[:2], by="probe", problems=problems[:1])
    with pytest.raises(Unscorable, match="to other problems, and here all are right"):
        select([row for row in rows if row.sample == (row.prompt_index == 3)], by="probe", problems=problems)
    for other in ({"state_layers": (2,)}, {"segment_tokens": 9}, {"layers": (1, 2)}):
        for by in ("probe", "net_change"):
            with pytest.raises(Unscorable, match="signals are of different layers or segments"):
                select([rows[0], completion(sample=1, signals=signals(state=[1.0, 2.0], **other))], by=by)


def test_a_probe_scores_the_same_response_the_same() -> None:
    """Sample k + 4 says what sample k does: products of matrices alone leave some of them unequal in their last bits."""
    problems = [Problem(question=f"{i} + 0?", answer=str(i), family="sums") for i in range(24)]
    states = torch.randn(24, 4, 300, generator=torch.Generator().manual_seed(0))
    rows = [
        completion(prompt=i, sample=j, text=str(i if j % 2 else -1), signals=signals(state=states[i, j % 4].tolist()))
        for i in range(24)
        for j in range(8)
    ]
    scores = np.reshape(scores_of(rows, "probe", problems=problems), (24, 8))
    assert np.array_equal(scores[:, :4], scores[:, 4:]) and len(np.unique(scores)) == 24 * 4
    assert max(chosen(rows, "probe", problems=problems)) < 4


def test_the_accuracy_of_random_is_its_expectation() -> None:
    rows = [completion(prompt=p, sample=i, text=t) for p, texts in enumerate(["7788", "7888"]) for i, t in enumerate(texts)]
    for seed in range(3):
        table = score_table(rows, problems=[SEVEN, SEVEN], seed=seed)
        assert table.accuracy is not None
        low, high = wilson_interval(0.75, 2)
        assert row_of(table.accuracy, "random") == {"accuracy": 0.375, "low": low, "high": high, "n": 2}


def test_majority_counts_numbers_as_numbers() -> None:
    rows = plain("The answer is 8.", "The answer is 7.", "So 3 + 4 = 7.0", "I don't know")
    assert scores_of(rows, "majority", problems=[SEVEN]) == [0.25, 0.5, 0.5, 0.0]
    assert chosen(rows, "majority", problems=[SEVEN]) == [1]


def test_majority_without_problems_reads_free_text() -> None:
    rows = plain("The answer is Paris.", "<answer>3.0</answer>", r"\boxed{3}", "The answer is paris", "The answer is 3", "")
    assert scores_of(rows, "majority") == pytest.approx([2 / 6, 3 / 6, 3 / 6, 2 / 6, 3 / 6, 0])


def test_options_are_words_even_if_they_look_like_numbers() -> None:
    problem = Problem(question="Which?", answer="1", options=("1", "01"), family="odd")
    assert scores_of(plain("1", "01", "01"), "majority", problems=[problem]) == pytest.approx([1 / 3, 2 / 3, 2 / 3])


def test_the_oracle_takes_a_correct_answer_where_there_is_one() -> None:
    rows = [*plain("8", "7", "7.0"), *(replace(one, prompt_index=1) for one in plain("6", "5"))]
    assert scores_of(rows, "oracle", problems=[SEVEN, SEVEN]) == [0, 1, 1, 0, 0]
    assert chosen(rows, "oracle", problems=[SEVEN, SEVEN]) == [1, 0]


# Selection


def test_the_result_is_in_the_order_of_the_prompts_whatever_the_order_given() -> None:
    rows = [
        completion(ONE if i == prompt % 3 else TWO, prompt=prompt, sample=i, text=f"{prompt}/{i}")
        for prompt in (2, 0, 7)
        for i in range(3)
    ]
    expected = ["0/0", "2/2", "7/1"]
    for order in (rows, rows[::-1], Generations(tuple(rows[4:] + rows[:4]))):
        best = select(order, by="norm_sum", thresholds={0: 10.0})
        assert isinstance(best, Generations)
        assert list(best.texts) == expected


@pytest.mark.parametrize("name", [*NORM_SCORES, "majority", "oracle", "longest"])
def test_ties_go_to_the_earlier_sample(name: str) -> None:
    rows = [completion(TWO, sample=i, text="7") for i in (3, 1, 2)]
    assert chosen(rows, name, thresholds={0: 10.0}, problems=[SEVEN]) == [1]


norms = st.lists(st.integers(1, 60), min_size=1, max_size=12)


@settings(max_examples=40, deadline=None)
@given(responses=st.lists(st.tuples(norms, norms), min_size=1, max_size=5), order=st.randoms(), power=st.integers(-3, 3))
def test_order_and_scale_of_the_norms_change_nothing(
    responses: list[tuple[list[int], list[int]]], order: Any, power: int
) -> None:
    def candidates(factor: float) -> list[Completion]:
        rows = []
        for i, (low, high) in enumerate(responses):
            n = min(len(low), len(high))
            rows.append(completion([v * factor for v in low[:n]], [v * factor for v in high[:n]], sample=i))
        return rows

    def scores(rows: list[Completion], factor: float) -> pd.DataFrame:
        return score_table(rows, thresholds={0: 30 * factor, 1: 20 * factor}, layers="all").scores

    base, scaled = candidates(1.0), candidates(2.0**power)
    shuffled = order.sample(base, len(base))
    pd.testing.assert_frame_equal(scores(base, 1.0), scores(scaled, 2.0**power), check_exact=True)
    pd.testing.assert_frame_equal(scores(base, 1.0), scores(shuffled, 1.0), check_exact=True)


@settings(max_examples=40, deadline=None)
@given(sums=st.lists(st.integers(1, 1000), min_size=1, max_size=6), constant=st.integers(0, 5000))
def test_a_constant_added_to_every_sum_leaves_scores_and_choice(sums: list[int], constant: int) -> None:
    """The same token appended to every candidate."""
    alone = [completion([float(v)], sample=i) for i, v in enumerate(sums)]
    longer = [completion([float(v), float(constant)], sample=i) for i, v in enumerate(sums)]
    assert scores_of(alone, "norm_sum", thresholds={0: 1.0}) == pytest.approx(
        scores_of(longer, "norm_sum", thresholds={0: 1.0})
    )
    assert chosen(alone, "norm_sum") == chosen(longer, "norm_sum") == [sums.index(max(sums))]


# The table


def three_prompts() -> list[Completion]:
    """Lengths 2, 3, 4 each; answers right where they are short."""
    return [
        completion([5.0] * (n - 1), prompt=prompt, sample=i, text="7" if n == 2 else "8", n_tokens=n)
        for prompt, lengths in enumerate([(2, 3, 4), (4, 2, 3), (3, 4, 2)])
        for i, n in enumerate(lengths)
    ]


def row_of(frame: pd.DataFrame, name: str) -> dict[str, Any]:
    return frame.set_index("score").loc[name].to_dict()


def test_correlation_with_length_is_within_prompts() -> None:
    correlation = score_table(three_prompts(), thresholds={0: 1.0}).length_correlation
    assert list(correlation.columns) == ["score", "rho", "low", "high", "n_prompts"]
    for name, rho in [("longest", 1.0), ("shortest", -1.0), ("norm_sum", 1.0), ("event_area", 1.0)]:
        assert row_of(correlation, name) == pytest.approx({"rho": rho, "low": rho, "high": rho, "n_prompts": 3})
    # "first" scores 0, -1, -2 against (2, 3, 4), (4, 2, 3), (3, 4, 2): rho -1, 0.5, 0.5
    first = row_of(correlation, "first")
    assert (first["rho"], first["n_prompts"]) == (pytest.approx(0.0), 3)
    assert first["low"] == pytest.approx(-1) and first["high"] == pytest.approx(0.5)
    constant = row_of(correlation, "norm_sum_per_token")
    assert np.isnan(constant["rho"]) and constant["n_prompts"] == 0


def test_a_correlation_needs_three_candidates_of_several_lengths_and_ties_share_their_rank() -> None:
    two = [completion(prompt=0, sample=i, n_tokens=n) for i, n in enumerate([2, 3])]
    same = [completion(prompt=1, sample=i, n_tokens=2) for i in range(3)]
    tied = [completion(prompt=2, sample=i, n_tokens=n) for i, n in enumerate([2, 2, 5, 90])]
    entry = row_of(score_table([*two, *same, *tied]).length_correlation, "first")
    # ranks 4, 3, 2, 1 against 1.5, 1.5, 3, 4: covariance -4.5, variances 5 and 4.5
    assert entry["rho"] == pytest.approx(-4.5 / 22.5**0.5) and entry["n_prompts"] == 1
    assert np.isnan(entry["low"])


def test_accuracy_is_of_what_each_score_selects() -> None:
    unknown = Problem(question="?", answer=None, family="open")
    table = score_table(three_prompts(), thresholds={0: 1.0}, problems=[SEVEN, SEVEN, unknown])
    assert table.accuracy is not None
    assert list(table.accuracy.columns) == ["score", "accuracy", "low", "high", "n"]
    for name, hits in [("oracle", 2), ("shortest", 2), ("longest", 0), ("first", 1), ("majority", 0), ("norm_sum", 0)]:
        low, high = wilson_interval(hits, 2)
        assert row_of(table.accuracy, name) == {"accuracy": hits / 2, "low": low, "high": high, "n": 2}
    assert table.scores["oracle"].tolist() == [1, 0, 0, 0, 1, 0, 0, 0, 0]  # 0 where it is not known


def test_what_cannot_be_computed_is_left_out_by_name() -> None:
    table = score_table(plain("a", "b"))
    there = {"first", "random", "shortest", "longest", "majority"}
    assert table.left_out.keys() == set(SCORES) - there
    assert "no trace" in table.left_out["norm_sum"] and "problems=" in table.left_out["oracle"]
    assert list(table.scores.columns[3:]) == [name for name in SCORES if name not in table.left_out]
    assert table.length_correlation["score"].tolist() == list(table.scores.columns[3:])
    assert table.accuracy is None
    assert (table.layers, dict(table.thresholds), table.model) == ((), {}, None)


def test_with_everything_given_nothing_is_left_out() -> None:
    certain = {name: torch.zeros(5) for name in ("logprobs", "self_certainty", "token_confidence")}
    rows = [
        completion(ONE, prompt=p, sample=i, text="7" if i else "8", signals=signals(), **certain)
        for p in range(2)
        for i in range(2)
    ]
    table = score_table(rows, problems=[SEVEN, Problem(question="1 + 6?", answer="7", family="sums")])
    assert not table.left_out and table.model == "by hand"
    assert list(table.scores.columns) == ["prompt_index", "sample", "n_tokens", *SCORES]
    assert (*NORM_SCORES, *BASELINES) == SCORES


def test_the_table_prints() -> None:
    table = score_table(three_prompts(), thresholds={0: 1.0}, problems=[SEVEN] * 3)
    text = str(table)
    assert text.splitlines()[0] == "9 responses to 3 prompts, by hand, layers 0, seed 0"
    assert "late_area_per_token" in text and "left out: logprob: prompt 0, sample 0 has no logprobs" in text
    assert max(len(line) for line in text.splitlines() if not line.startswith("left out")) <= 100
    assert "left out: confidence, bottom_confidence, lowest_confidence, tail_confidence, confidence_vote, " in text
    assert repr(table) == text
    html = table._repr_html_()
    assert html.count("<table") == 1 and "event_area" in html
    assert table.left_out and all(escape(reason) in html for reason in table.left_out.values())
    assert list(table.to_frame().columns) == [
        *("score", "accuracy", "low", "high", "n", "rho_length", "rho_low", "rho_high", "rho_n")
    ]
    assert isinstance(score_table(plain("a")), ScoreTable)


# Errors


def test_an_unknown_score_is_refused_with_the_closest() -> None:
    with pytest.raises(ValueError, match=r"no score 'event_arae'. Did you mean 'event_area'.*There are: aligned_change, "):
        select(plain("a"), by="event_arae")


def test_no_completions_and_doubled_ones_are_refused() -> None:
    with pytest.raises(ValueError, match="no completions given"):
        select([], by="first")
    with pytest.raises(ValueError, match="two completions are prompt 0, sample 0: if they come from several calls"):
        score_table([*plain("a"), *plain("b")])


def test_norm_scores_need_every_trace_of_one_model() -> None:
    rows = [completion(ONE, sample=0), completion(TWO, sample=1)]
    with pytest.raises(Unscorable, match="prompt 0, sample 1 has no trace: call generate with record=True"):
        select([rows[0], replace(rows[1], trace=None)], by="event_count")
    other = trace_of_response(TWO, provenance={"model": "another"})
    for use in (lambda rows: select(rows, by="norm_sum"), score_table):
        with pytest.raises(ValueError, match="another"):
            use([rows[0], replace(rows[1], trace=other)])


def test_problems_are_one_for_each_prompt() -> None:
    for by in ("oracle", "majority", "first"):
        with pytest.raises(ValueError, match="2 problems for 1 prompts"):
            select(plain("a", "b"), by=by, problems=[SEVEN, SEVEN])
    with pytest.raises(Unscorable, match="no problem has a known answer"):
        select(plain("a"), by="oracle")
    with pytest.raises(Unscorable, match="no problem has a known answer"):
        select(plain("a"), by="oracle", problems=[replace(SEVEN, answer=None)])


EIGHT, NINE = (Problem(question=f"{a} +  {b} is What?", answer=str(a + b), family="sums") for a, b in ((3, 5), (3, 6)))


def asked(*problems: Problem, template: str = "<|user|>\n{}<|assistant|>") -> list[Completion]:
    """Two answers to each, the second of them right."""
    return [
        completion(prompt=i, sample=s, text=text, asked=template.format(problem.question))
        for i, problem in enumerate(problems)
        for s, text in enumerate(["0", str(problem.answer)])
    ]


@pytest.mark.parametrize("wrong", [[NINE, EIGHT], [EIGHT, EIGHT], [NINE, NINE], [SEVEN, NINE]])
def test_problems_that_are_not_what_the_prompts_ask_are_refused(wrong: list[Problem]) -> None:
    rows = asked(EIGHT, NINE)
    assert chosen(rows, "oracle", problems=[EIGHT, NINE]) == [1, 1]
    for use in (lambda: score_table(rows, problems=wrong), lambda: select(rows, by="majority", problems=wrong)):
        with pytest.raises(ValueError, match="give problems in the order of the prompts"):
            use()


@pytest.mark.parametrize(
    "change", [str.lower, str.upper, lambda text: " ".join(text.split()), lambda text: f"Q: 1 + 1? A: 2. Q: {text}"]
)
def test_a_prompt_may_write_its_question_in_another_way(change: Any) -> None:
    rows = [replace(one, prompt=change(one.prompt)) for one in asked(EIGHT, NINE)]
    assert chosen(rows, "oracle", problems=[EIGHT, NINE]) == [1, 1]


def test_where_no_text_of_the_prompts_is_known_problems_are_taken_in_their_order() -> None:
    assert chosen([replace(one, prompt="") for one in asked(EIGHT, NINE)], "oracle", problems=[NINE, EIGHT]) == [0, 0]
