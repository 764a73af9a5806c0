"""What must hold of recorded metrics, on every architecture and backend."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch

import tl_l2norm as l2
from tests import models, oracles
from tests.texts import TEXTS, ids
from tl_l2norm.core.batch import Batch, Pass, Rows
from tl_l2norm.experiments.selfcheck import count_hooks
from tl_l2norm.models.backends import backend_of
from tl_l2norm.recording import metrics
from tl_l2norm.recording.metrics import METRICS, MetricRecorder
from tl_l2norm.text.sequences import pad_left

ENTROPIES = METRICS[1:]


def collect(model: Any, sequences: Any, **options: Any) -> tuple[l2.Trace, ...]:
    return l2.collect(model, sequences, **{"metrics": METRICS, "progress": False, **options})


@functools.cache
def truth(architecture: str, text: str) -> dict[str, torch.Tensor]:
    return oracles.layer_metrics(models.hugging_face(architecture), ids(text))


def assert_near(ours: Any, expected: Any, atol: float = 2e-3) -> None:
    assert set(ours) == set(expected)
    for name, values in ours.items():
        torch.testing.assert_close(
            values.double(), expected[name].double(), atol=atol, rtol=0, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_metrics_are_those_of_plain_hugging_face(case: models.Case, model: Any) -> None:
    for trace, text in zip(collect(model, [ids(text) for text in TEXTS], batch_size=1), TEXTS, strict=True):
        assert set(trace.metrics) == set(ENTROPIES)
        assert all(values.dtype == torch.float32 for values in trace.metrics.values())
        assert_near(trace.metrics, truth(case.architecture, text))


def test_a_sequence_alone_is_the_same_in_a_left_padded_batch(case: models.Case, model: Any) -> None:
    for trace, text in zip(collect(model, [ids(text) for text in TEXTS], batch_size=3), TEXTS, strict=True):
        assert_near(trace.metrics, truth(case.architecture, text))
        for values in trace.metrics.values():
            assert values.untyped_storage().nbytes() == 4 * values.numel(), "a view would keep the whole batch alive"


def test_entropies_stay_in_their_bounds(model: Any) -> None:
    backend = backend_of(model)
    trace = collect(model, [ids(TEXTS[0])])[0]
    keys = torch.arange(1, len(trace) + 1).log()
    bounds = {"hidden_entropy": math.log(backend.d_model), "output_entropy": math.log(backend.d_vocab)}
    for name, values in trace.metrics.items():
        assert bool((values >= 0).all() and (values <= bounds.get(name, keys) + 1e-5).all()), name


def test_heads_are_kept_apart_on_request(model: Any) -> None:
    both = collect(model, [ids(TEXTS[0])])[0]
    by_head = both.metrics["attention_entropy_by_head"]
    assert by_head.shape == (backend_of(model).n_layers, model.cfg.n_heads, len(both))
    torch.testing.assert_close(by_head.mean(1), both.metrics["attention_entropy"])
    alone = collect(model, [ids(TEXTS[0])], metrics=["attention_entropy_by_head"])[0]
    assert list(alone.metrics) == ["attention_entropy_by_head"]
    assert torch.equal(alone.metrics["attention_entropy_by_head"], by_head)


def test_the_last_layer_tells_how_sure_the_model_is(model: Any) -> None:
    with torch.no_grad():
        logits = model(torch.tensor([ids(TEXTS[0])]))[0].double()
    trace = collect(model, [ids(TEXTS[0])], metrics=["output_entropy"])[0]
    expected = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(trace.metrics["output_entropy"][-1].double(), expected, atol=1e-3, rtol=0)


def test_chosen_layers_are_rows_of_all(model: Any) -> None:
    whole = collect(model, [ids(TEXTS[1])])[0]
    few = collect(model, [ids(TEXTS[1])], layers=[4, 1])[0]
    assert few.layers == (1, 4)
    for name, values in whole.select([1, 4]).metrics.items():
        torch.testing.assert_close(few.metrics[name], values)


def test_norms_and_the_model_are_left_as_they_were(model: Any) -> None:
    plain = l2.collect(model, [ids(text) for text in TEXTS], progress=False)
    recorded = collect(model, [ids(text) for text in TEXTS])
    assert count_hooks(model) == 0
    for one, other in zip(plain, recorded, strict=True):
        assert torch.equal(one.l2_norms, other.l2_norms)
        assert one.metrics == {}


def test_hooks_are_gone_after_an_error(tiny: Any) -> None:
    recorder = MetricRecorder(backend_of(tiny), (0, 1), METRICS)
    with pytest.raises(KeyboardInterrupt), recorder.attached():
        assert count_hooks(tiny) == 4
        raise KeyboardInterrupt
    assert count_hooks(tiny) == 0


def one_pass(mask: torch.Tensor) -> Pass:
    """Over a left-padded batch of prompts."""
    zeros = torch.zeros(len(mask), dtype=torch.long)
    return Batch(Rows.of(number=zeros, key=zeros, prompt_len=mask.sum(1), padding=mask.argmax(1))).next_pass(mask.shape[1])


def test_a_hook_that_did_not_fire_is_told(tiny: Any) -> None:
    recorder = MetricRecorder(backend_of(tiny), (0, 1, 4), METRICS)
    recorder.next_pass(one_pass(torch.ones(1, 3, dtype=torch.long)))
    with pytest.raises(RuntimeError, match="no hidden_entropy was recorded at layers 0-1, 4: the hooks are gone"):
        recorder.take(len(TEXTS))
    recorder = MetricRecorder(backend_of(tiny), (0, 1), ["attention_entropy"])
    recorder.next_pass(one_pass(torch.ones(1, 3, dtype=torch.long)))
    with pytest.raises(RuntimeError, match="attn_implementation other than 'eager'"):
        recorder.take(len(TEXTS))


def test_nothing_large_outlives_its_hook(tiny: Any) -> None:
    backend = backend_of(tiny)
    tokens, mask = pad_left([ids(text) for text in TEXTS], backend.device)
    recorder = MetricRecorder(backend, range(backend.n_layers), METRICS)
    recorder.next_pass(one_pass(mask))
    with torch.no_grad(), recorder.attached():
        backend.forward(tokens, mask)
    kept = sum(values.untyped_storage().nbytes() for values in recorder._values.values())
    assert kept == 4 * tokens.numel() * backend.n_layers * (3 + tiny.cfg.n_heads)
    recorder.take(len(TEXTS))
    assert not recorder._values


def test_padding_is_left_out_of_the_logit_lens(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, seen = backend_of(tiny), []
    plain = type(backend).unembed

    def counted(self: Any, stream: torch.Tensor) -> torch.Tensor:
        seen.append(len(stream))
        return plain(self, stream)

    monkeypatch.setattr(type(backend), "unembed", counted)
    monkeypatch.setattr(metrics, "_AT_ONCE", 4 * backend.d_vocab)
    collect(tiny, [ids(text) for text in TEXTS], batch_size=3, layers=[2], metrics=["output_entropy"])
    assert sum(seen) == sum(len(ids(text)) for text in TEXTS)
    assert max(seen) <= 4, "never more logits at once than that"


def test_parts_of_any_size_give_the_same(tiny: Any, tiny_case: models.Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_AT_ONCE", 100)  # fewer than one token's logits
    for trace, text in zip(collect(tiny, [ids(text) for text in TEXTS]), TEXTS, strict=True):
        assert_near(trace.metrics, truth(tiny_case.architecture, text))


def test_metrics_show_the_stream_after_all_interventions(tiny: Any) -> None:
    tokens = ids(TEXTS[0])
    gone = l2.Suppression({2: 0.0}, scale=0.0, layers=[2], positions="all")
    changed = collect(tiny, [tokens], interventions=[gone])[0].metrics
    plain = collect(tiny, [tokens])[0].metrics
    assert bool((changed["hidden_entropy"][2, 1:] == 0).all()), "zeros, and the sink is spared"
    assert bool((plain["hidden_entropy"][2] > 0).all())
    for name in ENTROPIES:
        torch.testing.assert_close(changed[name][:2], plain[name][:2])
    point = backend_of(tiny).resid_post(2)
    first = torch.arange(len(tokens))[:, None] == 0
    point.add_hook(lambda stream, hook: torch.where(first, stream, 0.0))
    try:
        by_hand = collect(tiny, [tokens])[0].metrics
    finally:
        tiny.reset_hooks()
    assert_near(changed, by_hand, atol=1e-5)


def test_attention_is_that_of_a_blocks_first_run(tiny: Any) -> None:
    tokens, layer = ids(TEXTS[0]), 2
    again = l2.ALRR({layer: 1e-6}, growth_eps=-1.0, blowup=1e12, layers=[layer], positions="all")
    changed = collect(tiny, [tokens], interventions=[again])[0].metrics
    plain = collect(tiny, [tokens])[0].metrics
    name = "attention_entropy_by_head"
    torch.testing.assert_close(changed[name][: layer + 1], plain[name][: layer + 1])
    assert (changed[name][layer + 1] - plain[name][layer + 1]).abs().max() > 1e-3
    assert (changed["hidden_entropy"][layer] - plain["hidden_entropy"][layer]).abs().max() > 1e-3


def test_a_head_that_the_user_switches_off_attends_to_nothing(tiny: Any) -> None:
    point = backend_of(tiny).attention_pattern(1)
    on = torch.tensor([1.0, 0.0, 1.0, 1.0])[:, None, None]
    point.add_hook(lambda pattern, hook: pattern * on)
    try:
        entropy = collect(tiny, [ids(TEXTS[0])])[0].metrics["attention_entropy_by_head"]
    finally:
        tiny.reset_hooks()
    assert bool((entropy[1, 1] == 0).all())
    assert bool((entropy[1, 0, 1:] > 0).all())


def test_what_is_no_pattern_is_told(tiny: Any) -> None:
    point = backend_of(tiny).attention_pattern(1)
    point.add_hook(lambda pattern, hook: 2 * pattern)
    try:
        with pytest.raises(ValueError, match=r"blocks.1.attn.hook_pattern: attention weights of one query sum to 2, not to 1"):
            collect(tiny, [ids(TEXTS[0])])
    finally:
        tiny.reset_hooks()
    assert count_hooks(tiny) == 0


def test_metrics_of_responses_in_one_pass(tiny: Any) -> None:
    with pytest.raises(ValueError, match=r"collect\(model, out, metrics=\['hidden_entropy'\]\) records hidden_entropy"):
        l2.generate(tiny, [[5, 6, 7]], max_new_tokens=2, metrics=["l2_norm", "hidden_entropy"])
    with pytest.raises(ValueError, match="did you mean 'hidden_entropy'"):
        l2.generate(tiny, [[5, 6, 7]], max_new_tokens=2, metrics=["hiden_entropy"])
    out = l2.generate(tiny, [[5, 6, 7], [8, 9]], max_new_tokens=6, progress=False)
    for decoded, trace in zip(out.traces, collect(tiny, out), strict=True):
        assert torch.equal(decoded.tokens, trace.tokens)
        torch.testing.assert_close(decoded.l2_norms, trace.l2_norms, rtol=1e-4, atol=1e-4)
        assert all(values.shape[-1] == len(decoded) for values in trace.metrics.values())


def test_unknown_metrics_are_told_early(tiny: Any) -> None:
    with pytest.raises(ValueError, match=r"unknown metrics \['entropy'\]"):
        collect(tiny, [[5, 6, 7]], metrics=["entropy"])


@pytest.mark.parametrize("case", [c for c in models.TINY if c.architecture in ("llama", "gpt2")], ids=str)
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float16, 0.02), (torch.bfloat16, 0.1)], ids=["float16", "bfloat16"])
def test_half_precision_is_near_float32(case: models.Case, dtype: torch.dtype, atol: float) -> None:
    model = l2.load_model(models.folder(case.architecture), backend=case.backend, dtype=dtype, device="cpu")
    for trace, text in zip(collect(model, [ids(text) for text in TEXTS[:2]]), TEXTS[:2], strict=True):
        assert all(values.dtype == torch.float32 for values in trace.metrics.values())
        assert_near(trace.metrics, truth(case.architecture, text), atol=atol)
