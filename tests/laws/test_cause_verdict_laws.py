"""How often the claims of causes are said to be supported: of nothing, of mere drift, types and doses, and of what is planted.

Few runs here; `python -m benchmarks.rates` runs hundreds.
"""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
from scipy.stats import binom

from tests.slow import slow_but
from tests.worlds import World
from tl_l2norm.analysis.causal import causal_differences, causal_table
from tl_l2norm.analysis.pressure_correlation import pressure_table
from tl_l2norm.analysis.pull import pull_link
from tl_l2norm.paper.finding import SUPPORTED, UNINFORMATIVE, UNTESTED, Finding, Known
from tl_l2norm.paper.rules import causes

FALSE, FOUND = 0.07, 0.9
FEW = 10


class Tables(Known):
    """Tables as they are, without the columns that an analysis adds."""

    def __getitem__(self, name: str) -> pd.DataFrame:
        return self._tables[name]


def of_pull(world: World, seed: int) -> Finding:
    pressures = world.pressures(seed)
    links = pull_link(pressures, seed=seed, shifts=199, resamples=500)
    return causes.pressure(Tables({"pressure": pressure_table(pressures, resamples=20), "pull_links": links}, {}))


def of_suppression(world: World, seed: int) -> Finding:
    outcomes = world.outcomes(seed)
    differences = causal_differences(outcomes, seed=seed, resamples=500)
    return causes.suppression(Tables({"causal": causal_table(outcomes), "causal_differences": differences}, {}))


def verdicts(finding: object, world: World, runs: int) -> list[str]:
    found = [finding(world, seed) for seed in range(runs)]  # type: ignore[operator]
    return [one.verdict(one.p) for one in found]


def is_rare(said: int, runs: int) -> bool:
    """No more than chance allows, one time in a thousand, where the rate is 7%."""
    return said <= binom.ppf(0.999, runs, FALSE)


def is_usual(said: int, runs: int) -> bool:
    return said >= binom.ppf(0.001, runs, FOUND)


SMOOTH = {"autocorrelation": 0.8}
PULL_NULLS = {
    "norms and pulls of their own": World(n=24, types=0, position=0, length=0),
    "boring: types, position, length": World(n=24),
    "autocorrelated": World(n=24, **SMOOTH),  # type: ignore[arg-type]
    "drift that is all there is": World(n=24, position=2.0, token=0.5, **SMOOTH),  # type: ignore[arg-type]
    "first occurrences": World(n=24, first=1.0),
    "few prompts, short": World(n=10, thinking=(16, 30), position=0.5, **SMOOTH),  # type: ignore[arg-type]
}
PULL_PLANTED = {
    "the state that predicts": World(n=60, pull=0.4, **SMOOTH),  # type: ignore[arg-type]
    "the token as it is read back": World(n=60, pull_back=0.4, **SMOOTH),  # type: ignore[arg-type]
}
CLOSE = {"n": 100, "prompts": 0.5, "layers": 1}
SUPPRESSION_NULLS = {
    "nothing does harm": World(**CLOSE),  # type: ignore[arg-type]
    "boring: prompts of unlike norms, every change harms a little": World(n=100, harm=0.02),
    "every change harms": World(harm=0.05, **CLOSE),  # type: ignore[arg-type]
    "loud types do harm": World(type_harm=0.3, **CLOSE),  # type: ignore[arg-type]
    "early tokens do harm": World(late_harm=0.15, position=-0.5, **CLOSE),  # type: ignore[arg-type]
    "first occurrences are louder and do harm": World(first=3.0, first_harm=0.15, harm=0.003, **CLOSE),  # type: ignore[arg-type]
    "unlike doses": World(harm=0.05, random_length=0.5, **CLOSE),  # type: ignore[arg-type]
}
SUPPRESSION_PLANTED = World(n=120, prompts=0.5, layers=1, norm_harm=0.2, harm=0.003)
SUPPRESSION_SEEN = replace(SUPPRESSION_PLANTED, n=200, norm_harm=0.3)
"""With as many prompts as it takes to find such an effect in nine of ten."""


@pytest.mark.parametrize("name", PULL_NULLS)
def test_norms_that_dont_record_the_pull_are_rarely_said_to(name: str) -> None:
    assert is_rare(verdicts(of_pull, PULL_NULLS[name], FEW).count(SUPPORTED), FEW)


@pytest.mark.parametrize("name", PULL_PLANTED)
def test_norms_that_record_the_pull_are_found(name: str) -> None:
    assert is_usual(verdicts(of_pull, PULL_PLANTED[name], FEW).count(SUPPORTED), FEW)


def test_a_norm_of_its_own_has_the_pressure_against_it_and_not_the_pull() -> None:
    """What dL/dh holds of 1 / ||h||, where nothing else is to be seen."""
    pressures = World(n=24, types=0, position=0, length=0, token=60).pressures(0)
    pressures = pressures[pressures["l2_norm"] > 20].assign(pull=lambda x: x["pull"] ** 0.2)
    table = pressure_table(pressures.assign(pressure=lambda x: x["pull"] / x["l2_norm"]), resamples=50)
    rho = table[table["scope"] == "tokens"].set_index(["quantity", "against"])["rho"]
    assert rho["pressure", "l2_norm"] < -0.5 and abs(rho["pull", "l2_norm"]) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_but(list(SUPPRESSION_NULLS)[1:3], SUPPRESSION_NULLS))
def test_suppression_that_harms_for_other_reasons_is_rarely_put_down_to_norms(name: str) -> None:
    assert is_rare(verdicts(of_suppression, SUPPRESSION_NULLS[name], FEW).count(SUPPORTED), FEW)


@pytest.mark.slow
def test_where_both_arms_collapse_nothing_is_said() -> None:
    said = verdicts(of_suppression, World(harm=0.4, **CLOSE), FEW)  # type: ignore[arg-type]
    assert said.count(UNINFORMATIVE) >= 0.9 * FEW and is_rare(said.count(SUPPORTED), FEW)


@pytest.mark.slow
def test_unlike_doses_cant_be_tested() -> None:
    said = verdicts(of_suppression, SUPPRESSION_NULLS["unlike doses"], FEW)
    assert said.count(UNTESTED) >= 0.9 * FEW


@pytest.mark.slow
def test_high_norms_that_matter_are_found() -> None:
    assert is_usual(verdicts(of_suppression, SUPPRESSION_SEEN, FEW).count(SUPPORTED), FEW)
