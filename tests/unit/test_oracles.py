"""The oracle of interventions, against plain passes and against cases that can be checked by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import models, oracles
from tests.slow import slow_but

TINY = ("llama", "qwen3", "mistral", "gemma3", "gpt2")
ALL = slow_but(TINY, [models.HALF, *TINY])
INF = math.inf


@pytest.fixture(autouse=True, scope="module")
def _one_thread(_threads: None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tokens_for(architecture: str) -> list[int]:
    n = 12 if architecture == models.HALF else 30  # beyond both sliding windows
    most = 40000 if architecture == models.HALF else models.VOCABULARY
    return torch.randint(3, most, (n,), generator=torch.Generator().manual_seed(5)).tolist()


def around(
    model: Any, layer: int, tokens: list[int], change: Callable[[Tensor], None] = lambda _: None
) -> tuple[Tensor, Tensor]:
    """What a block reads and writes in a plain pass, each [pos, d_model]; `change` may edit what it reads in place."""
    read: list[Tensor] = []
    written: list[Tensor] = []

    def before(_module: Any, args: Any) -> Any:
        x = args[0].clone()
        change(x[0])
        read.append(x[0])
        return (x, *args[1:])

    block = oracles.layers_of(model)[layer]
    handles = [
        block.register_forward_pre_hook(before),
        block.register_forward_hook(lambda _m, _a, out: written.append((out if isinstance(out, Tensor) else out[0])[0])),
    ]
    try:
        with torch.no_grad():
            model(torch.tensor([tokens]), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return read[0], written[0]


def norms_of(x: Tensor) -> list[float]:
    return x.pow(2).sum(-1).sqrt().tolist()


def close(a: Any, b: Any, *, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), atol=tolerance, rtol=tolerance, check_dtype=False)


@pytest.mark.parametrize("architecture", ALL)
def test_no_steps_is_a_plain_pass(architecture: str) -> None:
    model, tokens = models.hugging_face(architecture), tokens_for(architecture)
    result = oracles.intervened(model, tokens, 4, [])
    with torch.no_grad():
        close(result.logits, model(torch.tensor([tokens])).logits[0])
    close(result.norms, oracles.hidden_norms(model, tokens)[1:])
    assert result.events == []
    assert result.norms.dtype == torch.float64


@pytest.mark.parametrize("architecture", ALL)
def test_block_by_hand_is_the_block(architecture: str) -> None:
    model, tokens = models.hugging_face(architecture), tokens_for(architecture)
    count = len(oracles.layers_of(model))
    for layer in (0, count // 2, count - 1):
        entry, written = around(model, layer, tokens)
        block = oracles.Block(model, layer, entry)
        for fresh in (False, True):
            with torch.no_grad():
                by_hand = torch.stack([block.output(h, t, fresh=fresh) for t, h in enumerate(entry)])
            assert (by_hand - written).abs().max() < 1e-4 * max(1.0, written.abs().max().item())


@pytest.mark.parametrize("architecture", ["mistral", "gemma3"])
def test_windows_matter_here(architecture: str) -> None:
    model, tokens = models.hugging_face(architecture), tokens_for(architecture)
    entry, written = around(model, 0, tokens)
    block = oracles.Block(model, 0, entry)
    assert block.window in (8, 12)
    block.window += 1
    with torch.no_grad():
        wrong = [(block.output(h, t) - written[t]).abs().max().item() > 1e-3 for t, h in enumerate(entry)]
    assert wrong == [t >= block.window - 1 for t in range(len(tokens))]


def plain_keys_and_values(model: Any, layer: int, tokens: list[int]) -> list[Any]:
    """Hooks that put a plain pass' keys and values in place of those of a changed one."""
    block = oracles.layers_of(model)[layer]
    fused = hasattr(block, "attn")
    modules = [block.attn.c_attn] if fused else [block.self_attn.k_proj, block.self_attn.v_proj]
    seen: dict[Any, Tensor] = {}
    handles = [module.register_forward_hook(lambda m, _a, out: seen.update({m: out.clone()})) for module in modules]
    around(model, layer, tokens)
    for handle in handles:
        handle.remove()

    def put(module: Any, _args: Any, out: Tensor) -> Tensor:
        queries = out.shape[-1] // 3 if fused else 0  # these are the changed pass' own
        return torch.cat([out[..., :queries], seen[module][..., queries:]], dim=-1)

    return [module.register_forward_hook(put) for module in modules]


