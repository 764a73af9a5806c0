"""What must hold where other text stands in place of a thought."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import tl_l2norm as l2
from tests.builders import make_result
from tests.traces import response
from tl_l2norm.analysis.thought_texts import thought_text_table
from tl_l2norm.core.errors import Unmeasurable
from tl_l2norm.core.trace import Trace
from tl_l2norm.experiments.thought_texts import KINDS, replaced_thoughts
from tl_l2norm.paper.finding import NOT_SUPPORTED, SUPPORTED, UNTESTED, Known
from tl_l2norm.paper.rules.thinking import thoughts
from tl_l2norm.tasks.problems import Problem
from tl_l2norm.tasks.results import Result
from tl_l2norm.text.spans import thought_span

PROMPT, CLOSING, ANSWER = 4, 2, 2


def results(model: Any, lengths: tuple[int, ...]) -> list[Result]:
    """Responses of random tokens: a thought of each length, two tokens, and an answer of two."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for i, n in enumerate(lengths):
        tokens = torch.randint(200, 3500, (PROMPT + n + CLOSING + ANSWER,), generator=generator).tolist()
        segments = ("prompt",) * PROMPT + ("think",) * n + ("answer",) * (CLOSING + ANSWER)
        labels = {"mode": "think", "prompt": str(i), "answer_at": PROMPT + n + CLOSING}
        trace = l2.collect(model, [tokens], segments=[segments], labels=[labels], progress=False)[0]
        problem = Problem(question=f"{i}?", answer=str(i), family="sums", level=1)
        found.append(make_result(i, "think", trace=trace, problem=problem, answer=str(i), correct=True))
    return found


def test_only_the_thought_is_another_and_all_is_as_long(tiny: Any) -> None:
    own = results(tiny, (9, 9, 9, 9, 12, 12, 12, 12, 14, 14))
    filler = tiny.tokenizer("...", add_special_tokens=False).input_ids
    traces = replaced_thoughts(tiny, own, progress=False)
    assert [t.labels["text"] for t in traces] == [kind for kind in ("own", *KINDS) for _ in own]
    thoughts = {r.trace.labels["prompt"]: r.trace.tokens[PROMPT : -CLOSING - ANSWER].tolist() for r in own}
    for trace, result in zip(traces, own * 4, strict=True):
        span = thought_span(trace)
        assert (span.start, span.stop) == (trace.labels["thought_from"], trace.labels["thought_to"])
        assert len(trace) == len(result.trace) and trace.segments == result.trace.segments
        inside = torch.zeros(len(trace), dtype=torch.bool)
        inside[span.start : span.stop] = True
        assert torch.equal(trace.tokens[~inside], result.trace.tokens[~inside])
        mine, prompt = trace.tokens[inside].tolist(), str(trace.labels["prompt"])
        match trace.labels["text"]:
            case "own":
                assert mine == thoughts[prompt]
                assert torch.allclose(trace.l2_norms, result.trace.l2_norms, rtol=1e-4)
            case "filler":
                assert mine == (filler * 20)[: len(mine)]
            case "shuffled":
                assert sorted(mine) == sorted(thoughts[prompt]) and mine != thoughts[prompt]
            case "another's":
                assert mine != thoughts[prompt] and mine in thoughts.values()
        assert torch.equal(trace.l2_norms[:, :PROMPT], traces[own.index(result)].l2_norms[:, :PROMPT]) or torch.allclose(
            trace.l2_norms[:, :PROMPT], result.trace.l2_norms[:, :PROMPT], rtol=1e-4
        )


def test_the_answer_is_judged_by_the_models_own_logits(tiny: Any) -> None:
    traces = replaced_thoughts(tiny, results(tiny, (9,) * 8), kinds="shuffled", batch_size=3, progress=False)
    for trace in traces:
        with torch.no_grad():
            logprobs = tiny(trace.tokens[None])[0, :-1].double().log_softmax(-1)
        chosen = logprobs.gather(1, trace.tokens[1:, None])[-ANSWER:, 0]
        assert trace.labels["answer_logprob"] == pytest.approx(float(chosen.sum()), abs=1e-3)
        assert trace.labels["says_answer"] == bool((chosen >= logprobs[-ANSWER:].amax(-1)).all())


