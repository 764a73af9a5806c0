"""Interventions where vLLM writes, against the bridge on the same tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch

import tl_l2norm as l2
from tests import engines as made
from tests.engines import Engines
from tests.integration.test_vllm_engine import ARCHITECTURES, TOKENS, Passes, require_same, require_same_norms, write
from tl_l2norm.core.batch import RowTensors
from tl_l2norm.core.errors import InputError, Unsupported
from tl_l2norm.interventions.base import Intervention
from tl_l2norm.interventions.rule import Decision, Effect

pytestmark = pytest.mark.skipif(not made.has_vllm(), reason="vLLM isn't installed; see docs/engines.md")

running = pytest.fixture(scope="module", name="engines")(made.running)
reasoner = pytest.fixture(scope="module", name="model")(made.reasoner)
unequal_prompts = pytest.fixture(scope="module", name="prompts")(made.unequal_prompts)


@pytest.fixture(scope="module")
def tau(model: Any, prompts: list[Any]) -> Any:
    """By layer; between norms that were seen: at a tie two implementations may differ."""
    quantiles = l2.quantile_thresholds(write(model, prompts, n=2, temperature=1.0), q=0.8)
    return {layer: 1.001 * value for layer, value in quantiles.items()}


def suppressions(tau: Any) -> list[Any]:
    low = l2.Suppression({3: tau[3], 7: tau[7]}, which="low", scale=0.5)
    both = [l2.Suppression(tau, layers=[2, 9]), l2.Suppression(tau, how="clamp", layers=[2, 11])]
    return [
        l2.Suppression(tau),
        both,
        low,
        l2.Suppression(which="random", p=0.2, seed=4),
        l2.Suppression(tau, include_sinks=True),
    ]


def require_same_events(ours: Any, theirs: Any) -> None:
    a, b = ours.events(), theirs.events()
    measured = ["threshold", "l2_norm_before", "l2_norm_after", *({"cosine"} & {*a.columns})]
    assert len(a) > 10 and a["fired"].any()
    pd.testing.assert_frame_equal(a.drop(columns=measured), b.drop(columns=measured))
    np.testing.assert_allclose(a[measured], b[measured], rtol=1e-3, atol=1e-5)  # a cosine may be near 0
    assert ours.log.counts().equals(theirs.log.counts()) and ours.log.keys == theirs.log.keys
    assert ours.log.prompt_lens == theirs.log.prompt_lens


@pytest.mark.parametrize("which", range(5))
def test_a_suppression_does_what_it_does_on_the_bridge(
    engines: Engines, model: Any, prompts: Any, tau: Any, which: int
) -> None:
    options = {"interventions": suppressions(tau)[which], "n": 2, "temperature": 1.0}
    ours, theirs = write(engines(), prompts, **options), write(model, prompts, **options)
    require_same(ours, theirs)
    require_same_events(ours, theirs)
    assert ours[0].trace.provenance.interventions == theirs[0].trace.provenance.interventions
    forced = l2.collect(model, ours, interventions=options["interventions"], progress=False)
    for a, b in zip(ours.traces, forced, strict=True):
        require_same_norms(a, b)
    bare = write(engines(), prompts, record=False, **options)
    assert [c.tokens for c in bare] == [c.tokens for c in ours] and bare.log.counts().equals(ours.log.counts())


def test_one_that_never_fires_changes_no_bit(engines: Engines, prompts: Any) -> None:
    plain = write(engines(), prompts, temperature=1.0)
    with pytest.warns(UserWarning, match="nothing was changed by Suppression"):
        idle = write(engines(), prompts, temperature=1.0, interventions=l2.Suppression(dict.fromkeys(range(12), 1e9)))
    for a, b in zip(idle, plain, strict=True):
        assert a.tokens == b.tokens and torch.equal(a.logprobs, b.logprobs) and torch.equal(a.trace.l2_norms, b.trace.l2_norms)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Every(Intervention):
    """Halve every so manieth live token: a rule of a user's own, with a memory."""

    n: int = 3
    thresholds: Any = None
    DECISIONS: ClassVar = (Decision("halved", True),)

    def new_state(self, layer: int, rows: Any, d_model: int) -> Any:
        return Count(torch.zeros_like(rows.number))

    def act(self, state: Any, visit: Any) -> Effect:
        met = state.n[:, None] + visit.live.cumsum(1)
        state.n = met[:, -1]
        hit = visit.live & (met % self.n == 0)
        return Effect(torch.where(hit[..., None], visit.stream / 2, visit.stream), hit.to(torch.int8))


@dataclass(slots=True, eq=False)
class Count(RowTensors):
    n: torch.Tensor


