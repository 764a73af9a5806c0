"""Controls that spend the same: re-runs at other tokens and layers, steering to something else, as often as a log says."""

from __future__ import annotations

from dataclasses import replace
from statistics import NormalDist
from typing import Any

import pytest
import torch

import tl_l2norm as l2
from tests import models, oracles
from tests.texts import prompts, relative
from tests.unit.interventions.test_interventions import visit_of
from tl_l2norm.core.errors import InputError, Unmeasurable
from tl_l2norm.core.random_draws import uniform
from tl_l2norm.interventions import Rerun, mean_difference, thinking_tokens
from tl_l2norm.models.block_calls import BlockRun

TAU = {1: 5.0, 2: 6.0}
OPTIONS: dict[str, Any] = {"max_new_tokens": 40, "ignore_eos": True, "progress": False}


class Doubling(BlockRun):
    """A block that gives twice what it reads."""

    def __init__(self) -> None:
        pass

    def again(self, stream: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, *, fresh: bool) -> torch.Tensor:
        return 2 * stream[rows, columns]


# Re-runs


def test_a_rerun_is_taken_whatever_its_norm_and_mixed_by_alpha() -> None:
    stream = torch.tensor([[[1.0, 0.0], [0.0, 4.0], [3.0, 0.0]]])
    visit = visit_of(stream, live=torch.tensor([[True, True, False]]))._replace(block=Doubling())
    x = Rerun(p=1.0, alpha=0.5)
    effect = x.act(x.new_state(2, visit.places.rows, 2), visit)
    assert effect.stream.tolist() == [[[1.5, 0.0], [0.0, 6.0], [3.0, 0.0]]]
    assert effect.decision.tolist() == [[1, 1, 0]] and effect.columns["reruns"].tolist() == [[1.0, 1.0, 0.0]]


@pytest.mark.parametrize(("options", "taken"), [({"tokens": [7, 9]}, [0, 2]), ({"tokens": [9], "thresholds": TAU}, [])])
def test_a_rerun_of_some_tokens_leaves_others_and_high_ones_alone(options: Any, taken: list[int]) -> None:
    visit = visit_of(torch.tensor([[[1.0], [2.0], [7.0]]]), tau=6.0)._replace(block=Doubling())
    visit.places.tokens = torch.tensor([[7, 8, 9]])
    x = Rerun(p=1.0, **options)
    assert x.act(x.new_state(2, visit.places.rows, 1), visit).decision[0].nonzero()[:, 0].tolist() == taken
    visit.places.tokens = None
    with pytest.raises(InputError, match="tokens: which tokens are read isn't seen here"):
        x.act(x.new_state(2, visit.places.rows, 1), visit)


def test_what_is_read_is_known_in_a_context_and_not_to_hooks_of_one_pass() -> None:
    x, tokens = Rerun(p=1.0, tokens=[6], layers=[2]), torch.tensor([[5, 6, 7, 6, 9]])
    with torch.no_grad():
        with x.hooks(tiny_model(), prompt_lens=[1]) as log:
            tiny_model()(tokens)
        assert log.events()["position"].tolist() == [1, 3]
        with pytest.raises(InputError, match="use generate, collect or `with x.hooks"):
            tiny_model().run_with_hooks(tokens, fwd_hooks=x.fwd_hooks(tiny_model(), prompt_lens=[1]))


@pytest.fixture(scope="module")
def tau() -> l2.Thresholds:
    return l2.quantile_thresholds(l2.generate(tiny_model(), prompts()[:4], **OPTIONS), 0.8)


@pytest.fixture(scope="module")
def alrr(tau: l2.Thresholds) -> Any:
    """A run that keeps some of what it runs again, several times at one token, and drops others."""
    x = l2.ALRR(tau, layers=[3, 4], growth_eps=0.05, blowup=3.0, max_iters=2)
    out = l2.generate(tiny_model(), prompts()[:4], interventions=[x], **OPTIONS)
    assert 10 < sum(out.log.fired().values()) < sum(out.log.reruns().values())
    return out