def wrote(one: Any, other: Any) -> Any:
    """Its own prompt, and what the other one wrote."""
    tokens = torch.cat([one.trace.tokens[:PROMPT], other.trace.tokens[PROMPT:]])
    return dataclasses.replace(one, trace=dataclasses.replace(one.trace, tokens=tokens))


def test_another_is_of_the_family_and_length_whatever_it_answers(tiny: Any) -> None:
    """Two families and two lengths in each; all answers are the same, and one thought is its neighbour's."""
    own = [
        dataclasses.replace(r, answer="4", problem=dataclasses.replace(r.problem, family="ab"[i % 2]))
        for i, r in enumerate(results(tiny, (9, 9, 9, 9, 12, 12, 12, 12, 9, 9, 9, 9)))
    ]
    own[2] = wrote(own[2], own[0])
    traces = replaced_thoughts(tiny, own, kinds="another's", progress=False)[len(own) :]
    assert [t.labels["response"] for t in traces] == list(range(len(own)))
    thoughts = [r.trace.tokens[thought_span(r.trace).start : thought_span(r.trace).stop].tolist() for r in own]
    for i, trace in enumerate(traces):
        mine = trace.tokens[int(trace.labels["thought_from"]) : int(trace.labels["thought_to"])].tolist()
        donors = [j for j, thought in enumerate(thoughts) if thought == mine]
        assert mine != thoughts[i] and {own[j].problem.family for j in donors} == {own[i].problem.family}
        assert trace.labels["family"] == own[i].problem.family


def test_loud_ends_of_thoughts_of_any_length_are_no_finding(tiny: Any) -> None:
    """Thoughts end in tokens of the loudest types: one cut to length would lack them, a whole one has them as well."""
    generator = np.random.default_rng(0)

    def table(*lengths: int) -> pd.DataFrame:
        own = results(tiny, lengths)
        for i, (result, n) in enumerate(zip(own, lengths, strict=True)):
            tokens = result.trace.tokens.clone()
            tokens[PROMPT + n - 3 : PROMPT + n] = torch.from_numpy(generator.integers(LOUD, LOUD + 500, 3))
            own[i] = dataclasses.replace(result, trace=dataclasses.replace(result.trace, tokens=tokens))
        traces = replaced_thoughts(tiny, own, progress=False)
        return thought_text_table([of_types_alone(trace) for trace in traces], resamples=500)

    entries = table(*3 * tuple(range(8, 16)))
    entry = entries.set_index(["text", "scope", "layer"]).loc[("another's", "thought", "late")]
    finding = thoughts(Known({"thought_texts": entries}, {}))
    assert entry["n"] == 24 and entry["p"] > 0.05 and finding.verdict(finding.p) == NOT_SUPPORTED
    with pytest.warns(UserWarning, match="only 0 of 12 thoughts share family and length"):
        entries = table(*range(8, 20))
    finding = thoughts(Known({"thought_texts": entries}, {}))
    assert finding.verdict(finding.p) == UNTESTED and "only 0 problems share family and length" in finding.why


def boilerplate(seed: int, families: int, each: int, odd: int, *, effect: float = 0.0) -> list[Trace]:
    """Most thoughts of a family are one text, the others texts of their own; a text has its loudness, whoever thinks it.

    Ordinary text is louder than filler and shuffled tokens; `effect` is how much louder a text is where it is the own one.
    """
    rng = np.random.default_rng([seed, 41])
    traces, k = [], 12
    for family in range(families):
        own_texts = [max(0, i - (each - odd) + 1) for i in range(each)]
        loudness = 6 * rng.normal(size=odd + 1)
        for i, own in enumerate(own_texts):
            another = rng.choice([text for text in range(odd + 1) if text != own])
            offset = 10 * rng.exponential()
            lift = {"own": loudness[own] + effect, "another's": loudness[another], "filler": -30.0, "shuffled": -30.0}
            for text, more in lift.items():
                norms = 200 + offset + more + 5 * rng.normal(size=(4, k + 2))
                tokens = 1000 * (100 * family + (own if text == "own" else another)) + np.arange(k + 2)
                labels = {"text": text, "family": str(family), "thought_from": 1, "thought_to": 1 + k, "answer_at": 2 + k}
                said = {"answer_logprob": -1.0, "says_answer": True}
                traces.append(response(norms, prompt=f"{family}/{i}", tokens=tokens, labels={**labels, **said}))
    return traces


