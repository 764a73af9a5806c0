import numpy as np
import pytest

from tests.planted import both_modes, response
from tl_l2norm.analysis.high_norm import high_norm_tokens
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
