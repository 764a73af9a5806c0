"""A response that is streamed is the one that is generated, and a stream that is left leaves nothing."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import tl_l2norm as l2
from tests import models
from tests.texts import ids, prompts
from tl_l2norm.core.errors import InputError
from tl_l2norm.recording.stream import StreamObserver
from tl_l2norm.recording.token_reader import TokenReader
from tl_l2norm.recording.token_stream import TokenStep
from tl_l2norm.text.boundaries import Boundaries
from tl_l2norm.text.sequences import token_texts

OPTIONS: dict[str, Any] = {"max_new_tokens": 12, "temperature": 1.0, "top_k": 50, "seed": 3, "ignore_eos": True}


@pytest.fixture(
    params=[case for case in models.CASES if case in models.QUICK and case.architecture in ("llama", "gpt2")], ids=str
)
def tiny_case(request: pytest.FixtureRequest) -> models.Case:
    """One on each backend."""
    case: models.Case = request.param
    if case.backend == "hooked" and not models.HAS_HOOKED:
        pytest.skip("no HookedTransformer here")
    return case


def acting() -> list[Any]:
    """Two of the paper's methods on a model of six layers, which fire often."""
    alrr = l2.ALRR({2: 1e-3, 4: 1e-3}, growth_eps=-9.0, blowup=1e9)
    bank = {3: torch.ones(1, 48)}
    return [alrr, l2.ERSS({3: 1e9}, patience=2, cooldown=1, p=0.5, cos_min=-1.0, bank=bank, keep_banks=True)]


def plain(model: Any, **options: Any) -> Any:
    return l2.generate(model, [prompts()[1]], progress=False, **(OPTIONS | options))


def written(steps: list[TokenStep]) -> torch.Tensor:
    return torch.stack([step.l2_norms for step in steps if step.l2_norms is not None], dim=1)


@pytest.mark.parametrize("acts", [False, True])
def test_tokens_norms_and_events_are_those_of_generate(acts: bool, tiny: Any) -> None:
    options = {"interventions": acting()} if acts else {}
    out = plain(tiny, **options)
    options |= {"stop": out[0].text[-3:]} if not acts else {}
    out = plain(tiny, **options)
    stream = l2.stream(tiny, prompts()[1], **(OPTIONS | options))
    steps, (whole,) = list(stream), out
    trace = whole.trace
    assert tuple(step.token for step in steps) == whole.tokens and steps[-1].finish_reason == whole.finish_reason
    assert [step.finish_reason for step in steps[:-1]] == [None] * (len(steps) - 1)
    assert [step.position for step in steps] == list(range(trace.prompt_len, len(trace) + 1))
    assert torch.equal(written(steps), trace.l2_norms[:, trace.prompt_len :]) and steps[-1].l2_norms is None
    assert torch.equal(torch.stack([s.is_sink for s in steps[:-1]], 1), trace.is_sink[:, trace.prompt_len :])
    late = trace.l2_norms[4:, trace.prompt_len :].masked_fill(trace.is_sink[4:, trace.prompt_len :], torch.nan).nanmean(0)
    assert np.allclose([step.late_l2_norm for step in steps[:-1]], late, equal_nan=True)
    assert [s.token_text for s in steps[:-1]] == list(trace.str_tokens[trace.prompt_len :])
    assert [s.segment for s in steps[:-1]] == list(trace.segments[trace.prompt_len :])
    assert steps[-1].text == whole.text == stream.text and steps[-2].text.startswith(whole.text[:5])
    assert torch.equal(stream.trace.l2_norms, trace.l2_norms) and torch.equal(stream.completion.logprobs, whole.logprobs)
    if acts:
        events = out.events()
        assert events["fired"].sum() > 10 and (events["intervention"] == "ERSS").any()
        pd.testing.assert_frame_equal(stream.events(), events)
        each = pd.DataFrame([event for step in steps for event in step.events])
        pd.testing.assert_frame_equal(each, events, check_dtype=False)


