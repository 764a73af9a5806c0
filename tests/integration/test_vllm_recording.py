"""What else an engine records, and what is done with one: checks, features, observers, experiments; the bridge is the truth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import tl_l2norm as l2
from tests import engines as made
from tests.engines import Engines
from tl_l2norm.core.errors import InputError, InputTypeError
from tl_l2norm.experiments import modes
from tl_l2norm.recording import features

pytestmark = pytest.mark.skipif(not made.has_vllm(), reason="vLLM isn't installed; see docs/engines.md")
if made.has_vllm():
    from tl_l2norm.engines import by_request, recorder, vllm_worker

running = pytest.fixture(scope="module", name="engines")(made.running)
reasoner = pytest.fixture(scope="module", name="model")(made.reasoner)


def failed(outcome: Any) -> set[str]:
    return {check.name for check in outcome.checks if check.result == "FAIL"}


def test_a_sound_engine_passes(engines: Engines, model: Any) -> None:
    engine = engines()
    outcome = l2.selfcheck(engine, against=model)
    assert outcome.passed and outcome.compared, str(outcome)
    names = ["norms", "rows", "batch", "suppression", "suppressed", "hooks left"]
    assert [check.name for check in outcome.checks] == names
    assert outcome.backend == "vllm" and outcome.dtype == "float32" and outcome.device == "cpu" and "vllm" in outcome.versions
    alone = l2.selfcheck(engine)
    assert alone.passed and not alone.compared
    left_out = [check for check in alone.checks if check.result == "not compared"]
    assert [check.name for check in left_out] == ["norms", "suppressed"] and "against=model" in left_out[0].meaning


def test_in_bfloat16_and_with_a_cache_in_fewer_bits(engines: Engines, model: Any) -> None:
    half = l2.load_model("tiny-reasoner", dtype=torch.bfloat16, device="cpu")
    outcome = l2.selfcheck(engines(dtype=torch.bfloat16), against=half)
    assert outcome.passed and outcome.compared, str(outcome)
    outcome = l2.selfcheck(engines(kv_cache_dtype="fp8"), against=model)
    assert failed(outcome) == {"norms", "suppressed"} and outcome.dtype == "float32, kv_cache_dtype=fp8"


def test_another_model_is_no_truth(engines: Engines, model: Any) -> None:
    with pytest.raises(InputError, match="against= is another model"):
        l2.selfcheck(engines(), against=l2.load_model("tiny-reasoner", dtype=torch.bfloat16))
    with pytest.raises(InputError, match="against= is for an engine"):
        l2.selfcheck(model, against=model)


def test_what_an_engine_wrote_is_selected_by_all_scores(engines: Engines, model: Any) -> None:
    """Confidence is kept while it writes; signals are read by the model with its weights."""
    problems = l2.make_mixture(3, families="compact")
    prompts = [l2.chat_prompt(model.tokenizer, problem.question, mode="think") for problem in problems]
    options: dict[str, Any] = {"n": 3, "temperature": 2.5, "max_new_tokens": 40, "progress": False}
    ours, theirs = (l2.generate(one, prompts, **options) for one in (engines(), model))
    read, truth = (l2.recording.read_signals(model, out, segment_tokens=2, progress=False) for out in (ours, theirs))
    table, expected = (l2.score_table(out, problems=problems, window=4) for out in (read, truth))
    assert set(table.left_out) == set(expected.left_out) <= {"probe"}
    pd.testing.assert_frame_equal(table.scores, expected.scores, rtol=1e-2, atol=1e-3)
    with pytest.raises(InputError, match="an engine"):
        l2.recording.read_signals(engines(), ours, progress=False)


def test_planted_faults_of_an_engine_fail(engines: Engines, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, stream_of, with_stream = engines(), vllm_worker.stream_of, vllm_worker.with_stream
    with monkeypatch.context() as patch:  # norms of another place
        patch.setattr(vllm_worker, "stream_of", lambda output, carried: 1.001 * stream_of(output, carried))
        assert failed(l2.selfcheck(engine, against=model)) == {"norms", "suppressed"}
    with monkeypatch.context() as patch:  # rows of other requests
        patch.setattr(vllm_worker, "stream_of", lambda output, carried: stream_of(output, carried).roll(1, 0))
        assert {"norms", "batch"} <= failed(l2.selfcheck(engine, against=model))
    with monkeypatch.context() as patch:  # the model reads on as if nothing had been changed
        patch.setattr(vllm_worker, "with_stream", lambda output, *_: with_stream(output, *_) and output)
        assert failed(l2.selfcheck(engine, against=model)) == {"suppressed"}
    with monkeypatch.context() as patch:  # hooks stay
        patch.setattr(vllm_worker.Hooks, "remove", lambda hooks: None)
        assert "hooks left" in failed(l2.selfcheck(engine))
    engines.close()


@pytest.fixture(scope="module")
def prompts(model: Any) -> list[Any]:
    """Of unequal lengths."""
    texts = ["mod 10: 7A-3", "mod 10: 2B+1", "7 times 8 is 56; " * 3 + "mod 10: 8A-1"]
    return [l2.chat_prompt(model.tokenizer, text, mode="think") for text in texts]


@pytest.fixture(scope="module")
def saes() -> Any:
    return l2.load_saes("tiny-reasoner", layers=[2, 7, 11])


def write(model: Any, prompts: Any, **options: Any) -> Any:
    return l2.generate(model, prompts, **{"max_new_tokens": 40, "progress": False, "temperature": 1.5, "n": 2, **options})


class Largest(l2.StreamObserver):
    name = "largest"

    def measure(self, stream: Any, layer: int) -> Any:
        return stream.abs().amax(-1)


class Cosine(l2.StreamObserver):
    """With a direction of each layer's own."""

    name = "cosine"

    def measure(self, stream: Any, layer: int) -> Any:
        direction = torch.where(torch.arange(stream.shape[-1]) < 8 * (1 + layer % 2), 1.0, -0.5).to(stream)
        return torch.cosine_similarity(stream, direction.expand_as(stream), dim=-1)


