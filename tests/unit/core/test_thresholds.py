"""Thresholds: from traces, and running."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tl_l2norm as l2
from tests.builders import make_trace
from tl_l2norm.core.thresholds import RunningIQR


def traces() -> list[l2.Trace]:
    """Two of a prompt of 2 tokens and responses of 4 and 3; the last token of the second is a sink."""
    first = make_trace(list("abcdef"), norms=[[900, 5, 1, 2, 3, 4], [900, 50, 10, 20, 30, 40]], prompt_len=2)
    second = make_trace(list("abcde"), norms=[[900, 5, 5, 6, 777], [900, 50, 50, 60, 7777]], prompt_len=2, sinks=(0, 4))
    return [first, second]


def test_quantiles_are_over_decode_tokens_without_sinks() -> None:
    thresholds = l2.quantile_thresholds(traces(), 0.5)
    assert dict(thresholds) == {0: 3.5, 1: 35.0}
    assert dict(l2.quantile_thresholds(traces(), 1.0)) == {0: 6.0, 1: 60.0}
    assert dict(l2.quantile_thresholds(traces(), 1.0, include_sinks=True)) == {0: 777.0, 1: 7777.0}
    assert thresholds.provenance == traces()[0].provenance


def test_the_iqr_rule_is_the_textbooks() -> None:
    assert dict(l2.iqr_thresholds(traces(), 2.0)) == {0: 4.75 + 2 * 2.5, 1: 47.5 + 2 * 25}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: l2.quantile_thresholds(traces(), 1.5), "q must be between 0 and 1"),
        (lambda: l2.iqr_thresholds(traces(), -1.0), "k must be 0 or more"),
        (lambda: l2.quantile_thresholds([]), "no traces"),
        (lambda: l2.quantile_thresholds([make_trace(list("abc"), prompt_len=3)]), "no decode token"),
        (lambda: l2.Thresholds({}), "empty"),
        (lambda: l2.Thresholds({0: -1.0}), "layer 0 must be a norm"),
        (lambda: l2.Thresholds({3: float("nan")}), "layer 3 must be a norm"),
        (lambda: l2.AdaptiveIQR(k=-1.0), "k must be 0 or more"),
        (lambda: l2.AdaptiveIQR(warmup=1), "warmup must be at least 2"),
        (lambda: l2.AdaptiveIQR(min_iqr=float("inf")), "min_iqr"),
    ],
)
def test_bad_parameters_say_which_and_what_range(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]


norms = st.floats(min_value=0.0, max_value=1e4, width=32)


@settings(deadline=None, max_examples=40)
@given(data=st.data(), n=st.integers(1, 4), steps=st.integers(1, 14), scope=st.sampled_from(["run", "sequence"]))
def test_running_thresholds_are_numpys_quantiles_of_what_came_before(
    data: st.DataObject, n: int, steps: int, scope: str
) -> None:
    rule = l2.AdaptiveIQR(k=1.5, warmup=4, min_iqr=0.25, scope=scope)
    running = RunningIQR(rule, n, torch.device("cpu"))
    seen: list[list[float]] = [[] for _ in range(n)]
    for _ in range(steps):
        values = torch.tensor(data.draw(st.lists(norms, min_size=n, max_size=n)))
        live = torch.tensor(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
        tau = running.judge(values[:, None], live[:, None])[:, 0]
        for row in range(n):
            samples = seen[row] if scope == "sequence" else [x for part in seen for x in part]
            if len(samples) < 4:
                assert torch.isnan(tau[row])
            else:
                first, third = np.quantile(samples, [0.25, 0.75])
                assert float(tau[row]) == pytest.approx(third + 1.5 * max(third - first, 0.25), rel=1e-5, abs=1e-5)
        for row in range(n):
            if live[row]:
                seen[row].append(float(values[row]))


def test_rows_of_running_thresholds_are_selected_and_joined() -> None:
    rule = l2.AdaptiveIQR(warmup=2, scope="sequence")
    cpu = torch.device("cpu")
    one, other = RunningIQR(rule, 2, cpu), RunningIQR(rule, 1, cpu)
    one.judge(torch.tensor([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]]), torch.ones(2, 3, dtype=torch.bool))
    other.judge(torch.tensor([[5.0, 5.0]]), torch.ones(1, 2, dtype=torch.bool))
    expected = {0: one.current()[0], 1: one.current()[1], 2: other.current()[0]}
    both = one.join(other).select(torch.tensor([2, 0]))
    assert both.current().tolist() == [float(expected[2]), float(expected[0])]
