"""Run-time checks of types: what they refuse, and what they let through."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
import torch
from beartype import beartype
from jaxtyping import Float
from torch import Tensor

from tests.checking import checked

if TYPE_CHECKING:
    from nowhere import Unknown  # type: ignore[import-not-found]


@checked
def outer(a: Float[Tensor, " row"], b: Float[Tensor, " column"], sizes: tuple[int, ...] = ()) -> Float[Tensor, "row column"]:
    """Of a size of its own where one is given."""
    return torch.zeros(sizes) if sizes else a[:, None] * b


@checked
def like(a: Float[Tensor, "*axes"], b: Float[Tensor, "*axes"] | None = None) -> Any:
    return outer(a.flatten(), torch.ones(2)) if b is None else b


@checked
def count(n: int, of: Unknown = None) -> str:
    return str(n) if n else None  # type: ignore[return-value]


@checked(typechecker=beartype)
def each(values: list[int]) -> Iterator[int]:
    yield from values


@checked
@dataclasses.dataclass(frozen=True, slots=True)
class Pair:
    norms: Float[Tensor, "layer pos"]
    sinks: Float[Tensor, " pos"]
    name: str = ""


@pytest.mark.parametrize(
    "call",
    [
        lambda: outer(torch.ones(2), torch.ones(3, 1)),
        lambda: outer(torch.ones(2), torch.ones(3).int()),
        lambda: outer(torch.ones(2), torch.ones(3), sizes=(2, 2)),
        lambda: outer(torch.ones(2), torch.ones(3), sizes=[2, 3]),
        lambda: like(torch.ones(2, 3), torch.ones(3, 2)),
        lambda: count("1"),
        lambda: count(0),
        lambda: each([1, "2"] * 9),
        lambda: Pair(torch.ones(2, 3), torch.ones(2)),
        lambda: Pair(torch.ones(2, 3), torch.ones(3), name=None),  # type: ignore[arg-type]
    ],
)
def test_what_an_annotation_does_not_allow_is_refused(call: Any) -> None:
    with pytest.raises(TypeError):
        for _ in range(64):  # one item of a list is looked at in each call, at random
            call()


def test_axes_are_those_of_one_call() -> None:
    assert outer(torch.ones(2), torch.ones(3)).shape == (2, 3) and outer(torch.ones(4), torch.ones(1)).shape == (4, 1)
    assert like(torch.ones(2, 3)).shape == (6, 2)  # another call inside has axes of its own
    assert like(torch.ones(2, 3), torch.zeros(2, 3)).shape == (2, 3)
    assert count(1, of=object()) == "1" and list(each([1, 2])) == [1, 2]
    assert Pair(torch.ones(2, 3), torch.ones(3)).norms.shape == (2, 3)


def test_the_library_is_checked(request: pytest.FixtureRequest) -> None:
    from tl_l2norm.recording.signals import deep_thinking_ratio

    if not request.config.getoption("jaxtyping_packages"):
        pytest.skip("run without checks of types")
    with pytest.raises(TypeError, match="divergence"):
        deep_thinking_ratio(torch.zeros(3))
