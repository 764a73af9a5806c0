from collections.abc import Callable

import numpy as np
import pytest

from tests.planted import Array, both_modes, made, response
from tl_l2norm.analysis.separation import family_separation
from tl_l2norm.core.trace import Trace

STRAIGHT = np.arange(8.0)
LATE = np.arange(8) >= 6


def separate(n: int, shift: Array, seed: int = 0) -> tuple[list[Trace], list[Trace]]:
    """Two families whose thinking profiles differ by `shift`."""
    noise = np.random.default_rng(seed).normal(size=(n, 2, 8))

    def value(i: int, mode: str) -> Array:
        return 50 + noise[i, int(mode == "think")] + shift * (i % 2) * (mode == "think")

    return made(value, n=n, family=lambda i: "ab"[i % 2])


def test_families_far_apart_are_told_apart_by_the_profile_and_by_the_spike_only_if_late() -> None:
    early = family_separation(*separate(40, 9.0 * (np.arange(8) == 1))).set_index("predictor")
    assert early.loc["profile", "low"] > 0.7 and early.loc["spike", "low"] < 0.5
    late = family_separation(*separate(40, 9.0 * LATE)).set_index("predictor")
    assert late.loc["profile", "accuracy"] == late.loc["spike", "accuracy"] == 1.0
    assert (late["chance"] == 0.5).all() and (late["n"] == 40).all() and (late["families"] == 2).all()


def test_length_is_the_control() -> None:
    """Equal norms are equal: the rounding of their mean, which goes with the length, tells no family apart."""
    separation = family_separation(
        *made(lambda i, mode: STRAIGHT + 9, n=20, lengths=lambda i, mode: 2 + 3 * (i % 2), family=lambda i: "ab"[i % 2])
    ).set_index("predictor")
    assert separation.loc["length", "accuracy"] == 1.0 and separation.loc["profile", "accuracy"] == 0.5


def test_small_families_are_left_out_and_chance_is_the_largest_share() -> None:
    families = "a" * 12 + "b" * 9 + "c" * 7
    noise = np.random.default_rng(1).normal(size=(28, 2, 8))
    separation = family_separation(*made(lambda i, m: 50 + noise[i, int(m == "think")], n=28, family=lambda i: families[i]))
    assert (separation["n"] == 21).all() and separation["chance"].tolist() == [12 / 21] * 8


def test_nearest_mean_by_hand() -> None:
    """Guess each prompt from the other half's means by a plain loop."""
    think, direct = separate(24, np.full(8, 0.6), seed=3)
    separation = family_separation(think, direct, seed=5).set_index("predictor")
    x = np.stack([t.l2_norms[:, 1].double().numpy() for t in think])
    names = np.arange(24) % 2
    rng, fold = np.random.default_rng(5), np.zeros(24, dtype=int)
    for family in (0, 1):
        fold[rng.permutation(np.flatnonzero(names == family))[::2]] = 1
    right = 0
    for i in range(24):
        known = [j for j in range(24) if fold[j] != fold[i]]
        scale = x[known].std(0)
        away = [(((x[i] - x[[j for j in known if names[j] == family]].mean(0)) / scale) ** 2).sum() for family in (0, 1)]
        right += int(np.argmin(away) == names[i])
    assert 12 < right < 24
    assert separation.loc["profile", "accuracy"] == right / 24


def bags(ids: Callable[[int], list[int]], n: int = 24) -> tuple[list[Trace], list[Trace]]:
    """Two families whose thinking tokens are ids(prompt); all norms are the same."""

    def make(i: int, mode: str) -> Trace:
        own = np.array(ids(i) if mode == "think" else [0, 0])
        return response(np.ones((4, len(own))), prompt=str(i), mode=mode, tokens=own, labels={"family": "ab"[i % 2]})

    return both_modes(n, make)


def test_a_vocabulary_of_its_own_tells_a_family_and_no_norm_could_do_better() -> None:
    table = family_separation(*bags(lambda i: [i % 2, 5, 5])).set_index("predictor")
    assert table.loc["tokens", "accuracy"] == table.loc["all", "accuracy"] == 1.0
    assert table.loc[["tokens", "all"], "least_p"].tolist() == [1.0, 1.0]
    assert table.loc["length", "accuracy"] == 0.5 and table.loc["length", "least_p"] == 2 * 0.5**12