def tiny_model() -> Any:
    return models.use(models.Case("llama", "bridge"))


@pytest.mark.parametrize(
    "options",
    [{}, {"match_layers": {0: 3, 2: 4}}, {"count": "fired", "seed": 3, "kv": "fresh", "alpha": 0.5}],
    ids=str,
)
def test_matched_reruns_are_as_many_in_each_sequence_and_layer(alrr: Any, options: Any) -> None:
    control = Rerun(match=alrr.log, **options)
    out = l2.generate(tiny_model(), prompts()[:4], interventions=[control], **OPTIONS)
    wanted = alrr.log.fired() if options.get("count") else alrr.log.reruns()
    back = {log: here for here, log in options.get("match_layers", {}).items()}
    assert out.log.reruns() == out.log.fired() == {(s, back.get(layer, layer)): n for (s, layer), n in wanted.items() if n}
    again = l2.collect(tiny_model(), out, interventions=[control], progress=False)
    assert all(relative(a.l2_norms, b.l2_norms) < 1e-4 for a, b in zip(again, out.traces, strict=True))


def test_matched_reruns_at_given_tokens_take_what_there_is_of_them(alrr: Any) -> None:
    even = range(0, 60_000, 2)
    out = l2.generate(tiny_model(), prompts()[:4], interventions=[Rerun(match=alrr.log, tokens=even)], **OPTIONS)
    taken = [int(out[e.sequence].trace.tokens[e.position]) % 2 for e in out.events().itertuples()]
    wanted, got = alrr.log.reruns(), out.log.reruns()
    there = {i: int((trace.tokens[trace.prompt_len :] % 2 == 0).sum()) for i, trace in enumerate(out.traces)}
    assert not any(taken) and all(n <= wanted[at] for at, n in got.items())
    assert sum(got.values()) > 0.9 * sum(min(n, there[sequence]) for (sequence, _), n in wanted.items()) > 80


# Steering to something else


BANK = torch.tensor([[3.0, 4.0], [0.0, 10.0]])
"""To (1, 0) the first is the closest, at a cosine of 0.6, and 5 long."""


def steered(seed: int = 0, **options: Any) -> torch.Tensor:
    x = l2.ERSS({2: 20.0}, patience=1, p=1.0, bank={2: BANK}, own_states=False, seed=seed, **options)
    visit = visit_of(torch.tensor([[[1.0, 0.0]]]), start=4, tau=20.0)
    effect = x.act(x.new_state(2, visit.places.rows, 2), visit)
    assert effect.decision.tolist() == [[1]] and float(effect.columns["cosine"]) == pytest.approx(0.6)
    return effect.stream[0, 0]


def test_what_is_steered_to_is_as_long_as_the_closest_state() -> None:
    assert steered().tolist() == [1 + 1.5, 2.0]
    assert steered(towards="vectors", vectors={2: torch.tensor([0.0, -0.1])}).tolist() == pytest.approx([1.0, -2.5])
    for seed in range(6):
        u = float(uniform(seed, 0, 2, 0x42414E4B, 4))
        state = [1.5, 2.0] if u >= 0.5 else [0.0, 2.5]
        long_first = [[0.0, 2.5], [1.5, 2.0]]  # banks begin with the longest
        assert steered(seed, towards="random").tolist() == pytest.approx([1 + state[0], state[1]]) and state in long_first
        drawn = torch.tensor([NormalDist().inv_cdf(float(uniform(seed, 0, 2, 0x44495245, 4, i))) for i in range(2)])
        expected = torch.tensor([1.0, 0.0]) + 2.5 * drawn / drawn.norm()
        torch.testing.assert_close(steered(seed, towards="direction"), expected)


