"""Within-thinking correctness: nothing is found where nothing is, and what is planted is found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from tests.planted import Array, response
from tl_l2norm.analysis.correctness import Clusters, correctness_effect, critical_size
from tl_l2norm.analysis.inversion import ROUNDING
from tl_l2norm.analysis.sample_norms import GIVEN_TYPES, correctness_samples
from tl_l2norm.analysis.within_problems import MixedProblems, mixed
from tl_l2norm.paper.finding import SUPPORTED, UNTESTED, Finding, Known
from tl_l2norm.paper.rules.thinking import correctness
from tl_l2norm.tasks.problems import Problem
from tl_l2norm.tasks.results import Result

FOUND = 0.9
NULLS, PLANTED = 24, 20
"""In the gate; `python -m tests.laws.test_correctness_laws` runs 200 of each and prints the rates."""
MOST_FALSE = 5
"""Of 24: more than that come up in 0.5% of runs where 7% are false."""

Shape = Callable[[Array, Array], Array]
"""What acts, of a length's deviation from its problem's mean and of that mean, both in units of their own."""


def nothing(d: Array, mean: Array) -> Array:
    return 0 * d


def straight(d: Array, mean: Array) -> Array:
    return d


def u_shaped(d: Array, mean: Array) -> Array:
    """Around what suits the problem."""
    return d**2 - 1


def u_shaped_overall(d: Array, mean: Array) -> Array:
    """Around one length for all problems."""
    return (0.3 * d + mean) ** 2 / 0.3


def normal(rng: np.random.Generator, size: tuple[int, ...]) -> Array:
    return rng.normal(size=size)


def exponential(rng: np.random.Generator, size: tuple[int, ...]) -> Array:
    return rng.exponential(size=size) - 1


def lognormal(rng: np.random.Generator, size: tuple[int, ...]) -> Array:
    return np.asarray((rng.lognormal(size=size) - np.exp(0.5)) / 2.16)


def world(
    seed: int,
    *,
    problems: int = 100,
    n: int = 8,
    layers: int = 3,
    beta: float = 0.0,
    on_norm: Shape = nothing,
    on_correct: Shape = nothing,
    log_prob: float = 0.0,
    saturating: bool = False,
    own_lines: float = 0.0,
    difficulty: float = 0.0,
    noise: Callable[..., Array] = normal,
    length_noise: Callable[..., Array] = normal,
    scales: bool = False,
    limit: float | None = None,
    loud_cut: float = 0.0,
    family_effect: float = 0.0,
) -> pd.DataFrame:
    """Samples of which the last layer's norm raises the log-odds by `beta` per standard deviation (of its own noise).

    Args:
        seed: of all.
        problems: how many.
        n: samples of each.
        layers: how many.
        beta: the effect.
        on_norm: what length adds to the norm, whose noise has variance 1.
        on_correct: what it adds to the log-odds.
        log_prob: what log-probability, which falls with length, adds to both.
        saturating: the latter with a bend.
        own_lines: what log-probability adds to both along a line of each problem's own, up or down.
        difficulty: what the problem's difficulty adds to the norm, which is one standard deviation more in the log-odds.
        noise: of norms; half of its variance is all layers' own.
        length_noise: of log lengths.
        scales: problems differ in the scale of the norm's noise.
        limit: log length at which responses are cut off, and wrong.
        loud_cut: what is added to the norm of those.
        family_effect: standard deviation over the 10 families of what is added to beta.
    """
    rng = np.random.default_rng([seed, 5])
    ease, mean = (1 + difficulty) * rng.normal(size=(problems, 1)), 0.4 * rng.normal(size=(problems, 1))
    d = length_noise(rng, (problems, n))
    certain = 0.5 * rng.normal(size=(problems, 1)) + 0.5 * rng.normal(size=(problems, n)) - 0.3 * d
    own_slope = own_lines * rng.normal(size=(problems, 1)) * (certain - certain.mean(1, keepdims=True))
    sure = np.tanh(2 * certain) if saturating else certain
    log_length = 4 + mean + 0.3 * d
    cut = log_length > (np.inf if limit is None else limit)
    own = 0.7 * noise(rng, (layers, problems, n)) + 0.7 * noise(rng, (problems, n))
    own = own * (np.exp(0.5 * rng.normal(size=(problems, 1))) if scales else 1)
    betas = beta + family_effect * np.random.default_rng([seed, 6]).normal(size=10)[np.arange(problems) % 10, None]
    norms = 100 + own + on_norm(d, mean) + log_prob * sure + own_slope + difficulty * ease + loud_cut * cut
    correct = (
        rng.random((problems, n)) < expit(ease + on_correct(d, mean) + log_prob * sure + own_slope + betas * own[-1])
    ) & ~cut
    table: dict[Any, Any] = {
        "prompt": np.repeat([f"p{i}" for i in range(problems)], n),
        "family": np.repeat([f"f{i % 10}" for i in range(problems)], n),
        "level": 1,
        "sample": np.tile(np.arange(n), problems),
        "correct": correct.ravel(),
        "cut_off": cut.ravel(),
        "length": np.exp(np.minimum(log_length, np.inf if limit is None else limit)).round().ravel(),
        "log_prob": certain.ravel(),
        "late": norms[-1].ravel(),
        "late given types": norms[-1].ravel(),
        "late but the last": norms[-2].ravel(),
        **{i: layer.ravel() for i, layer in enumerate(norms)},
        "model": "planted",
    }
    return pd.DataFrame(table)


def spoken(seed: int, *, beta: float = 0.0, more: float = 0.0, types: float = 5.0, level: float = 1.0, n: int = 40) -> Known:
    """Samples with tokens, 8 of each problem, and the effect that is found.

    Args:
        seed: of all.
        beta: log-odds of a right response per standard deviation of its own level.
        more: share of tokens of loud types that right responses hold more, of 0.3 or so.
        types: by how much these are louder.
        level: standard deviation of the response's level; of its tokens 2.
        n: problems.
    """
    rng, results = np.random.default_rng([seed, 7]), []
    loud = types * (np.arange(30) < 10) + 0.2 * types * rng.normal(size=30)
    for i in range(n):
        problem = Problem(question=f"{i}?", answer="1", family=f"f{i % 8}", level=1)
        ease, own = rng.normal(), rng.normal(size=8)
        for sample, right in enumerate(rng.random(8) < expit(ease + beta * own)):
            k = int(np.exp(4 + 0.3 * rng.normal()))
            is_loud = rng.random(k) < 0.3 + more * (right - 0.5)
            ids = np.where(is_loud, rng.integers(0, 10, k), rng.integers(10, 30, k))
            norms = 100 + level * own[sample] + loud[ids] + 2 * (rng.exponential(size=k) - 1)
            labels = {"sample": sample, "log_prob": rng.normal()}
            trace = response(norms[None], prompt=problem.id, tokens=ids, labels=labels)
            results.append(_judged(problem, trace, bool(right)))
    return Known({"correctness": correctness_effect(correctness_samples(results), seed=seed, resamples=199)}, {})


def _judged(problem: Problem, trace: Any, right: bool) -> Result:
    said: dict[str, Any] = dict.fromkeys(("prompt", "control", "response"), "")
    said |= {"mode": "think", "finish_reason": "stop", "direct": None, "answer": f"The answer is {1 if right else 2}."}
    return Result(problem=problem, correct=right, trace=trace, **said)


def is_supported(finding: Finding) -> bool:
    return finding.verdict(finding.p) == SUPPORTED


NULL_WORLDS: dict[str, dict[str, Any]] = {
    "nothing acts": {},
    "length, straight": {"on_norm": straight, "on_correct": straight},
    "length, U-shaped": {"on_norm": u_shaped, "on_correct": lambda d, mean: -u_shaped(d, mean)},
    "length, U-shaped overall": {"on_norm": u_shaped_overall, "on_correct": lambda d, mean: -u_shaped_overall(d, mean)},
    "log-probability": {"log_prob": 2.0},
    "log-probability, saturating": {"log_prob": 2.0, "saturating": True},
    "log-probability, by lines of problems' own": {"own_lines": 1.5},
    "difficulty": {"difficulty": 2.0},
    "skewed norms": {"on_norm": straight, "on_correct": straight, "noise": lognormal},
    "skewed lengths": {
        "on_norm": u_shaped,
        "on_correct": lambda d, mean: -0.5 * u_shaped(d, mean),
        "length_noise": exponential,
    },
    "problems of other scales": {"on_norm": straight, "on_correct": straight, "noise": exponential, "scales": True},
    "cut off and loud": {"on_norm": straight, "limit": 4.9, "loud_cut": 1.0},
    "12 problems": {"problems": 12, "on_norm": straight, "on_correct": straight},
    "48 problems x 6": {"problems": 48, "n": 6, "on_norm": u_shaped, "on_correct": u_shaped, "noise": exponential},
}

PLANTED_WORLDS: dict[str, dict[str, Any]] = {
    "100 problems x 8, 0.4": {"beta": 0.4},
    "200 problems x 8, 0.3": {"problems": 200, "beta": 0.3},
    "48 problems x 6, 0.8": {"problems": 48, "n": 6, "beta": 0.8},
    "100 problems x 8, 0.4, length acts on both": {"beta": 0.4, "on_norm": straight, "on_correct": straight},
}


def tried(options: dict[str, Any], count: int) -> tuple[Array, Array, Array]:
    """Of so many worlds: t of the late layers, their p, and p of the greatest of all layers: [world] each."""
    found = []
    for seed in range(count):
        problems = MixedProblems.of(mixed(world(seed, **options)), ("late", 0, 1), "prompt")
        t, drawn = problems.test(seed, 399)
        found.append([t[0], p_value(drawn[:, 0], t[0]), p_value(np.abs(drawn).max(1), np.abs(t).max())])
    t, p, p_max = np.array(found).T
    return t, p, p_max


def p_value(drawn: Array, t: float) -> float:
    return float((1 + (np.abs(drawn) >= abs(t) - ROUNDING).sum()) / (1 + len(drawn)))


def intervals(options: dict[str, Any], count: int) -> tuple[Array, Array, Array]:
    """Of so many worlds: whether p is at most 0.05, and the ends of beta's interval: [world] each."""
    entries = []
    for seed in range(count):
        problems = MixedProblems.of(mixed(world(seed, layers=2, **options)), ("late",), "prompt")
        t, drawn = problems.test(seed, 399)
        own = problems.estimates(t, critical_size(np.abs(drawn)))
        entries.append([p_value(drawn[:, 0], own["evidence"][0]) <= 0.05, own["low"][0], own["high"][0]])
    rejected, low, high = np.array(entries).T
    return rejected > 0, low, high


