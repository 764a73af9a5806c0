import numpy as np
import pandas as pd
import pytest
from scipy.linalg import qr
from scipy.stats import rankdata

from tests.worlds import World
from tl_l2norm.analysis.covariates import smooth
from tl_l2norm.analysis.pull import pull_link
from tl_l2norm.core.errors import InputError, Unmeasurable


def test_a_pull_that_is_a_function_of_the_norm_has_rho_1_in_its_reading() -> None:
    table = World(n=10, thinking=(60, 90)).pressures(0)
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
    links = pull_link(table.assign(next_l2_norm=table["l2_norm"]), shifts=79)
    assert links["rho"].nunique() == 1 and links["n_tokens"].tolist() == [sum(lengths)] * 2

    index = table["position"].to_numpy()
    shares = np.concatenate([100 * np.arange(n) // (n - 1) for n in lengths])
    own = np.zeros((len(index), 8 * 6))
    for i, n in enumerate(lengths):
        powers = np.polynomial.legendre.legvander(np.linspace(-1, 1, n), min(5, n // 5))
        own[np.repeat(np.arange(8), lengths) == i, 6 * i : 6 * i + powers.shape[1]] = powers
    steps = [np.minimum(places, most)[:, None] == np.arange(most + 1) for places, most in ((index, 8), (index + 1, 8))]
    left = np.concatenate([np.arange(n)[::-1] for n in lengths])
    steps += [np.minimum(left, 6)[:, None] == np.arange(7)]  # that it's the first token or the second says what stands before
    x = np.hstack([own, *steps, smooth(index).toarray(), smooth(shares).toarray()])
    ranks = np.stack(
        [np.concatenate([rankdata(part[name]) / len(part) for part in parts]) for name in ("pull", "l2_norm")], axis=1
    )
    x = x[:, x.any(0)] / np.linalg.norm(x[:, x.any(0)], axis=0)
    q, r, _ = qr(x, mode="economic", pivoting=True)
    q = q[:, np.abs(np.diag(r)) > 1e-4]  # columns that follow from others, shares of a response in whole per cent among them
    left = ranks - q @ (q.T @ ranks)
    by_response = np.split(left, np.cumsum(lengths)[:-1])
    rhos = [(a * b).sum() / ((a**2).sum() * (b**2).sum()) ** 0.5 for a, b in (part.T for part in by_response)]
    assert links["rho"][0] == pytest.approx(np.mean(rhos))


def test_sinks_rare_types_and_short_responses_are_left_out() -> None:
    table = World(n=9, thinking=(30, 40)).pressures(0)
    n = pull_link(table, shifts=79).set_index("reading")["n_tokens"]
    sink = table.assign(is_sink=table["position"] == 3)
    assert (pull_link(sink, shifts=79).set_index("reading")["n_tokens"] <= n - 9).all()
    rare = table.assign(token_id=np.arange(len(table)))
    assert pull_link(rare, shifts=79)["reading"].tolist() == ["predicting"]
    for few in (table[table["position"] < 7], table[table["sequence"] < 7]):
        with pytest.raises(Unmeasurable, match="fewer than 8 prompts have 8 response tokens"):
            pull_link(few)
    with pytest.raises(ValueError, match="lacks the columns \\['mode'\\].*labels="):
        pull_link(table.drop(columns="mode"))


def test_samples_of_a_prompt_count_once() -> None:
    table = World(n=16, thinking=(30, 40)).pressures(0)
    halves = table.assign(prompt="p" + (table["sequence"] // 2).astype(str))
    assert pull_link(table, shifts=79)["n"].tolist() == [16, 16] and pull_link(halves, shifts=79)["n"].tolist() == [8, 8]


def two_types(seed: int, n: int = 24, vocabulary: int = 12) -> pd.DataFrame:
    """Norms follow a token and the one before it, pulls that token and the next: nothing else links them."""
    rng = np.random.default_rng([seed, 11])
    a, b, c, d = rng.normal(size=(4, vocabulary))
    chain, parts = rng.dirichlet(np.full(vocabulary, 0.5), size=vocabulary), []
    for i in range(n):
        ids = [0]
        for _ in range(int(rng.integers(20, 60))):
            ids.append(int(rng.choice(vocabulary, p=chain[ids[-1]])))
        of, before = np.array(ids[1:]), np.array([0, *ids[:-2]])
        state = np.array(ids[:-1])
        norms = 3 * a[np.array(ids)] + 3 * b[np.append(before, ids[-2])] + 2 * rng.exponential(size=len(ids))
        pull = np.exp(c[state] + d[of] + rng.exponential(size=len(of)))
        columns = {"token_id": of, "state_token_id": state, "l2_norm": norms[:-1], "next_l2_norm": norms[1:], "pull": pull}
        parts.append(pd.DataFrame(columns).assign(sequence=i, prompt=f"p{i}", position=range(len(of))))
    return pd.concat(parts).assign(mode="think", is_sink=False, next_is_sink=False)


def test_types_of_both_tokens_are_no_link() -> None:
    """Of 20 tables and both readings, 5% at a level of 0.05 by chance; without the other token it was every third table."""
    links = pd.concat(pull_link(two_types(seed), shifts=99, resamples=200, seed=seed) for seed in range(20))
    assert (links[["p", "p_shifts"]].max(axis=1) <= 0.05).sum() <= 5


def test_copies_of_a_response_count_once() -> None:
    table = World(n=12, thinking=(30, 40)).pressures(0)
    copies = pd.concat([table, table.assign(sequence=table["sequence"] + 12)])
    pd.testing.assert_frame_equal(pull_link(copies, shifts=79), pull_link(table, shifts=79))


def test_what_is_no_table_of_one_call_is_refused() -> None:
    table = World(n=12, thinking=(30, 40)).pressures(0)
    joined = table.assign(sequence=table["sequence"] % 6)
    cases = {
        "stand there twice, such as sequence 0, position 0; .*renumber": joined,
        "sequence 1 is of 2 prompts": table.assign(prompt=table["prompt"].where(table["position"] > 3, "p000")),
        "pull is missing or infinite in 1 of": table.assign(pull=table["pull"].where(table.index != 5)),
        "position is missing": table.assign(position=table["position"].where(table.index != 5)),
        "prompt is missing": table.assign(prompt=table["prompt"].where(table["sequence"] != 2)),
        "mode is missing": table.assign(mode=np.nan),
        "is_sink is 0 or 1, False or True, got 2": table.assign(is_sink=2),
        "several models": table.assign(model=np.where(table["sequence"] < 6, "a", "b")),
        "is empty": table[:0],
    }
    for message, odd in cases.items():
        with pytest.raises(InputError if "empty" not in message else Unmeasurable, match=message):
            pull_link(odd, shifts=79)
    with pytest.raises(ValueError, match="shifts must be at least 79"):
        pull_link(table, shifts=78)


@pytest.mark.parametrize("kind", [int, object, "boolean", float])
def test_sinks_may_come_as_numbers_or_objects(kind: object) -> None:
    table = World(n=12, thinking=(30, 40)).pressures(0).assign(is_sink=lambda x: x["position"] == 3)
    pd.testing.assert_frame_equal(pull_link(table.astype({"is_sink": kind}), shifts=79), pull_link(table, shifts=79))
