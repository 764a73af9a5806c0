"""What must hold of generation, on every architecture and backend."""

from __future__ import annotations

from typing import Any

import torch

import tl_l2norm as l2
from tests import models, oracles
from tests.texts import prompts, relative


def test_greedy_tokens_are_those_of_hugging_face_alone_and_in_a_batch(case: models.Case, model: Any, plain: Any) -> None:
    n = 24 if case in models.TINY else 14
    truth = [oracles.greedy(plain, prompt, n) for prompt in prompts()]
    batched = l2.generate(model, prompts(), max_new_tokens=n, batch_size=3, record=False)
    assert [list(c.tokens) for c in batched] == truth
    alone = l2.generate(model, [prompts()[1]], max_new_tokens=n)
    assert list(alone[0].tokens) == truth[1]


def test_norms_while_decoding_are_those_of_one_pass_over_the_result(case: models.Case, model: Any, plain: Any) -> None:
    n = 20 if case in models.TINY else 12
    out = l2.generate(model, prompts(), max_new_tokens=n, batch_size=2, ignore_eos=True)
    for completion in out:
        trace = completion.trace
        assert trace.tokens.tolist() == [*completion.prompt_tokens, *completion.tokens[:-1]]
        assert trace.prompt_len == len(completion.prompt_tokens)
        truth = oracles.hidden_norms(plain, trace.tokens.tolist())
        assert relative(trace.l2_norms.double(), truth[1:]) < 1e-4
        assert relative(trace.embed_l2_norms.double(), truth[0]) < 1e-4
        again = l2.collect(model, trace)[0]
        assert torch.equal(again.is_sink, trace.is_sink)
        assert again.segments == trace.segments and again.prompt_len == trace.prompt_len


def test_a_sample_does_not_depend_on_its_neighbours(model: Any) -> None:
    options: dict[str, Any] = {"max_new_tokens": 8, "temperature": 1.0, "top_k": 50, "top_p": 0.95}
    out = l2.generate(model, prompts(), n=2, seed=7, batch_size=4, **options)
    assert len({c.tokens for c in out}) > 5, "samples should differ"
    for i in (3, 9):
        alone = l2.generate(model, [list(out[i].prompt_tokens)], seed=[out[i].seed], **options)
        assert alone[0].tokens == out[i].tokens
        assert relative(alone[0].trace.l2_norms, out[i].trace.l2_norms) < 1e-4
    again = l2.generate(model, prompts(), n=2, seed=7, batch_size=16, **options)
    assert [c.tokens for c in again] == [c.tokens for c in out]
    other = l2.generate(model, prompts(), n=2, seed=8, batch_size=16, **options)
    assert [c.tokens for c in other] != [c.tokens for c in out]


def test_finished_rows_leave_and_others_take_their_places(tiny: Any) -> None:
    """What comes out is what each prompt gives alone, while rows of many lengths come and go."""
    n = 24
    alone = [l2.generate(tiny, [p], max_new_tokens=n, ignore_eos=True)[0] for p in prompts()]
    stop = [alone[0].tokens[3], alone[2].tokens[11], alone[3].tokens[20], alone[4].tokens[7]]
    for batch_size in (2, 3, 5):
        out = l2.generate(tiny, prompts() * 2, max_new_tokens=n, stop=stop, ignore_eos=True, batch_size=batch_size)
        assert len({len(c.tokens) for c in out}) >= 3, "rows should end at different times"
        for completion, whole in zip(out, alone * 2, strict=True):
            end = next((i for i, t in enumerate(whole.tokens) if t in stop), n - 1)
            assert completion.tokens == whole.tokens[: end + 1]
            assert completion.finish_reason == ("stop" if completion.tokens[-1] in stop else "length")
            part = whole.trace.l2_norms[:, : len(completion.trace)]
            assert relative(completion.trace.l2_norms, part) < 1e-4
