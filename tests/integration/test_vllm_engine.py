"""What vLLM writes and what is recorded of it there, against the bridge on the same tokens."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tl_l2norm as l2
from tests import engines as made
from tests.engines import CACHE, Engines
from tl_l2norm.core.errors import InputError, InputTypeError, Unsupported
from tl_l2norm.core.norms import l2_norms

pytestmark = pytest.mark.skipif(not made.has_vllm(), reason="vLLM isn't installed; see docs/engines.md")
if made.has_vllm():
    from tl_l2norm.engines import by_request, load, recorder, vllm_worker

running = pytest.fixture(scope="module", name="engines")(made.running)
reasoner = pytest.fixture(scope="module", name="model")(made.reasoner)
unequal_prompts = pytest.fixture(scope="module", name="prompts")(made.unequal_prompts)


def write(model: Any, prompts: Any, **options: Any) -> Any:
    return l2.generate(model, prompts, **{"max_new_tokens": 40, "progress": False, **options})


def require_same(ours: Any, theirs: Any, rtol: float = 1e-4) -> None:
    """Tokens, ends, texts, and everything that is measured."""
    assert [c.tokens for c in ours] == [c.tokens for c in theirs]
    names = ("prompt", "text", "answer", "thinking", "prompt_tokens", "finish_reason", "prompt_index", "sample", "seed")
    for a, b in zip(ours, theirs, strict=True):
        assert [getattr(a, name) for name in names] == [getattr(b, name) for name in names]
        torch.testing.assert_close(a.logprobs, b.logprobs, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(a.self_certainty, b.self_certainty, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(a.token_confidence, b.token_confidence, rtol=1e-3, atol=1e-4)
        require_same_norms(a.trace, b.trace, rtol)


def require_same_norms(a: Any, b: Any, rtol: float = 1e-4) -> None:
    torch.testing.assert_close(a.l2_norms, b.l2_norms, rtol=rtol, atol=0)
    torch.testing.assert_close(a.embed_l2_norms, b.embed_l2_norms, rtol=rtol, atol=0)
    assert a.layers == b.layers and a.segments == b.segments and a.str_tokens == b.str_tokens
    assert torch.equal(a.tokens, b.tokens) and torch.equal(a.is_sink, b.is_sink) and a.prompt_len == b.prompt_len


LOW = l2.Suppression({10: 250.0, 11: 250.0}, which="low")

SAMPLINGS = [{}, {"temperature": 3.0}, {"temperature": 3.0, "top_k": 20}, {"temperature": 3.0, "top_p": 0.9}]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_the_same_seeds_give_the_responses_of_the_bridge(engines: Engines, model: Any, prompts: Any, sampling: Any) -> None:
    options = {"n": 3, "seed": 5, **sampling}
    ours = write(engines(), prompts, **options)
    require_same(ours, write(model, prompts, **options))
    assert len({c.tokens for c in ours}) > len(prompts) or not sampling
    alone = write(engines(), [prompts[1]], seed=[ours[4].seed], **sampling)
    assert alone[0].tokens == ours[4].tokens


def test_norms_are_those_of_one_pass_over_the_finished_tokens(engines: Engines, model: Any, prompts: Any) -> None:
    out = write(engines(), prompts, n=2, temperature=2.0)
    for ours, theirs in zip(out.traces, l2.collect(model, out, progress=False), strict=True):
        require_same_norms(ours, theirs)
    for c in out:  # every token that was read back has one row
        assert c.trace.l2_norms.shape == (12, len(c.prompt_tokens) + len(c.tokens) - 1)
        assert c.trace.l2_norms.dtype == torch.float32 and c.trace.embed_l2_norms.isfinite().all()


def test_layers_labels_and_nothing_recorded(engines: Engines, model: Any, prompts: Any) -> None:
    labels = [{"level": i} for i in range(len(prompts))]
    options = {"layers": [-1, 3], "labels": labels, "temperature": 1.5, "sink_ratio": 7.0}
    ours, theirs = write(engines(), prompts, **options), write(model, prompts, **options)
    require_same(ours, theirs)
    assert [dict(t.labels) for t in ours.traces] == labels and ours.traces[0].layers == (3, 11)
    bare = write(engines(), prompts, record=False, temperature=1.5)
    assert [c.tokens for c in bare] == [c.tokens for c in ours] and bare.traces == () and bare[0].logprobs is None


ENDS = [{"stop": ["="]}, {"stop": ["4", "A-"], "n": 2}, {"stop": [65, "</think>"]}, {"ignore_eos": True, "max_new_tokens": 90}]


@pytest.mark.parametrize("ends", ENDS, ids=str)
def test_responses_end_where_those_of_the_bridge_end(engines: Engines, model: Any, prompts: Any, ends: Any) -> None:
    options = {"temperature": 1.2, **ends}
    ours = write(engines(), prompts, **options)
    require_same(ours, write(model, prompts, **options))
    assert {c.finish_reason for c in ours} <= {"stop", "length"}


@pytest.mark.parametrize("options", [{}, {"max_num_seqs": 3, "max_num_batched_tokens": 48}], ids=["", "few"])
def test_who_is_to_think_on_does(engines: Engines, model: Any, prompts: Any, options: Any) -> None:
    again = model.tokenizer("7A", add_special_tokens=False).input_ids
    asked = {"think_on": l2.recording.ThinkOn(tokens=again, times=2), "n": 2, "temperature": 1.5, "interventions": LOW}
    ours, theirs = write(engines(**options), prompts, **asked), write(model, prompts, **asked)
    require_same(ours, theirs)
    assert [c.forced for c in ours] == [c.forced for c in theirs] and len({c.forced for c in ours}) > 1
    assert all([c.tokens[at] for at in c.forced] == again * (len(c.forced) // 2) for c in ours)


def test_the_last_token_that_fits_is_written(engines: Engines) -> None:
    engine = engines()
    out = write(engine, "12", max_new_tokens=engine.n_ctx - 1, ignore_eos=True)
    assert len(out[0].tokens) == engine.n_ctx - 1 == 510 and len(out[0].trace) == 511
    with pytest.raises(InputError, match="at most 510"):
        write(engine, "12", max_new_tokens=511)


class Passes:
    """Which tokens each pass reads, as the hooks see them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[Any] = []
        begin = vllm_worker.Hooks._begin

        def watched(hooks: Any, *args: Any) -> None:
            begin(hooks, *args)
            self.steps.append(hooks.read)

        monkeypatch.setattr(vllm_worker.Hooks, "_begin", watched)

    def places(self) -> list[tuple[int, int]]:
        return [place for step in self.steps for place in zip(step.owners.tolist(), step.positions.tolist(), strict=True)]