def require_same_recordings(ours: Any, theirs: Any) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.tokens, b.tokens) and a.layers == b.layers
        torch.testing.assert_close(a.l2_norms, b.l2_norms, rtol=1e-4, atol=0)
        assert a.metrics.keys() == b.metrics.keys() and a.features.keys() == b.features.keys()
        for name in a.metrics:
            assert a.metrics[name].dtype == torch.float32
            torch.testing.assert_close(a.metrics[name], b.metrics[name], rtol=1e-3, atol=1e-5)
        for layer, acts in a.features.items():
            require_same_features(acts, b.features[layer])


def require_same_features(ours: Any, theirs: Any) -> None:
    """Equal, but that of the last of a state's activations a near tie may choose another."""
    assert (len(ours), ours.d_sae, ours.sae) == (len(theirs), theirs.d_sae, theirs.sae) and len(theirs.values)
    a, b = ours.dense(), theirs.dense()
    both = (a != 0) & (b != 0)
    torch.testing.assert_close(a[both], b[both], rtol=1e-3, atol=1e-4)
    flipped = (a != 0) ^ (b != 0)
    assert flipped.sum() <= 2, (flipped.sum(), len(theirs.values))


def test_features_and_observers_are_those_of_the_bridge(engines: Engines, model: Any, prompts: Any, saes: Any) -> None:
    options = {"saes": saes, "observers": [Largest(), Cosine()]}
    ours, theirs = write(engines(), prompts, **options), write(model, prompts, **options)
    require_same_recordings(ours.traces, theirs.traces)
    require_same_recordings(ours.traces, l2.collect(model, ours, progress=False, **options))
    assert list(ours.traces[0].features) == [2, 7, 11] and list(ours.traces[0].metrics) == ["largest", "cosine"]
    plain = write(engines(), prompts)
    for a, b in zip(ours, plain, strict=True):  # recording changes nothing
        assert a.tokens == b.tokens and torch.equal(a.trace.l2_norms, b.trace.l2_norms)


def test_layers_of_saes_need_not_be_recorded(engines: Engines, model: Any, prompts: Any, saes: Any) -> None:
    options = {"saes": {11: saes[11], 2: saes[2]}, "observers": Largest(), "layers": [5]}
    ours, theirs = write(engines(), prompts, **options), write(model, prompts, **options)
    require_same_recordings(ours.traces, theirs.traces)
    assert ours.traces[0].layers == (5,) and ours.traces[0].metrics["largest"].shape[0] == 1


def test_features_of_suppressed_states(engines: Engines, model: Any, prompts: Any, saes: Any) -> None:
    tau = {layer: 1.001 * x for layer, x in l2.quantile_thresholds(write(model, prompts), q=0.8).items()}
    options = {"saes": saes, "observers": Largest(), "interventions": l2.Suppression(tau, layers=[2, 6, 11])}
    ours, theirs = write(engines(), prompts, **options), write(model, prompts, **options)
    require_same_recordings(ours.traces, theirs.traces)
    assert torch.equal(ours.traces[0].is_sink, theirs.traces[0].is_sink)


