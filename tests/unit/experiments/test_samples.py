from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import tl_l2norm as l2
from tl_l2norm.core.errors import InputError
from tl_l2norm.experiments import samples
from tl_l2norm.recording.generate import generate

OPTIONS: dict[str, Any] = {"n": 3, "temperature": 2.5, "max_new_tokens": 48, "progress": False}


@pytest.fixture(scope="module")
def reasoner() -> Any:
    return l2.load_model("tiny-reasoner", device="cpu")


@pytest.fixture(scope="module")
def problems() -> Any:
    return l2.make_mixture(4, families="compact")


def test_every_problem_is_asked_several_times_and_judged(reasoner: Any, problems: Any) -> None:
    results = samples.sample_thinking(reasoner, problems, **OPTIONS)
    labels = [result.trace.labels for result in results]
    assert [(own["prompt"], own["sample"]) for own in labels] == [(p.id, i) for p in problems for i in range(3)]
    assert len({result.response for result in results}) > len(problems), "samples of a problem differ"
    for result in results:
        assert result.correct is l2.is_correct(result.problem, result.answer)
        assert result.trace.provenance.temperature == 2.5
    table = l2.analysis.correctness_samples(results)
    assert table["correct"].tolist() == [result.correct for result in results]


def test_log_probability_is_the_mean_over_the_tokens_that_were_sampled(reasoner: Any, problems: Any) -> None:
    result = samples.sample_thinking(reasoner, problems[:1], **OPTIONS)[1]
    prompt = l2.chat_prompt(reasoner.tokenizer, problems[0].question, mode="think")
    options: dict[str, Any] = {"temperature": 2.5, "max_new_tokens": 48, "progress": False}
    again = generate(reasoner, [prompt], seed=[result.trace.provenance.seed or 0], **options)[0]
    assert again.text == result.response
    with torch.no_grad():
        logits = reasoner(torch.tensor([[*again.prompt_tokens, *again.tokens]]))[0].log_softmax(-1)
    expected = [float(logits[len(again.prompt_tokens) + i - 1, token]) for i, token in enumerate(again.tokens)]
    assert result.trace.labels["log_prob"] == pytest.approx(sum(expected) / len(expected), abs=1e-4)
    assert l2.analysis.correctness_samples([result])["length"].tolist() == [len(again.tokens)]


def test_saved_samples_are_gone_on_from(reasoner: Any, problems: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = samples.sample_thinking(reasoner, problems, **OPTIONS)
    samples.sample_thinking(reasoner, problems[:2], save_to=tmp_path, **OPTIONS)
    asked = []

    def noting(model: Any, prompts: Any, **options: Any) -> Any:
        asked.extend(prompts)
        return generate(model, prompts, **options)

    monkeypatch.setattr(samples, "generate", noting)
    resumed = samples.sample_thinking(reasoner, problems, save_to=tmp_path, **OPTIONS)
    assert len(asked) == 2, "the others were there"
    assert [r.response for r in resumed] == [r.response for r in whole]
    for own, expected in zip(resumed, whole, strict=True):  # probabilities to float tolerance: batches differ
        assert own.trace.labels == {**expected.trace.labels, "log_prob": pytest.approx(expected.trace.labels["log_prob"])}
    samples.sample_thinking(reasoner, problems, save_to=tmp_path, **OPTIONS)
    assert len(asked) == 2


def test_hooks_of_others_act_on_what_is_recorded(reasoner: Any, problems: Any) -> None:
    plain = samples.sample_thinking(reasoner, problems[:1], **OPTIONS)
    with reasoner.hooks(fwd_hooks=[("blocks.11.hook_resid_post", lambda h, hook: 2 * h)]):
        louder = samples.sample_thinking(reasoner, problems[:1], **OPTIONS)
    assert louder[0].trace.provenance.foreign_hooks == 1
    assert [r.response for r in louder] == [r.response for r in plain], "the final norm takes the scale away"
    torch.testing.assert_close(louder[0].trace.l2_norms[-1], 2 * plain[0].trace.l2_norms[-1], rtol=1e-4, atol=1e-3)
    assert louder[2].trace.labels["sample"] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 1}, "n must be"),
        ({"temperature": 0.0}, "temperature is over 0"),
        ({"layers": 99}, "layer 99"),
    ],
)
def test_bad_options_are_refused(reasoner: Any, problems: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        samples.sample_thinking(reasoner, problems, **{**OPTIONS, **options})
    with pytest.raises(InputError, match="are the same .* tokens: each counts once"):
        samples.sample_thinking(reasoner, [problems[0], dataclasses.replace(problems[0], family="copy")], **OPTIONS)
    with pytest.raises(InputError, match="no problems"):
        samples.sample_thinking(reasoner, [], **OPTIONS)
