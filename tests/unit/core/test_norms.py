import pytest
import torch

from tl_l2norm.core import norms
from tl_l2norm.core.norms import find_sinks, l2_norms, sink_bounds


def test_a_3_4_5_triangle() -> None:
    assert l2_norms(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).tolist() == [5.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_result_is_float32_and_does_not_overflow(dtype: torch.dtype) -> None:
    h = torch.full((2, 576), 3200.0, dtype=dtype)  # norm 76,800: its square, and in float16 the norm itself, overflow
    norms = l2_norms(h)
    assert norms.dtype == torch.float32
    assert torch.allclose(norms, torch.full((2,), 76800.0), rtol=1e-3)


def test_half_precision_in_chunks_is_the_same_as_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    h = torch.randn(3, 7, 32).half()
    whole = h.double().pow(2).sum(-1).sqrt().float()
    monkeypatch.setattr(norms, "_CHUNK", 100)
    assert torch.allclose(l2_norms(h), whole, rtol=1e-6)


def test_no_graph_is_kept() -> None:
    assert not l2_norms(torch.randn(3, 4, requires_grad=True)).requires_grad


def test_sinks_by_position_and_by_bound() -> None:
    norms = torch.tensor([[900.0, 10, 12, 11, 60, 14], [9.0, 10, 12, 11, 60, 14]])
    bounds = sink_bounds(norms, prompt_len=4, ratio=5.0)  # median of 10, 12, 11 is 11
    assert bounds.tolist() == [55.0, 55.0]
    expected = [True, False, False, False, True, False]
    assert find_sinks(norms, bounds).tolist() == [expected, expected]


def test_the_bound_rests_on_the_prompt_alone() -> None:
    prompt = torch.rand(3, 6) + 1
    longer = torch.cat([prompt, 100 * torch.rand(3, 50)], 1)
    assert torch.equal(sink_bounds(prompt, prompt_len=6), sink_bounds(longer, prompt_len=6))


def test_a_prompt_of_one_token_gives_no_bound() -> None:
    norms = torch.tensor([[900.0, 10, 10_000]])
    assert find_sinks(norms, sink_bounds(norms, prompt_len=1)).tolist() == [[True, False, False]]


@pytest.mark.parametrize("ratio", [1.0, 0.0, -3.0, float("nan")])
def test_a_ratio_that_marks_ordinary_tokens_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match="sink_ratio"):
        sink_bounds(torch.ones(1, 3), prompt_len=3, ratio=ratio)