def test_features_through_chunks_and_preemptions(
    engines: Engines, model: Any, prompts: Any, saes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"saes": saes, "observers": Largest(), "n": 4, "ignore_eos": True, "max_new_tokens": 120}
    theirs, places = write(model, prompts, **options), []
    begin = recorder.Recorder.begin

    def watched(one: Any, read: Any, embedded: Any) -> None:
        begin(one, read, embedded)
        places.extend(zip(read.owners.tolist(), read.positions.tolist(), strict=True))

    monkeypatch.setattr(recorder.Recorder, "begin", watched)
    monkeypatch.setattr(by_request, "_SORT_AT", 200)
    monkeypatch.setattr(features, "_STATES_KEPT", 1 << 12)
    tight = {"max_num_seqs": 8, "block_size": 32, "num_gpu_blocks_override": 18, "max_model_len": 256}
    ours = write(engines(**tight, max_num_batched_tokens=24), prompts, **options)
    assert len(places) > len(set(places)) + 50, "nothing was preempted"
    require_same_recordings(ours.traces, theirs.traces)


class Fails(Largest):
    """After a while."""

    def __init__(self, error: Exception) -> None:
        self.calls, self.error = 0, error

    def measure(self, stream: Any, layer: int) -> Any:
        self.calls += 1
        if self.calls > 50:
            raise self.error
        return super().measure(stream, layer)


