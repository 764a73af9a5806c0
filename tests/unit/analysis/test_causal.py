from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t

from tl_l2norm.analysis.accuracy import wilson_interval
from tl_l2norm.analysis.causal import ARMS, causal_differences, causal_table
from tl_l2norm.core.errors import InputError

QUANTILES = (0.9, 0.5)


def outcomes(right: dict[str, list[list[bool]]], **columns: object) -> pd.DataFrame:
    """Of each arm, [quantile][problem] whether it was right."""
    entries = [
        {
            "arm": arm,
            "quantile": QUANTILES[q] if arm != "none" else np.nan,
            "draw": 0,
            "prompt": f"p{i}",
            "correct": correct,
            "positions": 2 * q + i,
            "events": 4 * q + 2,
            "tokens": 10 + i,
            "cut_off": i == 0,
            "seed": 7,
            "model": "by hand",
        }
        for arm, by_quantile in right.items()
        for q, per_problem in enumerate(by_quantile)
        for i, correct in enumerate(per_problem)
    ]
    return pd.DataFrame(entries).assign(**columns)


NONE = [[True] * 9 + [False]]
HIGH = [[True] * 5 + [False] * 5, [False] * 10]
RANDOM = [[True] * 8 + [False] * 2, [True] * 6 + [False] * 4]


def test_accuracy_of_each_arm_by_hand() -> None:
    accuracies = causal_table(outcomes({"none": NONE, "paired": HIGH, "random": RANDOM}))
    assert accuracies["arm"].tolist() == ["none", "paired", "paired", "random", "random"]
    assert accuracies["quantile"].tolist()[1:] == [0.9, 0.5, 0.9, 0.5] and np.isnan(accuracies["quantile"][0])
    assert accuracies["accuracy"].tolist() == [0.9, 0.5, 0.0, 0.8, 0.6]
    assert [(r.low, r.high) for r in accuracies.itertuples()] == [wilson_interval(k, 10) for k in (9, 5, 0, 8, 6)]
    assert accuracies["positions"].tolist() == [4.5, 4.5, 6.5, 4.5, 6.5] and accuracies["events"].tolist() == [2, 2, 6, 2, 6]
    assert accuracies["tokens"].tolist() == [14.5] * 5 and accuracies["cut_off"].tolist() == [0.1] * 5
    assert (accuracies["n"] == 10).all() and (accuracies["seed"] == 7).all() and (accuracies["model"] == "by hand").all()
    assert accuracies["what"].tolist() == [ARMS[arm] for arm in accuracies["arm"]]


def test_differences_are_paired_by_problem_at_each_quantile_and_over_all() -> None:
    differences = causal_differences(outcomes({"none": NONE, "paired": HIGH, "random": RANDOM}))
    assert differences[["arm", "against"]].drop_duplicates().to_numpy().tolist() == [
        ["paired", "random"],
        ["paired", "none"],
        ["random", "none"],
    ]
    differences = differences[differences["against"] == "random"]
    by_quantile = differences.set_index("quantile")["difference"]
    assert by_quantile[0.9] == pytest.approx(-0.3) and by_quantile[0.5] == pytest.approx(-0.6)
    assert differences["difference"][differences["quantile"].isna()].tolist() == [pytest.approx(-0.45)]
    assert (
        (differences["n"] == 10).all()
        and (differences["low"] <= differences["difference"]).all()
        and (differences["high"] >= differences["difference"]).all()
    )


def test_how_many_positions_either_arm_changed_stands_beside_the_difference() -> None:
    table = outcomes({"paired": HIGH, "random": RANDOM})
    table.loc[table["arm"] == "random", "positions"] = [1] * 10 + [2] * 9 + [12]
    differences = causal_differences(table).set_index("quantile")[["positions", "against_positions", "dose", "thresholds"]]
    assert differences.loc[0.9].tolist() == [4.5, 1, 1 / 4.5, 1] and differences.loc[0.5].tolist() == [6.5, 3, 3 / 6.5, 1]
    assert differences.loc[np.nan].tolist() == [5.5, 2, 2 / 5.5, 2], "the dose is short at both, so both count"


