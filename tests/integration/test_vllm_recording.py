"""What else an engine records, and what is done with one: checks, features, observers, experiments; the bridge is the truth."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tl_l2norm as l2
from tests import engines as made
from tests.engines import Engines
from tl_l2norm.core.errors import InputError

pytestmark = pytest.mark.skipif(not made.has_vllm(), reason="vLLM isn't installed; see docs/engines.md")
if made.has_vllm():
    from tl_l2norm.engines import vllm_worker

running = pytest.fixture(scope="module", name="engines")(made.running)


@pytest.fixture(scope="module")
def model() -> Any:
    return l2.load_model("tiny-reasoner", device="cpu")


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
