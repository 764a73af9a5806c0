"""Entropies in closed form, and what a recorder and a trace say about metrics."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tl_l2norm as l2
from tests.traces import trace_of
from tl_l2norm.models.bridge_backend import BridgeBackend
from tl_l2norm.models.hooked_backend import HookedBackend
from tl_l2norm.recording import metrics
from tl_l2norm.recording.generate import _refuse_metrics as refuse_metrics
from tl_l2norm.recording.metrics import (
    attention_entropy,
    check_finite_metrics,
    check_metrics,
    entropy_of_logits,
    hidden_entropy,
)

INF = float("inf")
numbers = st.floats(-1e4, 1e4, width=32)
states = st.lists(numbers, min_size=1, max_size=30).filter(lambda h: max(map(abs, h)) > 1e-3)


def test_uniform_is_log_n_and_one_hot_is_0() -> None:
    n = 576
    signs = torch.where(torch.arange(n) % 2 == 0, 3.0, -3.0)
    one_hot = torch.zeros(n)
    one_hot[7] = -5.0
    torch.testing.assert_close(hidden_entropy(torch.stack([signs, one_hot])), torch.tensor([math.log(n), 0.0]))
    torch.testing.assert_close(
        attention_entropy(torch.stack([signs.abs() / 3 / n, one_hot / -5])), torch.tensor([math.log(n), 0.0])
    )
    logits = torch.stack([torch.full((n,), 41.0), torch.where(one_hot != 0, 0.0, -INF), 1000 * one_hot.abs()])
    torch.testing.assert_close(entropy_of_logits(logits), torch.tensor([math.log(n), 0.0, 0.0]))


def test_two_alike_is_log_2() -> None:
    two = torch.tensor(math.log(2))
    torch.testing.assert_close(hidden_entropy(torch.tensor([0.0, 2.0, 0.0, -2.0])), two)
    torch.testing.assert_close(entropy_of_logits(torch.tensor([-INF, 5.0, 5.0, -INF])), two)
    torch.testing.assert_close(attention_entropy(torch.tensor([0.5, 0.5, 0.0])), two)


def test_three_by_hand() -> None:
    p = [0.5, 0.25, 0.25]
    truth = torch.tensor(1.5 * math.log(2))
    torch.testing.assert_close(hidden_entropy(torch.tensor(p).sqrt()), truth)
    torch.testing.assert_close(entropy_of_logits(torch.tensor(p).log() + 3), truth)
    torch.testing.assert_close(attention_entropy(torch.tensor(p)), truth)


def test_masked_keys_add_nothing() -> None:
    pattern = torch.tensor([[0.1, 0.2, 0.7], [0.3, 0.3, 0.4]])
    padded = torch.nn.functional.pad(pattern, (5, 2))
    torch.testing.assert_close(attention_entropy(padded), attention_entropy(pattern))


def test_zeros_have_entropy_0() -> None:
    assert hidden_entropy(torch.zeros(2, 5)).tolist() == attention_entropy(torch.zeros(2, 5)).tolist() == [0.0, 0.0]


def test_what_is_broken_stays_visible() -> None:
    for value in (INF, float("nan")):
        assert not torch.isfinite(hidden_entropy(torch.tensor([1.0, value])))
        assert not torch.isfinite(entropy_of_logits(torch.tensor([1.0, value])))
        assert not torch.isfinite(attention_entropy(torch.tensor([1.0, value])))
    assert not torch.isfinite(attention_entropy(torch.tensor([-1.0, 2.5]))), "scores before the softmax are no weights"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_worked_on_in_float32(dtype: torch.dtype) -> None:
    stream = torch.zeros(3, 8, dtype=dtype)
    stream[:, 5], stream[:, 6] = 60000.0, -60000.0  # the squares overflow float16
    entropy = hidden_entropy(stream)
    assert entropy.dtype == torch.float32
    torch.testing.assert_close(entropy, torch.full((3,), math.log(2)))
    logits = torch.tensor([60000.0, 60000.0, -60000.0], dtype=dtype)
    torch.testing.assert_close(entropy_of_logits(logits), torch.tensor(math.log(2)))
    uniform = torch.full((300,), 1 / 300, dtype=dtype)  # its sum is not 1 in half precision
    torch.testing.assert_close(attention_entropy(uniform), torch.tensor(math.log(300)))


def test_largest_and_smallest_float32_states() -> None:
    torch.testing.assert_close(hidden_entropy(torch.tensor([3e38, -3e38])), torch.tensor(math.log(2)))
    torch.testing.assert_close(hidden_entropy(torch.tensor([1e-30, 1e-30])), torch.tensor(math.log(2)))


@given(states, st.floats(1e-3, 1e3))
def test_bounds_and_scale_of_hidden_entropy(h: list[float], factor: float) -> None:
    stream = torch.tensor(h)
    entropy = hidden_entropy(stream)
    assert 0 <= entropy <= math.log(len(h)) + 1e-5
    torch.testing.assert_close(hidden_entropy(factor * stream), entropy, atol=1e-4, rtol=0)
    torch.testing.assert_close(hidden_entropy(-stream.flip(0)), entropy, atol=1e-4, rtol=0)


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=30), st.floats(-100, 100))
def test_bounds_and_shift_of_output_entropy(z: list[float], shift: float) -> None:
    logits = torch.tensor(z)
    before = logits.clone()
    entropy = entropy_of_logits(logits)
    assert torch.equal(logits, before), "the caller's logits are left as they are"
    assert 0 <= entropy <= math.log(len(z)) + 1e-5
    p = logits.double().softmax(-1)
    torch.testing.assert_close(entropy.double(), torch.special.entr(p).sum(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(entropy_of_logits(logits + shift), entropy, atol=1e-3, rtol=1e-3)


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=30).filter(lambda p: sum(p) > 1e-3))
def test_bounds_of_attention_entropy(weights: list[float]) -> None:
    pattern = torch.tensor(weights)
    pattern /= pattern.sum()
    entropy = attention_entropy(pattern)
    seen = sum(weight > 0 for weight in weights)
    assert 0 <= entropy <= math.log(seen) + 1e-5
    torch.testing.assert_close(entropy, attention_entropy(pattern.flip(0)), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("at_once", [1, 7, 20, 1000])
def test_parts_give_what_the_whole_does(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.rand(2, 3, 5, 4)
    kernels = (hidden_entropy, entropy_of_logits, attention_entropy)
    whole = [kernel(values) for kernel in kernels]
    monkeypatch.setattr(metrics, "_AT_ONCE", at_once)
    for kernel, truth in zip(kernels, whole, strict=True):
        assert kernel(values).shape == (2, 3, 5)
        torch.testing.assert_close(kernel(values), truth)
        assert kernel(values[:0]).shape == (0, 3, 5)


def test_gradients_are_not_kept() -> None:
    values = torch.rand(2, 4, requires_grad=True)
    for kernel in (hidden_entropy, entropy_of_logits, attention_entropy):
        assert not kernel(values).requires_grad


def test_names_are_checked() -> None:
    assert check_metrics(["l2_norm", "hidden_entropy", "l2_norm"]) == ("l2_norm", "hidden_entropy")
    assert check_metrics("output_entropy") == ("output_entropy",)
    with pytest.raises(ValueError, match=r"unknown metrics \['atention_entropy'\]; did you mean 'attention_entropy'"):
        check_metrics(["atention_entropy"])


@pytest.mark.parametrize("kind", [HookedBackend, BridgeBackend])
def test_a_block_without_a_pattern_is_told(kind: type) -> None:
    for block in (SimpleNamespace(), SimpleNamespace(attn=SimpleNamespace())):
        backend = kind.__new__(kind)
        backend.model = SimpleNamespace(blocks=[block])
        with pytest.raises(ValueError, match=r"blocks.0.attn.hook_pattern: this block has no attention pattern"):
            backend.attention_pattern(0)


def test_a_broken_metric_is_told_with_its_place() -> None:
    values = torch.zeros(2, 3, 4)
    check_finite_metrics({"attention_entropy_by_head": values}, (3, 8), 0)
    values[1, 2, 3] = float("nan")
    with pytest.raises(FloatingPointError, match="by_head is nan at layer 8, head 2, sequence 5, position 3"):
        check_finite_metrics({"attention_entropy_by_head": values}, (3, 8), 5)
    with pytest.raises(FloatingPointError, match="hidden_entropy is inf at layer 3, sequence 0, position 1"):
        check_finite_metrics({"hidden_entropy": torch.tensor([[0.0, INF]])}, (3,), 0)


def measured() -> l2.Trace:
    by_layer = torch.tensor([[0.5, 1.0, 1.5], [2.0, 2.5, 3.0]])
    by_head = torch.arange(12.0).reshape(2, 2, 3)
    return trace_of(
        [[1.0, 2, 3], [4, 5, 6]],
        layers=(4, 9),
        metrics={"hidden_entropy": by_layer, "attention_entropy_by_head": by_head},
    )


def test_shapes_of_metrics_are_checked() -> None:
    for bad in (torch.zeros(3), torch.zeros(2, 4), torch.zeros(3, 2), torch.zeros(2, 1, 1, 3), torch.zeros(())):
        with pytest.raises(
            ValueError, match=r"Trace.metrics\['hidden_entropy'\] has shape .* expected \(2, 3\) or \(2, heads, 3\)"
        ):
            trace_of([[1.0, 2, 3], [4, 5, 6]], metrics={"hidden_entropy": bad})


def test_fewer_layers_have_fewer_metrics() -> None:
    cut = measured().select([9])
    assert cut.metrics["hidden_entropy"].tolist() == [[2.0, 2.5, 3.0]]
    assert cut.metrics["attention_entropy_by_head"].tolist() == [[[6.0, 7, 8], [9, 10, 11]]]


def test_the_frame_has_a_column_for_each_metric_by_layer() -> None:
    frame = l2.to_frame([measured(), trace_of([[7.0], [8.0]], layers=(4, 9))])
    assert "attention_entropy_by_head" not in frame
    assert frame.hidden_entropy[:6].tolist() == [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
    assert frame.hidden_entropy[6:].isna().all()
    wide = l2.to_frame([measured()], include_embedding=True)
    assert wide.hidden_entropy[:3].isna().all()
    assert wide.hidden_entropy[3:].tolist() == [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]


def test_metrics_are_saved_and_files_without_them_still_load(tmp_path: Path) -> None:
    traces = [measured(), trace_of([[1.0, 2]])]
    loaded = l2.load_traces(l2.save_traces(tmp_path, traces))
    assert list(loaded[0].metrics) == list(traces[0].metrics)
    assert all(torch.equal(loaded[0].metrics[name], values) for name, values in traces[0].metrics.items())
    assert loaded[1].metrics == {}
    l2.save_traces(tmp_path, traces[1:])
    index = tmp_path / "traces.json"
    content = json.loads(index.read_text())
    del content["traces"][0]["metrics"], content["traces"][0]["features"]
    index.write_text(json.dumps(content))
    assert l2.load_traces(tmp_path)[0].metrics == {}


@pytest.mark.parametrize("given", [[], (), False, "none"])
def test_who_wants_no_metrics_while_generating_is_told_of_record(given: Any) -> None:
    with pytest.raises(ValueError, match="it records the norm; record=False records nothing"):
        refuse_metrics(given)
