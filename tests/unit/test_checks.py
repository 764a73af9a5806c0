from typing import Any

import torch

import tl_l2norm as l2
from tl_l2norm.backends import backend_of
from tl_l2norm.checks import count_hooks


def test_a_sound_model_passes(model: Any) -> None:
    found = l2.selfcheck(model)
    assert found.passed, str(found)
    ours = ["norms", "cache", "batch", "logits", "logit lens"]
    assert [c.name for c in found.checks] == [*ours, "file: norms", "file: logits", "file: turn ends", "hooks left"]
    assert found.compared
    assert "pass" in str(found) and "<table" in found._repr_html_()


def test_a_model_whose_states_depend_on_the_length_of_the_pass_fails_where_it_should(tiny: Any) -> None:
    def odd(tensor: torch.Tensor, hook: Any) -> torch.Tensor:
        return tensor * (1 + 0.1 * tensor.shape[1])

    backend_of(tiny).resid_post(0).add_hook(odd)
    try:
        found = l2.selfcheck(tiny)
    finally:
        tiny.reset_hooks()
    failed = {c.name for c in found.checks if not c.passed}
    assert {"cache", "batch"} <= failed and "logits" not in failed and "hooks left" not in failed
    assert not found.passed and "FAIL" in str(found)
    assert count_hooks(tiny) == 0
