"""A control in which modes can't differ: thinking tokens against other thinking tokens of the same response."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from tl_l2norm.analysis.pairing import SHUFFLED, Tokens, by_prompt, meant, require_modes, require_same_prompts
from tl_l2norm.core.arguments import as_seed
from tl_l2norm.core.errors import Unmeasurable
from tl_l2norm.core.trace import Trace, TracesLike, traces_of

_SPLIT = 5  # the stream of random numbers: not the one that tokens are drawn by

Sides = tuple[tuple[Trace, ...], tuple[Trace, ...]]


def split_thinking(think: TracesLike, direct: TracesLike, *, tokens: Tokens = "read", seed: int = 0) -> Sides:
    """Each thinking response in two parts at random, in numbers that are to each other as those of thinking and direct tokens.

    Whatever a comparison finds between the sides is made by the number of tokens. Each part is in random order: in the
    response's own the longer part would nearly always begin with its first token, and the other with any. The second side
    stands for direct answers, with labels shuffled=True.

    Args:
        think: thinking traces; the label "prompt" pairs them.
        direct: direct ones, whose numbers of tokens alone are looked at.
        tokens: "read", the response's own, or "chosen", those from which they were chosen: what is split, and by which the
            sides are to be compared.
        seed: of the split.

    Returns:
        Traces of the first and of the second part, one each for every thinking trace that can be split.

    Raises:
        ValueError: modes with different prompts, or traces that say that they are of the other mode.
        Unmeasurable: no thinking response has two tokens beside a direct one that has any.

    Examples:
        >>> first, second = split_thinking(think, direct)
        >>> [len(trace) - trace.prompt_len for trace in (think[0], direct[0], first[0], second[0])]
        [12, 1, 11, 1]
    """
    groups = [by_prompt(traces) for traces in (traces_of(think), traces_of(direct))]
    require_modes(*(traces_of(traces) for traces in (think, direct)))
    require_same_prompts(*groups)
    first, second = [], []
    for prompt, traces in groups[0].items():
        rng = np.random.default_rng([as_seed(seed), _SPLIT, *prompt.encode()])
        counts = [int(meant(trace, tokens).sum()) for trace in groups[1][prompt]]
        for i, trace in enumerate(traces):
            places, other = meant(trace, tokens).nonzero()[:, 0], counts[i % len(counts)]
            if len(places) < 2 or not other:
                continue
            n = min(max(1, round(len(places) * other / (len(places) + other))), len(places) - 1)
            order = torch.from_numpy(rng.permutation(len(places)))
            first.append(_part(trace, places[order[n:]], tokens))
            second.append(_part(trace, places[order[:n]], tokens).with_labels(**{SHUFFLED: True}))
    if not first:
        raise Unmeasurable("no thinking response can be split: it takes two tokens of it, and one of the direct answer")
    return tuple(first), tuple(second)


def _part(trace: Trace, places: Int[Tensor, " part"], tokens: Tokens) -> Trace:
    """The prompt and some tokens of a response."""
    before = (~meant(trace, tokens)).nonzero()[:, 0]
    kept = torch.cat([before, places])
    return dataclasses.replace(
        trace,
        tokens=trace.tokens[kept],
        str_tokens=tuple(trace.str_tokens[i] for i in kept.tolist()),
        segments=tuple(trace.segments[i] for i in kept.tolist()),
        prompt_len=len(before) + (tokens == "chosen"),
        l2_norms=trace.l2_norms[:, kept],
        embed_l2_norms=trace.embed_l2_norms[kept],
        is_sink=trace.is_sink[:, kept],
        features={layer: acts.select(kept) for layer, acts in trace.features.items()},
        metrics={name: values[..., kept] for name, values in trace.metrics.items()},
        labels={name: value for name, value in trace.labels.items() if name != "answer_at"},
    )
