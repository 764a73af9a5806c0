"""Interventions: parameters, logs, controls, banks, thresholds that adapt."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pandas as pd
import pytest
import torch

import tl_l2norm as l2
from tests import models
from tests.laws.test_collect_laws import ids, relative
from tests.laws.test_generate_laws import prompts
from tl_l2norm.backends import backend_of
from tl_l2norm.draws import sequence_key

TAU = {1: 5.0, 2: 6.0}


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: l2.HighNormSuppression(), "mode='high' needs thresholds"),
        (lambda: l2.HighNormSuppression(mode="random", action="clamp"), "action='clamp' needs thresholds"),
        (lambda: l2.HighNormSuppression(TAU, scale=-0.1), "scale must be finite and at least 0"),
        (lambda: l2.HighNormSuppression(mode="random", p=1.5), "p must be between 0 and 1, got 1.5"),
        (lambda: l2.HighNormSuppression({1: -2.0}), "threshold of layer 1 must be a norm"),
        (lambda: l2.HighNormSuppression({1: float("nan")}), "threshold of layer 1 must be a norm"),
        (lambda: l2.HighNormSuppression(TAU, positions=-1), "positions must be 'decode', 'all' or a position"),
        (lambda: l2.HighNormSuppression(TAU, sink_ratio=1.0), "sink_ratio must be over 1"),
        (lambda: l2.ALRR(TAU, alpha=1.1), "alpha must be between 0 and 1, got 1.1"),
        (lambda: l2.ALRR(TAU, blowup=1.0), "blowup must be finite and over 1"),
        (lambda: l2.ALRR(TAU, max_iters=0), "max_iters must be at least 1"),
        (lambda: l2.ALRR(TAU, growth_eps=float("nan")), "growth_eps must be finite"),
        (lambda: l2.ERSS(TAU, patience=0), "patience must be at least 1"),
        (lambda: l2.ERSS(TAU, bank_size=0), "bank_size must be at least 1"),
        (lambda: l2.ERSS(TAU, cooldown=-1), "cooldown must be at least 0"),
        (lambda: l2.ERSS(TAU, p=-0.1), "p must be between 0 and 1"),
        (lambda: l2.ERSS(TAU, cos_min=2.0), "cos_min must be between -1 and 1"),
        (lambda: l2.ERSS(TAU, gamma=-1.0), "gamma must be finite and at least 0"),
        (lambda: l2.ERSS(TAU, beta=float("inf")), "beta must be finite"),
        (lambda: l2.ERSS(TAU, own_states=False), "own_states=False needs a bank"),
        (lambda: l2.ERSS(TAU, bank={1: torch.zeros(0, 4)}), r"bank holds \[states, d_model\]"),
    ],
)
def test_bad_parameters_name_the_field_and_its_range(make: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()


def test_unknown_words_are_refused_outside_of_type_checked_tests() -> None:
    script = """
import tl_l2norm as l2
for make in (
    lambda: l2.HighNormSuppression({1: 2}, mode="medium"), lambda: l2.HighNormSuppression({1: 2}, action="drop"),
    lambda: l2.ALRR({1: 2}, kv="second"), lambda: l2.ERSS({1: 2}, mix="stir"), lambda: l2.AdaptiveIQR(scope="batch"),
    lambda: l2.Thresholds({"late": 2.0}),
):
    try:
        make()
    except (ValueError, TypeError) as error:
        print(error)
