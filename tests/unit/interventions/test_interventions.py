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
from tests.texts import ids, prompts, relative
from tl_l2norm.core.batch import Places, Rows
from tl_l2norm.core.errors import InputError
from tl_l2norm.core.norms import l2_norms
from tl_l2norm.core.random_draws import sequence_key, uniform
from tl_l2norm.interventions.log import Entry, Log
from tl_l2norm.interventions.rule import Visit
from tl_l2norm.models.backends import backend_of

TAU = {1: 5.0, 2: 6.0}


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: l2.Suppression(), "which='high' needs thresholds"),
        (lambda: l2.Suppression(which="random", how="clamp"), "how='clamp' needs thresholds"),
        (lambda: l2.Suppression(how="swap"), "which='high' needs thresholds"),
        (lambda: l2.Suppression(which="low", how="swap"), "which='low' needs thresholds"),
        (lambda: l2.Suppression(TAU, scale=-0.1), "scale must be finite and at least 0"),
        (lambda: l2.Suppression(which="random", p=1.5), "p must be between 0 and 1, got 1.5"),
        (lambda: l2.Suppression({1: -2.0}), "threshold of layer 1 must be a norm"),
        (lambda: l2.Suppression({1: float("nan")}), "threshold of layer 1 must be a norm"),
        (lambda: l2.Suppression(TAU, p=0.5), "p is for which='random'; it does nothing with which='high', how='scale'"),
        (lambda: l2.Suppression(TAU, how="clamp", scale=0.5), "scale is for how='scale'; it does nothing with"),
        (lambda: l2.Suppression(TAU, which="low", seed=3), "seed is for which='random' or 'matched' and for how='swap'"),
        (lambda: l2.Suppression(TAU, which="matched", p=0.5), "p is for which='random'"),
        (lambda: l2.Suppression(TAU, positions=-1), "positions must be 'decode', 'all' or a position"),
        (lambda: l2.Suppression(TAU, sink_ratio=1.0), "sink_ratio must be over 1"),
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
    lambda: l2.Suppression({1: 2}, which="medium"), lambda: l2.Suppression({1: 2}, how="drop"),
    lambda: l2.ALRR({1: 2}, kv="second"), lambda: l2.ERSS({1: 2}, mix="stir"), lambda: l2.AdaptiveIQR(scope="batch"),
    lambda: l2.Thresholds({"late": 2.0}),
):
    try:
        make()
    except (ValueError, TypeError) as error:
        print(error)
"""
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line.split(" must")[0] for line in out[:5]] == ["which", "how", "kv", "mix", "scope"]
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
    x = l2.Suppression(dict.fromkeys(TAU, 1e-3), which="random", p=0.9)
    assert repr(x) == "Suppression(thresholds={1: 0.001, 2: 0.001}, which='random', p=0.9)"
    assert repr(l2.ALRR(l2.AdaptiveIQR(), layers="late")).startswith("ALRR(layers='late', thresholds=AdaptiveIQR(")
    out = l2.generate(tiny, prompts()[:1], max_new_tokens=6, interventions=[x], ignore_eos=True, progress=False)
    assert out[0].trace.provenance.interventions == (repr(x),)
    l2.save_traces(tmp_path / "traces", out.traces)
    assert l2.load_traces(tmp_path / "traces")[0].provenance == out[0].trace.provenance


def test_thresholds_of_another_model_are_refused(tiny: Any) -> None:
    other = models.use(models.Case("qwen3", "bridge"))
    traces = l2.generate(other, prompts()[:1], max_new_tokens=4, progress=False).traces
    with pytest.raises(ValueError, match="norms of different models, dtypes, weight processing or options of an"):
        l2.generate(tiny, [[5, 6, 7]], max_new_tokens=3, interventions=[l2.ALRR(l2.quantile_thresholds(traces))])


def test_layers_are_named_in_every_way(tiny: Any) -> None:
    backend = backend_of(tiny)
    everywhere = dict.fromkeys(range(6), 1.0)
    for layers, numbers in [(None, range(6)), (-1, [5]), (slice(2, 4), [2, 3]), ("late", [4, 5]), ([0, -2], [0, 4])]:
        assert list(l2.ALRR(everywhere, layers=layers).resolve(backend)) == list(numbers)
    assert l2.ALRR(l2.AdaptiveIQR()).resolve(backend) == (4, 5)
    assert l2.ALRR({-1: 2.0}).resolve(backend) == (5,)


def test_where_the_prompt_ends_has_to_be_known(tiny: Any) -> None:
    x = l2.Suppression(dict.fromkeys(TAU, 0.0))
    with pytest.raises(ValueError, match="give prompt_lens"):
        x.fwd_hooks(tiny)
    with pytest.raises(ValueError, match="give prompt_lens"):
        l2.collect(tiny, [[5, 6, 7]], interventions=[x])
    with pytest.raises(ValueError, match="prompt_lens has 2 entries for 1 rows"):
        tiny.run_with_hooks(torch.tensor([[5, 6, 7]]), fwd_hooks=x.fwd_hooks(tiny, prompt_lens=[1, 2]))
    everywhere = l2.Suppression(dict.fromkeys(TAU, 0.0), positions="all")
    pairs = everywhere.fwd_hooks(tiny)
    tiny.run_with_hooks(torch.tensor([[5, 6, 7]]), fwd_hooks=pairs)
    assert sorted(set(pairs.log.events()["position"])) == [1, 2], "the first token is a sink"


def test_padding_is_never_touched(tiny_case: models.Case) -> None:
    """In `run_with_hooks` on a left-padded batch the mask comes from the model's own call."""
    tiny = models.use(tiny_case)
    x = l2.Suppression(dict.fromkeys(TAU, 0.0), positions="all")
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
    x = l2.Suppression(dict.fromkeys(TAU, 0.0))
    with pytest.raises(ValueError, match="use_past_kv_cache=True"), x.hooks(tiny):
        tiny.generate(torch.tensor([[5, 6, 7]]), use_past_kv_cache=False, **options)


