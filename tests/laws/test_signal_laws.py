"""Token confidence and signals of responses, against one plain pass over each finished sequence: full logits, every state."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from transformers import AutoModelForCausalLM

import tl_l2norm as l2
from tests import models, oracles
from tests.texts import TEXTS, ids
from tl_l2norm.core.errors import InputError, InputTypeError
from tl_l2norm.experiments.selfcheck import count_hooks
from tl_l2norm.recording.signals import changes, deep_thinking_ratio, js_divergence

REASONERS = [pytest.param("bridge"), *([pytest.param("hooked")] if models.HAS_HOOKED else [])]


@pytest.fixture(scope="module", params=REASONERS)
def reasoner(request: pytest.FixtureRequest) -> Iterator[tuple[Any, Any, tuple[Any, ...]]]:
    """The model that comes with the library on each backend, the same for plain Hugging Face, and what it wrote."""
    model = l2.load_model("tiny-reasoner", backend=request.param, device="cpu")
    questions = ["mod 10: 7A-3", "mod 10: 2B+1 B=3", "mod 10: 5C-4 C=D+1 D=2"]
    prompts = [l2.chat_prompt(model.tokenizer, question, mode="think") for question in questions]
    out = l2.generate(model, prompts, n=2, temperature=2.0, max_new_tokens=40, batch_size=3, progress=False)
    yield model, plain_reasoner(), tuple(out)
    assert count_hooks(model) == 0


def plain_reasoner() -> Any:
    assets = Path(__file__).parents[2] / "assets" / "tiny_reasoner"
    return AutoModelForCausalLM.from_pretrained(assets, dtype=torch.float32, attn_implementation="eager")


def sequence_of(completion: Any) -> list[int]:
    return [*completion.prompt_tokens, *completion.tokens[:-1]]


def test_token_confidence_is_that_of_full_logits(reasoner: Any) -> None:
    _, plain, out = reasoner
    for one in out:
        with torch.no_grad():
            logits = plain(torch.tensor([sequence_of(one)])).logits[0, len(one.prompt_tokens) - 1 :].double()
        ranked = logits.softmax(-1).sort(descending=True).values[:, :20]
        assert len(one.tokens) == len(one.token_confidence) == len(ranked)
        torch.testing.assert_close(one.token_confidence.double(), -ranked.log().mean(-1), rtol=1e-4, atol=1e-4)


def truth(plain: Any, one: Any, segment_tokens: int) -> dict[str, np.ndarray]:
    """By numpy and scipy, from all states of one pass."""
    states = oracles.states_and_attentions(plain, sequence_of(one))[0][1:]
    start = len(one.prompt_tokens)
    with torch.no_grad():
        lens = plain.lm_head(plain.model.norm(states[:, start - 1 :])).double().softmax(-1).numpy()
    thought = [i for i, segment in enumerate(one.trace.segments) if segment == "think"]
    found: dict[str, Any] = {name: [] for name in ("net_change", "cumulative_change", "aligned_change")}
    for layer in states.double().numpy():
        own = layer[thought] if thought else layer[start:]
        means = [own[i : i + segment_tokens].mean(0) for i in range(0, len(own), segment_tokens)]
        steps = [after - before for before, after in itertools.pairwise(means)]
        drift = means[-1] - means[0]
        found["net_change"].append(np.linalg.norm(drift) / len(steps))
        found["cumulative_change"].append(sum(np.linalg.norm(step) for step in steps))
        found["aligned_change"].append(np.mean([step @ drift / np.linalg.norm(step) / np.linalg.norm(drift) for step in steps]))
    return {
        **{name: np.array(values) for name, values in found.items()},
        "divergence": np.array(
            [[jensenshannon(p, q, base=2) ** 2 for p, q in zip(own, lens[-1], strict=True)] for own in lens]
        ),
        "mean_state": states[-3:, start - 1 :].double().numpy().mean(1),
    }


def test_signals_are_those_of_plain_hugging_faces_states(reasoner: Any) -> None:
    model, plain, out = reasoner
    read = l2.recording.read_signals(model, out, segment_tokens=3, batch_size=4, progress=False)
    assert [one.tokens for one in read] == [one.tokens for one in out] and count_hooks(model) == 0
    assert any(one.tokens != read[0].tokens for one in read)
    for one in read:
        expected, signals = truth(plain, one, 3), one.signals
        assert signals is not None and signals.divergence is not None and signals.state_layers == (9, 10, 11)
        np.testing.assert_allclose(signals.divergence, expected["divergence"], atol=2e-5)
        for name in ("net_change", "cumulative_change", "aligned_change", "mean_state"):
            np.testing.assert_allclose(getattr(signals, name), expected[name], rtol=1e-3, atol=1e-3)
        settled = [int(np.flatnonzero(column <= 0.5)[0]) + 1 for column in expected["divergence"].T]
        late = np.mean([at >= math.ceil(0.85 * 12) for at in settled])
        assert float(deep_thinking_ratio(signals.divergence)) == pytest.approx(late)


def test_signals_are_the_same_alone_and_in_a_batch(tiny: Any) -> None:
    """Without a thought the change is over the whole response; a layer chosen is the same as among all."""
    prompts = [ids(text)[:n] for text, n in zip(TEXTS, (14, 5, 1), strict=True)]
    out = l2.generate(tiny, prompts, max_new_tokens=9, ignore_eos=True, temperature=1.0, progress=False)
    together = l2.recording.read_signals(tiny, out, segment_tokens=2, batch_size=3, progress=False)
    for one, own in zip(together, out, strict=True):
        options: dict[str, Any] = {"layers": [2], "state_layers": [4, 1], "progress": False}
        (alone,) = l2.recording.read_signals(tiny, own, segment_tokens=2, divergence=False, **options)
        assert alone.signals.divergence is None and alone.signals.state_layers == (1, 4)
        for name in ("net_change", "cumulative_change", "aligned_change"):
            whole = getattr(one.signals, name)
            assert len(whole) == tiny.cfg.n_layers and not bool(whole.isnan().any())
            torch.testing.assert_close(getattr(alone.signals, name)[0], whole[2], rtol=1e-3, atol=1e-4)
        assert bool((one.signals.divergence[-1] == 0).all()) and one.signals.divergence.shape == (6, 9)


def test_short_thoughts_have_no_change(tiny: Any) -> None:
    out = l2.generate(tiny, [ids(TEXTS[0])], max_new_tokens=4, ignore_eos=True, progress=False)
    (one,) = l2.recording.read_signals(tiny, out, progress=False)
    assert bool(one.signals.net_change.isnan().all()) and one.signals.segment_tokens == 500
    (short,) = l2.recording.read_signals(tiny, l2.generate(tiny, [[5]], max_new_tokens=1, progress=False), progress=False)
    assert short.signals.divergence.shape == (6, 1) and bool(short.signals.mean_state.isfinite().all())


def test_nothing_large_outlives_its_hook(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from tl_l2norm.recording import reading_signals

    kept = []
    plain = reading_signals._Reader._signals

    def counted(self: Any, row: Any, n_tokens: int) -> Any:
        kept.append(sum(values.untyped_storage().nbytes() for values in row.values()))
        return plain(self, row, n_tokens)

    monkeypatch.setattr(reading_signals._Reader, "_signals", counted)
    out = l2.generate(tiny, [ids(TEXTS[0])], max_new_tokens=9, ignore_eos=True, progress=False)
    l2.recording.read_signals(tiny, out, state_layers=[5], progress=False)
    assert kept == [4 * (5 * 9 + 6 * 3 + tiny.cfg.d_model)]  # divergences before the last layer, changes, one mean state


def test_divergence_and_change_by_hand() -> None:
    p, q = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.5, 0.0, 0.5])
    # of the middle (1/2, 1/4, 1/4): H = 1.5 bits, less (1 + 1) / 2
    assert float(js_divergence(p.log(), q.log())) == pytest.approx(0.5)
    assert float(js_divergence(p.log(), p.log())) == 0.0
    assert changes(torch.zeros(0, 4), 3).isnan().all() and changes(torch.ones(3, 4), 3).isnan().all()
    still = changes(torch.ones(6, 4), 3)
    assert still.tolist() == [0, 0, 0]


def test_what_cannot_be_read_is_refused(tiny: Any) -> None:
    out = l2.generate(tiny, [[5, 6, 7]], max_new_tokens=3, ignore_eos=True, progress=False)
    acting = l2.Suppression(dict.fromkeys(range(2, 5), 1e-3), positions="all")
    changed = l2.generate(tiny, [[5, 6, 7]], max_new_tokens=3, ignore_eos=True, interventions=acting, progress=False)
    for given, message in [(changed, "prompt 0, sample 0 was written under interventions"), ([], "no completions given")]:
        with pytest.raises(InputError, match=message):
            l2.recording.read_signals(tiny, given, progress=False)
    with pytest.raises(InputTypeError, match="signals are read of completions"):
        l2.recording.read_signals(tiny, iter(["a text"]), progress=False)
    with pytest.raises(InputError, match="segment_tokens"):
        l2.recording.read_signals(tiny, out, segment_tokens=0, progress=False)
    other = l2.load_model("tiny-reasoner", device="cpu")
    with pytest.raises(InputError, match=r"was written by .*: give that model, not tiny-reasoner with other weights"):
        l2.recording.read_signals(other, out, progress=False)
