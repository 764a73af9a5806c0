"""What a user measures of the stream is kept as it was measured, changes nothing, and says where it went wrong."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

import tl_l2norm as l2
from tests import models
from tests.texts import TEXTS, ids
from tests.traces import trace_of
from tl_l2norm.core.batch import Batch, Rows
from tl_l2norm.core.features import FeatureActs
from tl_l2norm.core.trace import FRAME_COLUMNS
from tl_l2norm.models.backends import backend_of
from tl_l2norm.recording.stream import StreamRecorder, check_observers

RUNS = (l2.collect, partial(l2.generate, max_new_tokens=2))


class Given(l2.StreamObserver):
    """Whatever a function gives."""

    def __init__(self, measure: Any, name: str = "mine") -> None:
        self._measure, self.name = measure, name

    def measure(self, stream: torch.Tensor, layer: int) -> torch.Tensor:
        return self._measure(stream, layer)


def runs(model: Any, observer: l2.StreamObserver, n: int = 4) -> list[l2.Trace]:
    """Traces of both ways to record."""
    out = l2.generate(model, [ids(TEXTS[0])[:6]], observers=observer, max_new_tokens=n, ignore_eos=True, progress=False)
    return [*out.traces, *l2.collect(model, out, observers=observer, progress=False)]


def test_a_buffer_that_is_used_again_and_a_view_are_copied(tiny_case: models.Case) -> None:
    model, buffers = models.use(tiny_case), dict[Any, torch.Tensor]()

    def into_buffer(stream: torch.Tensor, layer: int) -> torch.Tensor:
        buffer = buffers.setdefault(stream.shape[:2], torch.empty(stream.shape[:2]))
        return torch.linalg.vector_norm(stream, dim=-1, out=buffer)

    for trace in runs(model, Given(into_buffer)):
        assert torch.equal(trace.metrics["mine"], trace.l2_norms)
    seen, zero = list[torch.Tensor](), torch.tensor([0])
    recorder = StreamRecorder(backend_of(model), [1], [Given(lambda stream, layer: stream[..., 0])])
    with recorder.attached():
        batch = Batch(Rows.of(number=zero, key=zero, prompt_len=zero + 3, padding=zero))
        recorder.next_pass(batch.next_pass(3))
        model.run_with_hooks(
            torch.tensor([[5, 6, 7]]), fwd_hooks=[("blocks.1.hook_resid_post", lambda x, hook: seen.append(x.clone()))]
        )
    kept = recorder._now["mine"][0]
    assert kept is not None and torch.equal(kept, seen[0][..., 0])
    assert kept.untyped_storage().nbytes() == 3 * 4, "nothing of size d_model outlives the hook"


def test_a_write_into_the_stream_is_refused(tiny_case: models.Case) -> None:
    model = models.use(tiny_case)

    def halve(stream: torch.Tensor, layer: int) -> torch.Tensor:
        return (stream.mul_(0.5) if layer == 2 else stream)[..., 0]

    for write in (halve, lambda stream, layer: stream[..., :1].zero_()[..., 0]):
        for run in RUNS:
            with pytest.raises(ValueError, match=r"Given.measure, the observer 'mine', wrote into the stream at layer [02]"):
                run(model, [[5, 6, 7]], observers=Given(write), progress=False)


def at(layer: int, position: int, value: float) -> Given:
    """An observer that gives a value at one layer, and in a pass over that many positions at the last one."""

    def measure(stream: torch.Tensor, now: int) -> torch.Tensor:
        values = torch.ones(stream.shape[:2], dtype=torch.float64)
        if now == layer and stream.shape[1] in (1, position + 1):
            values[:, -1] = value
        return values

    return Given(measure)


@pytest.mark.parametrize(("value", "shown"), [(float("nan"), "nan"), (float("-inf"), "-inf"), (1e60, "inf")])
def test_what_is_not_finite_is_told_with_its_place(tiny: Any, value: float, shown: str) -> None:
    with pytest.raises(FloatingPointError, match=f"mine is {shown} at layer 2, sequence 0, position 4: its observer"):
        l2.collect(tiny, [[5, 6, 7, 8, 9]], observers=at(2, 4, value), progress=False)
    options: dict[str, Any] = {"max_new_tokens": 4, "ignore_eos": True, "progress": False}
    with pytest.raises(FloatingPointError, match=f"mine is {shown} at layer 3, sequence 0, position 5: its observer"):
        l2.generate(tiny, [[5, 6, 7, 8, 9]], observers=at(3, -9, value), **options)


@pytest.mark.parametrize("kind", ["complex", "sparse", "meta"])
def test_numbers_that_no_trace_can_hold_are_refused(tiny: Any, kind: str) -> None:
    def measure(stream: torch.Tensor, layer: int) -> torch.Tensor:
        values = stream[..., 0]
        return {"complex": values.to(torch.complex64), "sparse": values.to_sparse(), "meta": values.to("meta")}[kind]

    with pytest.raises(ValueError, match="returned numbers at layer 0 that can't be kept as float32"):
        l2.collect(tiny, [[5, 6, 7]], observers=Given(measure), progress=False)


def test_what_fails_inside_says_where(tiny: Any) -> None:
    for run in RUNS:
        with pytest.raises(KeyError) as failed:
            run(tiny, [[5, 6, 7]], observers=Given(lambda stream, layer: {0: stream[..., 0]}[layer]), progress=False)
        assert failed.value.__notes__ == ["in Given.measure, the observer 'mine', at layer 1"]


@pytest.mark.parametrize("name", FRAME_COLUMNS)
def test_no_observer_is_called_like_a_column_of_the_table(tiny: Any, name: str) -> None:
    with pytest.raises(ValueError, match=f"two metrics are called|can't be called {name!r}: the table of to_frame has"):
        l2.collect(tiny, [[5, 6]], observers=Given(lambda stream, layer: stream[..., 0], name), progress=False)


def test_the_names_that_are_taken_are_the_tables_own_columns() -> None:
    acts = FeatureActs.of_dense(torch.zeros(1, 3))
    trace = trace_of([[1.0]], features={0: acts})
    assert tuple(l2.to_frame([trace])) == FRAME_COLUMNS
    with pytest.raises(ValueError, match=r"metrics can't be called \['layer'\]"):
        l2.to_frame([trace_of([[1.0]], metrics={"layer": torch.ones(1, 1)})])


@pytest.mark.parametrize("given", ["kurtosis", {"mine": Given(len)}, Given, [None]])
def test_what_is_no_observer_is_shown(given: Any) -> None:
    with pytest.raises(TypeError, match="observers are instances of StreamObserver, got .*(kurtosis'|mine|Given|None)"):
        check_observers(given, ())
