"""Scores of LRS (l2-guided response selection) for each of a prompt's responses, and the baselines that they must beat.

For one response and one layer, n_t is the norm at the t-th of the response's T decode positions and tau the layer's threshold.
Sums are over positions that are not sinks:

- `norm_sum` = sum_t n_t
- `event_area` = sum_t max(0, n_t - tau)
- `event_count` = #{t: n_t > tau}
- `late_area` = event_area over the last 30% of the response, t >= ceil(0.7 T) with t from 0
- `norm_sum_per_token` and so on: the same, divided by the number of positions that the sum goes over

Each is standardised per layer across the candidates of one prompt, z = (x - mean) / population std, 0 where all are equal, and
averaged over layers (Zhang et al., "The Tell-Tale Norm", arXiv 2606.06188). Sums grow with the response, so that selecting by
one is much like selecting by length: `score_table` says how much.

Baselines:

- `first`, `random`, `shortest`, `longest`; `logprob`, mean log-probability of the sampled tokens; `self_certainty`, mean over
  tokens of KL(U || p) (Kang et al., arXiv 2502.18581)
- DeepConf's (Fu et al., arXiv 2508.15260), of token confidence, minus the mean log-probability of the 20 likeliest tokens:
  `confidence`, its mean; with groups, all windows of `window` tokens (the authors' 2048), each with its mean, and all of a
  shorter response one group: `lowest_confidence`, the least group's; `bottom_confidence`, the mean of the lowest tenth of the
  groups; `tail_confidence`, the mean of the last `window` tokens
- `deep_thinking_ratio` (Chen et al., arXiv 2602.13517), `net_change`, minus `cumulative_change` and `aligned_change` (Vilas et
  al., arXiv 2510.10494), means over layers: see `tl_l2norm.recording.signals`, and read them by `read_signals`; of the changes
  up to 5% of the responses may think too shortly to have one, which come last
- votes, shares that the candidate's answer has: `majority` of the candidates; `confidence_vote` and so on of the sum of their
  confidences; `think_at_n` of the half with the highest deep-thinking ratio, over whole responses
- `probe`: log-odds of a linear probe on the mean late states, fitted on labels of other problems: see `analysis.probe`
- `oracle`, 1 for an answer that is known to be correct, else 0, which no selection can beat
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, tensor

from tl_l2norm.analysis.probe import cross_fitted
from tl_l2norm.analysis.subsets import NO_ANSWER, vote_shares
from tl_l2norm.core.errors import InputError, Unmeasurable
from tl_l2norm.core.layers import Layers, layer_ranges
from tl_l2norm.core.random_draws import uniform
from tl_l2norm.core.thresholds import Thresholds, check_value, iqr_thresholds
from tl_l2norm.core.trace import Trace, require_comparable
from tl_l2norm.experiments.candidates import Candidates, Unscorable, named
from tl_l2norm.experiments.others_scores import (
    CHANGES,
    CONFIDENCES,
    STATE_SCORES,
    WINDOW,
    confidence,
    signals_of,
    state_score,
    without_short,
)
from tl_l2norm.recording.completions import Completion
from tl_l2norm.recording.signals import Signals
from tl_l2norm.tasks.problems import Problem
from tl_l2norm.tasks.verifiers import comparable_answer, is_correct

_SUMS = ("norm_sum", "event_area", "event_count", "late_area")
NORM_SCORES = (*_SUMS, *(f"{name}_per_token" for name in _SUMS))
"""Scores of LRS."""
VOTES: Mapping[str, tuple[str | None, str | None]] = {
    "majority": (None, None),
    **{f"{name}_vote": (name, None) for name in CONFIDENCES},
    "think_at_n": (None, "deep_thinking_ratio"),
}
"""Scores that are votes, with the score that weighs them and the one by whose upper half is voted."""
BASELINES = (
    *("first", "random", "shortest", "longest", "logprob", "self_certainty"),
    *(*CONFIDENCES, *STATE_SCORES, *VOTES, "probe", "oracle"),
)
"""Scores that need no norms."""
SCORES = (*NORM_SCORES, *BASELINES)
"""What `select` can go by."""

_ROUNDING = 1e-12  # relative: what differs by less differs by the order of a float64 sum
_GENERATE = "call generate with record=True, which is the default"
_FREE_TEXT = Problem(question="?", answer=None, family="custom")


@dataclass(frozen=True, eq=False)
class Scorer:
    """Scores by name, [prompt][candidate]; what several of them need is computed once."""

    groups: Sequence[Candidates]
    thresholds: Mapping[int, float] | None
    """What was given; checked where norms are scored."""
    layers: Layers
    seed: int
    window: int = WINDOW

    def __call__(self, name: str) -> list[NDArray[np.float64]]:
        """One score of every candidate."""
        if name in NORM_SCORES:
            return [values[:, NORM_SCORES.index(name)] for values in self.norm_scores]
        if name == "oracle":
            if all(np.isnan(values).all() for values in self.correct):
                raise Unscorable("no problem has a known answer: give problems=, one for each prompt")
            return [np.nan_to_num(values) for values in self.correct]
        if name in VOTES:
            return self._votes(*VOTES[name])
        if name == "probe":
            return self._probe()
        scores = [np.array(self._baseline(name, group), dtype=np.float64) for group in self.groups]
        if name in CHANGES:
            scores = without_short(scores, next(iter(self.signals.values()))[0].segment_tokens)
        for group, values in zip(self.groups, scores, strict=True):
            if np.isnan(values).any():
                raise InputError(f"the {name} of {named(group.completions[int(np.isnan(values).argmax())])} is NaN")
        return scores

    def all(self, names: Sequence[str]) -> tuple[dict[str, list[NDArray[np.float64]]], dict[str, str]]:
        """Several, and why the others can't be computed."""
        found: dict[str, list[NDArray[np.float64]]] = {}
        left_out: dict[str, str] = {}
        for name in names:
            try:
                found[name] = self(name)
            except Unscorable as reason:
                left_out[name] = str(reason)
        return found, left_out

    def _baseline(self, name: str, group: Candidates) -> Sequence[int | float]:
        if name in CONFIDENCES:
            return [confidence(completion, name, self.window) for completion in group.completions]
        if name in STATE_SCORES:
            return [state_score(*pair, name) for pair in zip(group.completions, self.signals[group], strict=True)]
        return _BASELINE[name](group, self.seed)

    def _votes(self, weights: str | None, keep: str | None) -> list[NDArray[np.float64]]:
        weighed = [np.ones(len(own)) for own in self.answers] if weights is None else self(weights)
        kept = [None] * len(self.answers) if keep is None else self(keep)
        return [vote_shares(*one) for one in zip(self.answers, weighed, kept, strict=True)]

    def _probe(self) -> list[NDArray[np.float64]]:
        states = torch.stack([one.mean_state.flatten() for own in self.signals.values() for one in own]).double().numpy()
        problems = [f"{i}" if g.problem is None else g.problem.id for i, g in enumerate(self.groups) for _ in g.completions]
        try:
            odds = cross_fitted(states, np.concatenate(self.correct), problems)
        except Unmeasurable as reason:
            raise Unscorable(str(reason)) from reason
        ends = np.cumsum([len(group.completions) for group in self.groups])[:-1]
        return [_equal_where_alike(*pair) for pair in zip(np.split(odds, ends), np.split(states, ends), strict=True)]

    @cached_property
    def signals(self) -> dict[Candidates, list[Signals]]:
        """Of each prompt's candidates, comparable ones."""
        signals = {group: [signals_of(completion) for completion in group.completions] for group in self.groups}
        kinds = {(one.layers, one.segment_tokens, one.state_layers) for own in signals.values() for one in own}
        if len(kinds) > 1:
            raise Unscorable("signals are of different layers or segments: call read_signals once, for all of them")
        return signals

    @cached_property
    def answers(self) -> list[NDArray[np.int64]]:
        """[prompt][candidate] the number of its answer, equal where answers are; `NO_ANSWER` without one."""
        return [_numbered(group) for group in self.groups]

    @cached_property
    def correct(self) -> list[NDArray[np.float64]]:
        """1 or 0, NaN where the answer is not known."""
        return [
            np.array(
                [np.nan if (known := _is_correct(group, c)) is None else known for c in group.completions], dtype=np.float64
            )
            for group in self.groups
        ]

    @cached_property
    def traces(self) -> tuple[Trace, ...]:
        """Of all candidates, comparable ones."""
        completions = [completion for group in self.groups for completion in group.completions]
        traces = tuple(completion.trace for completion in completions if completion.trace is not None)
        if len(traces) < len(completions):
            bare = next(completion for completion in completions if completion.trace is None)
            raise Unscorable(f"{named(bare)} has no trace: {_GENERATE}")
        require_comparable(traces)
        return traces

    @cached_property
    def chosen(self) -> tuple[int, ...]:
        """Layers of the norm scores."""
        return tuple(sorted(set(self.traces[0].select(self.layers).layers)))

    @cached_property
    def taus(self) -> dict[int, float]:
        """Threshold of each of them."""
        given = self._own_thresholds() if self.thresholds is None else self.thresholds
        if missing := [layer for layer in self.chosen if layer not in given]:
            raise InputError(f"no threshold for layers {layer_ranges(missing)}: give one each for {layer_ranges(self.chosen)}")
        made_for, ours = given.provenance if isinstance(given, Thresholds) else None, self.traces[0].provenance
        if made_for is not None and not made_for.comparable(ours):
            raise InputError(
                f"the thresholds are of {made_for.describe()}, the completions of {ours.describe()}: "
                "norms of different models, dtypes or weight processing are not comparable"
            )
        return {layer: check_value(layer, given[layer]) for layer in self.chosen}

    def _own_thresholds(self) -> Mapping[int, float]:
        """From the candidates themselves; infinity at a layer where no token counts."""
        counted = [
            layer
            for layer in self.chosen
            if any((trace.is_response & ~trace.is_sink[trace.index_of(layer)]).any() for trace in self.traces)
        ]
        thresholds = iqr_thresholds([trace.select(counted) for trace in self.traces]) if counted else {}
        return {**dict.fromkeys(self.chosen, float("inf")), **thresholds}

    @cached_property
    def norm_scores(self) -> list[NDArray[np.float64]]:
        """[prompt][candidate, score] in the order of `NORM_SCORES`."""
        indices = [self.traces[0].index_of(layer) for layer in self.chosen]
        taus = np.array([[self.taus[layer]] for layer in self.chosen])
        traces = iter(self.traces)
        return [
            _standardise(np.stack([_norm_sums(next(traces), indices, taus) for _ in group.completions])).mean(-1)
            for group in self.groups
        ]