"""
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line.split(" must")[0] for line in out[:5]] == ["mode", "action", "kv", "mix", "scope"]
    assert "the key 'late'" in out[5]


@pytest.mark.parametrize(
    ("intervention", "says"),
    [
        (l2.ALRR({9: 5.0}), "layer 9 is outside this model"),
        (l2.ALRR(TAU, layers=[1, 2, 3]), "ALRR: thresholds lack layers 3, they have 1-2"),
        (l2.ALRR(TAU, layers="late"), "thresholds lack layers 4-5"),
        (l2.ERSS(TAU, bank={1: torch.ones(2, 48)}), "bank has no states for layer 2"),
        (l2.ERSS({1: 5.0}, bank={1: torch.ones(2, 40)}), "bank has states of width 40 at layer 1, the stream has 48"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(tiny: Any, intervention: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        l2.generate(tiny, [[5, 6, 7]], max_new_tokens=3, interventions=[intervention], progress=False)


def test_an_intervention_is_told_in_a_line_and_traces_remember_it(tiny: Any, tmp_path: Any) -> None:
    x = l2.HighNormSuppression(dict.fromkeys(TAU, 1e-3), mode="random", p=0.9)
    assert repr(x) == "HighNormSuppression(thresholds={1: 0.001, 2: 0.001}, mode='random', p=0.9)"
    assert repr(l2.ALRR(l2.AdaptiveIQR(), layers="late")).startswith("ALRR(layers='late', thresholds=AdaptiveIQR(")
    out = l2.generate(tiny, prompts()[:1], max_new_tokens=6, interventions=[x], ignore_eos=True, progress=False)
    assert out[0].trace.provenance.interventions == (repr(x),)
    l2.save_traces(tmp_path / "traces", out.traces)
    assert l2.load_traces(tmp_path / "traces")[0].provenance == out[0].trace.provenance


def test_thresholds_of_another_model_are_refused(tiny: Any) -> None:
    other = models.use(models.Case("qwen3", "bridge"))
    traces = l2.generate(other, prompts()[:1], max_new_tokens=4, progress=False).traces
    with pytest.raises(ValueError, match="norms of different models, dtypes or weight processing are not comparable"):
        l2.generate(tiny, [[5, 6, 7]], max_new_tokens=3, interventions=[l2.ALRR(l2.quantile_thresholds(traces))])


def test_layers_are_named_in_every_way(tiny: Any) -> None:
    backend = backend_of(tiny)
    everywhere = dict.fromkeys(range(6), 1.0)
    for layers, found in [(None, range(6)), (-1, [5]), (slice(2, 4), [2, 3]), ("late", [4, 5]), ([0, -2], [0, 4])]:
        assert list(l2.ALRR(everywhere, layers=layers).resolve(backend)) == list(found)
    assert l2.ALRR(l2.AdaptiveIQR()).resolve(backend) == (4, 5)
    assert l2.ALRR({-1: 2.0}).resolve(backend) == (5,)


def test_where_the_prompt_ends_has_to_be_known(tiny: Any) -> None:
    x = l2.HighNormSuppression(dict.fromkeys(TAU, 0.0))
    with pytest.raises(ValueError, match="give prompt_lens"):
        x.fwd_hooks(tiny)
    with pytest.raises(ValueError, match="give prompt_lens"):
        l2.collect(tiny, [[5, 6, 7]], interventions=[x])
    with pytest.raises(ValueError, match="prompt_lens has 2 entries for 1 rows"):
        tiny.run_with_hooks(torch.tensor([[5, 6, 7]]), fwd_hooks=x.fwd_hooks(tiny, prompt_lens=[1, 2]))
    everywhere = l2.HighNormSuppression(dict.fromkeys(TAU, 0.0), positions="all")
    pairs = everywhere.fwd_hooks(tiny)
    tiny.run_with_hooks(torch.tensor([[5, 6, 7]]), fwd_hooks=pairs)
    assert sorted(set(pairs.log.events()["position"])) == [1, 2], "the first token is a sink"


def test_padding_is_never_touched(tiny_case: models.Case) -> None:
    """In `run_with_hooks` on a left-padded batch the mask comes from the model's own call."""
    tiny = models.use(tiny_case)
    x = l2.HighNormSuppression(dict.fromkeys(TAU, 0.0), positions="all")
    tokens = torch.tensor([[5, 6, 7, 8, 9], [9, 9, 9, 5, 6]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 1, 1]])
    pairs = x.fwd_hooks(tiny)
    with torch.no_grad():
        tiny.run_with_hooks(tokens, attention_mask=mask, fwd_hooks=pairs)
    events = pairs.log.events()
    assert events.query("sequence == 0")["position"].unique().tolist() == [1, 2, 3, 4]
    assert events.query("sequence == 1")["position"].unique().tolist() == [1]


def test_generating_without_a_cache_is_refused(tiny_case: models.Case) -> None:
    tiny = models.use(tiny_case)
    options: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "verbose": False, "stop_at_eos": False}
    x = l2.HighNormSuppression(dict.fromkeys(TAU, 0.0))
    with pytest.raises(ValueError, match="use_past_kv_cache=True"), x.hooks(tiny):
        tiny.generate(torch.tensor([[5, 6, 7]]), use_past_kv_cache=False, **options)


