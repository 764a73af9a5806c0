import numpy as np
import pytest
from scipy.sparse import csr_array

from tests.planted import both_modes, response
from tests.worlds import World
from tl_l2norm.analysis.covariates import Projection, indicators, occurrence, smooth
from tl_l2norm.analysis.deconfounding import _of_all, mode_effects


def test_how_often_an_id_occurred_before() -> None:
    assert occurrence(np.array([5, 7, 5, 5, 7]), np.zeros(5, dtype=int), most=9).tolist() == [0, 0, 1, 2, 1]


def test_columns_put_beside_others_explain_what_they_explain_together() -> None:
    rng = np.random.default_rng(0)
    group, weight, y = rng.integers(0, 5, 80), rng.random(80) + 0.1, rng.normal(size=80)
    index = np.arange(80) % 17
    blocks = smooth(index), indicators(index), indicators(group)  # collinear among themselves and with the first
    whole = Projection.on(indicators(group), *blocks, root_weight=weight)
    beside = Projection.on(indicators(group), root_weight=weight).beside(*blocks, root_weight=weight)
    np.testing.assert_allclose(beside.rest(y), whole.rest(y), atol=1e-9)
    assert beside.rank == whole.rank == 21
    nothing = beside.beside(csr_array(indicators(group)), root_weight=weight)
    np.testing.assert_allclose(nothing.rest(y), whole.rest(y), atol=1e-9)


def test_an_effect_is_what_every_fit_says() -> None:
    def entry(effect: float, p: float) -> dict[str, float]:
        return {"effect": effect, "low": effect - 1, "high": effect + 1, "p": p, "p_max": 2 * p, "tolerance": p}

    assert _of_all([entry(3.0, 0.01), entry(2.0, 0.02)]) == {
        "effect": 2, "low": 1, "high": 4, "p": 0.02, "p_max": 0.04, "tolerance": 0.01
    }  # fmt: skip
    opposite = _of_all([entry(3.0, 0.01), entry(-2.0, 0.02)])
    assert (opposite["effect"], opposite["low"], opposite["high"]) == (-2, -3, 4)
    assert opposite["p"] == opposite["p_max"] == 1


def test_a_drift_over_the_sequence_is_not_mode_where_prompts_differ_in_length() -> None:
    """Without noise: 20 tokens make 2, as the fit by index in the response has it, at the interval's other end."""

    def make(i: int, mode: str) -> object:
        rng = np.random.default_rng([i, mode == "think"])
        begin, k = 60 + 3 * i + 20 * (mode == "think"), int(rng.integers(15, 45))
        norms = np.tile(100 + 0.1 * (begin + np.arange(k)), (4, 1))
        return response(norms, prompt=str(i), mode=mode, tokens=rng.integers(0, 5, k), prompt_len=begin)

    entry = mode_effects(*both_modes(16, make), layers=-1, flips=99).iloc[0]  # type: ignore[arg-type]
    assert abs(entry["effect"]) < 0.04 and entry["low"] <= 0 and entry["high"] >= 1.9


@pytest.mark.parametrize("tokens", ["read", "chosen"])
def test_tokens_and_prompts_are_counted_once_however_many_ways_places_are(tokens: str) -> None:
    table = mode_effects(*World(n=12, answers=5).make(0), flips=19, tokens=tokens)  # type: ignore[arg-type]
    assert (table["n"] == 12).all() and table["n_tokens"].nunique() == 1 and (table["low"] <= table["high"]).all()