def missed(options: dict[str, Any], count: int) -> int:
    """In how many of so many worlds beta's interval leaves out the planted one."""
    _, low, high = intervals(options, count)
    truth = options.get("beta", 0.0)
    return int(((low > truth) | (high < truth)).sum())


def false_ones(options: dict[str, Any], count: int) -> tuple[int, int]:
    """In how many of so many null worlds p is at most 0.05, over the late layers and over all by max-T."""
    _, p, p_max = tried(options, count)
    return int((p <= 0.05).sum()), int((p_max <= 0.05).sum())


def found_ones(options: dict[str, Any], count: int) -> int:
    """In how many of so many planted worlds the late norm is found to be higher in right responses."""
    t, p, _ = tried(options, count)
    return int(((p <= 0.05) & (t > 0)).sum())


@pytest.mark.parametrize("name", ["nothing acts", "length, U-shaped", "log-probability, by lines of problems' own"])
def test_a_norm_that_says_nothing_of_correctness_is_rarely_said_to(name: str) -> None:
    assert max(false_ones({"problems": 40, **NULL_WORLDS[name]}, NULLS)) <= MOST_FALSE


def test_a_planted_effect_is_found() -> None:
    assert found_ones({"beta": 0.4}, PLANTED) >= FOUND * PLANTED


