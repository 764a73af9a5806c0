"""How a block's output carries the stream, on modules made by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tl_l2norm.core.errors import Unsupported
from tl_l2norm.engines.stream import StreamProbe, stream_of, with_stream


def test_one_tensor_two_and_a_second_that_is_none() -> None:
    first, second = torch.ones(3, 4), torch.full((3, 4), 2.0)
    assert stream_of(first, "first") is first and stream_of((first, None), "sum") is first
    assert torch.equal(stream_of((first, second), "sum"), first + second)
    assert stream_of((first, second), "first") is first


@pytest.mark.parametrize("output", [(torch.ones(3, 4), torch.ones(3)), torch.ones(1, 3, 4), (1, 2), (torch.ones(3, 4),) * 3])
def test_anything_else_is_refused(output: Any) -> None:
    with pytest.raises(Unsupported, match="which of it is the residual stream"):
        stream_of(output, "sum")


@pytest.mark.parametrize("carried", ["first", "sum"])
@pytest.mark.parametrize(
    "kind", [lambda a, b: a, lambda a, b: (a,), lambda a, b: (a, None), lambda a, b: (a, b), lambda a, b: [a, b]]
)
def test_a_changed_stream_is_handed_on_and_other_tokens_keep_their_bits(kind: Any, carried: Any) -> None:
    torch.manual_seed(0)
    first, second = torch.randn(5, 4), torch.randn(5, 4)  # of the five tokens the last is padding
    output = kind(first.clone(), second.clone())
    before = stream_of(output, carried)[:4]
    after = before.clone()
    after[1], after[3] = after[1] * 0.1, 0.0
    new = with_stream(output, carried, before, after)
    assert type(new) in (Tensor, tuple) and (isinstance(new, Tensor) or len(new) == len(output))
    assert torch.equal(stream_of(new, carried)[:4], after)
    kept = torch.tensor([0, 2, 4])
    for old, now in zip(
        output if isinstance(output, tuple | list) else [output], [new] if isinstance(new, Tensor) else new, strict=True
    ):
        assert (old is None) == (now is None) and (old is None or torch.equal(old[kept], now[kept]))
    assert torch.equal(stream_of(output, carried)[:4], before)  # not written into


class Block(nn.Module):
    def __init__(self, parts: int) -> None:
        super().__init__()
        self.parts = parts

    def forward(self, x: Tensor, second: Tensor | None) -> Any:
        return (x * 1.5, 2 + x.flip(0)) if self.parts == 2 else x * 1.5


class Norm(nn.Module):
    """As vLLM has them: one argument, or two, of which the second is added, in place, or left alone."""

    def __init__(self, adds: bool) -> None:
        super().__init__()
        self.adds = adds

    def forward(self, x: Tensor, second: Tensor | None = None) -> Any:
        if second is None:
            return x / x.norm(dim=-1, keepdim=True)
        if self.adds:
            x += second
            second.copy_(x)
        return x / x.norm(dim=-1, keepdim=True), second


class Model(nn.Module):
    def __init__(self, parts: int, adds: bool, norm: bool = True) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Block(parts), Block(parts)])
        self.norm = Norm(adds) if norm else None

    def forward(self, x: Tensor) -> Any:
        second = None
        for layer in self.layers:
            out = layer(x, second)
            x, second = out if isinstance(out, tuple) else (out, None)
        return self.norm(x, second) if self.norm is not None else x


class Whole(nn.Module):
    def __init__(self, *options: Any) -> None:
        super().__init__()
        self.model = Model(*options)

    def forward(self, x: Tensor) -> Any:
        return self.model(x)


@pytest.mark.parametrize(
    ("model", "carried"), [(Whole(1, True), "first"), (Whole(2, True), "sum"), (Whole(2, False), "first")], ids=["1", "2", "3"]
)
def test_the_final_norm_tells(model: Whole, carried: str) -> None:
    torch.manual_seed(0)
    states = torch.randn(3, 8)
    expected = model(states.clone())
    probe = StreamProbe(model, model.model.layers)
    seen = model(states.clone())
    assert probe.found() == carried
    assert torch.equal(seen[0], expected[0])  # the probe changes nothing
    assert not any(module._forward_hooks for module in model.modules())


def test_without_a_norm_that_reads_it_nothing_is_known() -> None:
    model = Whole(2, True, False)
    probe = StreamProbe(model, model.model.layers)
    model(torch.randn(3, 8))
    with pytest.raises(Unsupported, match="final norm of vLLM's Whole"):
        probe.found()
