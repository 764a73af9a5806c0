"""However steps are run, responses, norms and decisions are those of eager steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tl_l2norm as l2
from tests import models
from tl_l2norm.core.errors import Unsupported
from tl_l2norm.models import slots
from tl_l2norm.recording.completions import Generations
from tl_l2norm.recording.stream import StreamObserver

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
ATTENDS_TO_ALL = [models.Case(name, "bridge") for name in ("llama", "qwen3")]


class Largest(StreamObserver):
    name = "largest"

    def measure(self, stream: torch.Tensor, layer: int) -> torch.Tensor:
        return stream.abs().amax(-1)


@pytest.fixture(params=[case for case in models.CASES if case in ATTENDS_TO_ALL], ids=str)
def bridged(request: pytest.FixtureRequest) -> Any:
    return models.use(request.param)


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors that are outgrown after a few steps."""
    monkeypatch.setattr(slots, "_LEAST", 8)
    monkeypatch.setattr(slots, "_ROOM", 1)


def run(model: Any, steps: str, **options: Any) -> Generations:
    """Prompts of several lengths in fewer rows than there are samples: rows leave, and others take their places."""
    prompts = ["Why?", "The capital of France is", "One, two, three, four, five, six, seven,", "It rains: "]
    asked: dict[str, Any] = {
        "n": 2,
        "batch_size": 3,
        "temperature": 1.0,
        "max_new_tokens": 24,
        "stop": ["x"],
        "progress": False,
    }
    return l2.generate(model, prompts, steps=steps, **(asked | options))  # type: ignore[arg-type]


def assert_same(found: Generations, truth: Generations) -> None:
    assert [one.tokens for one in found] == [one.tokens for one in truth]
    for one, other in zip(found, truth, strict=True):
        assert one.trace is not None and other.trace is not None
        torch.testing.assert_close(one.trace.l2_norms, other.trace.l2_norms, rtol=1e-4, atol=0)
        torch.testing.assert_close(one.logprobs, other.logprobs, rtol=0, atol=1e-4)


def test_static_steps_write_and_record_what_eager_ones_do(bridged: Any, narrow: None) -> None:
    truth = run(bridged, "eager")
    assert len({len(one.tokens) for one in truth}) > 2, "rows leave at several steps"
    assert_same(run(bridged, "static"), truth)


def test_static_steps_act_observe_and_read_features(narrow: None) -> None:
    model = models.use(models.Case("llama", "bridge"))
    tau = l2.quantile_thresholds(run(model, "eager"), q=0.7)
    for acting in (
        l2.Suppression(tau),
        l2.ALRR(tau, growth_eps=-1.0, blowup=3.0),
        l2.ALRR(tau, growth_eps=-1.0, blowup=3.0, kv="fresh"),
        l2.ERSS(tau, patience=1, cos_min=-1.0, p=1.0),
    ):
        options = {"interventions": [acting], "observers": [Largest()], "stop": [], "max_new_tokens": 10}
        found, truth = run(model, "static", **options), run(model, "eager", **options)
        assert_same(found, truth)
        events = truth.events()
        assert events["fired"].any()
        assert found.events()[["sequence", "position", "layer", "fired"]].equals(
            events[["sequence", "position", "layer", "fired"]]
        )
        for one, other in zip(found, truth, strict=True):
            assert one.trace is not None and other.trace is not None
            torch.testing.assert_close(one.trace.metrics["largest"], other.trace.metrics["largest"], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:TensorFloat32:UserWarning")  # of torch's compiler
def test_compiled_steps_write_and_record_what_eager_ones_do(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--jaxtyping-packages"):
        pytest.skip("run-time checks of types aren't compiled")
    model = models.use(models.Case("llama", "bridge"))
    few = {"n": 1, "batch_size": 4, "stop": [], "max_new_tokens": 8}  # one shape, with idle rows
    truth = run(model, "eager", **few)
    for _ in range(2):  # what was compiled for norms isn't taken for none, nor the other way round
        assert [one.tokens for one in run(model, "compiled", record=False, **few)] == [one.tokens for one in truth]
        assert_same(run(model, "compiled", **few), truth)


@CUDA
def test_replayed_steps_write_and_record_what_eager_ones_do(narrow: None) -> None:
    model = l2.load_model(models.folder("llama"), device="cuda")
    assert_same(run(model, "graph"), run(model, "eager"))
    assert_same(run(model, "graph", batch_size=20), run(model, "eager"))


def test_what_is_not_exact_is_refused_by_name() -> None:
    model = models.use(models.Case("llama", "bridge"))
    with pytest.raises(Unsupported, match="interventions decide in Python"):
        run(model, "compiled", interventions=[l2.Suppression({0: 1.0})])
    with pytest.raises(Unsupported, match="SAEs and observers run in Python"):
        run(model, "compiled", observers=[Largest()])
    with pytest.raises(Unsupported, match="attend to all positions"):
        run(models.use(models.Case("gemma3", "bridge")), "static")
    if models.DEVICE == "cpu":
        with pytest.raises(ValueError, match="the model is on cpu"):
            run(model, "graph")
    if models.HAS_HOOKED:
        with pytest.raises(Unsupported, match="this is no bridge"):
            run(models.use(models.Case("gpt2", "hooked")), "static")