# Logs


def test_a_run_in_which_nothing_fires_says_so_once(tiny: Any) -> None:
    never = [l2.HighNormSuppression(dict.fromkeys(TAU, 1e9)), l2.ERSS(dict.fromkeys(TAU, 1e9), patience=99)]
    with pytest.warns(UserWarning, match=r"by HighNormSuppression \(0 of 6 tokens and layers\), ERSS \(0 of 6") as heard:
        l2.generate(tiny, [[5, 6, 7]], max_new_tokens=4, ignore_eos=True, interventions=never, progress=False)
    assert len(heard) == 1


def test_the_counts_say_what_would_have_fired_and_did_not(tiny: Any) -> None:
    tau, ones = dict.fromkeys(range(6), 1e-6), torch.ones(1, 48)
    acting = [
        l2.ALRR(tau, blowup=1e9, growth_eps=1e6),
        l2.ALRR(tau, layers=[0]),
        l2.ERSS(dict.fromkeys(tau, 1e9), patience=1, p=1.0, cooldown=3, cos_min=-1.0, bank=dict.fromkeys(tau, ones)),
    ]
    with pytest.warns(UserWarning, match="nothing was changed by ALRR .*, ALRR 2"):
        out = l2.generate(tiny, [[5, 6, 7]], max_new_tokens=9, ignore_eos=True, interventions=acting, progress=False)
    n = out.log.counts().set_index(["intervention", "decision"])["n"]
    assert n["ALRR", "growth too small"] == n["ALRR", "live tokens"] == 8 * 6
    assert n["ALRR 2", "over blowup"] == 8, "the same one twice, on different layers"
    assert (n["ERSS", "steered"], n["ERSS", "cooldown"]) == (3 * 6, 5 * 6), "steered at tokens 1, 4 and 7"
    assert "growth too small" in repr(out.log) and "growth too small" in out.log._repr_html_()
    events = out.events()
    assert list(events.columns) == [
        *("sequence", "position", "layer", "intervention", "decision", "fired"),
        *("threshold", "l2_norm_before", "l2_norm_after", "reruns", "cosine"),
    ]
    with pytest.raises(ValueError, match="nothing intervened"):
        l2.generate(tiny, [[5, 6]], max_new_tokens=2, progress=False).events()


# Controls


@pytest.mark.parametrize("batch_size", [1, 4])
def test_matched_random_suppression_takes_as_many_and_none_of_the_high(tiny: Any, batch_size: int) -> None:
    options: dict[str, Any] = {"max_new_tokens": 40, "ignore_eos": True, "batch_size": batch_size, "progress": False}
    plain = l2.generate(tiny, prompts()[:4], **options)
    tau = l2.quantile_thresholds(plain.traces, 0.8)
    high = l2.generate(tiny, prompts()[:4], interventions=[l2.HighNormSuppression(tau)], **options)
    control = l2.HighNormSuppression(tau, mode="random", match=high.log, seed=5)
    found = l2.generate(tiny, prompts()[:4], interventions=[control], **options)
    events = found.events()
    assert (events["l2_norm_before"] <= events["threshold"]).all()
    wanted, got = high.log.fired(), found.log.fired()
    assert all(got.get(at, 0) <= n for at, n in wanted.items()) and got.keys() <= wanted.keys()
    assert sum(got.values()) > 0.95 * sum(wanted.values()) > 50, "short only where the last tokens turned out to be high"
    again = l2.collect(tiny, found.traces, interventions=[control], progress=False)
    assert all(relative(a.l2_norms, b.l2_norms) < 1e-4 for a, b in zip(again, found.traces, strict=True))


def test_matched_random_positions_are_spread_over_the_response() -> None:
    """A quota of 10 in 100 candidates falls anywhere, uniformly: mean position 49.5, standard error under 1."""
    from tl_l2norm.draws import uniform
    from tl_l2norm.interventions.suppress import _Quota

    n = 2000
    keys, none = torch.arange(n), torch.zeros(n, dtype=torch.long)
    quota = _Quota(wanted=none + 10, left=none + 100, seen=none, candidates=none, draws=none)
    yes = torch.ones(n, dtype=torch.bool)
    hits = torch.stack([quota.draw(uniform(0, keys, 3, i), yes, yes) for i in range(100)], 1)
    assert (hits.sum(1) == 10).all()
    assert float(hits.nonzero()[:, 1].double().mean()) == pytest.approx(49.5, abs=0.8)
    assert hits.double().mean(0).sub(0.1).abs().max() < 0.04