def test_random_directions_have_no_direction_in_common() -> None:
    """Of 3,000 sequences: coordinates have mean 0 and variance 1 / d, to 4 standard errors."""
    n, d = 3000, 8
    stream = torch.zeros(n, 1, d)
    stream[..., 0] = 1.0
    x = l2.ERSS({2: 20.0}, patience=1, p=1.0, beta=1.0, bank={2: torch.eye(d)[:1] * 3}, own_states=False, towards="direction")
    visit = visit_of(stream, tau=20.0)
    added = (x.act(x.new_state(2, visit.places.rows, d), visit).stream - stream)[:, 0].double() / 3
    assert added.norm(dim=-1).sub(1).abs().max() < 1e-5
    assert added.mean(0).abs().max() < 4 / (n * d) ** 0.5
    assert added.square().mean(0).sub(1 / d).abs().max() < 4 * (2 / n) ** 0.5 / d


@pytest.fixture(scope="module")
def erss(tau: l2.Thresholds) -> Any:
    x = l2.ERSS(tau, layers=[3], patience=3, cooldown=2, p=0.7, cos_min=0.0)
    return x, l2.generate(tiny_model(), prompts()[:4], interventions=[x], **OPTIONS)


@pytest.mark.parametrize("towards", ["random", "direction", "vectors"])
def test_controls_of_steering_begin_where_it_began_and_can_be_as_many(erss: Any, towards: Any) -> None:
    x, out = erss
    other = replace(x, towards=towards, vectors={3: torch.ones(48)} if towards == "vectors" else None)
    same_schedule = l2.generate(tiny_model(), prompts()[:4], interventions=[other], **OPTIONS)
    firsts = [run.events().query("fired").groupby("sequence").first() for run in (out, same_schedule)]
    shared = ["position", "l2_norm_before", "cosine"]
    assert len(firsts[0]) == 4 and firsts[0][shared].equals(firsts[1][shared])
    assert not firsts[0]["l2_norm_after"].equals(firsts[1]["l2_norm_after"])
    control = replace(other, match=out.log)
    matched = l2.generate(tiny_model(), prompts()[:4], interventions=[control], **OPTIONS)
    assert matched.log.fired() == out.log.fired() and sum(out.log.fired().values()) > 10
    assert (matched.events()["l2_norm_before"] <= matched.events()["threshold"]).all()
    again = l2.collect(tiny_model(), matched, interventions=[control], progress=False)
    assert all(relative(a.l2_norms, b.l2_norms) < 1e-4 for a, b in zip(again, matched.traces, strict=True))


# Suppression


@pytest.mark.parametrize("how", ["scale", "swap"])
def test_a_matched_suppression_takes_as_many_whatever_it_does_to_them(tau: l2.Thresholds, how: Any) -> None:
    """At layers where enough tokens stay low to the end."""
    high = l2.Suppression({layer: 1.1 * tau[layer] for layer in (0, 3)}, how=how)
    out = l2.generate(tiny_model(), prompts()[:4], interventions=[high], **OPTIONS)
    control = replace(high, which="matched", match=out.log)
    matched = l2.generate(tiny_model(), prompts()[:4], interventions=[control], **OPTIONS)
    assert matched.log.fired() == out.log.fired() and sum(out.log.fired().values()) > 10
    if how == "swap":
        events = matched.events()
        assert events["l2_norm_after"].to_numpy() == pytest.approx(events["l2_norm_before"].to_numpy(), rel=1e-4)


# Words and vectors


def test_a_word_is_every_token_that_reads_so() -> None:
    tokenizer = tiny_model().tokenizer
    texts = {i: tokenizer.decode([i]) for i in range(len(tokenizer))}
    truth = tuple(i for i, text in texts.items() if text.strip() in ("So", "so"))
    assert thinking_tokens(tokenizer, ["So", "so"]) == truth and len(truth) > 2
    with pytest.raises(InputError, match="no token of this tokenizer is 'Heureka', it writes it in several"):
        thinking_tokens(tokenizer, ["so", "Heureka"])