@pytest.mark.slow
@pytest.mark.parametrize(("problems", "n"), [(40, 4), (40, 8), (20, 16)])
def test_the_interval_leaves_out_0_where_the_test_rejects_it_and_rarely_where_it_is_true(problems: int, n: int) -> None:
    rejected, low, high = intervals({"problems": problems, "n": n}, NULLS)
    outside = (low > 0) | (high < 0)
    assert (outside == rejected).all() and outside.sum() <= MOST_FALSE


@pytest.mark.slow
@pytest.mark.parametrize(("problems", "n"), [(40, 4), (40, 8), (20, 16)])
def test_the_interval_covers_what_is_planted(problems: int, n: int) -> None:
    assert missed({"problems": problems, "n": n, "beta": 0.8}, NULLS) <= MOST_FALSE


@pytest.mark.slow
def test_loud_token_types_of_right_responses_are_no_effect_of_the_norm() -> None:
    tables = [spoken(seed, more=0.1, level=0.5) for seed in range(NULLS)]
    alone = [known["correctness"].set_index(["responses", "layer"]).loc[("all", "late")] for known in tables]
    assert sum(entry["p"] <= 0.05 and entry["beta"] > 0 for entry in alone) >= FOUND * NULLS, "by the norm alone"
    assert sum(is_supported(correctness(known)) for known in tables) <= MOST_FALSE