def test_tokens_are_guessed_from_by_multinomial_bayes() -> None:
    rng = np.random.default_rng(0)
    ids = [rng.choice(4, size=5, p=[0.6, 0.2, 0.1, 0.1] if i % 2 else [0.1, 0.2, 0.2, 0.5]).tolist() for i in range(24)]
    table = family_separation(*bags(lambda i: ids[i]), seed=5).set_index("predictor")
    rng, fold = np.random.default_rng(5), np.zeros(24, dtype=int)
    for family in (0, 1):
        fold[rng.permutation(np.flatnonzero(np.arange(24) % 2 == family))[::2]] = 1
    right = 0
    for i in range(24):
        logs = []
        for family in (0, 1):
            known = [x for j in range(24) if fold[j] != fold[i] and j % 2 == family for x in ids[j]]
            logs.append(sum(np.log((known.count(x) + 1) / (len(known) + 4)) for x in ids[i]))
        right += int(np.argmax(logs) == i % 2)
    assert 12 < right < 24 and table.loc["tokens", "accuracy"] == right / 24


def test_the_profile_is_held_against_a_control_on_prompts_that_one_alone_gets_right() -> None:
    """Norms tell all, lengths none: of n prompts those that the length gets wrong decide, by the signs of as many coins."""
    table = family_separation(*separate(40, np.full(8, 9.0))).set_index("predictor")
    wrong = round(40 * (1 - table.loc["length", "accuracy"]))
    assert table.loc["profile", "accuracy"] == table.loc["rest", "accuracy"] == 1.0
    assert table.loc["length", "p"] == table.loc["length", "least_p"] == pytest.approx(2 * 0.5**wrong)
    assert table.loc["profile", "p"] == pytest.approx(2 * 0.5**40)


def test_what_types_and_places_explain_is_not_in_the_rest() -> None:
    """One type is loud, one family uses it more: the profile tells, what is left of it does not."""
    rng = np.random.default_rng(1)

    def make(i: int, mode: str) -> Trace:
        ids = rng.choice(2, size=30, p=[0.8, 0.2] if i % 2 else [0.5, 0.5])
        norms = 50 + 9.0 * ids + 0.1 * np.arange(30) + rng.normal(size=(4, 30))
        return response(norms, prompt=str(i), mode=mode, tokens=ids, labels={"family": "ab"[i % 2]})

    table = family_separation(*both_modes(60, make)).set_index("predictor")
    assert table.loc["profile", "accuracy"] > 0.9 and table.loc["rest", "accuracy"] < 0.65


def placed(before: Callable[[int, int], int], n: int) -> tuple[list[Trace], list[Trace]]:
    """Norms that grow with the position in the sequence alone, behind prompts of `before(prompt, random number)` tokens."""
    rng = np.random.default_rng(2)

    def make(i: int, mode: str) -> Trace:
        k, own = 30, before(i, int(rng.integers(0, 40)))
        norms = 50 + (own + np.arange(k)) ** 0.7 + 0.3 * rng.normal(size=(4, k))
        return response(
            norms, prompt=str(i), mode=mode, prompt_len=own, tokens=np.arange(k) % 3, labels={"family": "ab"[i % 2]}
        )

    return both_modes(n, make)


def test_the_length_of_the_prompt_is_a_control() -> None:
    """Prompts of one family are longer: the profile tells it by where the responses stand, as does the prompt's length."""
    table = family_separation(*placed(lambda i, x: 20 + 15 * (i % 2) + x // 4, 40)).set_index("predictor")
    assert table.loc[["profile", "prompt", "all"], "accuracy"].tolist() == [1.0] * 3 and table.loc["prompt", "least_p"] == 1.0
    assert table.loc[["length", "tokens"], "accuracy"].tolist() == [0.5, 0.5]


def test_the_position_in_the_sequence_is_not_in_the_rest() -> None:
    table = family_separation(*placed(lambda i, x: 20 + 30 * (i % 2) + x, 80)).set_index("predictor")
    assert table.loc["profile", "accuracy"] > 0.8 and table.loc["rest", "accuracy"] < 0.65


def test_fewer_than_two_families_of_eight_are_refused() -> None:
    with pytest.raises(ValueError, match="at least two families of 8 prompts"):
        family_separation(*made(lambda i, mode: STRAIGHT, n=16, family=lambda i: "ab"[i < 7]))
