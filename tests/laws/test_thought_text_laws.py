"""What must hold where other text stands in place of a thought."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tl_l2norm as l2
from tests.builders import make_result
from tl_l2norm.experiments.thought_texts import KINDS, replaced_thoughts
from tl_l2norm.tasks.problems import Problem
from tl_l2norm.tasks.results import Result
from tl_l2norm.text.spans import thought_span

PROMPT, CLOSING, ANSWER = 4, 2, 2


def results(model: Any, lengths: tuple[int, ...]) -> list[Result]:
    """Responses of random tokens: a thought of each length, two tokens, and an answer of two."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for i, n in enumerate(lengths):
        tokens = torch.randint(200, 4000, (PROMPT + n + CLOSING + ANSWER,), generator=generator).tolist()
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
                assert [p for p, other in thoughts.items() if other[: len(mine)] == mine] not in ([], [prompt])
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


def test_what_can_not_be_made_is_said(tiny: Any) -> None:
    lengths = (9, 9, 9, 9, 9, 9, 9, 9, 14)
    with pytest.warns(UserWarning, match="1 of 9 thoughts are longer than any"):
        traces = replaced_thoughts(tiny, results(tiny, lengths), kinds="another's", progress=False)
    assert len(traces) == 9 + 8
    with pytest.raises(ValueError, match="0 of 8 thoughts find another problem's"):
        same = [
            make_result(i, "think", trace=r.trace, problem=r.problem, answer="4") for i, r in enumerate(results(tiny, (9,) * 8))
        ]
        replaced_thoughts(tiny, same, kinds="another's")
    with pytest.raises(ValueError, match="7 responses think"):
        replaced_thoughts(tiny, results(tiny, (9,) * 7))
    with pytest.raises(ValueError, match="kinds must be one of"):
        replaced_thoughts(tiny, results(tiny, (9,) * 8), kinds="own")
