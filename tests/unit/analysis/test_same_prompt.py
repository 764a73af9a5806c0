"""One prompt under two ids counts once or not at all: whatever takes traces refuses it, and so do the makers of tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from tests.planted import response
from tests.worlds import World
from tl_l2norm.analysis.accuracy import accuracy_table
from tl_l2norm.analysis.bound import bound_points
from tl_l2norm.analysis.correlation import correlation_table
from tl_l2norm.analysis.curves import layer_curve
from tl_l2norm.analysis.late import compare_late
from tl_l2norm.analysis.link import feature_link
from tl_l2norm.analysis.pairing import by_prompt
from tl_l2norm.analysis.reasoning import find_reasoning_features
from tl_l2norm.analysis.sample_norms import correctness_samples
from tl_l2norm.analysis.split import split_thinking
from tl_l2norm.analysis.thought_texts import difficulty_at_length, thought_text_table
from tl_l2norm.core.errors import InputError
from tl_l2norm.core.prompts import require_own_prompts
from tl_l2norm.core.trace import Trace
from tl_l2norm.tasks.problems import Problem
from tl_l2norm.tasks.results import Result

SAME = "the prompts '.*' and '.*again' are the same 3 tokens: each counts once"


class Squares:
    """In place of features."""

    def total(self, trace: Trace) -> Any:
        return trace.l2_norms**2


def asked(i: int, mode: str = "think", text: str = "own") -> Trace:
    """Behind a prompt of three tokens."""
    rng = np.random.default_rng([i, len(mode), len(text)])
    labels = {"text": text, "family": "f", "level": i % 3, "thought_from": 3, "thought_to": 10, "answer_at": 12, "sample": 0}
    labels |= {"answer_logprob": -1.0, "says_answer": True, "log_prob": -1.0}
    return response(100 + rng.random((4, 12)), prompt=f"p{i}", mode=mode, prompt_len=3, tokens=np.arange(12) + i, labels=labels)


def twice(traces: Sequence[Trace], **labels: str) -> list[Trace]:
    return [*traces, *(t.with_labels(prompt=f"{t.labels['prompt']}again", **labels) for t in traces)]


def results_of(traces: Sequence[Trace]) -> list[Result]:
    facts: dict[str, Any] = {"prompt": "", "control": "", "response": "", "answer": "", "finish_reason": "stop", "direct": None}
    names = (str(t.labels["prompt"]) for t in traces)
    return [
        Result(problem=Problem(question=name, answer="2", family="f"), mode="think", correct=True, trace=t, **facts)
        for name, t in zip(names, traces, strict=True)
    ]


THINK, DIRECT = ([asked(i, mode) for i in range(12)] for mode in ("think", "direct"))
TEXTS = [t for text in ("own", "filler") for t in (asked(i, text=text) for i in range(12))]

TAKERS: dict[str, Callable[[], Any]] = {
    "by_prompt": lambda: by_prompt(twice(THINK)),
    "compare_late": lambda: compare_late(twice(THINK), twice(DIRECT)),
    "layer_curve": lambda: layer_curve(twice(THINK), mode="think"),
    "correlation_table": lambda: correlation_table(twice(THINK), Squares(), quantities="l2_norm"),
    "difficulty_at_length": lambda: difficulty_at_length(twice(THINK)),
    "split_thinking": lambda: split_thinking(twice(THINK), twice(DIRECT)),
    "thought_text_table": lambda: thought_text_table(twice(TEXTS, family="other")),
}


@pytest.mark.parametrize("name", TAKERS)
def test_whatever_takes_traces_refuses_it(name: str) -> None:
    with pytest.raises(InputError, match=SAME):
        TAKERS[name]()


def test_what_takes_results_refuses_it() -> None:
    results = results_of([THINK[0], THINK[0].with_labels(prompt="again")])
    for make in (accuracy_table, correctness_samples):
        with pytest.raises(InputError, match="are the same 3 tokens"):
            make(results)


def test_with_features_it_is_refused_too() -> None:
    think, direct = World(n=32, latents=60, reasoning=6.0).make(1)
    features = find_reasoning_features(think, direct, choose_on=[str(t.labels["prompt"]) for t in think[:20]])
    sides = [[longer(t) for t in features.held_out(traces)] for traces in (think, direct)]
    for make in (lambda a, b: feature_link(a, features), lambda a, b: bound_points(a, b, features)):
        with pytest.raises(InputError, match=SAME):
            make(*map(twice, sides))


def longer(trace: Trace) -> Trace:
    """With three tokens of prompt for one."""
    at = torch.tensor([0, 0, *range(len(trace))])
    columns = {name: getattr(trace, name)[..., at] for name in ("tokens", "l2_norms", "embed_l2_norms", "is_sink")}
    texts = {name: tuple(getattr(trace, name)[i] for i in at) for name in ("str_tokens", "segments")}
    features = {layer: acts.select(at) for layer, acts in trace.features.items()}
    return dataclasses.replace(trace, **columns, **texts, features=features, prompt_len=trace.prompt_len + 2)


def test_without_labels_the_same_prompt_is_one_with_samples() -> None:
    bare = [dataclasses.replace(t, labels={}) for t in THINK]
    curve = layer_curve([*bare, *bare], mode="think")
    assert curve.n == 12 and np.allclose(curve.high - curve.low, np.subtract(*_ends(layer_curve(bare, mode="think"))))


def _ends(curve: Any) -> tuple[Any, Any]:
    return curve.high, curve.low


def test_a_prompt_of_one_token_may_have_any_number_of_names() -> None:
    require_own_prompts([("a", [1]), ("b", [1]), ("a", [1, 2]), ("a", [1, 2]), ("b", [1, 3])])
    with pytest.raises(InputError, match="the prompts 'a' and 'b' are the same 2 tokens"):
        require_own_prompts([("a", [1, 2]), ("b", (1, 2))])
