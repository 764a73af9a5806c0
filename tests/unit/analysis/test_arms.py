"""Verdicts on arms, on outcomes that are made by hand or by chance."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from tl_l2norm.analysis.arms import (
    ALIKE,
    BASELINE,
    HARMS,
    HELPS,
    MAYBE_HARM,
    NO_HARM,
    TOO_FEW,
    Comparison,
    arm_table,
    as_read,
    baseline_notes,
    cost_table,
)
from tl_l2norm.core.errors import InputError

COSTS: dict[str, Any] = {"responses": 1, "cut_off": 0.0, "tokens": 10, "reruns": 0, "layer_passes": 120, "seconds": 0.5}


def outcomes(arms: dict[str, np.ndarray], **columns: Any) -> pd.DataFrame:
    """Arms as [problem, sample] of right and wrong."""
    entries = [
        {"arm": arm, "prompt": f"p{i:03d}", "sample": sample, "correct": bool(right[i, sample])}
        for arm, right in arms.items()
        for i, sample in np.ndindex(right.shape)
    ]
    return pd.DataFrame(entries).assign(**{"family": "sums", "level": 1, **COSTS, "seed": 0, "model": "made", **columns})


def single(n_right: int, n: int = 40, first: int = 0) -> np.ndarray:
    right = np.zeros((n, 1), dtype=bool)
    right[first : first + n_right] = True
    return right


def verdicts(arms: dict[str, np.ndarray], *comparisons: Comparison) -> dict[str, str]:
    table = arm_table(outcomes(arms), comparisons or [Comparison(arm=name, against=("plain",)) for name in list(arms)[1:]])
    return dict(zip(table["arm"], table["verdict"], strict=True))


def test_verdicts() -> None:
    arms = {"plain": single(20), "up": single(32), "down": single(8), "same": single(20), "aside": single(20, first=6)}
    assert verdicts(arms) == {"plain": BASELINE, "up": HELPS, "down": HARMS, "same": ALIKE, "aside": ALIKE}
    few = {name: right[16:23] for name, right in arms.items()}
    assert set(verdicts(few).values()) == {BASELINE, TOO_FEW}


def test_an_arm_that_does_not_beat_its_control_does_not_help() -> None:
    arms = {"plain": single(20), "control": single(31), "arm": single(32)}
    held = Comparison(arm="arm", against=("plain", "control"))
    table = arm_table(outcomes(arms), [held, Comparison(arm="control", against=("plain",))])
    mine = table[table["arm"] == "arm"]
    assert mine["against"].tolist() == ["plain", "control"] and set(mine["verdict"]) == {"helps, not beyond its control"}
    assert mine["p"].max() == 1.0 and set(mine["p_holm"]) == {1.0}
    assert table.loc[table["arm"] == "control", "verdict"].tolist() == [HELPS]
    seen = as_read(table)
    assert seen["verdict"].tolist() == [BASELINE, HELPS, "helps, not beyond its control", ""], (
        "once for each arm, in its first row"
    )
    assert seen["p_holm"].isna().tolist() == [True, False, False, True] and seen["p"].equals(table["p"])
    arms["arm"] = single(26, first=3)  # 9 better and 3 worse than the baseline
    assert verdicts(arms, held, Comparison(arm="control", against=("plain",)))["arm"] == ALIKE


def test_an_arm_without_a_control_is_not_said_to_be_within_it() -> None:
    """Three that beat the baseline and not their control leave the fourth a harder step of Holm than against the baseline."""
    often = {f"arm {i}": single(32) for i in range(3)}
    arms = {"plain": single(20), **often, "control": single(32), "alone": single(27)}
    held = [Comparison(arm=name, against=("plain", "control")) for name in often]
    alone = [Comparison(arm=name, against=("plain",)) for name in ("control", "alone")]
    table = arm_table(outcomes(arms), [*held, *alone])
    p_alone = table.loc[table["arm"] == "alone", ["p", "p_holm"]].iloc[0]
    assert p_alone["p"] < 0.05 < p_alone["p_holm"]
    assert set(table.loc[table["arm"].isin(often), "verdict"]) == {"helps, not beyond its control"}
    assert table.loc[table["arm"] == "alone", "verdict"].tolist() == [ALIKE]


def test_holm_counts_arms() -> None:
    one = {"plain": single(20), "up": single(26)}  # 6 better and none worse: p = 1/32
    assert verdicts(one)["up"] == HELPS
    assert verdicts(one | {"same": single(20)})["up"] == ALIKE


def test_no_harm_takes_enough_problems() -> None:
    claim = {"claim": "no harm", "margin": 0.1}
    for n, verdict in ((20, MAYBE_HARM), (120, NO_HARM)):
        arms = {"plain": single(n, n), "arm": single(n, n)}
        assert verdicts(arms, Comparison(arm="arm", against=("plain",), **claim))["arm"] == verdict  # type: ignore[arg-type]
    arms = {"plain": single(120, 120), "arm": single(100, 120)}
    assert verdicts(arms, Comparison(arm="arm", against=("plain",), **claim))["arm"] == MAYBE_HARM  # type: ignore[arg-type]


def test_a_table_by_level_is_that_of_each_levels_problems() -> None:
    made = outcomes({"plain": single(20), "up": single(32)})
    made["level"] = [1 + (int(prompt[1:]) >= 20) for prompt in made["prompt"]]
    table = arm_table(made, [Comparison(arm="up", against=("plain",))], by="level")
    assert table["level"].tolist() == [1, 1, 2, 2] and table["accuracy"].tolist() == [1.0, 1.0, 0.0, 0.6]
    whole = arm_table(made, [Comparison(arm="up", against=("plain",))])
    assert whole["difference"].tolist()[1] == pytest.approx(table["difference"].dropna().mean())


def test_nothing_hangs_on_the_order_of_outcomes() -> None:
    rng = np.random.default_rng(3)
    made = outcomes({"plain": rng.random((12, 4)) < 0.4, "other": rng.random((12, 4)) < 0.6})
    other_order = pd.concat(own.sample(frac=1, random_state=1) for _, own in made.groupby("arm", sort=False))
    held = [Comparison(arm="other", against=("plain",))]
    pd.testing.assert_frame_equal(arm_table(made, held), arm_table(other_order, held))


@pytest.fixture(scope="module")
def null_runs() -> list[pd.DataFrame]:
    """Runs in which nothing helps: two choices at random among the baseline's responses, and two arms that are as good."""
    rng, tables = np.random.default_rng(17), []
    held = [Comparison(arm=f"choice {i}", against=("plain",), chosen_from=frozenset({"plain"})) for i in range(2)]
    held += [Comparison(arm=f"arm {i}", against=("plain",)) for i in range(2)]
    for _ in range(200):
        right = rng.beta(2.0, 0.7, size=(30, 1))  # most problems are mostly right: differences are skewed
        plain = rng.random((30, 4)) < right
        arms = {"plain": plain} | {f"arm {i}": rng.random((30, 4)) < right for i in range(2)}
        arms |= {f"choice {i}": plain[np.arange(30), rng.integers(4, size=30)][:, None] for i in range(2)}
        tables.append(arm_table(outcomes(arms), held, resamples=199))
    return tables