def share_supported(runs: int, *world: int, effect: float = 0.0) -> float:
    counts = 0
    for seed in range(runs):
        table = thought_text_table(boilerplate(seed, *world, effect=effect), seed=seed, resamples=300)
        finding = thoughts(Known({"thought_texts": table}, {}))
        counts += finding.verdict(finding.p) == SUPPORTED
    return counts / runs


@pytest.mark.parametrize("world", [(1, 40, 8), (5, 8, 1), (2, 30, 10)])
def test_one_thought_of_most_problems_is_one_case(world: tuple[int, int, int]) -> None:
    """Families, problems in each, thoughts of their own among these. Counted by problems the first was said in 18 of 60."""
    assert share_supported(30, *world) <= 3 / 30
    if world[2] == 10:
        assert share_supported(10, *world, effect=25.0) >= 0.9


def test_few_thoughts_are_not_tested() -> None:
    with pytest.raises(Unmeasurable, match="6 problems with thoughts of their own"):
        thought_text_table(boilerplate(0, 3, 8, 1))


def test_what_many_wrote_is_drawn_as_one(tiny: Any) -> None:
    """Of 12 thoughts 8 are the same: the others' thoughts come from it no more often than from each other."""
    own = results(tiny, (9,) * 12)
    tokens = own[0].trace.tokens
    for i in range(1, 8):
        own[i] = wrote(own[i], own[0])
    drawn = 0
    for seed in range(8):
        traces = replaced_thoughts(tiny, own, kinds="another's", layers=-1, seed=100 * seed, progress=False)[12:]
        drawn += sum(torch.equal(t.tokens[PROMPT : PROMPT + 9], tokens[PROMPT : PROMPT + 9]) for t in traces[8:])
    assert 2 <= drawn <= 16, "of 32 a quarter is expected, of responses two thirds and more"


LOUD = 3500
"""The first token id of the loud types."""


def of_types_alone(trace: Trace) -> Trace:
    """The same text with norms that hang on the types of tokens alone."""
    norms = 100.0 + trace.tokens % 17 + 50.0 * (trace.tokens >= LOUD)
    return dataclasses.replace(trace, l2_norms=norms.expand_as(trace.l2_norms).contiguous())


def test_what_can_not_be_made_is_said(tiny: Any) -> None:
    lengths = (9, 9, 9, 9, 9, 9, 9, 9, 14)
    with pytest.warns(UserWarning, match="only 8 of 9 thoughts share family and length with that of another problem"):
        traces = replaced_thoughts(tiny, results(tiny, lengths), kinds="another's", progress=False)
    assert len(traces) == 9 + 8
    with pytest.raises(ValueError, match="only 2 of 8 thoughts share family and length"):
        replaced_thoughts(tiny, results(tiny, (9, 9, *range(10, 16))), kinds="another's")
    with pytest.warns(UserWarning, match="only 2 of 8"):
        traces = replaced_thoughts(tiny, results(tiny, (9, 9, *range(10, 16))), progress=False)
    assert [t.labels["text"] for t in traces].count("another's") == 2
    with pytest.raises(ValueError, match="7 responses think"):
        replaced_thoughts(tiny, results(tiny, (9,) * 7))
    own = results(tiny, (9,) * 8)
    with pytest.raises(ValueError, match="kinds must be one of"):
        replaced_thoughts(tiny, own, kinds="own")
    with pytest.raises(ValueError, match=f"are the same {PROMPT} tokens: each counts once"):
        replaced_thoughts(
            tiny, [*own, dataclasses.replace(own[0], problem=Problem(question="0 again", answer="0", family="f"))]
        )
