"""What a model gives for the tokens of an answer that is given to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_l2norm.models.backend import Backend

_AT_ONCE = 1 << 24  # logits


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """The tokens of one row from a position on, teacher-forced."""

    logprob: float
    """Natural log-probability of all of them, summed."""
    greedy: bool
    """Whether each is the most likely one where it stands: the model, decoding greedily, would say just that."""


def score_answers(
    backend: Backend,
    last: Float[Tensor, "row pos d_model"],
    tokens: Int[Tensor, "row pos"],
    n_answer: Sequence[int],
) -> list[Scored]:
    """The last `n_answer` tokens of each row, from the last layer's states of a pass over a left-padded batch."""
    found = []
    for row, own, n in zip(last, tokens, n_answer, strict=True):
        logprobs, greedy = token_logprobs(backend, row[-n - 1 : -1], own[-n:])
        found.append(Scored(logprob=float(logprobs.sum()), greedy=bool(greedy.all())))
    return found


def token_logprobs(
    backend: Backend, states: Float[Tensor, "n d_model"], next_tokens: Int[Tensor, " n"]
) -> tuple[Float[Tensor, " n"], Bool[Tensor, " n"]]:
    """Log-probability of the token behind each of the last layer's states, float64, and whether it is the most likely one.

    By the odds of all other tokens, so that it keeps its digits where it is nearly 0.
    """
    logprobs, greedy = [], []
    size = max(1, _AT_ONCE // backend.d_vocab)
    for part, own in zip(torch.split(states, size), torch.split(next_tokens, size), strict=True):
        logits = backend.unembed(part).cpu().double()
        column = own.cpu()[:, None]
        chosen = logits.gather(1, column)[:, 0]
        others = logits.scatter(1, column, -torch.inf)
        logprobs.append(-torch.nn.functional.softplus(others.logsumexp(-1) - chosen))
        greedy.append(chosen > others.amax(-1))
    return torch.cat(logprobs), torch.cat(greedy)


def entropies(backend: Backend, states: Float[Tensor, "n d_model"]) -> Float[Tensor, " n"]:
    """Entropy, in nats, of the distribution that each of the last layer's states gives for the next token."""
    size = max(1, _AT_ONCE // backend.d_vocab)
    parts = [torch.special.entr(backend.unembed(part).float().softmax(-1)).sum(-1).cpu() for part in torch.split(states, size)]
    return torch.cat(parts)