def test_where_nothing_helps_no_arm_is_called_helpful_in_more_than_seven_of_a_hundred_runs(
    null_runs: list[pd.DataFrame],
) -> None:
    called = [set(table.loc[table["verdict"].isin([HELPS, HARMS]), "arm"]) for table in null_runs]
    assert len(called) == 200 and sum(map(bool, called)) <= 14
    raw = np.array([table["p"].dropna() for table in null_runs])
    assert raw.shape == (200, 4) and ((raw <= 0.05).mean(0) <= 0.08).all() and (raw <= 0.05).any()  # a test that can't fail?


def test_a_choice_that_knows_is_found() -> None:
    rng = np.random.default_rng(5)
    plain = rng.random((40, 4)) < 0.4
    arms = {"plain": plain, "knows": plain.any(1)[:, None]}
    held = Comparison(arm="knows", against=("plain",), chosen_from=frozenset({"plain"}))
    assert verdicts(arms, held)["knows"] == HELPS


def test_costs_are_means_over_answers() -> None:
    made = outcomes({"plain": single(2, 4), "dear": single(2, 4)})
    made.loc[made["arm"] == "dear", ["tokens", "reruns", "layer_passes"]] = [20, 60, 300]
    costs = cost_table(made).set_index("arm")
    assert costs.loc["dear", ["tokens", "reruns", "times"]].tolist() == [20, 60, 2.5] and costs.loc["plain", "times"] == 1


def test_what_can_not_be_judged_is_refused() -> None:
    made = outcomes({"plain": single(2, 4), "arm": single(2, 4)})
    held = [Comparison(arm="arm", against=("plain",))]
    with pytest.raises(InputError, match="lacks 1 of the 4 problems"):
        arm_table(made.iloc[:-1], held)
    with pytest.raises(InputError, match="give any of family, level"):
        arm_table(made, held, by="arm")
    with pytest.raises(InputError, match=r"no outcomes of the arms \['nobody'\]"):
        arm_table(made, [Comparison(arm="arm", against=("nobody",))])
    with pytest.raises(InputError, match="no outcomes given"):
        arm_table(made.iloc[:0], held)


def test_a_single_response_is_held_against_the_mean_of_several_by_dealing_them_anew() -> None:
    right = np.ones((20, 8), dtype=bool)
    right[:11, 0] = False  # 93% of all: one response to each problem has no loss in one run of four
    arms = {"plain": right, "greedy": np.ones((20, 1), dtype=bool)}
    table = arm_table(outcomes(arms), [Comparison(arm="greedy", against=("plain",))])
    own = table.set_index("arm").loc["greedy"]
    assert own["test"] == "sign flips, dealt anew" and own["verdict"] == ALIKE
    assert own["difference_low"] < 0 < own["difference"]


@pytest.mark.parametrize(
    ("n_right", "says"), [(7, "gets 18% right, and little is left to lose"), (8, ""), (36, ""), (37, "little is left to win")]
)
def test_a_baseline_that_leaves_no_room_is_told_of(n_right: int, says: str) -> None:
    table = arm_table(outcomes({"plain": single(n_right), "arm": single(20)}), [Comparison(arm="arm", against=("plain",))])
    assert [says in note for note in baseline_notes(table)] == [True] * bool(says)
