"""Hooks: ours never outlive their context, the user's are never touched."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tl_l2norm as l2
from tests import models
from tests.texts import ids
from tl_l2norm.experiments.selfcheck import count_hooks
from tl_l2norm.models.backends import backend_of
from tl_l2norm.models.hooks import attached


@pytest.mark.parametrize("fault", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("call", ["collect", "generate"])
def test_a_fault_leaves_no_hook_and_the_users_own_still_work(tiny: Any, fault: type[BaseException], call: str) -> None:
    backend = backend_of(tiny)
    truth = l2.collect(tiny, [ids("Hello there, world")])[0]
    heard: list[int] = []

    def user(tensor: torch.Tensor, hook: Any) -> None:
        heard.append(tensor.shape[1])
        if len(heard) == 3:
            raise fault("in the user's hook")

    backend.resid_post(2).add_hook(user)
    try:
        before = count_hooks(tiny)
        run = {
            "collect": lambda: [l2.collect(tiny, [ids("I")]) for _ in range(5)],
            "generate": lambda: l2.generate(tiny, [ids("I")]),
        }
        with pytest.raises(fault):
            run[call]()
        assert count_hooks(tiny) == before == 1
        tiny(torch.tensor([ids("I")]))
        assert len(heard) == 4, "the user's hook still hears"
    finally:
        tiny.reset_hooks()
    again = l2.collect(tiny, [ids("Hello there, world")])[0]
    assert torch.equal(again.l2_norms, truth.l2_norms)


def test_contexts_that_do_not_nest_remove_their_own_hooks(tiny: Any) -> None:
    point = backend_of(tiny).resid_post(1)
    heard: list[str] = []

    def hears(name: str) -> Any:
        return lambda tensor, hook: heard.append(name)

    first, second = attached([(point, hears("first"))]), attached([(point, hears("second"))])
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    tiny(torch.tensor([[5, 6]]))
    assert heard == ["second"]
    second.__exit__(None, None, None)
    tiny(torch.tensor([[5, 6]]))
    assert heard == ["second"]


def test_a_user_who_resets_hooks_inside_is_told(tiny: Any) -> None:
    backend = backend_of(tiny)

    def reset(tensor: torch.Tensor, hook: Any) -> None:
        tiny.reset_hooks()

    backend.resid_post(0).add_hook(reset)
    try:
        with pytest.raises(RuntimeError, match="reset_hooks"):
            l2.collect(tiny, [[5, 6, 7]])
    finally:
        tiny.reset_hooks()
    assert count_hooks(tiny) == 0


def test_the_recorder_sees_what_the_next_block_reads(tiny: Any) -> None:
    """A user's hook that changes the stream is heard before the recorder."""
    backend = backend_of(tiny)
    plain = l2.collect(tiny, [[5, 6, 7]])[0]
    backend.resid_post(1).add_hook(lambda tensor, hook: tensor * 3)
    try:
        changed = l2.collect(tiny, [[5, 6, 7]])[0]
    finally:
        tiny.reset_hooks()
    assert torch.equal(changed.at(0), plain.at(0))
    assert torch.allclose(changed.at(1), 3 * plain.at(1), rtol=1e-6)


def test_nothing_of_size_d_model_is_kept(tiny: Any) -> None:
    trace = l2.collect(tiny, [list(range(5, 60))])[0]
    held = sum(
        v.untyped_storage().nbytes() for f in trace.__dataclass_fields__ if isinstance(v := getattr(trace, f), torch.Tensor)
    )
    n_pos, n_layers = 55, backend_of(tiny).n_layers
    assert held == n_pos * (8 + 4 + (4 + 1) * n_layers) + 4 * n_layers  # tokens, embedding, norms and sinks, bounds


@pytest.mark.skipif(not models.HAS_HOOKED, reason="TransformerLens 4 has no HookedTransformer")
def test_both_backends_record_the_same() -> None:
    both = [l2.collect(models.use(models.Case("qwen3", b)), [ids("The same weights, twice.")])[0] for b in ("bridge", "hooked")]
    assert torch.allclose(both[0].l2_norms, both[1].l2_norms, rtol=1e-4)
    assert torch.equal(both[0].is_sink, both[1].is_sink)
