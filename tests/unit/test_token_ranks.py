import numpy as np
import pandas as pd
import pytest

from tests.planted import both_modes, response
from tl_l2norm.analysis.token_ranks import high_norm_tokens, pressure_table
from tl_l2norm.trace import Trace


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


def pulls(pull: list[float], p: list[float], norm: list[float]) -> pd.DataFrame:
    rows = {"pressure": pull, "p_true": p, "l2_norm": norm, "position": range(len(pull)), "is_sink": False}
    return pd.concat([pd.DataFrame(rows).assign(mode="think", prompt=str(i), sequence=i) for i in range(8)])


def test_the_pull_goes_against_the_probability_and_with_the_norm_by_hand() -> None:
    up, zigzag = [float(i) for i in range(8)], [0.0, 1, 0.5, 2, 1.5, 3, 2.5, 4]
    table = pressure_table(pulls(zigzag, [-x for x in zigzag], up), resamples=50).set_index(["quantity", "against", "scope"])
    assert table.loc[("pressure", "p_true", "tokens"), "rho"] == pytest.approx(-1)
    # ranks 0 2 1 4 3 6 5 7 against 0 to 7: 1 - 6 * 6 / (8 * 63)
    assert table.loc[("pressure", "l2_norm", "tokens"), "rho"] == pytest.approx(1 - 36 / 504)
    assert np.isnan(table.loc[("pressure", "l2_norm", "prompts"), "rho"]), "all prompts are the same"
    assert (table.loc[("pressure", "p_true", "partial"), "rho"]) == pytest.approx(-1)
    with pytest.raises(ValueError, match="lacks \\['mode'"):
        pressure_table(pulls(up, up, up).drop(columns="mode"))