@pytest.mark.parametrize("kv", ["first_pass", "fresh"])
@pytest.mark.parametrize("architecture", TINY)
def test_rerun_is_the_block_on_a_changed_position(architecture: str, kv: str) -> None:
    model, tokens, layer = models.hugging_face(architecture), tokens_for(architecture), 2
    entry, written = around(model, layer, tokens)
    positions = (1, len(tokens) // 2, len(tokens) - 1)
    handles = plain_keys_and_values(model, layer, tokens) if kv == "first_pass" else []
    truths = [around(model, layer, tokens, lambda x, t=t: x[t].copy_(written[t]))[1][t] for t in positions]
    for handle in handles:
        handle.remove()
    block = oracles.Block(model, layer, entry)
    for t, truth in zip(positions, truths, strict=True):
        with torch.no_grad():
            close(block.output(written[t], t, fresh=kv == "fresh"), truth)
            other = block.output(written[t], t, fresh=kv != "fresh")
        assert (other - truth).abs().max() > 1e-3  # the two are told apart


def suppress(**more: Any) -> dict[str, Any]:
    given = {"kind": "suppress", "layers": [2], "tau": {2: 0.0}, "which": "high", "how": "scale", "scale": 0.5}
    return {**given, **more}


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_scale_multiplies_the_norm(architecture: str) -> None:
    model, tokens = models.hugging_face(architecture), tokens_for(architecture)
    plain = oracles.hidden_norms(model, tokens)[1:]
    result = oracles.intervened(model, tokens, 10, [suppress()])
    assert [event["position"] for event in result.events] == list(range(10, 30))
    for event in result.events:
        assert event["fired"] and event["decision"] == "suppressed" and (event["step"], event["layer"]) == (0, 2)
        assert event["after"] == event["before"] / 2
    close(result.norms[2, 10:], plain[2, 10:] / 2, tolerance=1e-6)
    close(result.norms[2, :10], plain[2, :10], tolerance=1e-6)
    close(result.norms[:2], plain[:2], tolerance=1e-6)
    close(result.norms[:, :10], plain[:, :10], tolerance=1e-6)  # causal
    assert ((result.norms[3:, 10:] - plain[3:, 10:]).abs() > 1e-4).all()  # the next blocks read the change


def test_clamp_and_thresholds() -> None:
    model, tokens = models.hugging_face("llama"), tokens_for("llama")
    norms = oracles.hidden_norms(model, tokens)[3]
    tau = norms[10:].median().item() + 1e-4
    high = oracles.intervened(model, tokens, 10, [suppress(how="clamp", tau={2: tau})])
    low = oracles.intervened(model, tokens, 10, [suppress(how="clamp", which="low", tau={2: tau})])
    over = [t for t in range(10, 30) if norms[t] > tau]
    assert [event["position"] for event in high.events] == over
    assert [event["position"] for event in low.events] == [t for t in range(10, 30) if t not in over]
    close(high.norms[2, over], torch.full((len(over),), tau / 4), tolerance=1e-6)
    drawn = oracles.intervened(model, tokens, 10, [suppress(which="random", draw=lambda layer, t: layer == 2 and t % 3 == 0)])
    assert [event["position"] for event in drawn.events] == list(range(12, 30, 3))


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_swap_takes_the_last_state_that_was_drawn(architecture: str) -> None:
    model, tokens = models.hugging_face(architecture), tokens_for(architecture)
    written = around(model, 2, tokens)[1]
    draws = {10: 0.9, 11: 0.6, 12: 0.3, 13: 0.3, 14: 0.21, 15: 0.19}  # under 1/k: 10 as the first, 12 (k = 3), no other
    step = suppress(how="swap", enter=lambda layer, t: draws.get(t, 1.0))
    sources = {11: 10, 12: 10, **dict.fromkeys(range(13, 30), 12)}
    seen: list[Tensor] = []
    reads = oracles.layers_of(model)[3].register_forward_pre_hook(lambda _m, args: seen.append(args[0][0].clone()))
    result = oracles.intervened(model, tokens, 10, [step])
    reads.remove()
    first, *rest = result.events
    assert (first["position"], first["decision"], first["fired"]) == (10, "no earlier token", False)
    assert [(event["position"], event["decision"], event["fired"]) for event in rest] == [
        (t, "suppressed", True) for t in range(11, 30)
    ]
    for t, source in sources.items():
        close(seen[0][t] / norms_of(written)[t], written[source] / norms_of(written)[source])
    close(norms_of(seen[0]), norms_of(written))
    close(seen[0][:11], written[:11])


def test_positions_and_sinks() -> None:
    model, tokens = models.hugging_face("llama"), tokens_for("llama")

    def fired(prompt_len: int = 10, **more: Any) -> list[int]:
        grow = suppress(layers=[1], which="random", draw=lambda _, t: t == 15, scale=100.0)
        events = oracles.intervened(model, tokens, prompt_len, [grow, suppress(**more)]).events
        return [event["position"] for event in events if event["step"] == 1]

    assert fired() == [t for t in range(10, 30) if t != 15]
    assert fired(include_sinks=True) == list(range(10, 30))
    assert fired(positions="all") == [t for t in range(1, 30) if t != 15]
    assert fired(positions="all", include_sinks=True) == list(range(30))
    assert fired(positions=20) == list(range(20, 30))
    assert fired(prompt_len=1) == list(range(1, 30))


@pytest.mark.parametrize("scale", [0.0, 100.0])
@pytest.mark.parametrize("changed", [range(10), [15]], ids=["prompt", "response"])
def test_a_step_before_at_the_same_layer_makes_no_sink(scale: float, changed: Collection[int]) -> None:
    model, tokens = models.hugging_face("llama"), tokens_for("llama")
    everywhere: dict[str, Any] = {"which": "random", "positions": "all", "include_sinks": True}
    steps = [
        suppress(**everywhere, draw=lambda _, t: t in changed, scale=scale),
        suppress(which="random", draw=lambda *_: True),
    ]
    events = oracles.intervened(model, tokens, 10, steps).events
    assert [event["position"] for event in events if event["step"] == 1] == list(range(10, 30))


def test_sink_bound_is_five_lower_medians() -> None:
    assert oracles._eligible({}, [100.0, 1.0, 2.0, 3.0, 90.0, 9.9, 10.1], 5) == [5]
    assert oracles._eligible({"positions": "all"}, [100.0, 1.0, 2.0, 3.0, 90.0, 10.0, 10.1], 5) == [1, 2, 3, 5]


def alrr(**more: Any) -> dict[str, Any]:
    given = {"kind": "alrr", "layers": [2], "tau": {2: 1e-6}, "max_iters": 3, "growth_eps": -INF, "blowup": INF}
    return {**given, "alpha": 0.5, "kv": "first_pass", **more}


@pytest.mark.parametrize("kv", ["first_pass", "fresh"])
@pytest.mark.parametrize("architecture", TINY)
def test_alrr_repeats_the_block(architecture: str, kv: str) -> None:
    model, tokens = models.hugging_face(architecture), tokens_for(architecture)
    entry, written = around(model, 2, tokens)
    block = oracles.Block(model, 2, entry)
    result = oracles.intervened(model, tokens, 27, [alrr(kv=kv)])
    assert [event["position"] for event in result.events] == [27, 28, 29]
    for event in result.events:
        t = event["position"]
        h = written[t]
        with torch.no_grad():
            for _ in range(3):
                h = (h + block.output(h, t, fresh=kv == "fresh")) / 2
        assert (event["decision"], event["fired"], event["reruns"]) == ("rerun", True, 3)
        close([event["before"], event["after"]], [norms_of(written)[t], norms_of(h)])
        close(result.norms[2, t], norms_of(h))


def test_alrr_decisions() -> None:
    model, tokens = models.hugging_face("llama"), tokens_for("llama")
    entry, written = around(model, 2, tokens)
    block = oracles.Block(model, 2, entry)
    with torch.no_grad():
        again = norms_of(torch.stack([block.output(h, t) for t, h in enumerate(written)]))
    first = norms_of(written)
    grown = max(range(10, 30), key=lambda t: again[t] / first[t])
    assert again[grown] > 1.05 * first[grown]

    def at(t: int, **more: Any) -> dict[str, Any] | None:
        result = oracles.intervened(model, tokens, t, [alrr(**more)])
        return next((event for event in result.events if event["position"] == t), None)

    def decision(t: int, **more: Any) -> tuple[str, bool, int, bool]:
        event = at(t, **more)
        assert event is not None
        return event["decision"], event["fired"], event["reruns"], event["before"] == event["after"]

    tau = {2: 0.9 * first[grown]}
    middle = (first[grown] + again[grown]) / 2 / tau[2]
    assert at(grown, tau={2: INF}) is None
    assert decision(grown, tau=tau, blowup=1.05) == ("over blowup", False, 0, True)
    assert decision(grown, tau=tau, blowup=middle) == ("blew up", False, 1, True)
    assert decision(grown, tau=tau, growth_eps=INF) == ("growth too small", False, 1, True)
    assert decision(grown, tau=tau, growth_eps=again[grown] / first[grown] - 1.01, max_iters=1) == ("rerun", True, 1, False)
    assert decision(grown, max_iters=1, alpha=0.0) == ("rerun", True, 1, True)


def test_alrr_falls_below_threshold_and_compares_with_the_rerun_norm() -> None:
    model, tokens = models.hugging_face("llama"), tokens_for("llama")
    entry, written = around(model, 2, tokens)
    h, t = written[29], 29
    block = oracles.Block(model, 2, entry)

    def run(returned: list[float], **more: Any) -> tuple[Any, ...]:
        made = iter([factor * h for factor in returned])  # in place of the block's outputs, run after run
        block.output = lambda *_a, **_k: next(made)  # type: ignore[method-assign]
        n = oracles._norm(h)
        decided = oracles._alrr(alrr(tau={2: 0.95 * n}, growth_eps=0.01, **more), block, h, n, t)
        assert decided is not None
        new, decision, noted = decided
        return (None if new is None else oracles._norm(new) / n), decision, noted["reruns"]

    assert run([0.94]) == (None, "fell below threshold", 1)
    assert run([1.5, 1.4]) == (pytest.approx(1.25), "rerun", 2)  # 1.4 is growth over the mixture's 1.25, but not over 1.5
    assert run([1.5, 1.6, 1.7]) == (pytest.approx(((1 + 1.5) / 2 + 1.6) / 4 + 1.7 / 2), "rerun", 3)
    assert run([1.5, 4.0], blowup=3.0) == (pytest.approx(1.25), "rerun", 2)
    assert run([4.0], blowup=3.0) == (None, "blew up", 1)
    assert run([1.005], blowup=1.001 / 0.95) == (None, "growth too small", 1)  # asked before whether it blew up


def erss(**more: Any) -> dict[str, Any]:
    """Steers wherever it may: tau is out of reach, so that every norm is low and none joins the bank."""
    given = {"kind": "erss", "layers": [2], "tau": {2: INF}, "patience": 1, "beta": 0.5, "cooldown": 0, "bank_size": 4}
    return {**given, "cos_min": -1.0, "gamma": 1.0, "mix": "add", "draw": lambda layer, position: True, **more}


def decisions(step: dict[str, Any], prompt_len: int = 20) -> list[tuple[int, str]]:
    events = oracles.intervened(models.hugging_face("llama"), tokens_for("llama"), prompt_len, [step]).events
    assert all(event["fired"] == (event["decision"] == "steered") for event in events)
    assert all(event["fired"] or event["after"] == event["before"] for event in events)
    return [(event["position"], event["decision"]) for event in events]


def bank_of_two() -> dict[int, Tensor]:
    return {2: torch.randn(2, 48, generator=torch.Generator().manual_seed(1))}


def test_erss_waits() -> None:
    bank = bank_of_two()
    assert decisions(erss()) == [(t, "empty bank") for t in range(20, 30)]
    assert decisions(erss(bank={1: bank[2]})) == [(t, "empty bank") for t in range(20, 30)]
    assert decisions(erss(bank=bank)) == [(t, "steered") for t in range(20, 30)]
    assert decisions(erss(bank=bank, patience=3)) == [(t, "steered") for t in (22, 25, 28)]
    assert decisions(erss(bank=bank, draw=lambda layer, t: layer == 2 and t == 25)) == [
        (t, "steered" if t == 25 else "not drawn") for t in range(20, 30)
    ]
    assert decisions(erss(bank=bank, cos_min=0.99)) == [(t, "cosine too low") for t in range(20, 30)]
    assert decisions(erss(bank=bank, cooldown=3)) == [
        (t, "steered" if t in (20, 23, 26, 29) else "cooldown") for t in range(20, 30)
    ]
    assert decisions(erss(bank=bank, gamma=0.0, tau={2: 5.0})) == []


@pytest.mark.parametrize("mix", ["add", "interpolate", "authors"])
@pytest.mark.parametrize("architecture", TINY)
def test_erss_mixes(architecture: str, mix: str) -> None:
    model, tokens = models.hugging_face(architecture), tokens_for(architecture)
    bank, written, between = bank_of_two(), around(model, 2, tokens)[1], before_mlp(model, 2, tokens)
    result = oracles.intervened(model, tokens, 20, [erss(bank=bank, mix=mix)])
    assert [event["decision"] for event in result.events] == ["steered"] * 10
    for event in result.events:
        t = event["position"]
        h, r = written[t], between[t]
        cosines = torch.cosine_similarity(bank[2], h[None])
        v = bank[2][cosines.argmax()]
        truth = {"add": h + v / 2, "interpolate": (h + v) / 2, "authors": h + (v - r) / 2}[mix]
        close(event["cosine"], cosines.max().item())
        close([event["before"], event["after"], result.norms[2, t].item()], norms_of(torch.stack([h, truth, truth])))


def before_mlp(model: Any, layer: int, tokens: list[int]) -> Tensor:
    block = oracles.layers_of(model)[layer]
    names = ("ln_2", "pre_feedforward_layernorm", "post_attention_layernorm")
    norm = next(getattr(block, name) for name in names if hasattr(block, name))
    seen: list[Tensor] = []
    handle = norm.register_forward_pre_hook(lambda _m, args: seen.append(args[0][0].clone()))
    around(model, layer, tokens)
    handle.remove()
    return seen[0]


def test_erss_bank_keeps_the_largest_as_they_arrive() -> None:
    model, tokens = models.hugging_face("llama"), tokens_for("llama")
    written = around(model, 2, tokens)[1]
    norms = norms_of(written)
    step = erss(tau={2: 1e-6}, gamma=INF, bank_size=2, beta=3.0)
    result = oracles.intervened(model, tokens, 10, [step])
    assert len(result.events) == 20 and all(event["fired"] for event in result.events)
    for event in result.events:
        t = event["position"]
        bank = sorted(range(10, t + 1), key=norms.__getitem__)[-2:]
        close(event["cosine"], max(torch.cosine_similarity(written[t], written[k], dim=0).item() for k in bank))
    assert decisions({**step, "own_states": False}) == [(t, "empty bank") for t in range(20, 30)]


def test_erss_sinks_change_no_state() -> None:
    model, tokens = models.hugging_face("llama"), tokens_for("llama")
    grow = suppress(layers=[1], which="random", draw=lambda _, t: t == 21, scale=100.0)
    events = oracles.intervened(model, tokens, 20, [grow, erss(bank=bank_of_two(), patience=2)]).events
    assert [event["position"] for event in events if event["step"] == 1] == [22, 24, 26, 28]


def test_erss_remembers_per_layer() -> None:
    model, tokens = models.hugging_face("llama"), tokens_for("llama")
    bank = bank_of_two()[2]
    step = erss(layers=[1, 2], tau={1: INF, 2: INF}, bank={1: bank, 2: bank}, cooldown=30)
    events = oracles.intervened(model, tokens, 20, [step]).events
    assert [(event["layer"], event["position"]) for event in events if event["fired"]] == [(1, 20), (2, 20)]


def test_a_state_of_norm_zero_is_left_by_a_clamp_and_steered_as_at_right_angles() -> None:
    model, tokens = models.hugging_face("llama"), tokens_for("llama")
    norms = oracles.hidden_norms(model, tokens)[3]
    zeroed = suppress(which="random", draw=lambda _, t: t == 20, scale=0.0)
    tau = {2: norms[10:20].min().item() - 1e-3}
    for step in (suppress(which="low", how="clamp", tau=tau), erss(tau=tau, cos_min=0.0, mix="add", beta=1.0)):
        events = oracles.intervened(model, tokens, 10, [zeroed, step]).events
        (event,) = [event for event in events if event["step"] == 1 and event["position"] == 20]
        assert event["fired"] and event["before"] == 0 and event.get("cosine", 0) == 0
        assert (event["after"] == 0) == (step["kind"] == "suppress")
