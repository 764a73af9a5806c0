import pytest
import torch

from tl_l2norm.recording.sampling import Sampling, choose

PROBABILITIES = torch.tensor([0.05, 0.5, 0.0, 0.3, 0.15])


def draws(sampling: Sampling, n: int = 20_000) -> torch.Tensor:
    logits = PROBABILITIES.log().expand(n, -1)
    tokens = choose(logits, sampling.warpers(), torch.full((n,), 11), torch.arange(n))
    return torch.bincount(tokens, minlength=5) / n


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(temperature=1.0), [0.05, 0.5, 0, 0.3, 0.15]),
        (Sampling(temperature=1.0, top_k=2), [0, 0.625, 0, 0.375, 0]),
        (Sampling(temperature=1.0, top_p=0.9), [0, 0.5263, 0, 0.3158, 0.1579]),
        (Sampling(temperature=0.5), [0.00685, 0.68493, 0, 0.24658, 0.06164]),  # squares, normalised
    ],
)
def test_tokens_come_as_often_as_their_probability(sampling: Sampling, expected: list[float]) -> None:
    assert (draws(sampling) - torch.tensor(expected)).abs().max() < 0.015  # 4 standard errors at p = 0.5


def test_greedy_takes_the_most_likely() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [9.0, 3.0, 1.0]])
    assert choose(
        logits, Sampling().warpers(), torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
    ).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": 1.0, "top_k": 0}, "top_k"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p"),
        ({"temperature": 1.0, "top_p": 1.5}, "top_p"),
        ({"top_k": 5}, "temperature 0"),
    ],
)
def test_bad_options_are_named(options: dict, field: str) -> None:
    with pytest.raises(ValueError, match=field):
        Sampling(**options)
