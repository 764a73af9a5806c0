"""What is recorded of mixed passes, against each request's own states."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import tl_l2norm as l2
from tl_l2norm.core.features import FeatureActs
from tl_l2norm.engines import by_request
from tl_l2norm.engines.by_request import Read
from tl_l2norm.engines.recorder import Recorder
from tl_l2norm.interventions.intervener import JUDGED
from tl_l2norm.recording import features
from tl_l2norm.recording.features import FEATURES
from tl_l2norm.recording.stream import NORM

LAYERS, SAE_LAYER = (1, 4), 9
PASSES = [[(0, 0, 4), (1, 0, 2)], [(1, 2, 3), (0, 4, 1)], [(0, 0, 3)], [(0, 3, 3), (2, 0, 1)]]
"""Owner, start and length; the third begins request 0 again."""


class Mean(l2.StreamObserver):
    name = "mean"

    def measure(self, stream: Any, layer: int) -> Any:
        return layer * stream.mean(-1)


def states(owner: int, position: int, place: int, number: int) -> torch.Tensor:
    """Of a token at a layer, in a pass."""
    generator = torch.Generator().manual_seed(1000 * owner + 100 * place + 10 * position + number)
    return 5 * torch.randn(128, generator=generator)


def run(recorder: Recorder) -> dict[tuple[int, int], int]:
    """Read all passes; returns the last of them for each owner and position."""
    last: dict[tuple[int, int], int] = {}
    for number, rows in enumerate(PASSES):
        owners, starts, lengths = (np.array(column) for column in zip(*rows, strict=True))
        read = Read.of(owners, starts, np.concatenate([[0], np.cumsum(lengths)]))
        places = list(zip(read.owners.tolist(), read.positions.tolist(), strict=True))
        last |= dict.fromkeys(places, number)
        recorder.begin(read, torch.stack([states(*place, 0, number) for place in places]))
        for layer in recorder.watched:
            stream = torch.stack([states(*place, layer, number) for place in places])
            recorder.visit(layer, stream)
            stream.zero_()  # vLLM's next norm writes there
        recorder.end({3: torch.tensor(read.positions + 0.5 * number, dtype=torch.float32)})
    return last


@pytest.mark.parametrize("sort_at", [0, 5, 1 << 16])
@pytest.mark.parametrize("kept", [0, 1 << 20])
def test_each_request_gets_what_was_recorded_of_it(sort_at: int, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_request, "_SORT_AT", sort_at)
    monkeypatch.setattr(features, "_STATES_KEPT", kept)
    sae = l2.load_saes("tiny-reasoner", layers=[SAE_LAYER])[SAE_LAYER]
    recorder = Recorder(LAYERS, [Mean()], {SAE_LAYER: sae})
    last = run(recorder)
    for owner, n in ((1, 5), (0, 6), (2, 1)):
        recorded: Any = recorder.take(owner, n)
        own = [(owner, at, last[owner, at]) for at in range(n)]
        stream = {place: torch.stack([states(o, at, place, number) for o, at, number in own]) for place in (0, 1, 4, SAE_LAYER)}
        torch.testing.assert_close(recorded[NORM], torch.stack([stream[place].norm(dim=-1) for place in (0, 1, 4)]))
        torch.testing.assert_close(recorded["mean"], torch.stack([layer * stream[layer].mean(-1) for layer in LAYERS]))
        assert recorded[JUDGED, 3].tolist() == [at + 0.5 * number for _, at, number in own]
        with torch.no_grad():
            truth = FeatureActs.of_dense(sae.encode(stream[SAE_LAYER]))
        torch.testing.assert_close(recorded[FEATURES, SAE_LAYER].dense(), truth.dense(), rtol=1e-4, atol=1e-4)


def test_an_error_is_kept_and_nothing_is_recorded_from_then_on() -> None:
    class Fails(Mean):
        calls = 0

        def measure(self, stream: Any, layer: int) -> Any:
            self.calls += 1
            return 1 / 0 if self.calls == 2 else super().measure(stream, layer)

    observer = Fails()
    recorder = Recorder(LAYERS, [observer], {})
    run(recorder)
    assert isinstance(recorder.failure, ZeroDivisionError) and observer.calls == 2
    assert "at layer 4" in recorder.failure.__notes__[0]
