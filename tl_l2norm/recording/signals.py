"""What others read off a response's states, reduced as the model runs: how deep predictions settle, and the states' path.

- Divergence of a layer at a token: Jensen-Shannon divergence, in bits, between the logit lens of that layer and of the last
  one, at the state from which the token was chosen (Chen et al., "Think Deep, Not Just Long", arXiv 2602.13517). The lens is
  the model's own final norm and unembedding; the authors write the unembedding alone. Bits, as they try thresholds up to
  0.75, which no divergence in nats reaches.
- Change of a layer's states over the thinking (Vilas et al., "Tracing the Traces", arXiv 2510.10494): h_1 to h_N are the mean
  states of its segments of equal length, of which the last may be shorter, u_n = h_(n+1) - h_n and d = h_N - h_1. Net change
  is ||d|| / (N - 1), as in the authors' code, cumulative change sum_n ||u_n||, aligned change the mean cosine of u_n and d.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

SEGMENT_TOKENS = 500
"""Of the authors' segments of thinking."""
SETTLED, DEPTH = 0.5, 0.85
"""Divergence at which a prediction has settled, and share of the layers from which on that is late: the authors' g and rho."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Signals:
    """What `read_signals` measured of one response.

    Attributes:
        divergence: [layer, token] in bits, of all layers; None if it wasn't asked for.
        layers: [layer] of the three changes.
        net_change: [layer]; NaN where the thinking is shorter than two segments, as in the next two.
        cumulative_change: [layer].
        aligned_change: [layer], -1 to 1.
        segment_tokens: length of a segment.
        state_layers: [layer] of the mean state.
        mean_state: [layer, d_model] mean of the states from which the response's tokens were chosen; the one thing of this size
            that is kept, for a probe.

    Examples:
        >>> prompt = l2.chat_prompt(model.tokenizer, "mod 10: 7A-3", mode="think")
        >>> out = l2.generate(model, prompt, max_new_tokens=64, progress=False)
        >>> l2.recording.read_signals(model, out, segment_tokens=2, progress=False)[0].signals.aligned_change.shape
        torch.Size([12])
    """

    divergence: Float[Tensor, "all_layers token"] | None
    layers: tuple[int, ...]
    net_change: Float[Tensor, " layer"]
    cumulative_change: Float[Tensor, " layer"]
    aligned_change: Float[Tensor, " layer"]
    segment_tokens: int
    state_layers: tuple[int, ...]
    mean_state: Float[Tensor, "state_layer d_model"]

    def __repr__(self) -> str:
        """One line."""
        depth = "" if self.divergence is None else f", deep-thinking ratio {deep_thinking_ratio(self.divergence):.3g}"
        return f"Signals({len(self.layers)} layers in segments of {self.segment_tokens}{depth})"


def js_divergence(p: Float[Tensor, "*axes d_vocab"], q: Float[Tensor, "*axes d_vocab"]) -> Float[Tensor, "*axes"]:
    """Jensen-Shannon divergence of two softmaxes of logits over the last axis, in bits, 0 to 1.

    Examples:
        >>> js_divergence(torch.tensor([0.0, -torch.inf]), torch.tensor([-torch.inf, 5.0]))
        tensor(1.)
    """
    p, q = p.float().log_softmax(-1), q.float().log_softmax(-1)
    middle = torch.logaddexp(p, q) - math.log(2)
    nats = sum(torch.where(one > -torch.inf, one.exp() * (one - middle), 0.0).sum(-1) for one in (p, q))
    return (nats / (2 * math.log(2))).clamp(0.0, 1.0)  # type: ignore[union-attr]


def deep_thinking_ratio(
    divergence: Float[Tensor, "layer token"], *, threshold: float = SETTLED, depth: float = DEPTH
) -> Float[Tensor, ""]:
    """Share of tokens whose prediction settles late (Chen et al., arXiv 2602.13517, equations 3 to 6).

    It settles at the first layer, counted from 1, whose divergence is `threshold` or less; from layer `ceil(depth * n_layers)`
    on that is late.

    Args:
        divergence: of every layer of the model, the last one's 0.
        threshold: g of the paper, in bits.
        depth: rho of the paper.

    Examples:
        >>> deep_thinking_ratio(torch.tensor([[0.9, 0.2], [0.8, 0.9], [0.0, 0.0]]))  # the first token settles at layer 3 of 3
        tensor(0.5000)
    """
    settled = (divergence <= threshold).int().argmax(0) + 1
    return (settled >= math.ceil(depth * len(divergence))).float().mean()


def changes(states: Float[Tensor, "pos d_model"], segment_tokens: int) -> Float[Tensor, " change"]:
    """Net, cumulative and aligned change of a layer's states, float32; NaN with fewer than two segments.

    Examples:
        >>> corner = torch.tensor([[0.0, 0.0], [3.0, 0.0], [3.0, 4.0]])
        >>> changes(corner, 1)  # 5 / 2, 3 + 4, and the mean of the cosines 3 / 5 and 4 / 5
        tensor([2.5000, 7.0000, 0.7000])
    """
    means = (
        torch.stack([part.float().mean(0) for part in torch.split(states, segment_tokens)]) if len(states) else states.float()
    )
    if len(means) < 2:
        return torch.full((3,), torch.nan, device=states.device)
    steps, drift = means.diff(dim=0), means[-1] - means[0]
    cosines = torch.cosine_similarity(steps, drift[None], dim=-1)
    return torch.stack([drift.norm() / len(steps), steps.norm(dim=-1).sum(), cosines.mean()])