def test_matching_another_runs_prompts_or_seeds_is_refused(tiny: Any) -> None:
    options: dict[str, Any] = {"max_new_tokens": 6, "ignore_eos": True, "progress": False}
    high = l2.generate(tiny, prompts()[:2], interventions=[l2.HighNormSuppression(dict.fromkeys(TAU, 1e-3))], **options)
    control = l2.HighNormSuppression(TAU, mode="random", match=high.log)
    with pytest.raises(ValueError, match="match: sequence . of this run has seed [56], in the log it has"):
        l2.generate(tiny, prompts()[:2], seed=[5, 6], interventions=[control], **options)
    with pytest.raises(ValueError, match="match: sequence 2"):
        l2.generate(tiny, prompts()[:3], interventions=[control], **options)
    with pytest.raises(ValueError, match="match is for mode='random'"):
        l2.HighNormSuppression(TAU, match=high.log)
    with pytest.raises(ValueError, match="match needs the log of a run with one HighNormSuppression, this one has 0"):
        with pytest.warns(UserWarning):
            other = l2.generate(tiny, prompts()[:1], interventions=[l2.ALRR(dict.fromkeys(TAU, 1e9))], **options)
        l2.HighNormSuppression(TAU, mode="random", match=other.log)


def test_random_draws_are_the_stated_share(tiny: Any) -> None:
    x = l2.HighNormSuppression(mode="random", p=0.25, layers="all")
    out = l2.generate(tiny, prompts(), max_new_tokens=60, ignore_eos=True, interventions=[x], progress=False)
    n = out.log.counts().set_index("decision")["n"]
    assert n["suppressed"] / n["live tokens"] == pytest.approx(0.25, abs=0.04)


# Banks


def test_a_bank_can_be_taken_from_one_run_and_given_to_another(tiny: Any) -> None:
    options: dict[str, Any] = {"max_new_tokens": 20, "ignore_eos": True, "progress": False}
    plain = l2.generate(tiny, prompts()[:3], batch_size=2, **options)
    tau = l2.quantile_thresholds(plain.traces, 0.7)
    source = l2.ERSS(tau, patience=1, p=1.0, bank_size=3, beta=0.0, cos_min=-1.0, keep_banks=True)
    out = l2.generate(tiny, prompts()[:3], batch_size=2, interventions=[source], **options)
    assert out.log.banks[0].keys() == {0, 1, 2}
    for sequence, trace in enumerate(plain.traces):
        for layer, states in out.log.banks[0][sequence].items():
            norms = trace.at(layer)[trace.is_response & ~trace.is_sink[trace.row(layer)]]
            expected = norms[norms > tau[layer]].sort(descending=True).values[:3]  # beta = 0: the stream is the plain one
            assert relative(states.norm(dim=-1).sort(descending=True).values, expected) < 1e-4
    foreign = l2.ERSS(tau, patience=1, p=1.0, cos_min=-1.0, bank=out.log.banks[0][1], own_states=False, keep_banks=True)
    with torch.inference_mode():
        steered = l2.generate(tiny, prompts()[:1], interventions=[foreign], **options)
    for layer, states in steered.log.banks[0][0].items():
        assert {tuple(s.tolist()) for s in states} == {tuple(s.tolist()) for s in out.log.banks[0][1][layer]}
    first = steered.events().query("fired").iloc[0]
    assert first["l2_norm_after"] != first["l2_norm_before"]


# Thresholds that adapt