def test_prompts_in_parts_and_more_requests_than_rows(
    engines: Engines, model: Any, prompts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, passes = engines(max_num_seqs=4, max_num_batched_tokens=16), Passes(monkeypatch)
    ours = write(engine, prompts, n=5, temperature=1.5, stop=["="])
    require_same(ours, write(model, prompts, n=5, temperature=1.5, stop=["="]))
    longest = max(len(c.prompt_tokens) for c in ours)
    assert longest > 60 and max(len(step.owners) for step in passes.steps) == 16
    assert max(len(set(step.owners.tolist())) for step in passes.steps) == 4
    places = passes.places()
    assert len(places) == len(set(places)) == sum(len(c.trace) for c in ours)  # no token twice, none too many


def test_preempted_requests_keep_their_norms_and_draws(
    engines: Engines, model: Any, prompts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engines(max_num_seqs=8, block_size=32, num_gpu_blocks_override=18, max_model_len=256)
    passes, options = Passes(monkeypatch), {"n": 3, "temperature": 1.5, "ignore_eos": True, "max_new_tokens": 120}
    ours = write(engine, prompts, **options)
    places = passes.places()
    assert len(places) > len(set(places)) + 50, "nothing was preempted"
    require_same(ours, write(model, prompts, **options))


def test_norms_are_sorted_by_request_now_and_then(engines: Engines, prompts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = write(engines(), prompts, n=2, temperature=1.5)
    monkeypatch.setattr(by_request, "_SORT_AT", 20)
    for a, b in zip(before.traces, write(engines(), prompts, n=2, temperature=1.5).traces, strict=True):
        assert torch.equal(a.l2_norms, b.l2_norms)


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "LlamaConfig": {},
    "Qwen2Config": {},
    "MistralConfig": {"sliding_window": 16},
    "GPT2Config": {"n_embd": 128, "n_layer": 3, "n_head": 4, "n_positions": 256, "num_key_value_heads": 4},
    "OPTConfig": {"ffn_dim": 192, "word_embed_proj_dim": 128},
    "Gemma2Config": {"head_dim": 32, "sliding_window": 32},
    "Gemma3TextConfig": {"head_dim": 32, "sliding_window": 32},
    "GraniteConfig": {"residual_multiplier": 0.5, "embedding_multiplier": 2.0, "logits_scaling": 2.0},
    "CohereConfig": {},  # two tensors that are not to be added
    "Qwen3MoeConfig": {"head_dim": 32, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64},
}
TOKENS = [[5, 6, 7, 8, 20, 30, 40, 50], [9, 8, 7]]


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_on_other_architectures(engines: Engines, kind: str, tmp_path: Path) -> None:
    folder = made.save_random(kind, tmp_path / "model", **ARCHITECTURES[kind])
    options = {"n": 2, "temperature": 1.0, "ignore_eos": True}
    ours = write(engines(folder), TOKENS, **options)
    theirs = write(l2.load_model(folder), TOKENS, **options)
    require_same(ours, theirs)
    assert ours[0].trace.provenance.same_model(theirs[0].trace.provenance)


def test_in_bfloat16(engines: Engines, prompts: Any) -> None:
    engine = engines(dtype=torch.bfloat16)
    out = write(engine, prompts, temperature=1.0)
    traces = l2.collect(l2.load_model("tiny-reasoner", dtype=torch.bfloat16), out, progress=False)
    for ours, theirs in zip(out.traces, traces, strict=True):
        torch.testing.assert_close(ours.l2_norms, theirs.l2_norms, rtol=0.07, atol=0)
        assert (ours.l2_norms / theirs.l2_norms - 1).abs().mean() < 0.01
        assert ours.provenance.comparable(theirs.provenance) and ours.provenance.dtype == "bfloat16"


def test_traces_say_where_they_come_from_and_go_where_traces_go(
    engines: Engines, model: Any, prompts: Any, tmp_path: Path
) -> None:
    ours, theirs = write(engines(), prompts, temperature=1.5), write(model, prompts, temperature=1.5)
    mine = ours.traces[0].provenance
    assert mine.backend == "vllm" and mine.versions["vllm"] and mine.options == {} and mine.model == "tiny-reasoner"
    assert mine.seed == ours[0].seed and mine.temperature == 1.5 and mine.sink_ratio == 20.0
    assert mine.comparable(theirs.traces[0].provenance) and mine.chat_template and mine.tokenizer
    assert len(l2.to_frame([*ours.traces, *theirs.traces])) == 2 * len(l2.to_frame(ours))
    kept = l2.load_traces(l2.save_traces(tmp_path / "traces", ours))
    assert [t.provenance for t in kept] == [t.provenance for t in ours.traces]
    low = engines(kv_cache_dtype="fp8")
    traces = write(low, prompts).traces
    assert traces[0].provenance.options == {"kv_cache_dtype": "fp8"}
    with pytest.raises(InputError, match="kv_cache_dtype=fp8.*other options"):
        l2.quantile_thresholds([ours.traces[0], traces[0]])
    assert l2.load_traces(l2.save_traces(tmp_path / "low", traces))[0].provenance == traces[0].provenance


def hooks_of(engine: Any) -> int:
    modules = engine._vllm.call(lambda worker: worker.model_runner.get_model()).modules()
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)


def test_hooks_are_there_only_while_responses_are_written(engines: Engines, prompts: Any) -> None:
    engine, during = engines(), []
    before = hooks_of(engine)
    write(engine, prompts, on_finish=lambda done: during.append((len(done), hooks_of(engine))))
    assert sum(n for n, _ in during) == len(prompts) and {n for _, n in during} == {before + 13}
    assert hooks_of(engine) == before
    write(engine, prompts, record=False, on_finish=lambda done: during.append((0, hooks_of(engine))))
    assert during[-1] == (0, before)


def test_what_on_finish_raises_ends_the_run_and_leaves_the_engine_whole(engines: Engines, prompts: Any) -> None:
    engine, expected = engines(), write(engines(), prompts, temperature=1.5)
    before = hooks_of(engine)

    def fails(done: Any) -> None:
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        write(engine, prompts, n=9, temperature=1.5, on_finish=fails)
    assert hooks_of(engine) == before
    again = write(engine, prompts, temperature=1.5)
    assert [c.tokens for c in again] == [c.tokens for c in expected]
    require_same_norms(again.traces[0], expected.traces[0])


def test_an_error_in_a_hook_keeps_its_traceback_and_the_engine_is_refused_from_then_on(
    engines: Engines, prompts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, calls, stream_of = engines(), [], vllm_worker.stream_of
    before = hooks_of(engine)

    def fails(output: Any, carried: Any) -> Any:
        calls.append(1 / (40 - len(calls)))
        return stream_of(output, carried)

    with monkeypatch.context() as patch:
        patch.setattr(vllm_worker, "stream_of", fails)
        with pytest.raises(ZeroDivisionError) as caught:
            write(engine, prompts)
    assert "fails" in [entry.name for entry in caught.traceback] and hooks_of(engine) == before
    with pytest.raises(InputError, match="failed or was interrupted in an earlier run"):
        write(engine, prompts)
    assert write(engines(), prompts)[0].tokens  # another is loaded


def test_a_run_inside_of_a_run_is_refused_and_leaves_nothing(engines: Engines, prompts: Any) -> None:
    engine = engines()
    before = hooks_of(engine)
    with pytest.raises(InputError, match="is writing responses"):
        write(engine, prompts, on_finish=lambda done: write(engine, prompts[:1]))
    assert hooks_of(engine) == before and engine.identity().foreign_hooks == 0
    assert write(engine, prompts)[0].tokens  # and it goes on


def test_what_vllm_asserts_is_a_refusal_of_the_model() -> None:
    with (
        pytest.raises(Unsupported, match=r"can't run tiny, a Qwen2ForCausalLM, here \(AssertionError: Sliding window"),
        load._refused_by_name("tiny", ["Qwen2ForCausalLM"]),
    ):
        raise AssertionError("Sliding window for some layers")


def test_thresholds_of_another_cache_are_refused(engines: Engines, prompts: Any) -> None:
    engine = engines()
    tau = l2.quantile_thresholds(write(engine, prompts), q=0.9)
    coarse = dataclasses.replace(tau.provenance, options={"kv_cache_dtype": "fp8"})
    with pytest.raises(InputError, match="options of an engine are not comparable"):
        write(engine, prompts, interventions=l2.Suppression(l2.Thresholds(dict(tau), provenance=coarse)))


def test_norms_that_are_no_numbers_stop_the_run(engines: Engines, prompts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "l2_norms", lambda stream: l2_norms(stream) * torch.inf)
    with pytest.raises(FloatingPointError, match=r"embedding output, sequence \d, position 0"):
        write(engines(), prompts)


def test_a_closed_engine_leaves_the_process_as_it_was(engines: Engines, model: Any, prompts: Any) -> None:
    engines.close()
    before = torch.set_num_threads, torch.accelerator.synchronize, torch.accelerator.empty_cache
    states = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index]
    engine = l2.load_engine("tiny-reasoner", **CACHE)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]  # type: ignore[index]
    with pytest.raises(InputError, match="another engine is open"):
        l2.load_engine("tiny-reasoner", **CACHE)
    inner = engine._vllm.call(lambda worker: worker.model_runner.get_model())
    with engine as same:
        out = write(same, prompts)
    assert hooks_of_module(inner) == 0 and engine.closed and "is closed" in repr(engine)
    assert (torch.set_num_threads, torch.accelerator.synchronize, torch.accelerator.empty_cache) == before
    engine.close()
    with pytest.raises(InputError, match="is closed"):
        write(engine, prompts)
    require_same(out, write(model, prompts))  # what was written stays, and so does the bridge