Made = Callable[[Any, Any], list[Any]]
"""Interventions, of thresholds and a function for the log of a run, by default of one that suppressed tokens over them."""
REMEMBER: dict[str, Made] = {
    "swap": lambda tau, log: [l2.Suppression(tau, how="swap", seed=3)],
    "random swap": lambda tau, log: [l2.Suppression(which="random", p=0.3, how="swap", layers=[1, 6])],
    "matched": lambda tau, log: [l2.Suppression(tau, which="matched", match=log())],
    "matched swap": lambda tau, log: [l2.Suppression(tau, which="matched", match=log(), how="swap")],
    "alike": lambda tau, log: [
        l2.Suppression(tau, which="matched", match=log(), alike=("token", "position"), scale=0.3),
    ],
    "alike high": lambda tau, log: [l2.Suppression(tau, match=log(), alike="token")],
    "adaptive": lambda tau, log: [
        l2.Suppression(l2.AdaptiveIQR(k=0.3137, warmup=6, scope="sequence"), layers=[4, 8, 9], how="clamp")
    ],
    "erss": lambda tau, log: [
        l2.ERSS(tau, patience=2, p=0.7, cos_min=0.0, cooldown=2, bank_size=3, keep_banks=True, seed=2),
    ],
    "alrr": lambda tau, log: [l2.ALRR(tau, growth_eps=0.013, blowup=1.53)],
    "alrr fresh": lambda tau, log: [
        l2.ALRR(tau, layers=[2, 5, 10], max_iters=3, growth_eps=-0.513, blowup=3.13, alpha=0.4, kv="fresh")
    ],
    "controls": lambda tau, log: [
        l2.interventions.Rerun(p=0.3, tokens=range(0, 270, 2), layers=[4], seed=3),
        l2.interventions.Rerun(match=log(l2.ALRR(tau, layers=[8], growth_eps=-0.5)), match_layers={2: 8}, kv="fresh"),
        l2.ERSS(tau, layers=[6], patience=2, p=0.7, cos_min=0.0, cooldown=2, towards="direction", seed=2),
        l2.ERSS(tau, layers=[9], cos_min=0.0, towards="random", match=log(l2.ERSS(tau, layers=[9], patience=2, cos_min=0.0))),
    ],
    "several": lambda tau, log: [
        l2.Suppression(tau, layers=[2, 7]),
        l2.ERSS(
            l2.AdaptiveIQR(k=0.3137, warmup=4, scope="sequence"),
            layers=[3, 7],
            patience=1,
            p=1.0,
            cos_min=-1.0,
            cooldown=1,
            mix="interpolate",
        ),
        Every(layers=[0, 7]),
        l2.ALRR({5: 0.7 * tau[5], 10: 0.7 * tau[10]}, growth_eps=-0.513, blowup=3.13),
    ],
}


def options_with(rule: Made, model: Any, prompts: Any, tau: Any, **options: Any) -> dict[str, Any]:
    """Of a run with interventions, and with a log of the same sequences for those that are matched to one."""

    def log(of: Any = None) -> Any:
        return write(model, prompts, record=False, interventions=of or l2.Suppression(tau), **options).log

    return {**options, "interventions": rule(tau, log)}


def require_same_memory(ours: Any, theirs: Any) -> None:
    """What outlives the sequences, and the tokens that were read back."""
    for kept, expected in zip(ours.log.kept, theirs.log.kept, strict=True):
        for number, layers in kept.items():
            for layer, states in layers.items():
                torch.testing.assert_close(states, expected[number][layer], rtol=1e-3, atol=1e-3)
    order = ["intervention", "layer", "owner"]
    a, b = (out.log.thresholds().sort_values(order, ignore_index=True) for out in (ours, theirs))
    a = a[a["n_samples"] > 0]
    pd.testing.assert_frame_equal(a, b[b["n_samples"] > 0], rtol=1e-4)
    read = [out.log.read() for out in (ours, theirs)]
    places = [
        {tuple(place) for place in own.T.tolist() if place[1] >= out.log.prompt_lens[place[0]]}
        for own, out in zip(read, (ours, theirs), strict=True)
    ]
    assert places[0] == places[1] and len(places[0]) > 20


@pytest.mark.parametrize("rule", REMEMBER)
def test_what_remembers_does_what_it_does_on_the_bridge(
    engines: Engines, model: Any, prompts: Any, tau: Any, rule: str
) -> None:
    n = 4 if rule.startswith("alike") else 2  # few tokens have a like one
    options = options_with(REMEMBER[rule], model, prompts, tau, n=n, temperature=1.0)
    ours, theirs = write(engines(), prompts, **options), write(model, prompts, **options)
    require_same(ours, theirs)
    require_same_events(ours, theirs)
    require_same_memory(ours, theirs)