def test_over_the_thresholds_only_those_count_at_which_the_random_arm_has_the_dose() -> None:
    table = outcomes({"none": NONE, "paired": HIGH, "random": RANDOM, "low": RANDOM})
    for events in (3, 8):
        table.loc[(table["arm"] == "random") & (table["quantile"] == 0.5), "events"] = events
        assert causal_differences(table).query("quantile == 0.5 and arm == 'paired'")["dose"].iloc[0] == events / 6
    table.loc[(table["arm"] == "random") & (table["quantile"] == 0.9), "events"] = 1
    table.loc[(table["arm"] == "paired") & (table["quantile"] == 0.9), "events"] = 1
    whole = causal_differences(table).query("quantile.isna()").set_index(["arm", "against"])
    assert whole.loc[("paired", "random"), ["difference", "dose", "thresholds"]].tolist() == [pytest.approx(-0.3), 1, 1]
    assert whole.loc[("random", "none"), ["difference", "thresholds"]].tolist() == [pytest.approx(-0.1), 1]
    table.loc[table["arm"] == "paired", "events"] = 0
    assert causal_differences(table)["dose"].isna().all(), "nothing was changed"


def test_the_mean_over_draws_is_compared() -> None:
    first = outcomes({"none": NONE, "paired": HIGH, "random": RANDOM})
    second = outcomes({"random": HIGH}).assign(draw=1, positions=100)
    both = pd.concat([first, second])
    whole = causal_differences(both).query("quantile.isna()").set_index(["arm", "against"])
    assert whole.loc[("paired", "random"), "difference"] == pytest.approx(-0.45 / 2)
    assert whole.loc[("paired", "random"), "against_positions"] == (5.5 + 100) / 2
    random = causal_table(both).set_index(["arm", "quantile"]).loc[("random", 0.9)]
    assert random[["accuracy", "n", "draws"]].tolist() == [pytest.approx(0.65), 10, 2]


def test_p_values_by_hand() -> None:
    arms = {"none": [[True] * 10], "paired": [[True] * 4 + [False] * 6] * 2, "random": [[True] * 10] * 2}
    whole = causal_differences(outcomes(arms)).query("quantile.isna()").set_index(["arm", "against"])
    assert whole.loc[("paired", "random"), "p"] == 2 / 2**6, "six problems that differ, of which all are as far out"
    # losses 0 ten times and 1 once: mean 1/11, standard error 1/11: t = (1/11 - 0.1) * 11 = -0.1
    assert whole.loc[("random", "none"), "p_margin"] == pytest.approx(t.cdf(-0.1, 10))
    assert whole.loc[("paired", "none"), "p_margin"] > 0.9 and np.isnan(whole.loc[("paired", "random"), "p_margin"])
    lost = causal_differences(outcomes({"none": [[True] * 10], "random": [[False] * 10]}))
    assert (lost["p_margin"] == 1).all()


def test_the_same_problems_right_in_both_arms_leave_the_doubt_of_so_few() -> None:
    """10 that agree don't say that 1 in 10 never differs: at 0 of n the score interval ends at z^2 / (n + z^2). Without the
    pairing, 5 of 10 against 5 of 10 would end at 0.4."""
    differences = causal_differences(outcomes({"paired": HIGH, "random": HIGH}))
    assert (differences["difference"] == 0).all()
    ends = differences[["low", "high"]].abs().to_numpy()
    np.testing.assert_allclose(ends, 1.96**2 / (10 + 1.96**2), atol=1e-4)


def test_pairing_is_by_problem_not_by_order() -> None:
    table = outcomes({"paired": HIGH, "random": RANDOM})
    mixed = table.sample(frac=1, random_state=0)
    differences, again = (causal_differences(t).sort_values("quantile", ignore_index=True) for t in (table, mixed))
    pd.testing.assert_frame_equal(differences, again)


def test_every_comparison_whose_arms_are_there_is_made() -> None:
    arms = dict.fromkeys(("paired", "random", "high", "low", "swap", "swap random"), HIGH)
    differences = causal_differences(outcomes(arms))
    pairs = list(dict.fromkeys(zip(differences["arm"], differences["against"], strict=True)))
    assert pairs == [("paired", "random"), ("high", "low"), ("swap", "swap random")] and len(differences) == 9
    against_none = causal_differences(outcomes({"none": NONE, **arms}))
    assert against_none.query("against == 'none'")["arm"].unique().tolist() == [
        "paired",
        "random",
        "high",
        "swap",
        "swap random",
    ]
    assert causal_differences(outcomes({"none": NONE, "low": HIGH})).empty