def _norm_sums(trace: Trace, indices: list[int], taus: Float[np.ndarray, "layer 1"]) -> Float[np.ndarray, "score layer"]:
    """The sums of one response and their per-token forms; those of no position at all are 0."""
    norms = trace.l2_norms[indices][:, trace.is_response].double().numpy()
    live = ~trace.is_sink[indices][:, trace.is_response].numpy()
    length = norms.shape[1]
    late = live & (np.arange(length) >= -(-7 * length // 10))
    excess = np.maximum(norms - taus, 0)
    sums = np.stack(
        [
            np.where(live, norms, 0).sum(1),
            np.where(live, excess, 0).sum(1),
            (live & (norms > taus)).sum(1),
            np.where(late, excess, 0).sum(1),
        ]
    )
    counts = np.stack([live.sum(1)] * 3 + [late.sum(1)])
    return np.concatenate([sums, sums / np.maximum(counts, 1)])


def _standardise(values: Float[np.ndarray, "candidate score layer"]) -> Float[np.ndarray, "candidate score layer"]:
    """z-scores over candidates; 0 where all are equal."""
    same = np.ptp(values, axis=0) <= _ROUNDING * np.abs(values).max(0)
    return np.where(same, 0.0, values - values.mean(0)) / np.where(same, 1.0, values.std(0))


def _equal_where_alike(
    scores: Float[np.ndarray, " candidate"], states: Float[np.ndarray, "candidate value"]
) -> Float[np.ndarray, " candidate"]:
    """A product of matrices rounds equal rows differently, in each process in its own way: equals stay equal."""
    _, first, which = np.unique(states, axis=0, return_index=True, return_inverse=True)
    alike: NDArray[np.float64] = scores[first][which.reshape(-1)]
    return alike


def _is_correct(group: Candidates, completion: Completion) -> bool | None:
    return None if group.problem is None else is_correct(group.problem, completion.answer)


def _numbered(group: Candidates) -> NDArray[np.int64]:
    answers = [comparable_answer(group.problem or _FREE_TEXT, completion.answer) for completion in group.completions]
    return np.array([NO_ANSWER if answer is None else answers.index(answer) for answer in answers], dtype=np.int64)


def _mean_of(name: str) -> Callable[[Candidates, int], list[float]]:
    """The mean over tokens of a field of the completions."""

    def mean(completion: Completion) -> float:
        values: Tensor | None = getattr(completion, name)
        if values is None:
            raise Unscorable(f"{named(completion)} has no {name}: {_GENERATE}")
        return float(values.double().mean())

    return lambda group, seed: [mean(completion) for completion in group.completions]


def _random(group: Candidates, seed: int) -> list[float]:
    draws = uniform(seed, group.completions[0].prompt_index, tensor([completion.sample for completion in group.completions]))
    return [float(draw) for draw in draws]


_BASELINE: Mapping[str, Callable[[Candidates, int], Sequence[float]]] = {
    "first": lambda group, seed: [-completion.sample for completion in group.completions],
    "random": _random,
    "shortest": lambda group, seed: [-len(completion.tokens) for completion in group.completions],
    "longest": lambda group, seed: [len(completion.tokens) for completion in group.completions],
    "logprob": _mean_of("logprobs"),
    "self_certainty": _mean_of("self_certainty"),
}
