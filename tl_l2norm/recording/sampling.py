"""Choose next tokens from logits."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_l2norm.core.arguments import as_integer, as_number
from tl_l2norm.core.errors import InputError, InputTypeError
from tl_l2norm.core.random_draws import uniform
from tl_l2norm.recording.think_on import Forcing, ThinkOn

LIKELIEST = 20
"""Tokens that token confidence is a mean over, k of the authors' runs."""

Warper = Callable[[Tensor | None, Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How to choose the next token: greedy at temperature 0, else by temperature, then top-k, then top-p.

    The three are transformers' own logits processors in transformers' own order.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    think_on: ThinkOn | None = None
    """What is written in the place of a response's end."""

    def __post_init__(self) -> None:
        if not 0 <= as_number("temperature", self.temperature) < float("inf"):
            raise InputError(f"temperature must be 0 (greedy) or more, got {self.temperature}")
        if self.top_k is not None:
            object.__setattr__(self, "top_k", as_integer("top_k", self.top_k, least=1))
        if self.top_p is not None and not 0 < as_number("top_p", self.top_p) <= 1:
            raise InputError(f"top_p must be over 0 and at most 1, got {self.top_p}")
        if not (self.think_on is None or isinstance(self.think_on, ThinkOn)):
            raise InputTypeError(f"think_on is recording.ThinkOn(tokens=[...]), got {self.think_on!r:.80}")
        if self.temperature == 0 and (self.top_k is not None or self.top_p is not None):
            raise InputError("top_k and top_p do nothing at temperature 0 (greedy): set a temperature")

    def forcing(self, ends: Collection[int], most: int) -> Forcing | None:
        """What writes tokens in the place of those that end a response, of `most` tokens; None where nothing does."""
        return None if self.think_on is None else Forcing(think_on=self.think_on, ends=ends, most=most)

    def warpers(self) -> list[Warper]:
        """The logits processors, in order; empty if greedy."""
        from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

        warpers: list[Warper] = []
        if self.temperature > 0:
            warpers.append(TemperatureLogitsWarper(float(self.temperature)))
        if self.top_k is not None:
            warpers.append(TopKLogitsWarper(self.top_k))
        if self.top_p is not None and self.top_p < 1:
            warpers.append(TopPLogitsWarper(self.top_p))
        return warpers


def choose(
    logits: Float[Tensor, "batch d_vocab"],
    warpers: list[Warper],
    seeds: Int[Tensor, " batch"],
    counts: Int[Tensor, " batch"],
) -> Int[Tensor, " batch"]:
    """Next token of each row: the most likely one without warpers, else drawn.

    One uniform number per row, keyed by its seed and how many tokens it has, is looked up in the cumulative distribution:
    what a row draws doesn't depend on its neighbours.
    """
    if not warpers:
        return logits.argmax(-1)
    scores = logits.float()
    for warp in warpers:
        scores = warp(None, scores)
    dtype = torch.float32 if scores.device.type == "mps" else torch.float64
    cumulative = scores.softmax(-1).to(dtype).cumsum(-1)
    target = uniform(seeds, counts).to(dtype) * cumulative[:, -1]
    return torch.searchsorted(cumulative, target[:, None], right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


def score(logits: Float[Tensor, "batch d_vocab"], tokens: Int[Tensor, " batch"]) -> Float[Tensor, "3 batch"]:
    """What is kept of a distribution from which a token was chosen, at temperature 1, in nats.

    Log-probability of the token; self-certainty `-log V - mean_j log p_j` (Kang et al., arXiv 2502.18581); and token
    confidence, minus the mean log-probability of the 20 most likely tokens, or of all where the vocabulary has fewer (Fu et
    al., "Deep Think with Confidence", arXiv 2508.15260).
    """
    logits = logits.float()
    total = logits.logsumexp(-1)
    chosen = logits.gather(1, tokens[:, None])[:, 0]
    likeliest = logits.topk(min(LIKELIEST, logits.shape[-1]), dim=-1, sorted=False).values.mean(-1)
    return torch.stack([chosen - total, total - logits.mean(-1) - math.log(logits.shape[-1]), total - likeliest])
