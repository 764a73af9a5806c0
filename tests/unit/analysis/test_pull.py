import numpy as np
import pandas as pd
import pytest
from scipy.stats import rankdata

from tests.worlds import World
from tl_l2norm.analysis.pull import pull_link
from tl_l2norm.core.errors import Unmeasurable


def test_a_pull_that_is_a_function_of_the_norm_has_rho_1_in_its_reading() -> None:
    table = World(n=10, thinking=(30, 60)).pressures(0)
    for reading, norm in (("predicting", "l2_norm"), ("read back", "next_l2_norm")):
        links = pull_link(table.assign(pull=np.exp(table[norm] / 50)), shifts=99).set_index("reading")
        assert links.loc[reading, "rho"] == pytest.approx(1) and links.loc[reading, "p_shifts"] == 2 / 100
        assert links.loc[reading, "p"] == 2 / 2**10, "of all flips, none and all are as far out"
        other = links.drop(index=reading).iloc[0]
        assert abs(other["rho"]) < 0.2


def test_rho_is_that_of_residuals_from_dense_least_squares() -> None:
    """One response of each of 8 prompts, one type of token, so that position alone is taken out."""
    rng = np.random.default_rng(1)
    lengths = [20, 24, 30, 21, 25, 28, 22, 35]
    parts = [
        pd.DataFrame({"pull": rng.random(n), "l2_norm": rng.random(n), "position": np.arange(n)}).assign(sequence=i, prompt=i)
        for i, n in enumerate(lengths)
    ]
    table = pd.concat(parts).assign(mode="think", token_id=1, state_token_id=1, is_sink=False, next_is_sink=False)
    links = pull_link(table.assign(next_l2_norm=table["l2_norm"]), shifts=9)
    assert links["rho"].nunique() == 1 and links["n_tokens"].tolist() == [sum(lengths)] * 2

    from tl_l2norm.analysis.covariates import smooth

    index = table["position"].to_numpy()
    shares = np.concatenate([100 * np.arange(n) // (n - 1) for n in lengths])
    own = np.zeros((len(index), 16))
    own[np.arange(len(index)), np.repeat(np.arange(8), lengths)] = 1
    own[np.arange(len(index)), 8 + np.repeat(np.arange(8), lengths)] = index
    x = np.hstack([own, smooth(index).toarray(), smooth(shares).toarray()])
    ranks = np.stack(
        [np.concatenate([rankdata(part[name]) / len(part) for part in parts]) for name in ("pull", "l2_norm")], axis=1
    )
    left = ranks - x @ np.linalg.lstsq(x, ranks, rcond=None)[0]
    by_response = np.split(left, np.cumsum(lengths)[:-1])
    rhos = [(a * b).sum() / ((a**2).sum() * (b**2).sum()) ** 0.5 for a, b in (part.T for part in by_response)]
    assert links["rho"][0] == pytest.approx(np.mean(rhos))


def test_sinks_rare_types_and_short_responses_are_left_out() -> None:
    table = World(n=9, thinking=(30, 40)).pressures(0)
    n = pull_link(table, shifts=9).set_index("reading")["n_tokens"]
    sink = table.assign(is_sink=table["position"] == 3)
    assert (pull_link(sink, shifts=9).set_index("reading")["n_tokens"] <= n - 9).all()
    rare = table.assign(token_id=np.arange(len(table)))
    assert pull_link(rare, shifts=9)["reading"].tolist() == ["predicting"]
    for few in (table[table["position"] < 7], table[table["sequence"] < 7]):
        with pytest.raises(Unmeasurable, match="fewer than 8 prompts have 8 response tokens"):
            pull_link(few)
    with pytest.raises(ValueError, match="lacks the columns \\['mode'\\].*labels="):
        pull_link(table.drop(columns="mode"))


def test_samples_of_a_prompt_count_once() -> None:
    table = World(n=16, thinking=(30, 40)).pressures(0)
    halves = table.assign(prompt="p" + (table["sequence"] // 2).astype(str))
    assert pull_link(table, shifts=9)["n"].tolist() == [16, 16] and pull_link(halves, shifts=9)["n"].tolist() == [8, 8]