def test_between_steps_the_model_is_the_users(tiny: Any) -> None:
    """Its logits are untouched, gradients are on, and another stream may run at the same time."""
    tokens = torch.tensor([ids("Two and two")])
    before = tiny(tokens)
    one = l2.stream(tiny, prompts()[1], interventions=acting(), **OPTIONS)
    two = l2.stream(tiny, prompts()[0], **OPTIONS)
    steps: tuple[list[TokenStep], list[TokenStep]] = ([], [])
    for pair in zip(one, two, strict=True):
        for mine, step in zip(steps, pair, strict=True):
            mine.append(step)
        assert models.hooks_left() == 0 and not torch.is_inference_mode_enabled()
        assert torch.equal(tiny(tokens), before)
        assert pair[0].l2_norms is None or not pair[0].l2_norms.is_inference()
    for index, own, options in ((1, steps[0], {"interventions": acting()}), (0, steps[1], {})):
        alone = l2.generate(tiny, [prompts()[index]], progress=False, **OPTIONS, **options)[0].trace
        assert torch.equal(written(own), alone.l2_norms[:, alone.prompt_len :])


@pytest.mark.parametrize("how", ["break", "error", "with", "dropped"])
def test_a_stream_that_is_left_leaves_no_hook_and_no_cache(how: str, tiny: Any) -> None:
    stream = l2.stream(tiny, prompts()[1], interventions=acting(), **OPTIONS)
    steps = [next(stream) for _ in range(4)]
    cache = weakref.ref(stream._decoder.cache)  # type: ignore[union-attr]
    assert cache() is not None
    if how == "break":
        for step in stream:
            steps.append(step)
            break
    elif how == "error":
        with pytest.raises(ZeroDivisionError):
            for _ in stream:
                1 / 0  # noqa: B018
    elif how == "with":
        with stream:
            pass
    else:
        del stream
    assert cache() is None and models.hooks_left() == 0
    if how == "dropped":
        return
    assert next(stream, None) is None and stream.completion is None
    assert stream.log.kept[1][0][3].shape == (1, 48)  # type: ignore[union-attr]
    whole = plain(tiny, interventions=acting())
    trace, n = stream.trace, len(stream.trace)
    assert n >= len(prompts()[1]) + len(steps) and trace.segments == whole[0].trace.segments[:n]
    assert torch.equal(trace.l2_norms, whole[0].trace.l2_norms[:, :n])
    events = whole.events()
    pd.testing.assert_frame_equal(stream.events(), events[events["position"] < n].reset_index(drop=True))


class Interrupting(StreamObserver):
    """The user loses patience in the middle of a pass."""

    name = "patience"
    left = 40

    def measure(self, stream: torch.Tensor, layer: int) -> torch.Tensor:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt
        return stream[..., 0]


def test_what_was_written_before_an_interruption_is_whole(tiny: Any) -> None:
    stream = l2.stream(tiny, prompts()[1], observers=Interrupting(), interventions=acting(), **OPTIONS)
    with pytest.raises(KeyboardInterrupt):
        for _ in stream:
            pass
    whole = plain(tiny, interventions=acting())
    n = len(prompts()[1]) + 5  # six layers a pass: the prompt's, and five that read a token back
    assert models.hooks_left() == 0 and torch.equal(stream.trace.l2_norms, whole[0].trace.l2_norms[:, :n])
    assert stream.trace.metrics["patience"].shape == (6, n) and stream.events()["position"].max() == n - 1


def test_what_is_no_single_response_is_refused(tiny: Any) -> None:
    with pytest.raises(InputError, match="stream writes one response, got 2 prompts"):
        l2.stream(tiny, prompts()[:2], **OPTIONS)
    with pytest.raises(InputError, match="nothing intervened"):
        l2.stream(tiny, prompts()[1], **OPTIONS).events()


@pytest.mark.parametrize(
    "text",
    [
        "naïve 数学 🧠👩‍🔬 œ",
        "<think>\nif x > 3: stop\n</think>\n\nThe answer is 4: done.",
        "The </think> tag ends a thought, and [THINK] begins one. <think>It is > 3</think> 4",
        "No </think> 5 <thinking>6</thinking> 7 `<think>` 8",
    ],
)
def test_a_text_is_read_as_if_it_were_whole(text: str) -> None:
    boundaries, prompt, tokens = Boundaries(models.tokenizer()), ids("Say it:"), ids(text)
    reader = TokenReader(boundaries, prompt)
    read = [reader.add(token) for token in tokens]
    texts = token_texts(boundaries.tokenizer, [*prompt, *tokens])
    assert tuple(said for said, _, _ in read) == texts[len(prompt) :] and reader.text == text
    for n in (len(tokens), *range(1, len(tokens))):  # as of each moment
        own = TokenReader(boundaries, prompt)
        last = [own.add(token) for token in tokens[:n]][-1]
        _, segments = boundaries.read_response([*prompt, *tokens[:n]], texts[: len(prompt) + n], len(prompt))
        assert last[1] == segments[-1] and "\ufffd" not in own.text
