import dataclasses

import numpy as np
import pytest
import torch

from tests.planted import both_modes, response
from tests.worlds import World
from tl_l2norm.analysis.high_norm import high_norm_effect, high_norm_tokens
from tl_l2norm.core.errors import InputError, Unmeasurable
from tl_l2norm.core.trace import Trace


def test_the_kinds_of_the_highest_tokens_by_hand() -> None:
    """Eight tokens beside the prompts: four of thinking, its answer, three of the direct answer. Two are the top quarter."""

    def make(i: int, mode: str) -> Trace:
        norms = [5.0, 6, 7, 8, 9] if mode == "think" else [1.0, 2, 3]
        trace = response(np.array([norms] * 4), prompt=str(i), mode=mode)
        is_sink = trace.is_sink.clone()
        is_sink[:, 0] = True  # the prompt's huge token must not count
        return response(np.array([norms] * 4), prompt=str(i), mode=mode, is_sink=is_sink)

    table = high_norm_tokens(*both_modes(8, make), share=0.25, resamples=50).set_index("kind")
    assert table["overall"].to_dict() == {"prompt": 0, "thinking": 0.5, "answer": 0.125, "direct": 0.375}
    assert table["among_top"].to_dict() == {"prompt": 0, "thinking": 0.5, "answer": 0.5, "direct": 0}
    assert (table["low"] == table["excess"]).all() and table.loc["answer", "excess"] == 0.375
    with pytest.raises(ValueError, match="7 prompts: at least 8"):
        high_norm_tokens(*both_modes(7, make))


def test_tokens_of_one_norm_share_the_top_whatever_their_order() -> None:
    def make(i: int, mode: str) -> Trace:
        trace = response(np.full((4, 6 if mode == "think" else 3), 57.3), prompt=str(i), mode=mode)
        return dataclasses.replace(trace, l2_norms=torch.full_like(trace.l2_norms, 57.3))

    table = high_norm_tokens(*both_modes(8, make), share=0.25, resamples=50)
    np.testing.assert_allclose(table["among_top"], table["overall"])
    np.testing.assert_allclose(table["excess"], 0, atol=1e-12)


def test_without_any_response_there_is_nothing_to_compare() -> None:
    think, direct = both_modes(8, lambda i, mode: response(np.ones((4, 0)), prompt=str(i), mode=mode))
    with pytest.raises(Unmeasurable, match="0 prompts have tokens"):
        high_norm_effect(think, direct)
    silent = [dataclasses.replace(t, is_sink=torch.ones_like(t.is_sink)) for t in (*think, *direct)]
    with pytest.raises(Unmeasurable, match="nothing to rank"):
        high_norm_tokens(silent[:8], silent[8:])


def test_a_prompt_without_a_direct_response_is_left_out() -> None:
    """Its thinking tokens would be all there is, and so most of the top."""

    def make(i: int, mode: str) -> Trace:
        norms = np.tile([[5.0, 6, 7, 8, 9]] if mode == "think" else [[1.0, 2, 3]], (4, 1))
        return response(norms[:, : 0 if mode == "direct" and i < 2 else None], prompt=str(i), mode=mode)

    think, direct = both_modes(11, make)
    table, whole = (high_norm_tokens(t, d, resamples=50) for t, d in ((think, direct), (think[2:], direct[2:])))
    assert (table["n"] == 9).all()
    assert table.drop(columns=["low", "high"]).equals(whole.drop(columns=["low", "high"]))
    with pytest.raises(Unmeasurable, match="7 prompts whose responses both have a token that has a norm.*at least 8"):
        high_norm_tokens(think[:9], direct[:9])


def test_an_infinite_norm_is_refused_but_at_a_sink() -> None:
    think, direct = World(n=12).make(0)
    norms, is_sink = think[0].l2_norms.clone(), think[0].is_sink.clone()
    norms[:, 3], is_sink[:, 3] = torch.inf, True
    sink = dataclasses.replace(think[0], l2_norms=norms, is_sink=is_sink)
    assert high_norm_effect([sink, *think[1:]], direct, flips=19)["p"].notna().all()
    with pytest.raises(InputError, match="is infinite"):
        high_norm_effect([dataclasses.replace(think[0], l2_norms=norms), *think[1:]], direct)