@pytest.mark.parametrize("by", ["thresholds", "traces"])
def test_a_mean_difference_is_that_of_plain_states(tau: Any, by: str) -> None:
    traces, tau = l2.generate(tiny_model(), prompts()[:4], **OPTIONS).traces, {k: 1.001 * v for k, v in tau.items()}  # no ties
    one, other = (traces, ()) if by == "thresholds" else (traces[:1], traces[1:])
    means = []
    for side in range(2):
        states = []
        for i, trace in enumerate(traces):
            plain = oracles.states_and_attentions(models.hugging_face("llama"), trace.tokens.tolist())[0][1:]
            for position in range(trace.prompt_len, len(trace)):
                high = float(plain[2, position].norm()) > tau[2]
                if not trace.is_sink[2, position] and side == ((not high) if by == "thresholds" else i > 0):
                    states.append(plain[2, position].double())
        means.append(torch.stack(states).mean(0))
    given: Any = {"thresholds": tau} if by == "thresholds" else {"against": other}
    vectors = mean_difference(tiny_model(), one, layers=[0, 2], batch_size=3, **given)
    assert sorted(vectors) == [0, 2]
    torch.testing.assert_close(vectors[2].double(), means[0] - means[1], rtol=1e-4, atol=1e-5)


def test_a_difference_without_a_side_is_refused(tau: l2.Thresholds, alrr: Any) -> None:
    traces = l2.generate(tiny_model(), prompts()[:1], max_new_tokens=4, progress=False).traces
    with pytest.raises(Unmeasurable, match="no token on one side at layers 2"):
        mean_difference(tiny_model(), traces, thresholds={2: 1e9})
    for given in ({}, {"against": traces, "thresholds": tau}):
        with pytest.raises(InputError, match="either against=, other traces, or thresholds="):
            mean_difference(tiny_model(), traces, **given)
    with pytest.raises(InputError, match=r"recorded under ALRR\(.*give traces without interventions"):
        mean_difference(tiny_model(), alrr, thresholds=tau)
    with pytest.raises(InputError, match="give traces of this model"):
        mean_difference(models.use(models.Case("qwen3", "bridge")), traces, thresholds=tau)


# Refusals


def test_controls_that_could_do_nothing_or_match_nothing_are_refused(alrr: Any, erss: Any) -> None:
    for make, says in (
        (lambda: Rerun(), "either p=, the probability of each token, or match="),
        (lambda: Rerun(p=0.5, match=alrr.log), "either p="),
        (lambda: Rerun(p=1.5), "p must be between 0 and 1"),
        (lambda: Rerun(p=0.5, tokens=[]), "tokens are empty"),
        (lambda: Rerun(p=0.5, match_layers={0: 3}), "count and match_layers are for match"),
        (lambda: Rerun(p=0.5, count="fired"), "count and match_layers are for match"),
        (lambda: Rerun(match=alrr.log, match_layers={-1: 3}), "a layer of match_layers must be at least 0"),
        (lambda: Rerun(match=erss[1].log), "the log of a run with one ALRR or Rerun, this one has 0"),
        (lambda: l2.ERSS(TAU, match=alrr.log), "the log of a run with one ERSS, this one has 0"),
        (lambda: l2.ERSS(TAU, towards="vectors"), "vectors={layer: vector} is for towards='vectors'"),
        (lambda: l2.ERSS(TAU, vectors={1: torch.ones(4)}), "vectors={layer: vector} is for towards='vectors'"),
        (lambda: l2.ERSS(TAU, towards="vectors", vectors={1: torch.zeros(4)}), "vector of layer 1 has no direction"),
        (lambda: erss[1].log.reruns(), "ERSS runs no block again"),
    ):
        with pytest.raises(InputError, match=says):
            make()
    for x, says in (
        (Rerun(match=alrr.log, layers=[2, 3]), "match: its run acted at layers 3-4, this one is to at 2 too"),
        (Rerun(match=alrr.log, layers=[2], match_layers={1: 3}), "match_layers has layers 1, this run acts at 2"),
        (l2.ERSS(TAU, match=erss[1].log), "match: its run acted at layers 3, this one is to at 1-2 too"),
    ):
        with pytest.raises(InputError, match=says):
            l2.generate(tiny_model(), prompts()[:4], interventions=[x], **OPTIONS)