def test_what_fails_while_it_records_ends_the_run_alone(
    engines: Engines, model: Any, prompts: Any, saes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engines()
    expected = write(engine, prompts, saes=saes)
    with pytest.raises(KeyError, match="enough") as caught:
        write(engine, prompts, observers=Fails(KeyError("enough")))
    assert "measure" in [entry.name for entry in caught.traceback] and "the observer 'largest'" in caught.value.__notes__[0]

    class Writes(Largest):
        def measure(self, stream: Any, layer: int) -> Any:
            return stream.mul_(2)[..., 0]

    with pytest.raises(InputError, match="wrote into the stream at layer 0"):
        write(engine, prompts, observers=Writes())
    with pytest.raises(InputError, match="one number for each state"):
        write(engine, prompts, observers=type("Odd", (Largest,), {"measure": lambda self, stream, layer: stream})())
    nothing = type("Nothing", (Largest,), {"measure": lambda self, stream, layer: stream[..., 0] * torch.nan})
    with pytest.raises(FloatingPointError, match="largest"):
        write(engine, prompts, observers=nothing())
    broken = l2.load_saes("tiny-reasoner", layers=[7])
    with torch.no_grad():
        broken[7].W_enc.fill_(torch.nan)
    for kept in (features._STATES_KEPT, 1 << 8):  # it is encoded at a response's end, or in the hook
        monkeypatch.setattr(features, "_STATES_KEPT", kept)
        with pytest.raises(FloatingPointError, match="latent .* at layer 7"):
            write(engine, prompts, saes=broken)
    with pytest.raises(InputError, match="doesn't fit"):
        write(engine, prompts, saes={3: saes[7]})
    with pytest.raises(InputError, match="are recorded beside the norms"):
        write(engine, prompts, saes=saes, record=False)
    assert engine.identity().foreign_hooks == 0
    require_same_recordings(write(engine, prompts, saes=saes).traces, expected.traces)


def test_a_cache_in_fewer_bits_is_said_with_features_too(
    engines: Engines, prompts: Any, saes: Any, model: Any, tmp_path: Path
) -> None:
    engine = engines(kv_cache_dtype="fp8")
    l2.run_modes(engine, l2.make_mixture(1, families="compact"), modes="direct", save_to=tmp_path, progress=False)
    run = json.loads(next(tmp_path.glob("direct-*/run.json")).read_text())
    assert run["options"] == {"kv_cache_dtype": "fp8"} and "vllm" in run["versions"]  # another folder than without
    ours = write(engine, prompts, saes=saes, observers=Largest())
    assert {tuple(trace.provenance.options.items()) for trace in ours.traces} == {(("kv_cache_dtype", "fp8"),)}
    assert not ours.traces[0].provenance.comparable(write(model, prompts).traces[0].provenance)


def require_same_results(ours: Any, theirs: Any) -> None:
    names = ("problem", "mode", "prompt", "control", "response", "answer", "finish_reason", "correct", "direct")
    for a, b in zip(ours, theirs, strict=True):
        assert [getattr(a, name) for name in names] == [getattr(b, name) for name in names]
        mine, others = dict(a.trace.labels), dict(b.trace.labels)
        assert mine.pop("log_prob", 0.0) == pytest.approx(others.pop("log_prob", 0.0), abs=1e-4) and mine == others
        assert a.trace.segments == b.trace.segments and torch.equal(a.trace.is_sink, b.trace.is_sink)
        assert a.trace.provenance.seed == b.trace.provenance.seed
        assert a.trace.provenance.temperature == b.trace.provenance.temperature
        assert a.trace.provenance.comparable(b.trace.provenance)
    require_same_recordings([a.trace for a in ours], [b.trace for b in theirs])


@pytest.fixture(scope="module")
def problems() -> Any:
    return l2.make_mixture(3, families="compact", seed=1)


def test_modes_are_asked_with_an_engine(
    engines: Engines, model: Any, problems: Any, saes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"temperature": 1.0, "saes": saes, "max_new_tokens": 60, "progress": False}
    theirs, engine = l2.run_modes(model, problems, **options), engines()
    require_same_results(l2.run_modes(engine, problems, **options), theirs)
    l2.run_modes(engine, problems[:2], save_to=tmp_path, **options)  # as far as an interrupted run came
    asked, generate = [], modes.generate
    monkeypatch.setattr(
        modes, "generate", lambda m, prompts, **more: asked.append(len(prompts)) or generate(m, prompts, **more)
    )
    require_same_results(l2.run_modes(engine, problems, save_to=tmp_path, **options), theirs)
    assert asked == [1, 1]
    require_same_results(l2.run_modes(engine, problems, save_to=tmp_path, **options), theirs)
    assert asked == [1, 1]
    index = next(tmp_path.glob("think-*/parts/*/traces.json"))
    index.write_text("{")
    with pytest.warns(UserWarning, match="can't be read are written again"):
        require_same_results(l2.run_modes(engine, problems, save_to=tmp_path, **options), theirs)
    assert sum(asked[2:]) >= 1
    l2.report(theirs, path=tmp_path / "report.html")
    with pytest.raises(InputError, match="max_num_seqs=3"):
        l2.run_modes(engine, problems, batch_size=3)


def test_samples_are_taken_with_an_engine(engines: Engines, model: Any, problems: Any, tmp_path: Path) -> None:
    options = {"n": 3, "temperature": 1.5, "max_new_tokens": 40, "progress": False}
    theirs = l2.experiments.sample_thinking(model, problems, **options)
    require_same_results(l2.experiments.sample_thinking(engines(), problems, **options), theirs)
    for _ in range(2):
        require_same_results(l2.experiments.sample_thinking(engines(), problems, save_to=tmp_path, **options), theirs)
    scores = l2.score_table(write(engines(), [problem.question for problem in problems], n=3))
    assert len(scores.scores) == 9


def test_suppression_is_tried_with_an_engine(engines: Engines, model: Any, problems: Any, tmp_path: Path) -> None:
    traces = [r.trace for r in l2.run_modes(model, problems, modes="think", max_new_tokens=60, progress=False)]
    options = {"quantiles": 0.7, "max_new_tokens": 60, "draws": 1, "progress": False}
    theirs = l2.experiments.suppress_and_ask(model, problems, traces, **options)
    pd.testing.assert_frame_equal(l2.experiments.suppress_and_ask(engines(), problems, traces, **options), theirs)
    assert theirs.loc[theirs["arm"] == "paired", "events"].sum() > 0
    for _ in range(2):
        kept = l2.experiments.suppress_and_ask(engines(), problems, traces, save_to=tmp_path, **options)
        pd.testing.assert_frame_equal(kept, theirs)


def test_what_needs_the_model_itself_says_so_before_anything_is_written(
    engines: Engines, problems: Any, saes: Any, prompts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engines()
    results = l2.run_modes(engine, problems, progress=False, max_new_tokens=60)
    traces = [result.trace for result in results]
    monkeypatch.setattr(type(engine), "decoding", None)
    calls: list[Any] = [
        lambda: l2.collect(engine, prompts),
        lambda: l2.analyse(engine, saes, l2.make_mixture(8, families="compact")),
        lambda: l2.train_saes(engine, traces, layers=[3], save_to="unused"),
        lambda: l2.saes.evaluate_saes(engine, saes, traces),
        lambda: l2.recording.optimisation_pressure(engine, traces),
        lambda: l2.recording.token_importance(engine, traces),
        lambda: l2.experiments.replaced_thoughts(engine, results),
        lambda: l2.Suppression(which="random").hooks(engine).__enter__(),
        lambda: l2.models.random_twin(engine),
    ]
    for call in calls:
        with pytest.raises(InputTypeError, match="an engine only generates"):
            call()
