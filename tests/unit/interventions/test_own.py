"""An intervention that a user writes: what it declares and returns is checked, and it changes what it may and says, only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import pytest
import torch

import tl_l2norm as l2
from tests.texts import TEXTS, ids
from tl_l2norm.interventions.base import Intervention
from tl_l2norm.interventions.checks import LOG_COLUMNS
from tl_l2norm.interventions.log import Log
from tl_l2norm.interventions.rule import Decision, Effect, Visit

RUNS = (
    partial(l2.collect, prompt_lens=[2], progress=False),
    partial(l2.generate, max_new_tokens=4, ignore_eos=True, progress=False),
)


@dataclass(frozen=True, eq=False, repr=False)
class Own(Intervention):
    """Whatever a function makes of a visit, at layers 2 and 3."""

    thresholds: Any = None
    made: Callable[[Visit], Any] = field(default=lambda visit: Effect(visit.stream, hits(visit)))

    DECISIONS: ClassVar[Any] = (Decision("done", True), Decision("nearly", False))

    def act(self, state: Any, visit: Visit) -> Any:
        return self.made(visit)


def hits(visit: Visit, decision: int = 1) -> torch.Tensor:
    return visit.live.to(torch.int8) * decision


def own(made: Callable[[Visit], Any], **declared: Any) -> Intervention:
    kind: Any = type("Own", (Own,), declared)
    return kind({2: 1e-3, 3: 1e-3}, made)


@pytest.mark.parametrize("name", LOG_COLUMNS)
def test_no_column_is_called_like_one_of_the_logs(tiny: Any, name: str) -> None:
    with pytest.raises(ValueError, match=rf"Own.COLUMNS has \['{name}'\], which the log's events have already"):
        RUNS[0](tiny, [[5, 6, 7]], interventions=own(lambda visit: None, COLUMNS=(name,)))


def test_the_names_that_are_taken_are_the_logs_columns() -> None:
    assert tuple(Log([l2.Suppression({1: 2.0})]).events()) == LOG_COLUMNS


@pytest.mark.parametrize(
    ("declared", "says"),
    [
        ({"COLUMNS": "ratio"}, r"Own.COLUMNS is a tuple of names, as in \('removed',\), got 'ratio'"),
        ({"COLUMNS": ("ratio", 3)}, "Own.COLUMNS is a tuple of names"),
        ({"COLUMNS": ("ratio", "ratio")}, r"Own.COLUMNS has \['ratio'\]"),
        ({"DECISIONS": ()}, r"Own.DECISIONS are what it may decide, .* got \(\)"),
        ({"DECISIONS": Decision("done", True)}, "Own.DECISIONS are what it may decide"),
        ({"DECISIONS": (("done", True),)}, "Own.DECISIONS are what it may decide"),
        ({"DECISIONS": None}, "Own.DECISIONS are what it may decide, .* got none"),
    ],
)
def test_what_is_declared_amiss_is_refused_before_anything_runs(tiny: Any, declared: Any, says: str) -> None:
    for run in RUNS:
        with pytest.raises(ValueError, match=says):
            run(tiny, [[5, 6, 7]], interventions=own(lambda visit: 1 / 0, **declared))


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda v: v.stream, "returned tensor"),
        (lambda v: None, "returned None: give Effect"),
        (lambda v: Effect(v.stream[..., :-1], hits(v)), "the stream has shape"),
        (lambda v: Effect(v.stream.double(), hits(v)), r"the stream is torch.float64 on cpu, the model's is torch.float32"),
        (lambda v: Effect(v.stream, hits(v)[:, 0]), "the decision has shape"),
        (lambda v: Effect(v.stream, None), "the decision is None"),  # type: ignore[arg-type]
        (lambda v: Effect(v.stream, v.norms), "decisions are integers"),
        (
            lambda v: Effect(v.stream, hits(v), {"mine": v.norms}),
            r"returned the columns \['mine'\], its COLUMNS are \['ratio'\]",
        ),
        (lambda v: Effect(v.stream, hits(v)), r"returned the columns \[\], its COLUMNS are \['ratio'\]"),
        (lambda v: Effect(v.stream, hits(v), {"ratio": v.norms[:, 0]}), "the column 'ratio' has shape"),
        (lambda v: Effect(v.stream, hits(v), {"ratio": 3.0}), "the column 'ratio' is 3.0, expected a tensor"),  # type: ignore[dict-item]
        (lambda v: Effect(v.stream, hits(v), {"ratio": v.norms + 1j}), "the column 'ratio' is complex"),
    ],
)
def test_what_does_not_fit_is_refused_with_name_and_layer(tiny: Any, made: Any, says: str) -> None:
    for run in RUNS:
        with pytest.raises(ValueError, match=rf"Own.act at layer 2(:| returned) ?.*{says.removeprefix('returned ')}"):
            run(tiny, [[5, 6, 7]], interventions=own(made, COLUMNS=("ratio",)))


def test_a_row_of_a_column_is_not_taken_for_all_rows(tiny: Any) -> None:
    first = own(lambda v: Effect(v.stream, hits(v), {"ratio": v.norms[:1]}), COLUMNS=("ratio",))
    with pytest.raises(ValueError, match=r"the column 'ratio' has shape \(1, 1\), expected \(2, 1\)"):
        RUNS[1](tiny, [[5, 6, 7], [8, 9, 3]], interventions=first)


@pytest.mark.parametrize("decision", [3, -1])
def test_decisions_that_are_not_declared_are_refused(tiny: Any, decision: int) -> None:
    for run in RUNS:
        with pytest.raises(ValueError, match=f"Own.act decided {decision}, its DECISIONS are 1 to 2, and 0 is for nothing"):
            run(tiny, [[5, 6, 7]], interventions=own(lambda v: Effect(v.stream, hits(v, decision))))


def test_what_fails_inside_says_where(tiny: Any) -> None:
    for run in RUNS:
        with pytest.raises(KeyError) as failed:
            run(tiny, [[5, 6, 7]], interventions=own(lambda v: {2: Effect(v.stream, hits(v))}[v.layer]))
        assert failed.value.__notes__ == ["in Own.act at layer 3"]


def test_a_write_into_the_stream_is_refused(tiny: Any) -> None:
    for run in RUNS:
        with pytest.raises(ValueError, match="Own.act wrote into visit.stream at layer 2: return a new one"):
            run(tiny, [[5, 6, 7]], interventions=own(lambda v: Effect(v.stream.mul_(0.5), hits(v))))


def test_states_elsewhere_stay_as_they_are(tiny: Any) -> None:
    """It halves every state, decides something at every second live one, and claims to have decided it everywhere."""

    def halve(visit: Visit) -> Effect:
        return Effect(visit.stream / 2, torch.where(visit.places.positions % 2 == 0, 1, 0).to(torch.int8))

    prompts = [ids(text)[:6] for text in TEXTS[:2]]
    out = RUNS[1](tiny, prompts, interventions=own(halve))
    again = l2.collect(tiny, out, interventions=own(halve), progress=False)
    plain = l2.collect(tiny, out, progress=False)
    for traces in (out.traces, again):
        for trace, before in zip(traces, plain, strict=True):
            torch.testing.assert_close(trace.l2_norms[2, :6], before.l2_norms[2, :6])
            torch.testing.assert_close(trace.l2_norms[2, 6::2], before.l2_norms[2, 6::2] / 2)
            torch.testing.assert_close(trace.l2_norms[2, 7::2], before.l2_norms[2, 7::2])
    assert all(torch.equal(a.l2_norms[:, :6], b.l2_norms[:, :6]) for a, b in zip(again, plain, strict=True))
    events = out.events()
    assert set(events["position"]) == {6, 8} and events["fired"].all() and len(events) == 2 * 2 * 2
    assert (events["l2_norm_after"] / events["l2_norm_before"]).tolist() == pytest.approx([0.5] * len(events))


def test_what_decides_nothing_changes_nothing_and_says_so(tiny: Any) -> None:
    silent = own(lambda v: Effect(v.stream / 2, hits(v, 0)))
    with pytest.warns(UserWarning, match="nothing was changed by Own"):
        out = RUNS[1](tiny, [[5, 6, 7]], interventions=silent)
    assert torch.equal(out[0].trace.l2_norms, RUNS[1](tiny, [[5, 6, 7]])[0].trace.l2_norms)
