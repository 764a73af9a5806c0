"""Whatever a user measures of the stream, or notes of an intervention, is what it says it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

import tl_l2norm as l2
from tests import oracles
from tests.texts import TEXTS, ids, relative
from tl_l2norm.core.batch import Rows
from tl_l2norm.interventions.base import Intervention
from tl_l2norm.interventions.rule import Decision, Effect, Visit


class Largest(l2.StreamObserver):
    """The largest coordinate."""

    name = "largest"

    def measure(self, stream: torch.Tensor, layer: int) -> torch.Tensor:
        return stream.abs().amax(-1)


class Along(l2.StreamObserver):
    """The component along a direction, times the layer's number: that it is told which layer it sees shows."""

    name = "along"

    def __init__(self, direction: torch.Tensor) -> None:
        self.direction = direction

    def measure(self, stream: torch.Tensor, layer: int) -> torch.Tensor:
        return layer * (stream.float() @ self.direction)


@pytest.fixture
def along(model: Any) -> Along:
    return Along(torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(5)))


def test_scalars_are_those_of_plain_hugging_faces_states(model: Any, plain: Any, along: Along) -> None:
    traces = l2.collect(model, [ids(text) for text in TEXTS], observers=[Largest(), along], progress=False)
    for text, trace in zip(TEXTS, traces, strict=True):
        states = oracles.states_and_attentions(plain, ids(text))[0][1:].double()
        assert trace.metrics.keys() == {"largest", "along"}
        assert relative(trace.metrics["largest"], states.abs().amax(-1)) < 1e-4
        truth = torch.arange(len(states))[:, None] * (states @ along.direction.double())
        assert (trace.metrics["along"] - truth).norm() < 1e-4 * truth.norm()


def test_observed_alone_in_a_batch_and_while_decoding_it_is_the_same(model: Any, along: Along) -> None:
    """In rows that come and go, recorded from layer 1 on."""
    prompts, layers = [ids(text)[:n] for text, n in zip(TEXTS, (14, 5, 1), strict=True)], range(1, model.cfg.n_layers)
    options: dict[str, Any] = {"observers": [along, Largest()], "layers": layers, "progress": False}
    out = l2.generate(model, prompts, max_new_tokens=9, ignore_eos=True, batch_size=2, n=2, temperature=1.0, **options)
    for completion, again in zip(out, l2.collect(model, out, batch_size=1, **options), strict=True):
        assert completion.trace is not None
        for name, values in completion.trace.metrics.items():
            assert values.shape == completion.trace.l2_norms.shape == (len(layers), len(again))
            assert (values - again.metrics[name]).norm() < 1e-3 * again.metrics[name].norm()


def test_it_sees_what_the_next_block_reads(tiny: Any) -> None:
    """After the interventions, at the layers that they act on and behind them."""
    tau = dict.fromkeys(range(2, 5), 1e-3)
    acting = l2.Suppression(tau, positions="all", include_sinks=True)
    plain, changed = (
        l2.collect(tiny, [ids(TEXTS[0])], observers=Largest(), interventions=x, progress=False)[0] for x in ((), (acting,))
    )
    assert torch.equal(plain.metrics["largest"][:2], changed.metrics["largest"][:2])
    assert relative(changed.metrics["largest"][2], 0.1 * plain.metrics["largest"][2]) < 1e-4


def test_recording_more_changes_no_norm_and_no_token(tiny: Any) -> None:
    options: dict[str, Any] = {"max_new_tokens": 12, "ignore_eos": True, "progress": False}
    plain = l2.generate(tiny, [ids(TEXTS[1])], **options)[0]
    observed = l2.generate(tiny, [ids(TEXTS[1])], observers=[Largest()], **options)[0]
    assert plain.tokens == observed.tokens and torch.equal(plain.trace.l2_norms, observed.trace.l2_norms)


class Whole(Largest):
    name = "whole"

    def measure(self, stream: torch.Tensor, layer: int) -> torch.Tensor:
        return stream


class Nameless(Largest):
    name = ""


@pytest.mark.parametrize(
    ("observers", "message"),
    [
        ([Largest(), Largest()], "two metrics are called 'largest'"),
        ([Nameless()], "Nameless needs a name"),
        ([Whole()], "one number for each state"),
    ],
)
def test_bad_observers_are_refused(tiny: Any, observers: list[Any], message: str) -> None:
    for run, options in ((l2.collect, {}), (l2.generate, {"max_new_tokens": 3})):
        with pytest.raises(ValueError, match=message):
            run(tiny, [[5, 6, 7]], observers=observers, progress=False, **options)


def test_observers_need_the_norms_beside_them(tiny: Any) -> None:
    with pytest.raises(ValueError, match="leave record as it is"):
        l2.generate(tiny, [[5, 6]], observers=[Largest()], record=False, progress=False)


@dataclass(frozen=True, eq=False, repr=False)
class Halved(Intervention):
    """A user's own: halves what is over a threshold, notes by how much and keeps where."""

    thresholds: Any = None

    DECISIONS: ClassVar = (Decision("halved", True),)
    COLUMNS: ClassVar = ("removed",)

    def new_state(self, layer: int, rows: Rows, d_model: int) -> Any:
        return rows

    def act(self, state: Any, visit: Visit) -> Effect:
        hit = visit.live & (visit.norms > visit.tau)
        return Effect(
            torch.where(hit[..., None], visit.stream / 2, visit.stream),
            hit.to(torch.int8),
            {"removed": torch.where(hit, visit.norms / 2, torch.nan)},
        )

    def outlives(self, rows: Rows, state: Any) -> Mapping[int, Any]:
        return dict(zip(rows.number.tolist(), state.key.tolist(), strict=True))


def test_a_users_intervention_has_columns_and_memories_of_its_own(tiny: Any) -> None:
    prompts = [ids(text)[:6] for text in TEXTS[:2]]
    halved = Halved(thresholds={2: 1e-3, 3: 1e-3})
    acting = [halved, l2.ALRR({4: 1e-3}, growth_eps=-9.0, blowup=1e9)]
    out = l2.generate(tiny, prompts, interventions=acting, max_new_tokens=5, ignore_eos=True, progress=False)
    events = out.events()
    assert list(events.columns[-2:]) == ["removed", "reruns"] and "cosine" not in events
    own = events[events["intervention"] == "Halved"]
    assert len(own) == 2 * 2 * 4 and own["reruns"].isna().all() and own["fired"].all()
    assert own["removed"].tolist() == pytest.approx((own["l2_norm_before"] - own["l2_norm_after"]).tolist(), rel=1e-5)
    assert out.log.kept[0] == {i: dict.fromkeys((2, 3), out[i].seed) for i in range(2)} and out.log.kept[1] == {}
    replayed = l2.collect(tiny, out, interventions=acting, progress=False)
    assert all(relative(a.l2_norms, b.l2_norms) < 1e-4 for a, b in zip(replayed, out.traces, strict=True))
