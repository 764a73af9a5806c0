"""Put the two modes side by side, prompt by prompt, and say which tokens of each are compared."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tl_l2norm.core.arguments import as_seed, check_choice
from tl_l2norm.core.errors import InputError, Unmeasurable
from tl_l2norm.core.prompts import require_own_prompts
from tl_l2norm.core.resampling import MIN_PROMPTS, Array, generator
from tl_l2norm.core.trace import Trace, TracesLike, require_comparable, traces_of
from tl_l2norm.text.prompts import Mode

Tokens = Literal["read", "chosen"]
"""Which tokens stand for a response: its own, as they are read back, or those from which its tokens are chosen, one place
earlier: the last of the prompt, at which a direct answer is worked out, is then among them."""

Match = Literal["none", "count", "length", "position", "token", "answer"]
"""Which of them are compared between the modes: all; k of each, k being what the shorter response has, drawn at random from the
longer; the first k of each (of these two kinds only tokens that are attention sinks at no layer); those at the same position in
the sequence; those of the same token ids, each id with equal weight; or the one of the answer alone.

Where tokens of both modes are alike, only "count" gives means of one distribution: a mean of 30 skewed tokens and that of one
have the same expectation and unlike medians, so that rank tests, and intervals of few prompts, tell them apart."""

MATCHES: tuple[Match, ...] = get_args(Match)

_MODES = get_args(Mode)
_DRAW = 3  # of tokens: not the stream that prompts are resampled by
SHUFFLED = "shuffled"
"""The label of traces whose modes are exchanged, or mere parts of one, on purpose."""

Pair = tuple[Trace, Trace]
"""Responses to one prompt: thinking, direct."""


def pair_modes(think: TracesLike, direct: TracesLike, *, least: int = MIN_PROMPTS) -> dict[str, list[Pair]]:
    """Traces of both modes by prompt (the label "prompt"), every thinking one with every direct one of that prompt.

    Raises:
        ValueError: traces that are not comparable, lack the label or say that they are of the other mode, modes with different
            prompts, one prompt under two labels, or fewer than `least`.
    """
    think, direct = traces_of(think), traces_of(direct)
    require_comparable([*think, *direct])
    require_modes(think, direct)
    groups = [by_prompt(traces) for traces in (think, direct)]
    require_same_prompts(groups[0], groups[1])
    require_prompts(len(groups[0]), least)
    return {prompt: [(t, d) for t in traces for d in groups[1][prompt]] for prompt, traces in groups[0].items()}


def require_modes(think: Sequence[Trace], direct: Sequence[Trace]) -> None:
    """Refuse traces that say by their label "mode" that they are of the other one, but for those of `shuffle_modes`."""
    for mode, traces in (("think", think), ("direct", direct)):
        require_mode(traces, mode, f"the {mode} traces", "give the thinking traces first, the direct ones second")


def require_mode(traces: Sequence[Trace], mode: str, what: str, instead: str) -> None:
    """Refuse traces that are labelled as of the other mode. A mode of another name, such as "suppressed", may hold any."""
    for i, trace in enumerate(traces):
        said = trace.labels.get("mode", mode)
        if mode in _MODES and said in _MODES and said != mode and not trace.labels.get(SHUFFLED):
            raise InputError(f"{what}: trace {i} says by its label that its mode is {said!r}, not {mode!r}: {instead}")


def require_one_mode(traces: Sequence[Trace]) -> None:
    """Refuse traces that are labelled as of several modes, but for those of `shuffle_modes`."""
    modes = {str(trace.labels["mode"]) for trace in traces if "mode" in trace.labels and not trace.labels.get(SHUFFLED)}
    if len(modes) > 1:
        raise InputError(
            f"the traces are of the modes {', '.join(sorted(modes))}: give those of one, such as the thinking ones"
        )


def require_same_prompts(think: Collection[object], direct: Collection[object]) -> None:
    """Refuse modes that were not asked the same."""
    if odd := sorted(map(str, set(think) ^ set(direct))):
        raise InputError(f"the modes have different prompts ({len(odd)} only in one, such as {odd[0]!r}): pair them by prompt")


def by_prompt(traces: TracesLike) -> dict[str, list[Trace]]:
    """Traces by their label "prompt", in the order of first occurrence.

    Raises:
        InputError: a trace without that label, or one prompt under two.
    """
    traces = traces_of(traces)
    for i, trace in enumerate(traces):
        if "prompt" not in trace.labels:
            raise InputError(f"trace {i} doesn't say which prompt it answers: trace.with_labels(prompt=...), as run_modes does")
    return by_own_prompt(traces)


def by_own_prompt(traces: Sequence[Trace]) -> dict[str, list[Trace]]:
    """As `by_prompt`, but a trace without the label goes by the number of the first with the same prompt tokens."""
    groups: dict[str, list[Trace]] = {}
    first: dict[tuple[int, ...], int] = {}
    for i, trace in enumerate(traces):
        own = first.setdefault(tuple(trace.tokens[: trace.prompt_len].tolist()), i) if trace.prompt_len > 1 else i
        groups.setdefault(str(trace.labels.get("prompt", own)), []).append(trace)
    answered = ((name, t) for name, own in groups.items() for t in own if t.prompt_len < len(t))
    require_own_prompts((name, t.tokens[: t.prompt_len].tolist()) for name, t in answered)
    return groups


def require_prompts(n: int, least: int = MIN_PROMPTS, what: str = "prompts") -> None:
    """Refuse what no interval can be given for.

    Raises:
        Unmeasurable: fewer than `least`.
    """
    if n < least:
        raise Unmeasurable(f"{n} {what}: at least {least} are needed, below that an interval would be fiction")


def shuffle_modes(think: TracesLike, direct: TracesLike, *, seed: int = 0) -> tuple[tuple[Trace, ...], tuple[Trace, ...]]:
    """The same traces with the modes of half of the prompts, drawn at random, exchanged: a control without effect of mode.

    They keep the labels of their own modes, and get shuffled=True.

    Examples:
        >>> first, second = shuffle_modes(think, direct)
        >>> sorted(trace.labels["mode"] for trace in first)[5:7]
        ['direct', 'think']
    """
    think, direct = traces_of(think), traces_of(direct)
    pairs = pair_modes(think, direct)
    order = generator(seed).permutation(len(pairs))
    swapped = {prompt for i, prompt in zip(order, pairs, strict=True) if i < len(pairs) // 2}
    groups = [by_prompt(traces) for traces in (think, direct)]
    sides: tuple[list[Trace], list[Trace]] = ([], [])
    for prompt in pairs:
        for side, group in zip(sides, reversed(groups) if prompt in swapped else groups, strict=True):
            side.extend(trace.with_labels(**{SHUFFLED: True}) for trace in group[prompt])
    return tuple(sides[0]), tuple(sides[1])


def meant(trace: Trace, tokens: Tokens = "read") -> Bool[Tensor, " pos"]:
    """Mask of the positions that stand for a response: its own tokens, or those from which they were chosen."""
    check_choice("tokens", tokens, get_args(Tokens))
    return torch.arange(len(trace)) >= trace.prompt_len - (tokens == "chosen")


def compared(trace: Trace, mode: Mode, tokens: Tokens = "read") -> Bool[Tensor, " pos"]:
    """As `meant`, but of a response that thinks between tags those of the thought alone: the answer behind it is no thinking.

    Of a direct response, by its label "mode" or else by `mode`, and of one without tags it is the whole.
    """
    held = meant(trace, tokens)
    thought = trace.in_segment("think")
    if trace.labels.get("mode", mode) == "direct" or not bool(thought.any()):
        return held
    return held & (thought if tokens == "read" else torch.cat([thought[1:], thought.new_zeros(1)]))


def answer_position(trace: Trace) -> int | None:
    """Where the answer's first token stands: the label "answer_at", or the first visible token after the thinking.

    None where neither is known: a response that thinks without tags holds its answer somewhere.
    """
    if "answer_at" in trace.labels:
        return int(trace.labels["answer_at"])
    if trace.labels.get("mode") == "think" and "think" not in trace.segments:
        return None
    for position in range(trace.prompt_len, len(trace)):
        if trace.segments[position] == "answer" and trace.str_tokens[position].strip():
            return position
    return None


def token_weights(
    pair: Pair, match: Match = "none", tokens: Tokens = "read", *, seed: int = 0
) -> tuple[Float[Tensor, " think_pos"], Float[Tensor, " direct_pos"]] | None:
    """Weight of each position of both traces, each summing to 1; None where the pair has no tokens to compare.

    What "count" draws depends on the seed and the prompt's label alone. "count" and "length" take no token that is an attention
    sink at any layer: means leave sinks out, and would be of unequal numbers. To the other ways sinks are tokens.
    """
    check_choice("match", match, MATCHES)
    held = [_counted(trace, tokens) if match in ("count", "length") else meant(trace, tokens) for trace in pair]
    if not all(bool(h.any()) for h in held):
        return None
    weights = _same_count(pair, held, seed) if match == "count" else _MATCHED[match](pair, held, tokens)
    if weights is None or not all(float(w.sum()) > 0 for w in weights):
        return None
    think, direct = (w / w.sum() for w in weights)
    return think, direct


def weighted_mean(
    trace: Trace, values: Float[Tensor, "*axes layer pos"], weights: Float[Tensor, " pos"]
) -> Float[Tensor, "*axes layer"]:
    """Mean over positions without attention sinks; NaN at a layer where sinks are all there is, or a value is NaN.

    In float64, rounded to the values' own precision: the mean of equal values is that value, whatever their number.

    Raises:
        InputError: an infinite value.
    """
    kept = torch.where(trace.is_sink, 0.0, weights[None].double())
    weighted = torch.where(kept > 0, values.double() * kept, 0.0)
    if bool(weighted.isinf().any()):
        raise InputError(infinite(trace))
    return (weighted.sum(-1) / kept.sum(-1)).to(values.dtype)


def require_numbers(traces: Sequence[Trace], tokens: Tokens = "read") -> None:
    """Refuse traces with a norm that is NaN at a token that counts: it would look like a response without any."""
    for i, trace in enumerate(traces):
        odd = trace.l2_norms.isnan() & meant(trace, tokens) & ~trace.is_sink
        if bool(odd.any()):
            layer, position = odd.nonzero()[0].tolist()
            raise InputError(
                f"a norm of {trace!r}, number {i}, is NaN (layer {trace.layers[layer]}, position {position}): the model "
                "overflowed or its weights hold NaN, run it in bfloat16 or float32, or leave the trace out"
            )


def infinite(trace: Trace) -> str:
    """Why a trace is refused that holds an infinite value."""
    return f"a value of {trace!r} is infinite: the model overflowed, run it in bfloat16 or float32"


def _all(pair: Pair, held: Sequence[Tensor], tokens: Tokens) -> tuple[Tensor, Tensor]:
    return held[0].float(), held[1].float()


def _counted(trace: Trace, tokens: Tokens) -> Bool[Tensor, " pos"]:
    """Those that are sinks at no layer, so that means at all layers are of as many."""
    return meant(trace, tokens) & ~trace.is_sink.any(0)


def _same_count(pair: Pair, held: Sequence[Tensor], seed: int) -> tuple[Tensor, Tensor]:
    k = min(int(h.sum()) for h in held)
    first, second = (_drawn(trace, h, k, seed) for trace, h in zip(pair, held, strict=True))
    return first, second


def _drawn(trace: Trace, held: Tensor, k: int, seed: int) -> Tensor:
    """Mask of k of the tokens."""
    places = held.nonzero()[:, 0]
    if len(places) > k:
        prompt = str(trace.labels.get("prompt", "")).encode()
        places = places[np.random.default_rng([as_seed(seed), _DRAW, *prompt]).permutation(len(places))[:k]]
    mask = torch.zeros(len(trace))
    mask[places] = 1.0
    return mask


def _same_length(pair: Pair, held: Sequence[Tensor], tokens: Tokens) -> tuple[Tensor, Tensor]:
    k = min(int(h.sum()) for h in held)
    first, second = ((h & (h.cumsum(0) <= k)).float() for h in held)
    return first, second


def _same_position(pair: Pair, held: Sequence[Tensor], tokens: Tokens) -> tuple[Tensor, Tensor]:
    n = min(map(len, held))
    both = held[0][:n] & held[1][:n]
    first, second = (torch.nn.functional.pad(both.float(), (0, len(h) - n)) for h in held)
    return first, second


def _same_token(pair: Pair, held: Sequence[Tensor], tokens: Tokens) -> tuple[Tensor, Tensor] | None:
    shared = set.intersection(*(set(trace.tokens[h].tolist()) for trace, h in zip(pair, held, strict=True)))
    if not shared:
        return None
    ids = torch.tensor(sorted(shared))
    sides = []
    for trace, h in zip(pair, held, strict=True):
        of_id = (trace.tokens[None] == ids[:, None]) & h
        sides.append((of_id / of_id.sum(1, keepdim=True)).sum(0))
    return sides[0], sides[1]


def _answer(pair: Pair, held: Sequence[Tensor], tokens: Tokens) -> tuple[Tensor, Tensor] | None:
    places = [answer_position(trace) for trace in pair]
    if any(place is None for place in places):
        return None
    sides = []
    for trace, place in zip(pair, places, strict=True):
        assert place is not None
        sides.append((torch.arange(len(trace)) == place - (tokens == "chosen")).float())
    return sides[0], sides[1]


_MATCHED: Mapping[str, Callable[[Pair, Sequence[Tensor], Tokens], tuple[Tensor, Tensor] | None]] = {
    "none": _all,
    "length": _same_length,
    "position": _same_position,
    "token": _same_token,
    "answer": _answer,
}


def weighted_pairs(
    members: Sequence[Pair], match: Match = "none", tokens: Tokens = "read", *, seed: int = 0
) -> list[tuple[Pair, tuple[Float[Tensor, " think_pos"], Float[Tensor, " direct_pos"]]]]:
    """Those of a prompt's pairs that have tokens to compare, with their weights as in `token_weights`.

    With "count" no response is in two pairs, so that as many of either mode are averaged: of three thinking samples and one
    direct answer the first and it.
    """
    if match == "count":
        sides = ({id(pair[m]): pair[m] for pair in members}.values() for m in (0, 1))
        first, second = ([trace for trace in side if bool(_counted(trace, tokens).any())] for side in sides)
        members = list(zip(first, second, strict=False))
    weighted = ((pair, token_weights(pair, match, tokens, seed=seed)) for pair in members)
    return [(pair, weights) for pair, weights in weighted if weights is not None]


def mode_means(
    pairs: Mapping[str, Sequence[Pair]],
    values: Callable[[Trace], Float[Tensor, "layer pos"]],
    *,
    match: Match = "none",
    tokens: Tokens = "read",
    seed: int = 0,
) -> tuple[Array, Array]:
    """Mean of each prompt's thinking and direct tokens: two arrays [prompt, layer], NaN where there is nothing to compare.

    The seed is that of match="count".
    """
    n_layers = len(next(iter(pairs.values()))[0][0].layers)
    means = np.full((2, len(pairs), n_layers), np.nan)
    for i, members in enumerate(pairs.values()):
        weighted = weighted_pairs(members, match, tokens, seed=seed)
        if weighted:
            sides = ([weighted_mean(pair[m], values(pair[m]), w[m]).double().numpy() for pair, w in weighted] for m in (0, 1))
            means[:, i] = [np.mean(side, axis=0) for side in sides]
    return means[0], means[1]