@pytest.mark.slow
@pytest.mark.parametrize("more", [0.0, 0.1])
def test_an_effect_of_the_norms_own_is_found_beside_token_types(more: float) -> None:
    assert sum(is_supported(correctness(spoken(seed, beta=0.8, more=more))) for seed in range(PLANTED)) >= FOUND * PLANTED


def test_a_norm_that_is_its_token_types_can_not_be_tested() -> None:
    known = spoken(0, more=0.3, types=30.0, level=0.0)
    finding = correctness(known)
    assert finding.verdict(finding.p) == UNTESTED and finding.why.endswith("can't be told from the token types")
    entries = known["correctness"].set_index("layer")
    assert (entries.loc[GIVEN_TYPES, "tolerance"] < 0.1).all() and (entries.loc["late", "tolerance"] > 0.5).all()
    assert set(entries.loc[["late", GIVEN_TYPES], "verdict"]) == {UNTESTED}


def supported(options: dict[str, Any], count: int, clusters: Clusters = "prompt") -> int:
    """In how many of so many worlds the claim is, by its rule."""
    tables = [
        correctness_effect(world(seed, layers=2, **options), clusters=clusters, seed=seed, resamples=199)
        for seed in range(count)
    ]
    return sum(is_supported(correctness(Known({"correctness": table}, {}))) for table in tables)


@pytest.mark.slow
@pytest.mark.parametrize("clusters", ["prompt", "family"])
def test_effects_of_families_own_are_rarely_one_of_the_norm(clusters: Clusters) -> None:
    assert supported({"problems": 40, "family_effect": 1.0}, NULLS, clusters) <= MOST_FALSE


@pytest.mark.slow
@pytest.mark.parametrize("clusters", ["prompt", "family"])
def test_an_effect_of_all_families_is_found_whichever_is_left_out(clusters: Clusters) -> None:
    assert supported({"problems": 48, "beta": 1.0}, PLANTED, clusters) >= FOUND * PLANTED


if __name__ == "__main__":
    for name, options in NULL_WORLDS.items():
        print(f"{name}: {false_ones(options, 200)} of 200 false (late, max over layers)", flush=True)
    for name, options in PLANTED_WORLDS.items():
        print(f"{name}: {found_ones(options, 100)} of 100 found", flush=True)
    for more in (0.0, 0.03, 0.1):
        counts = [
            sum(is_supported(correctness(spoken(seed, more=more, level=0.5 + beta / 2, beta=beta))) for seed in range(100))
            for beta in (0, 0.8)
        ]
        print(f"{more:.0%} more loud types in right responses: beta of 0, 0.8 supported: {counts} of 100", flush=True)
    for clusters in get_args(Clusters):
        counts = [supported({"problems": 48, "family_effect": sd, "beta": b}, 100, clusters) for sd, b in ((1, 0), (0, 0.8))]
        print(f"families of effects of their own, of 0.8, by {clusters}: {counts} of 100", flush=True)
    for n in (4, 8, 16):
        counts = [missed({"problems": 40, "n": n, "beta": beta}, 200) for beta in (0.0, 0.5, 1.0)]
        print(f"40 problems x {n}: intervals that leave out a beta of 0, 0.5, 1: {counts} of 200", flush=True)