TIGHT: dict[str, Any] = {"max_num_seqs": 8, "block_size": 32, "num_gpu_blocks_override": 18, "max_model_len": 256}
LONG = {"n": 3, "temperature": 1.5, "ignore_eos": True, "max_new_tokens": 120, "seed": 1}
"""With seed 0 a draw of `controls` falls on the border of two tokens: all before it agrees to 1e-5, and there they part."""
DECIDES_ALONE: dict[str, Made] = {"high": lambda tau, log: [l2.Suppression(tau)]}


@pytest.mark.parametrize("rule", ["high", "matched swap", "alike", "adaptive", "erss", "alrr fresh", "controls", "several"])
def test_through_chunks_and_preemptions(
    engines: Engines, model: Any, prompts: Any, tau: Any, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = options_with({**DECIDES_ALONE, **REMEMBER}[rule], model, prompts, tau, **LONG)
    theirs = write(model, prompts, **options)
    engine, passes = engines(**TIGHT, max_num_batched_tokens=16), Passes(monkeypatch)
    ours = write(engine, prompts, **options)
    places = passes.places()
    assert len(places) > len(set(places)) + 50 and max(len(step.owners) for step in passes.steps) <= 16
    require_same(ours, theirs)
    require_same_events(ours, theirs)
    require_same_memory(ours, theirs)


ON_PROMPTS: dict[str, Made] = {
    "all": lambda tau, log: [l2.Suppression(tau, positions="all")],
    "all and sinks": lambda tau, log: [l2.Suppression(tau, positions="all", include_sinks=True)],
    "all swap": lambda tau, log: [l2.Suppression(tau, how="swap", positions="all", layers=[0, 5, 6])],
    "from a position": lambda tau, log: [
        l2.ERSS(tau, positions=7, patience=2, p=0.7, cos_min=0.0, cooldown=2, bank_size=3, keep_banks=True)
    ],
    "alrr": lambda tau, log: [l2.ALRR(tau, positions="all", layers=[1, 4, 10], growth_eps=-0.5, max_iters=2)],
    "alrr fresh": lambda tau, log: [l2.ALRR(tau, positions="all", layers=[1, 4, 10], growth_eps=-0.5, kv="fresh")],
    "both": lambda tau, log: [Every(positions="all", layers=[3, 4]), l2.Suppression(tau, layers=[4, 9])],
}


@pytest.mark.parametrize(("rule", "tight"), [*((rule, False) for rule in ON_PROMPTS), ("all", True), ("alrr fresh", True)])
def test_on_prompts_that_are_read_whole(
    engines: Engines, model: Any, prompts: Any, tau: Any, rule: str, tight: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**(LONG if tight else {"n": 2, "temperature": 1.0}), "interventions": ON_PROMPTS[rule](tau, None)}
    engine, passes = engines(**TIGHT, enable_chunked_prefill=False, max_num_batched_tokens=256), Passes(monkeypatch)
    ours, theirs = write(engine, prompts, **options), write(model, prompts, **options)
    places = passes.places()
    assert len(places) > len(set(places)) + 50 or not tight
    require_same(ours, theirs)
    require_same_events(ours, theirs)
    require_same_memory(ours, theirs)
    events = ours.events()
    in_prompt = events["position"] < events["sequence"].map(ours.log.prompt_lens)
    assert in_prompt.any() and not in_prompt.all()


@pytest.mark.parametrize("kind", ["GPT2Config", "Gemma2Config", "CohereConfig", "MistralConfig", "Qwen3MoeConfig"])
def test_on_other_architectures(engines: Engines, kind: str, tmp_path: Path) -> None:
    folder = made.save_random(kind, tmp_path / "model", **ARCHITECTURES[kind])
    model, options = l2.load_model(folder), {"n": 2, "temperature": 1.0, "ignore_eos": True}
    quantiles = l2.quantile_thresholds(write(model, TOKENS, **options), q=0.7)
    tau = {layer: 1.001 * value for layer, value in quantiles.items()}
    again = {"growth_eps": -0.913, "blowup": 3.13, "alpha": 0.5}
    for acts in (
        [l2.Suppression(tau)],
        [l2.ALRR(tau, **again), l2.ERSS(tau, patience=2, p=1.0, cos_min=-1.0, cooldown=1, layers=[1])],
        [l2.ALRR(tau, kv="fresh", max_iters=2, **again)],
    ):
        ours, theirs = (write(m, TOKENS, interventions=acts, **options) for m in (engines(folder), model))
        require_same(ours, theirs)
        require_same_events(ours, theirs)


def test_interventions_that_it_cannot_do_exactly_are_refused_by_name(
    engines: Engines, model: Any, prompts: Any, tau: Any
) -> None:
    refused = {
        l2.ERSS(tau, mix="authors"): "before the MLP's write.*needs a model of load_model",
        l2.Suppression(tau, positions="all"): r"Suppression\(.*a model of load_model",
        l2.Suppression(l2.AdaptiveIQR()): "needs scope='sequence', or a model of load_model",
    }
    for x, message in refused.items():
        with pytest.raises(Unsupported, match=message):
            write(engines(), prompts, interventions=[x])
    given = l2.quantile_thresholds(write(model, prompts), q=0.8)
    with pytest.raises(InputError, match="thresholds are of"):
        write(engines(dtype=torch.bfloat16), prompts, interventions=l2.Suppression(given))


def test_in_bfloat16(engines: Engines, prompts: Any, tau: Any) -> None:
    acts = [l2.ALRR(tau, kv="fresh", growth_eps=-0.5), l2.ERSS(tau, patience=1, p=1.0, cos_min=-1.0), l2.Suppression(tau)]
    out = write(engines(dtype=torch.bfloat16), prompts, interventions=acts)
    fired = out.log.counts().query("fired")
    assert (fired["n"] > 0).all() and all(trace.l2_norms.isfinite().all() for trace in out.traces)


def test_a_block_that_writes_while_it_attends_does_not_run_again(
    engines: Engines, prompts: Any, tau: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    engine = engines()
    monkeypatch.setattr(CPUAttentionBackend, "forward_includes_kv_cache_update", True)
    with pytest.raises(Unsupported, match="Qwen3DecoderLayer with Attention can't run again without writing to its cache"):
        write(engine, prompts, interventions=l2.ALRR(tau))
    monkeypatch.undo()
    assert write(engine, prompts, interventions=l2.ALRR(tau, growth_eps=0.0)).events()["fired"].any()


@pytest.mark.parametrize("kv", ["first_pass", "fresh"])
def test_a_block_that_runs_again_leaves_the_cache_as_it_was(
    engines: Engines, prompts: Any, tau: Any, kv: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tl_l2norm.engines.again import BlockAgain

    run, seen = BlockAgain.run, []

    def watched(block: Any, *args: Any) -> Any:
        (cache,) = (module.kv_cache for module in block.block.modules() if hasattr(module, "kv_cache"))
        before = cache.clone()
        made = run(block, *args)
        seen.append(before.count_nonzero() > 0 and torch.equal(cache, before))
        return made

    monkeypatch.setattr(BlockAgain, "run", watched)
    write(engines(max_num_batched_tokens=24, max_num_seqs=3), prompts, interventions=l2.ALRR(tau, growth_eps=-0.5, kv=kv))
    assert len(seen) > 20 and all(seen)


def test_a_block_that_does_something_else_when_it_runs_again_is_refused(
    engines: Engines, prompts: Any, tau: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tl_l2norm.engines.again import BlockAgain

    run = BlockAgain._run
    monkeypatch.setattr(BlockAgain, "_run", lambda block, stream, residual: 1.05 * run(block, stream, residual))
    with pytest.raises(Unsupported, match="Qwen3DecoderLayer isn't what it was when it runs again"):
        write(engines(), prompts, interventions=l2.ALRR(tau))


def test_an_error_in_a_rule_ends_the_run_with_its_traceback(engines: Engines, prompts: Any, tau: Any) -> None:
    @dataclass(frozen=True, kw_only=True, eq=False, repr=False)
    class Failing(Every):
        def act(self, state: Any, visit: Any) -> Effect:
            return Effect(visit.stream, 1 // (visit.places.positions.max() < 30))

    with pytest.raises(RuntimeError, match="ZeroDivisionError") as caught:
        write(engines(), prompts, interventions=Failing(layers=[2]))
    assert "act" in [entry.name for entry in caught.traceback]
    assert "in Failing.act at layer 2" in caught.value.__notes__


def test_a_log_of_other_sequences_is_refused_before_anything_is_read(
    engines: Engines, model: Any, prompts: Any, tau: Any
) -> None:
    engine, log = engines(), write(model, prompts, interventions=l2.Suppression(tau), seed=1).log
    matched = l2.Suppression(tau, which="matched", match=log)
    with pytest.raises(InputError, match="sequence 0 of this run has seed"):
        write(engine, prompts, interventions=matched, seed=2)
    with pytest.raises(InputError, match="sequence 4 of this run has seed"):
        write(engine, [*prompts, prompts[0]], interventions=matched, seed=1)
    assert write(engine, prompts)[0].tokens  # no harm is done