# Logs


def test_a_run_in_which_nothing_fires_says_so_once(tiny: Any) -> None:
    never = [l2.Suppression(dict.fromkeys(TAU, 1e9)), l2.ERSS(dict.fromkeys(TAU, 1e9), patience=99)]
    with pytest.warns(UserWarning, match=r"by Suppression \(0 of 6 tokens and layers\), ERSS \(0 of 6") as heard:
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


@pytest.mark.parametrize("batch_size", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_matched_random_suppression_takes_as_many_and_none_of_the_high(tiny: Any, batch_size: int) -> None:
    options: dict[str, Any] = {"max_new_tokens": 40, "ignore_eos": True, "batch_size": batch_size, "progress": False}
    plain = l2.generate(tiny, prompts()[:4], **options)
    tau = l2.quantile_thresholds(plain.traces, 0.8)
    high = l2.generate(tiny, prompts()[:4], interventions=[l2.Suppression(tau)], **options)
    control = l2.Suppression(tau, which="matched", match=high.log, seed=5)
    matched = l2.generate(tiny, prompts()[:4], interventions=[control], **options)
    events = matched.events()
    assert (events["l2_norm_before"] <= events["threshold"]).all()
    wanted, got = high.log.fired(), matched.log.fired()
    assert all(got.get(at, 0) <= n for at, n in wanted.items()) and got.keys() <= wanted.keys()
    assert sum(got.values()) > 0.95 * sum(wanted.values()) > 50, "short only where the last tokens turned out to be high"
    again = l2.collect(tiny, matched.traces, interventions=[control], progress=False)
    assert all(relative(a.l2_norms, b.l2_norms) < 1e-4 for a, b in zip(again, matched.traces, strict=True))


def test_matched_random_positions_are_spread_over_the_response() -> None:
    """A quota of 10 in 100 candidates falls anywhere, uniformly: mean position 49.5, standard error under 1."""
    from tl_l2norm.interventions.selectors import Quota

    n = 2000
    keys, none = torch.arange(n), torch.zeros(n, dtype=torch.long)
    quota = Quota(wanted=none + 10, left=none + 100, seen=none, candidates=none, draws=none)
    yes = torch.ones(n, dtype=torch.bool)
    hits = torch.stack([quota.draw(uniform(0, keys, 3, i), yes, yes) for i in range(100)], 1)
    assert (hits.sum(1) == 10).all()
    assert float(hits.nonzero()[:, 1].double().mean()) == pytest.approx(49.5, abs=0.8)
    assert hits.double().mean(0).sub(0.1).abs().max() < 0.04


def test_matching_another_runs_prompts_or_seeds_is_refused(tiny: Any) -> None:
    options: dict[str, Any] = {"max_new_tokens": 6, "ignore_eos": True, "progress": False}
    high = l2.generate(tiny, prompts()[:2], interventions=[l2.Suppression(dict.fromkeys(TAU, 1e-3))], **options)
    control = l2.Suppression(TAU, which="matched", match=high.log)
    with pytest.raises(ValueError, match="match: sequence . of this run has seed [56], in the log it has"):
        l2.generate(tiny, prompts()[:2], seed=[5, 6], interventions=[control], **options)
    with pytest.raises(ValueError, match="match: sequence 2"):
        l2.generate(tiny, prompts()[:3], interventions=[control], **options)
    with pytest.raises(ValueError, match="match is for which='matched'"):
        l2.Suppression(TAU, match=high.log)
    with pytest.raises(ValueError, match="match needs the log of a run with one Suppression, this one has 0"):
        with pytest.warns(UserWarning):
            other = l2.generate(tiny, prompts()[:1], interventions=[l2.ALRR(dict.fromkeys(TAU, 1e9))], **options)
        l2.Suppression(TAU, which="matched", match=other.log)


def test_matching_at_layers_that_the_log_lacks_is_refused(tiny: Any) -> None:
    tau = dict.fromkeys(TAU, 1e-3)
    options: dict[str, Any] = {"max_new_tokens": 6, "ignore_eos": True, "progress": False}
    high = l2.generate(tiny, prompts()[:1], interventions=[l2.Suppression(tau, layers=[2])], **options)
    with pytest.raises(ValueError, match="match: its run acted at layers 2, this one is to at 1 too: give both the same"):
        l2.generate(tiny, prompts()[:1], interventions=[l2.Suppression(tau, which="matched", match=high.log)], **options)


def test_random_draws_are_the_stated_share(tiny: Any) -> None:
    x = l2.Suppression(which="random", p=0.25, layers="all")
    out = l2.generate(tiny, prompts(), max_new_tokens=60, ignore_eos=True, interventions=[x], progress=False)
    n = out.log.counts().set_index("decision")["n"]
    assert n["suppressed"] / n["live tokens"] == pytest.approx(0.25, abs=0.04)


# Swaps


def visit_of(stream: torch.Tensor, *, start: int = 0, tau: float = 0.0, live: torch.Tensor | None = None) -> Visit:
    """What an intervention meets of sequences that are read from position `start` on."""
    zeros = torch.zeros(len(stream), dtype=torch.long)
    rows = Rows.of(number=torch.arange(len(stream)), key=torch.arange(len(stream)), prompt_len=zeros, padding=zeros - start)
    places = Places.of(rows, rows.position, stream.shape[1])
    return Visit(2, stream, l2_norms(stream), tau, places.real if live is None else live, places, None, None)


def states(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def acted(x: l2.Suppression, stream: torch.Tensor, live: torch.Tensor, *, width: int, tau: float) -> tuple[Any, Any]:
    """The states [pos, d_model] and decisions [pos] after passes of `width` tokens each."""
    visits = [visit_of(s, start=i * width, tau=tau) for i, s in enumerate(stream.split(width, 1))]
    memory = x.new_state(2, visits[0].places.rows, stream.shape[-1])
    effects = [x.act(memory, v._replace(live=part)) for v, part in zip(visits, live.split(width, 1), strict=True)]
    return torch.cat([e.stream for e in effects], 1)[0], torch.cat([e.decision for e in effects], 1)[0]


def sources(seed: int, n: int, live: list[int]) -> list[int | None]:
    """By hand: the position whose state is kept before each, given the draws of sequence 0 at layer 2."""
    kept, kept_before = None, []
    for position in range(n):
        kept_before.append(kept)
        if position in live:
            k = live.index(position) + 1
            kept = position if uniform(seed, 0, 2, 0x53574150, position) < 1 / k else kept
    return kept_before


@pytest.mark.parametrize("width", [1, 5, 24])
@pytest.mark.parametrize("seed", range(5))
def test_a_swap_keeps_the_norm_and_takes_the_direction_of_the_drawn_state(seed: int, width: int) -> None:
    x = l2.Suppression({2: 5.0}, how="swap", seed=seed)
    stream = states(1, 24, 48) * torch.linspace(0.2, 1.5, 24)[:, None]
    live = torch.arange(24)[None] % 5 != 3
    after, decision = acted(x, stream, live, width=width, tau=5.0)
    norms, before = stream[0].norm(dim=-1), stream[0]
    expected = sources(seed, 24, live[0].nonzero()[:, 0].tolist())
    assert expected[0] is None and len({*expected}) > 2, "a reservoir that never changes proves nothing"
    for t, source in enumerate(expected):
        hit = bool(live[0, t] and norms[t] > 5.0)
        assert decision[t] == hit
        if not hit:
            assert torch.equal(after[t], before[t])
            continue
        assert source is not None and source != t
        assert float(after[t].norm()) == pytest.approx(float(norms[t]), rel=1e-5)
        torch.testing.assert_close(after[t] / norms[t], before[source] / norms[source], rtol=1e-5, atol=1e-6)
    assert decision.sum() > 5


def test_the_source_is_uniform_among_the_earlier_live_tokens() -> None:
    """Chi-square of 4,000 sequences over 8 earlier tokens: 7 degrees of freedom, 24.3 is exceeded once in 1,000."""
    n, marks = 4000, torch.eye(13)[None].expand(4000, 13, 13)
    live = (torch.arange(13) % 3 != 2).expand(n, 13)  # tokens 0, 1, 3, 4, 6, 7, 9, 10, 12
    v = visit_of(marks, tau=0.5, live=live)
    x = l2.Suppression({2: 0.5}, how="swap")
    origin = x.act(x.new_state(2, v.places.rows, 13), v).stream.argmax(-1)
    assert set(origin[:, 12].tolist()) == {0, 1, 3, 4, 6, 7, 9, 10}
    counts = origin[:, 12].bincount()[[0, 1, 3, 4, 6, 7, 9, 10]].double()
    assert ((counts - n / 8) ** 2 / (n / 8)).sum() < 24.3
    assert (origin[:, 3] == 0).double().mean() == pytest.approx(0.5, abs=0.03)


def test_whether_a_token_is_swapped_and_what_it_gets_are_drawn_apart() -> None:
    """With one draw for both, the token before a swap would be its source more, or less, often than 1 time in k."""
    n, p = 4000, 0.3
    v = visit_of(torch.eye(6)[None].expand(n, 6, 6))
    x = l2.Suppression(which="random", how="swap", p=p, layers=[2])
    effect = x.act(x.new_state(2, v.places.rows, 6), v)
    enters = (effect.stream[:, 5].argmax(-1) == 4)[(effect.decision[:, 5] == 1) & (effect.decision[:, 4] == 1)]
    assert len(enters) > 250
    assert enters.double().mean() == pytest.approx(0.2, abs=0.08), "4 was swapped itself: its draw for that was under p"


def test_the_first_live_token_is_left_alone_and_says_so(tiny: Any) -> None:
    x = l2.Suppression(dict.fromkeys(TAU, 1e-3), how="swap")
    out = l2.generate(tiny, prompts()[:3], max_new_tokens=8, ignore_eos=True, interventions=[x], progress=False)
    events = out.events()
    starts = events["sequence"].map(lambda i: len(prompts()[i]))
    first = events["position"] == starts
    assert first.sum() == 3 * len(TAU) and len(events) == 7 * 3 * len(TAU)
    assert (events.loc[first, "decision"] == "no earlier token").all() and not events.loc[first, "fired"].any()
    assert (events.loc[~first, "decision"] == "suppressed").all() and events.loc[~first, "fired"].all()
    assert (events.loc[first, "l2_norm_before"] == events.loc[first, "l2_norm_after"]).all()
    assert events["l2_norm_after"].tolist() == pytest.approx(events["l2_norm_before"].tolist(), rel=1e-5)
    n = out.log.counts().set_index("decision")["n"]
    assert (n["suppressed"], n["no earlier token"], n["live tokens"]) == (36, 6, 42)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_swap_is_computed_in_float32_and_given_back_in_the_streams_dtype(dtype: torch.dtype) -> None:
    x = l2.Suppression({2: 1.0}, how="swap")
    stream = (states(2, 9, 64) * 3000).to(dtype)  # squares overflow float16
    v = visit_of(stream, tau=1.0)
    after = x.act(x.new_state(2, v.places.rows, 64), v).stream
    assert after.dtype == dtype and torch.isfinite(after).all()
    norms = stream.double().norm(dim=-1)
    assert relative(after.double().norm(dim=-1), norms) < torch.finfo(dtype).eps
    assert not torch.equal(after[:, 1:], stream[:, 1:])


def test_a_state_without_a_direction_changes_nothing() -> None:
    x = l2.Suppression(which="random", how="swap", p=1.0, layers=[2])
    stream = torch.cat([torch.zeros(1, 1, 8), torch.ones(1, 1, 8)], 1).requires_grad_()
    v = visit_of(stream)
    effect = x.act(x.new_state(2, v.places.rows, 8), v)
    assert torch.equal(effect.stream, stream) and effect.decision.tolist() == [[2, 2]]
    effect.stream.sum().backward()
    assert torch.equal(stream.grad, torch.ones(1, 2, 8)), "and no gradient is NaN"


@pytest.mark.parametrize("width", [1, 5, 24])
@pytest.mark.parametrize("seed", range(5))
def test_a_drawn_state_that_was_scaled_to_zero_is_not_swapped_in(seed: int, width: int) -> None:
    """It is drawn like any other, then nothing is changed until another takes its place."""
    x = l2.Suppression(which="random", how="swap", p=1.0, layers=[2], seed=seed)
    stream = states(1, 24, 48)
    stream[0, ::2] = 0.0
    after, decision = acted(x, stream, torch.ones(1, 24, dtype=torch.bool), width=width, tau=torch.nan)
    drawn = sources(seed, 24, list(range(24)))
    assert decision.tolist() == [1 if source is not None and source % 2 else 2 for source in drawn]
    for t, source in enumerate(drawn):
        own, norm = stream[0, t], stream[0, t].norm()
        expected = stream[0, source] * norm / stream[0, source].norm() if decision[t] == 1 else own
        torch.testing.assert_close(after[t], expected, rtol=1e-5, atol=1e-6)


def test_no_gradient_flows_through_a_swapped_state() -> None:
    """A state that is kept over passes must not keep their graphs."""
    x = l2.Suppression({2: 5.0}, how="swap")
    stream = (states(1, 12, 48) * torch.linspace(0.2, 1.5, 12)[:, None]).requires_grad_()
    v = visit_of(stream, tau=5.0)
    state = x.new_state(2, v.places.rows, 48)
    effect = x.act(state, v)
    effect.stream.sum().backward()
    assert 3 < effect.decision.sum() < 9 and not state.changed.kept.requires_grad
    assert torch.equal(stream.grad[0], (effect.decision[0] == 0).float()[:, None].expand(12, 48))


@pytest.mark.parametrize("matched", ["scale", "swap"])
def test_matched_random_swap_takes_as_many(tiny: Any, matched: Any) -> None:
    options: dict[str, Any] = {"max_new_tokens": 40, "ignore_eos": True, "batch_size": 3, "progress": False}
    plain = l2.generate(tiny, prompts()[:4], **options)
    tau = l2.quantile_thresholds(plain.traces, 0.8)
    high = l2.generate(tiny, prompts()[:4], interventions=[l2.Suppression(tau, how=matched)], **options)
    control = l2.Suppression(tau, which="matched", how="swap", match=high.log, seed=5)
    matched = l2.generate(tiny, prompts()[:4], interventions=[control], **options)
    events = matched.events()
    assert events["fired"].all() and (events["l2_norm_before"] <= events["threshold"]).all()
    assert events["l2_norm_after"].tolist() == pytest.approx(events["l2_norm_before"].tolist(), rel=1e-5)
    wanted, got = high.log.fired(), matched.log.fired()
    assert all(got.get(at, 0) <= n for at, n in wanted.items()) and got.keys() <= wanted.keys()
    assert sum(got.values()) > 0.95 * sum(wanted.values()) > 50, "short only where the last tokens turned out to be high"
    again = l2.collect(tiny, matched.traces, interventions=[control], progress=False)
    assert all(relative(a.l2_norms, b.l2_norms) < 1e-4 for a, b in zip(again, matched.traces, strict=True))


def test_a_matched_random_swap_is_as_likely_at_every_token_but_the_first() -> None:
    """3 of 10 tokens, of which the first has nothing before it: 1/3 at each of the others, and nowhere fewer than 3."""
    n, of_another_run = 3000, l2.Suppression({2: 1.0})
    v = visit_of(states(1, 10, 4).expand(n, 10, 4), tau=float("inf"))
    log = Log([of_another_run])
    log.keys = dict(zip(v.places.rows.number.tolist(), v.places.rows.key.tolist(), strict=True))
    log.add(0, Entry(2, v.places, v.live, (v.places.positions >= 7).to(torch.int8), 1.0, v.norms, v.norms, {}))
    x = l2.Suppression({2: 1.0}, which="matched", how="swap", match=log)
    decision = x.act(x.new_state(2, v.places.rows, 4), v).decision
    assert (decision.sum(1) == 3).all() and (decision[:, 0] == 0).all()
    assert decision[:, 1:].double().mean(0).sub(1 / 3).abs().max() < 0.04


# Banks


def test_a_bank_can_be_taken_from_one_run_and_given_to_another(tiny: Any) -> None:
    options: dict[str, Any] = {"max_new_tokens": 20, "ignore_eos": True, "progress": False}
    plain = l2.generate(tiny, prompts()[:3], batch_size=2, **options)
    tau = l2.quantile_thresholds(plain.traces, 0.7)
    source = l2.ERSS(tau, patience=1, p=1.0, bank_size=3, beta=0.0, cos_min=-1.0, keep_banks=True)
    out = l2.generate(tiny, prompts()[:3], batch_size=2, interventions=[source], **options)
    assert out.log.kept[0].keys() == {0, 1, 2}
    for sequence, trace in enumerate(plain.traces):
        for layer, states in out.log.kept[0][sequence].items():
            norms = trace.at(layer)[trace.is_response & ~trace.is_sink[trace.index_of(layer)]]
            expected = norms[norms > tau[layer]].sort(descending=True).values[:3]  # beta = 0: the stream is the plain one
            assert relative(states.norm(dim=-1).sort(descending=True).values, expected) < 1e-4
    layer = min(out.log.kept[0][1])
    both = torch.cat([out.log.kept[0][sequence][layer] for sequence in range(3)]).norm(dim=-1)
    assert torch.allclose(out.log.bank(layer).norm(dim=-1), both.sort(descending=True).values)
    own = out.log.bank(layer, sequence=1)
    assert {tuple(s) for s in own.tolist()} == {tuple(s) for s in out.log.kept[0][1][layer].tolist()}
    with pytest.raises(InputError, match="no bank at layer 77 of sequence 1: there are those of layers"):
        out.log.bank(77, sequence=1)
    with pytest.raises(InputError, match=r"ERSS\(..., keep_banks=True\) keeps one"):
        Log([l2.ERSS(tau)]).bank(layer)
    foreign = l2.ERSS(tau, patience=1, p=1.0, cos_min=-1.0, bank=out.log.kept[0][1], own_states=False, keep_banks=True)
    with torch.inference_mode():
        steered = l2.generate(tiny, prompts()[:1], interventions=[foreign], **options)
    for layer, states in steered.log.kept[0][0].items():
        assert {tuple(s.tolist()) for s in states} == {tuple(s.tolist()) for s in out.log.kept[0][1][layer]}
    first = steered.events().query("fired").iloc[0]
    assert first["l2_norm_after"] != first["l2_norm_before"]


# Thresholds that adapt


@pytest.mark.parametrize("scope", ["run", "sequence"])
def test_an_adaptive_threshold_waits_for_its_samples_and_can_be_looked_at(tiny: Any, scope: str) -> None:
    rule = l2.AdaptiveIQR(k=0.1, warmup=10, scope=scope)
    x = l2.Suppression(rule, layers=[3], scale=0.99)
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
        l2.Suppression({2: tau[2]}, scale=0.5),
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
    x = l2.Suppression(which="random", p=0.9, layers=[1])
    out = l2.generate(tiny, [[5, 6, 7], [8, 9]], n=2, temperature=1.0, max_new_tokens=4, interventions=[x], progress=False)
    assert out.log.keys == {2 * i + j: sequence_key(0, i, j) for i in range(2) for j in range(2)}
    assert [out[i].seed for i in range(4)] == [out.log.keys[i] for i in range(4)]
    assert isinstance(out[:2].events(), pd.DataFrame)