def test_what_is_not_an_outcome_table_is_refused() -> None:
    table = outcomes({"paired": HIGH, "random": RANDOM})
    with pytest.raises(ValueError, match=r"the table of outcomes lacks the columns \['arm', 'correct'\].*suppress_and_ask"):
        causal_table(table.drop(columns=["arm", "correct"]))
    with pytest.raises(ValueError, match="no outcomes given"):
        causal_table(table.iloc[:0])
    with pytest.raises(ValueError, match="7 problems: at least 8"):
        causal_differences(outcomes({"paired": [entry[:7] for entry in HIGH], "random": [entry[:7] for entry in RANDOM]}))


def test_outcomes_that_are_given_twice_are_refused() -> None:
    once = outcomes({"none": NONE, "paired": HIGH, "random": RANDOM})
    for twice in (pd.concat([once, once]), pd.concat([once, once.iloc[:1]]), pd.concat([once, once[once["arm"] == "paired"]])):
        for table in (causal_table, causal_differences):
            with pytest.raises(ValueError, match="twice: give those of one run"):
                table(twice)


def test_outcomes_of_two_models_and_answers_that_are_neither_right_nor_wrong_are_refused() -> None:
    table = outcomes({"high": HIGH})
    for make in (causal_table, causal_differences):
        with pytest.raises(ValueError, match="the outcomes are of 2 models, by hand, another: give those of one"):
            make(pd.concat([table, outcomes({"random": RANDOM}, model="another")]))
        with pytest.raises(ValueError, match="the table of outcomes: correct has missing values"):
            make(table.assign(correct=[np.nan, *table["correct"][1:]]))


ONE_RUN = outcomes({"none": NONE, "paired": HIGH, "random": RANDOM})
TWO_DRAWS = pd.concat([ONE_RUN, outcomes({"random": HIGH}).assign(draw=1)], ignore_index=True)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (ONE_RUN.assign(arm=ONE_RUN["arm"].str.capitalize()), "unknown arm 'None': arms are compared by name, one of 'none'"),
        (pd.concat([ONE_RUN, outcomes({"random": HIGH}).assign(draw=1, seed=8)]), "the outcomes are of 2 seeds, 7, 8: give"),
        (ONE_RUN.assign(seed=None), "the table of outcomes: seed is missing in 50 of 50 entries"),
        (ONE_RUN.assign(positions=ONE_RUN["positions"].where(ONE_RUN.index > 0)), "positions is missing in 1 of 50 entries"),
        (ONE_RUN.assign(positions=np.inf), "positions is how many, 0 or more, got inf in 50 outcomes"),
        (ONE_RUN.assign(events=-1), "events is how many, 0 or more, got -1"),
        (ONE_RUN.assign(correct=ONE_RUN["correct"] / 2), "correct is 0 or 1, False or True, got 0.5"),
        (ONE_RUN.assign(prompt=ONE_RUN["prompt"].where(ONE_RUN["prompt"] != "p3")), "prompt is missing in 5 outcomes"),
        (ONE_RUN.assign(arm=ONE_RUN["arm"].where(ONE_RUN["arm"] != "none")), "arm is missing in 10 outcomes"),
        (ONE_RUN.assign(prompt=[[1]] * len(ONE_RUN)), r"prompt holds \[1\], which is no single value"),
        (
            ONE_RUN.assign(quantile=ONE_RUN["quantile"].where((ONE_RUN["arm"] != "paired") | (ONE_RUN["quantile"] < 0.7))),
            "quantile is missing in 10 outcomes of arm 'paired'",
        ),
        (TWO_DRAWS.iloc[:-10], "arm 'random' lacks draw 1 at the quantile 0.5, which it has at another"),
        (pd.concat([ONE_RUN, ONE_RUN[["arm"]]], axis=1), "has the column 'arm' twice"),
    ],
)
def test_what_would_be_compared_wrongly_or_not_at_all_is_refused(table: pd.DataFrame, message: str) -> None:
    with pytest.raises(InputError, match=message):
        causal_differences(table)


@pytest.mark.parametrize(
    "as_given", [lambda t: t.convert_dtypes(), lambda t: t.astype("category"), lambda t: t.set_index("prompt", drop=False)]
)
def test_pandas_own_dtypes_and_indices_change_nothing(as_given: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    for make in (causal_table, causal_differences):
        pd.testing.assert_frame_equal(make(as_given(TWO_DRAWS)), make(TWO_DRAWS))