@pytest.mark.parametrize("scope", ["run", "sequence"])
def test_an_adaptive_threshold_waits_for_its_samples_and_can_be_looked_at(tiny: Any, scope: str) -> None:
    rule = l2.AdaptiveIQR(k=0.1, warmup=10, scope=scope)
    x = l2.HighNormSuppression(rule, layers=[3], scale=0.99)
    out = l2.generate(tiny, prompts()[:3], max_new_tokens=30, ignore_eos=True, interventions=[x], batch_size=2, progress=False)
    ends = out.log.thresholds()
    events = out.events()
    assert events["fired"].any() and (events["l2_norm_before"] > events["threshold"]).all()
    n_live = out.log.live()
    if scope == "run":
        assert ends["owner"].tolist() == ["run"] and ends["n_samples"].tolist() == [sum(n_live.values())]
    else:
        assert sorted(ends["owner"]) == [0, 1, 2]
        assert {(o, 3): n for o, n in zip(ends["owner"], ends["n_samples"], strict=True)} == n_live
        assert events.groupby("sequence")["position"].min().tolist() >= [len(p) + 10 for p in prompts()[:3]]
        again = l2.collect(tiny, out.traces, interventions=[x], progress=False)
        assert all(relative(a.l2_norms, b.l2_norms) < 1e-4 for a, b in zip(again, out.traces, strict=True))


# Numbers


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_decisions_are_taken_in_float32(dtype: torch.dtype) -> None:
    model = l2.load_model(models.folder("llama"), backend="bridge", dtype=dtype, device="cpu")
    backend = backend_of(model)
    streams: list[torch.Tensor] = []
    point = backend.resid_post(2)
    point.add_hook(lambda tensor, hook: streams.append(tensor.clone()))
    plain = l2.generate(model, prompts()[:1], max_new_tokens=40, ignore_eos=True, progress=False)
    tau = l2.quantile_thresholds(plain.traces, 0.5)
    streams.clear()
    acting = [
        l2.HighNormSuppression({2: tau[2]}, scale=0.5),
        l2.ALRR({3: tau[3]}, growth_eps=0.0, blowup=9.0),
        l2.ERSS({4: tau[4]}, patience=1, p=1.0, cooldown=0, cos_min=-1.0),
    ]
    try:
        out = l2.generate(model, prompts()[:1], max_new_tokens=40, ignore_eos=True, interventions=acting, progress=False)
    finally:
        model.reset_hooks()
    norms = torch.cat([stream[0] for stream in streams]).double().norm(dim=-1)
    start = out[0].trace.prompt_len
    expected = (norms[start:] > tau[2]).nonzero()[:, 0] + start
    events = out.events().query("layer == 2")
    assert events["position"].tolist() == expected.tolist()
    assert relative(torch.tensor(events["l2_norm_before"].to_numpy()), norms[expected]) < 1e-5
    assert out.events().query("layer > 2")["fired"].sum() > 10
    assert torch.isfinite(out[0].trace.l2_norms).all()


def test_gradients_flow_through_interventions(tiny: Any) -> None:
    """Also through a re-run: the derivative of the logits along a direction is what small steps give."""
    backend = backend_of(tiny)
    tokens, layer = torch.tensor([ids("The quick brown fox")]), 2
    acting = l2.ALRR({layer: 1e-3}, growth_eps=-9.0, blowup=1e9, positions="all")
    push = torch.zeros(backend.d_model)
    direction = torch.randn(backend.d_model, generator=torch.Generator().manual_seed(1))

    def loss(push: torch.Tensor) -> torch.Tensor:
        hooks = [(backend.resid_post(layer - 1).name, lambda tensor, hook: tensor + push), *acting.fwd_hooks(tiny)]
        return tiny.run_with_hooks(tokens, fwd_hooks=hooks)[0, -1, :50].square().sum()

    leaf = push.clone().requires_grad_()
    loss(leaf).backward()
    with torch.no_grad():
        slope = (loss(1e-2 * direction) - loss(-1e-2 * direction)) / 2e-2
    assert float(leaf.grad @ direction) == pytest.approx(float(slope), rel=2e-2)


def test_each_sequence_of_a_run_has_the_key_that_generate_gives_it(tiny: Any) -> None:
    x = l2.HighNormSuppression(mode="random", p=0.9, layers=[1])
    out = l2.generate(tiny, [[5, 6, 7], [8, 9]], n=2, temperature=1.0, max_new_tokens=4, interventions=[x], progress=False)
    assert out.log.keys == {2 * i + j: sequence_key(0, i, j) for i in range(2) for j in range(2)}
    assert [out[i].seed for i in range(4)] == [out.log.keys[i] for i in range(4)]
    assert isinstance(out[:2].events(), pd.DataFrame)
