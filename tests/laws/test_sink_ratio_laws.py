"""A run has one sink ratio: what interventions leave alone and what its traces mark as sinks are the same tokens."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import tl_l2norm as l2
from tests import models
from tl_l2norm.core.errors import InputError
from tl_l2norm.core.presets import PRESET_FILE, Preset, kept_preset, read_preset, sink_ratio_of
from tl_l2norm.models.sources import bundled_folder

RATIOS = (1.02, 1.05, 1.1)
"""On models this small norms hardly spread: these mark some of the tokens."""

TOKENS = [[(7 * i + 3) % 997 + 3 for i in range(9)], [(31 * i + 2) % 499 + 3 for i in range(5)]]
EVERY = dict.fromkeys(range(6), 0.0)
"""Thresholds that every token is over."""


def acted_on(log: Any) -> set[tuple[int, int, int]]:
    events = log.events()
    return set(events.loc[events["fired"], ["sequence", "layer", "position"]].itertuples(index=False, name=None))


def marked(traces: Any, *, sinks: bool) -> set[tuple[int, int, int]]:
    return {
        (i, trace.layers[index], position)
        for i, trace in enumerate(traces)
        for index, position in (trace.is_sink == sinks).nonzero().tolist()
        if position >= trace.prompt_len
    }


@pytest.mark.parametrize("ratio", RATIOS)
def test_interventions_leave_alone_what_the_trace_of_the_same_run_marks(tiny: Any, ratio: float) -> None:
    clamp = l2.Suppression(EVERY, scale=1.0)  # of no effect, so that the trace shows the norms that it judged
    out = l2.generate(tiny, TOKENS, max_new_tokens=12, ignore_eos=True, interventions=clamp, sink_ratio=ratio, progress=False)
    assert {trace.provenance.sink_ratio for trace in out.traces} == {ratio}
    assert marked(out.traces, sinks=True), "some are sinks, or nothing is tested"
    assert acted_on(out.log) == marked(out.traces, sinks=False)
    once_more = l2.collect(tiny, out, sink_ratio=ratio, progress=False)
    assert marked(once_more, sinks=True) == marked(out.traces, sinks=True)


@pytest.mark.parametrize("ratio", RATIOS)
def test_the_same_by_plain_hooks(tiny: Any, ratio: float) -> None:
    clamp = l2.Suppression(EVERY, scale=1.0, sink_ratio=ratio)
    tokens = torch.tensor(TOKENS[:1])
    trace = l2.collect(tiny, tokens, prompt_lens=[4], sink_ratio=ratio, progress=False)
    with torch.no_grad(), clamp.hooks(tiny, prompt_lens=4) as log:
        tiny(tokens)
    assert acted_on(log) == marked(trace, sinks=False)


def test_another_ratio_in_the_same_run_is_refused(tiny: Any) -> None:
    with pytest.raises(InputError, match=r"sink ratios 5, 9 in one run"):
        l2.generate(tiny, TOKENS, max_new_tokens=2, interventions=l2.Suppression(EVERY, sink_ratio=9.0), progress=False)
    pair = [l2.Suppression(EVERY, sink_ratio=9.0), l2.ALRR(EVERY, sink_ratio=7.0)]
    with pytest.raises(InputError, match=r"sink ratios 7, 9 in one run"):
        l2.generate(tiny, TOKENS, max_new_tokens=2, interventions=pair, sink_ratio=9.0, progress=False)
    same = l2.Suppression(EVERY, sink_ratio=9.0)
    assert l2.generate(tiny, TOKENS, max_new_tokens=2, interventions=same, sink_ratio=9.0, progress=False).log is not None


def test_thresholds_say_whose_sinks_they_leave_out(tiny: Any) -> None:
    out = l2.generate(tiny, TOKENS, max_new_tokens=6, ignore_eos=True, sink_ratio=3.0, progress=False)
    tau = l2.quantile_thresholds(out, 0.5)
    assert tau.sink_ratio == 3.0 and l2.quantile_thresholds(out, 0.5, include_sinks=True).sink_ratio is None
    options = {"max_new_tokens": 3, "ignore_eos": True, "progress": False}
    with pytest.raises(InputError, match=r"over 3 times .* those over 5 times: give sink_ratio=3"):
        l2.generate(tiny, TOKENS, interventions=l2.Suppression(tau), **options)
    l2.generate(tiny, TOKENS, interventions=l2.Suppression(tau), sink_ratio=3.0, **options)
    l2.generate(tiny, TOKENS, interventions=l2.Suppression(dict(tau)), **options)  # given by hand: nobody says
    other = l2.collect(tiny, out, sink_ratio=4.0, progress=False)
    with pytest.raises(InputError, match="sink_ratio=4 but trace 0 with 3"):
        l2.analysis.compare_late(out, other)


# The model's own


@pytest.mark.parametrize("backend", ["bridge", *(["hooked"] if models.HAS_HOOKED else [])])
def test_a_preset_beside_the_weights_is_the_default_of_every_call(backend: Any, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(models.folder("llama"), folder)
    (folder / PRESET_FILE).write_text(json.dumps({"sink_ratio": 1.2, "batch_size": 3}))
    model = l2.load_model(folder, backend=backend, device="cpu")
    for one in (model, copy.deepcopy(model), l2.models.random_twin(model)):
        assert kept_preset(one) == Preset(sink_ratio=1.2, batch_size=3)
        assert l2.collect(one, TOKENS, progress=False)[0].provenance.sink_ratio == 1.2
    out = l2.generate(model, TOKENS, max_new_tokens=5, ignore_eos=True, progress=False)
    by_name = l2.generate(model, TOKENS, max_new_tokens=5, ignore_eos=True, sink_ratio=1.2, batch_size=1, progress=False)
    assert marked(out.traces, sinks=True) == marked(by_name.traces, sinks=True)
    assert l2.collect(model, TOKENS, sink_ratio=7.0, progress=False)[0].provenance.sink_ratio == 7.0
    with torch.no_grad(), l2.Suppression(EVERY, scale=1.0).hooks(model, prompt_lens=4) as log:
        model(torch.tensor(TOKENS[:1]))
    assert acted_on(log) == marked(l2.collect(model, TOKENS[0], prompt_lens=4, progress=False), sinks=False)


def test_other_models_have_none(tiny: Any) -> None:
    assert kept_preset(tiny) is None and sink_ratio_of(tiny) == 5.0
    assert read_preset(Path(models.folder("llama"))) is None


def test_the_tiny_reasoners() -> None:
    assert read_preset(bundled_folder("tiny-reasoner")) == Preset(
        sink_ratio=20.0, batch_size=100, temperature=2.2, families="compact", n_problems=200
    )
    model = l2.load_model("tiny-reasoner", device="cpu")
    results = l2.run_modes(model, l2.make_mixture(2, families="compact"), max_new_tokens=8, progress=False)
    assert {result.trace.provenance.sink_ratio for result in results} == {20.0}


@pytest.mark.parametrize(
    "acting", [{"scale": 9.0}, {"scale": 30.0, "which": "low"}, {"scale": 9.0, "which": "random", "p": 0.5}]
)
def test_what_an_intervention_raises_is_no_sink_where_it_acts(tiny: Any, acting: dict[str, Any]) -> None:
    """Its norm after is far over the bound; the run judged it before, and so does its trace. What follows from it is said."""
    tau = {"low": {5: 1e9}, "random": None}.get(acting.get("which", ""), {5: 0.0})
    raises = l2.Suppression(tau, layers=[5], **acting)
    options: dict[str, Any] = {"max_new_tokens": 12, "ignore_eos": True, "progress": False}
    with pytest.warns(UserWarning, match=r"tokens were raised over 5 times the prompt's median norm at layers 5: .*larger"):
        out = l2.generate(tiny, TOKENS, interventions=raises, **options)
    changed = acted_on(out.log)
    assert changed and not changed & marked(out.traces, sinks=True)
    with pytest.warns(UserWarning, match="were raised over"):
        again = l2.collect(tiny, out, interventions=raises, progress=False)
    assert [t.is_sink.tolist() for t in again] == [t.is_sink.tolist() for t in out.traces]
    assert all(torch.allclose(a.sink_bounds, b.sink_bounds) for a, b in zip(again, out.traces, strict=True))


def test_what_an_intervention_scales_to_zero_makes_no_sinks_where_it_acts(tiny: Any) -> None:
    """The median of what is left of the prompt is 0, so is five times it; the tokens were judged before."""
    zero = l2.Suppression(which="random", p=0.8, scale=0.0, layers=[3], positions="all", include_sinks=True)
    each = l2.Suppression(which="random", p=1.0, scale=1.0, layers=[3])
    out = l2.generate(tiny, TOKENS, interventions=[zero, each], max_new_tokens=24, ignore_eos=True, progress=False)
    for trace in out.traces:
        norms = trace.at(3)
        assert norms[1 : trace.prompt_len].median() == 0 < norms[trace.prompt_len :].max()
    events = out.events().query("intervention == @out.log.names[1]")
    judged = events[["sequence", "layer", "position"]].itertuples(index=False, name=None)
    assert set(judged) == {token for token in marked(out.traces, sinks=False) if token[1] == 3}


def test_the_sink_ratio_of_a_run_goes_on_where_its_traces_are_handed_in(tiny: Any) -> None:
    options: dict[str, Any] = {"max_new_tokens": 8, "ignore_eos": True, "progress": False}
    acting = l2.Suppression(EVERY, scale=0.5)
    out = l2.generate(tiny, TOKENS, interventions=acting, sink_ratio=RATIOS[0], **options)
    for given in (out, out.traces, out[0], list(out)):
        again = l2.collect(tiny, given, interventions=acting, progress=False)
        assert {trace.provenance.sink_ratio for trace in again} == {RATIOS[0]}
        assert torch.equal(again[0].is_sink, out[0].trace.is_sink)
        assert (again[0].l2_norms - out[0].trace.l2_norms).abs().max() < 1e-3
    assert l2.collect(tiny, out, sink_ratio=4.0, progress=False)[0].provenance.sink_ratio == 4.0
    other = l2.generate(tiny, TOKENS, sink_ratio=RATIOS[1], **options)
    with pytest.raises(InputError, match=r"sink ratios 1.02, 1.05: give sink_ratio="):
        l2.collect(tiny, [*out, *other], progress=False)
    of_plain_tokens = l2.collect(tiny, [out[0].trace.tokens], progress=False)
    assert of_plain_tokens[0].provenance.sink_ratio == 5.0, "tokens alone say nothing of a run"


def test_counts_to_match_are_of_a_run_with_the_same_sinks(tiny: Any) -> None:
    options: dict[str, Any] = {"max_new_tokens": 8, "ignore_eos": True, "progress": False}
    high = l2.generate(tiny, TOKENS, interventions=l2.Suppression(EVERY), sink_ratio=3.0, **options)
    control = l2.Suppression(EVERY, which="matched", match=high.log)
    with pytest.raises(InputError, match=r"matched counts leave out tokens over 3 times .* give sink_ratio=3"):
        l2.generate(tiny, TOKENS, interventions=control, **options)