def hooks_of_module(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_what_it_does_not_do_is_refused_by_name(engines: Engines, prompts: Any) -> None:
    engine = engines()
    with pytest.raises(InputError, match="max_num_seqs=3"):
        write(engine, prompts, batch_size=3)
    with pytest.raises(InputTypeError, match="an engine only generates"):
        l2.collect(engine, prompts)


def test_models_that_vllm_lacks_and_options_that_it_refuses(engines: Engines, tmp_path: Path) -> None:
    engines.close()
    codegen = {"n_embd": 128, "n_layer": 3, "n_head": 4, "n_positions": 256, "rotary_dim": 16}
    with pytest.raises(Unsupported, match="vLLM doesn't have CodeGenForCausalLM"):
        l2.load_engine(made.save_random("CodeGenConfig", tmp_path / "codegen", **codegen), **CACHE)
    olmo = made.save_random("Olmo2Config", tmp_path / "olmo2")
    with pytest.raises(Unsupported, match="patch that of transformers"):
        l2.load_engine(olmo, **CACHE)
    l2.load_model(olmo)
    with pytest.raises(InputError, match="max_num_batched_tokens"):
        l2.load_engine("tiny-reasoner", max_num_seqs=64, max_num_batched_tokens=16, **CACHE)
    threads = torch.set_num_threads
    with pytest.raises(InputError, match="memory"):
        l2.load_engine("tiny-reasoner", kv_cache_memory_bytes=1 << 50)
    assert torch.set_num_threads is threads
    assert engines().n_layers == 12
