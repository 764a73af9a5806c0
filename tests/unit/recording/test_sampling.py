import math

import pytest
import torch

from tl_l2norm.recording.sampling import Sampling, choose, score

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


@pytest.mark.parametrize("d_vocab", [7, 20, 300])
def test_scores_are_those_of_a_double_softmax(d_vocab: int) -> None:
    """Token confidence is over the 20 likeliest, or over all where there are fewer."""
    logits = 4 * torch.randn(5, d_vocab, generator=torch.Generator().manual_seed(0))
    tokens = torch.tensor([0, 3, 1, 6, 2])
    logprobs = logits.double().log_softmax(-1)
    self_certainty = -logprobs.mean(-1) - math.log(d_vocab)
    confidence = torch.stack([-row.sort(descending=True).values[:20].mean() for row in logprobs])
    expected = torch.stack([logprobs[range(5), tokens], self_certainty, confidence])
    torch.testing.assert_close(score(logits, tokens).double(), expected, rtol=1e-5, atol=1e-5)
    half = score(logits.to(torch.bfloat16), tokens)
    assert half.dtype == torch.float32 and float((half - score(logits.to(torch.bfloat16).float(), tokens)).abs().max()) == 0


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
