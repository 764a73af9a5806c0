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

Baselines: `first`, `random`, `shortest`, `longest`; `logprob`, mean log-probability of the sampled tokens; `self_certainty`,
mean over tokens of KL(U || p) (Kang et al., arXiv 2502.18581); `majority`, share of the candidates that give the same answer;
and `oracle`, 1 for an answer that is known to be correct, else 0, which no selection can beat.
"""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, tensor

from tl_l2norm.core.arguments import one_or_several
from tl_l2norm.core.errors import InputError, InputTypeError, Unmeasurable
from tl_l2norm.core.layers import Layers, layer_ranges
from tl_l2norm.core.random_draws import uniform
from tl_l2norm.core.thresholds import Thresholds, check_value, iqr_thresholds
from tl_l2norm.core.trace import Trace, require_comparable
from tl_l2norm.recording.completions import Completion
from tl_l2norm.tasks.problems import Problem, problems_of
from tl_l2norm.tasks.verifiers import comparable_answer, is_correct

_SUMS = ("norm_sum", "event_area", "event_count", "late_area")
NORM_SCORES = (*_SUMS, *(f"{name}_per_token" for name in _SUMS))
"""Scores of LRS."""
BASELINES = ("first", "random", "shortest", "longest", "logprob", "self_certainty", "majority", "oracle")
"""Scores that need no norms."""
SCORES = (*NORM_SCORES, *BASELINES)
"""What `select` can go by."""

_ROUNDING = 1e-12  # relative: what differs by less differs by the order of a float64 sum
_GENERATE = "call generate with record=True, which is the default"
_FREE_TEXT = Problem(question="?", answer=None, family="custom")


class Unscorable(Unmeasurable):
    """The completions lack what a score is made of."""


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """The candidates of one prompt, by sample."""

    completions: tuple[Completion, ...]
    problem: Problem | None


def candidates_of(given: Any, asked: Any) -> list[Candidates]:
    """Completions by prompt, each with its problem where there are problems."""
    completions: tuple[Any, ...] = one_or_several(given, Completion)
    if not completions:
        raise InputError("no completions given")
    if odd := [one for one in completions if not isinstance(one, Completion)]:
        raise InputTypeError(f"selection is among completions, as generate returns them, got {odd[0]!r:.80}")
    problems: tuple[Problem, ...] | None = None if asked is None else problems_of(asked)
    ordered = sorted(completions, key=_place)
    for one, other in itertools.pairwise(ordered):
        if _place(one) == _place(other):
            raise InputError(
                f"two completions are {_named(one)}: if they come from several calls of generate, select from each call's own"
            )
    prompts = [tuple(group) for _, group in itertools.groupby(ordered, key=lambda completion: completion.prompt_index)]
    if problems is not None and len(problems) != len(prompts):
        raise InputError(f"{len(problems)} problems for {len(prompts)} prompts: give one for each, in their order")
    groups = [Candidates(of_prompt, problems[i] if problems is not None else None) for i, of_prompt in enumerate(prompts)]
    for group in groups:
        _require_asked(group)
    return groups


def _require_asked(group: Candidates) -> None:
    """Refuse a problem whose question its prompt doesn't hold, as in problems of another order; a prompt without text may."""
    prompt = group.completions[0].prompt
    if group.problem is not None and prompt and _bare(group.problem.question) not in _bare(prompt):
        number = group.completions[0].prompt_index
        raise InputError(
            f"the question {group.problem.question!r:.80} is not in prompt {number}, {prompt!r:.80}: give problems in the "
            "order of the prompts"
        )


def _bare(text: str) -> str:
    """What templates and tokenizers leave of a text: no white space, one form and one case of each letter."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def _place(completion: Completion) -> tuple[int, int]:
    return completion.prompt_index, completion.sample


def _named(completion: Completion) -> str:
    return f"prompt {completion.prompt_index}, sample {completion.sample}"


@dataclass(frozen=True, eq=False)
class Scorer:
    """Scores by name, [prompt][candidate]; what several of them need is computed once."""

    groups: Sequence[Candidates]
    thresholds: Mapping[int, float] | None
    """What was given; checked where norms are scored."""
    layers: Layers
    seed: int

    def __call__(self, name: str) -> list[NDArray[np.float64]]:
        """One score of every candidate."""
        if name in NORM_SCORES:
            return [values[:, NORM_SCORES.index(name)] for values in self.norm_scores]
        if name == "oracle":
            if all(np.isnan(values).all() for values in self.correct):
                raise Unscorable("no problem has a known answer: give problems=, one for each prompt")
            return [np.nan_to_num(values) for values in self.correct]
        scores = [np.array(_BASELINE[name](group, self.seed), dtype=np.float64) for group in self.groups]
        for group, values in zip(self.groups, scores, strict=True):
            if np.isnan(values).any():
                raise InputError(f"the {name} of {_named(group.completions[int(np.isnan(values).argmax())])} is NaN")
        return scores

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
            raise Unscorable(f"{_named(bare)} has no trace: {_GENERATE}")
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


def _is_correct(group: Candidates, completion: Completion) -> bool | None:
    return None if group.problem is None else is_correct(group.problem, completion.answer)


def _votes(group: Candidates, seed: int) -> list[float]:
    """Share of the candidates whose answer is the same; 0 without an answer."""
    answers = [comparable_answer(group.problem or _FREE_TEXT, completion.answer) for completion in group.completions]
    return [0.0 if answer is None else answers.count(answer) / len(answers) for answer in answers]


def _mean_of(name: str) -> Callable[[Candidates, int], list[float]]:
    """The mean over tokens of a field of the completions."""

    def mean(completion: Completion) -> float:
        values: Tensor | None = getattr(completion, name)
        if values is None:
            raise Unscorable(f"{_named(completion)} has no {name}: {_GENERATE}")
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
    "majority": _votes,
}
