"""Verdicts on theorem, domain, difficulty and cause: rates where nothing is there, and where something is planted.

Each world is judged by the claim's own rule, at 5%. Rates of a few dozen worlds; `python -m benchmarks.rates` runs hundreds.
A true rate of 7% comes to more than `allowed` in one test of a thousand.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import binom

from tests.planted import Array, response
from tests.worlds import Modes, World
from tl_l2norm.analysis.attribution import Attribution, attribute
from tl_l2norm.analysis.bound import bound_control, bound_points, bound_table
from tl_l2norm.analysis.reasoning import ReasoningFeatures
from tl_l2norm.analysis.separation import family_separation
from tl_l2norm.analysis.trend import level_trend
from tl_l2norm.core.trace import Trace
from tl_l2norm.paper.finding import NOT_SUPPORTED, SUPPORTED, UNINFORMATIVE, UNTESTED, Finding, Known
from tl_l2norm.paper.rules import norms, theory

pytestmark = pytest.mark.slow  # a minute and a half; their statistics have tests of their own, and the others' laws are quick

RUNS, SLOW_RUNS = 40, 24
DRAWS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed(World):
    """The boring world behind prompts whose length goes with level or family: norms grow with the position in the sequence."""

    each: int
    """So many tokens longer for each level or family."""
    spread: int = 60
    """And up to so many by chance."""
    by: str = "level"

    def make(self, seed: int) -> Modes:
        rng = np.random.default_rng([seed, 8])
        before = 20 + rng.integers(0, self.spread, size=self.n)
        think, direct = World.make(self, seed)
        before += self.each * np.array([int(str(t.labels[self.by]).removeprefix("f")) for t in think])
        return tuple([self._placed(t, k) for t, k in zip(own, before.tolist(), strict=True)] for own in (think, direct))  # type: ignore[return-value]

    def _placed(self, trace: Trace, before: int) -> Trace:
        quiet = 40.0 * (trace.labels["mode"] == "direct")
        norms: Array = trace.l2_norms[:, 1:].double().numpy() + (before + np.arange(len(trace) - 1)) ** 0.7 + quiet
        labels, tokens = dict(trace.labels), trace.tokens[1:].numpy()
        prompt, mode = str(labels.pop("prompt")), str(labels.pop("mode"))
        return response(norms, prompt=prompt, mode=mode, prompt_len=before, tokens=tokens, labels=labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class LouderTypes(World):
    """Thinking about harder problems uses louder types; nothing else depends on the level."""

    def make(self, seed: int) -> Modes:
        rng = np.random.default_rng([seed, 9])
        loud = np.linspace(-15.0, 15.0, self.vocabulary)
        modes: Modes = ([], [])
        for i in range(self.n):
            own = 200 + self.prompts * rng.normal(size=(self.layers, 1))
            for thinks, traces in zip((True, False), modes, strict=True):
                chances = np.exp(np.linspace(-1, 1, self.vocabulary) * 2 * (i % self.levels) / 3 * thinks)
                ids = rng.choice(self.vocabulary, size=int(rng.integers(20, 60)), p=chances / chances.sum())
                norms = own + loud[ids] + self.token * rng.normal(size=(self.layers, len(ids)))
                labels = {"level": i % self.levels + 1, "family": "f0"}
                mode = "think" if thinks else "direct"
                traces.append(response(norms, prompt=f"p{i:03}", mode=mode, tokens=ids, labels=labels))
        return modes


@dataclass(frozen=True, slots=True, kw_only=True)
class LoudType(World):
    """Thinking holds a loud type, more of it on some prompts; `firing` is how much latents fire where it is not."""

    def make(self, seed: int) -> Modes:
        rng = np.random.default_rng([seed, 31])
        fires = rng.random((self.latents, 20)) < 0.15
        modes: Modes = ([], [])
        for i in range(self.n):
            own, share = 200 + 3 * rng.normal(), rng.uniform(0.1, 0.7)
            for thinks, traces in zip((True, False), modes, strict=True):
                k = int(rng.integers(60, 300) if thinks else rng.integers(8, 20))
                loud = (rng.random(k) < share) & thinks
                ids = np.where(loud, 0, 1 + rng.integers(0, 19, size=k))
                norms = np.tile(own + 60.0 * loud + 2 * rng.normal(size=k), (self.layers, 1))
                acts = rng.exponential(size=(k, self.latents)) * ((rng.random((k, self.latents)) < 0.05) | fires[:, ids].T)
                acts[:, :5] = rng.exponential(size=(k, 5)) * (loud[:, None] + self.firing * thinks)
                traces.append(response(norms, prompt=f"p{i:03}", mode="think" if thinks else "direct", tokens=ids, acts=acts))
        return modes


def allowed(rate: float = 0.07, runs: int = RUNS) -> int:
    """How many of the runs may say so."""
    return int(binom.ppf(0.999, runs, rate))


def needed(rate: float = 0.9, runs: int = RUNS) -> int:
    """How many of the runs must."""
    return int(binom.ppf(0.001, runs, rate))


Judge = Callable[[World, int], Mapping[str, pd.DataFrame]]


def verdicts(rule: Callable[[Known], Finding], tables: Judge, world: World, runs: int = RUNS) -> Counter[str]:
    """How many of the runs end with which verdict, by itself."""
    findings = [rule(Known(tables(world, seed), {})) for seed in range(runs)]
    return Counter(finding.verdict(finding.p) for finding in findings)


# The theorem: 60 prompts that features were not chosen on are the fewest whose premise can be shown beside 12 other claims


CHOSEN = ReasoningFeatures(
    latents={3: (0, 1, 2, 3, 4)},
    table=pd.DataFrame(),
    chosen_on=frozenset(),
    saes={3: "by hand"},
    match="none",
    tokens="read",
    seed=0,
    model="by hand",
)
LOUD = {"n": 60, "latents": 60, "effect": 50.0}
"""Thinking norms that are surely larger."""


def bound(world: World, seed: int) -> dict[str, pd.DataFrame]:
    modes = world.make(seed)
    table, given = (
        bound_table(bound_points(*modes, CHOSEN, given=what), seed=seed, resamples=DRAWS) for what in ("nothing", "tokens")
    )
    control = bound_control(*modes, CHOSEN, sets=99, seed=seed, resamples=DRAWS)
    return {"bound": table, "bound_given_tokens": given, "bound_control": control}


@pytest.mark.parametrize(
    "world",
    [
        World(n=60, latents=60),
        World(**LOUD),  # left is about 0
        World(**LOUD, firing=3.0, uneven=0.7),  # an offset of activations, norms that differ between prompts
    ],
    ids=["boring", "louder", "uneven offset"],
)
def test_an_offset_is_no_bound(world: World) -> None:
    """Of an uneven offset now and then prompts are too much alike to deny it."""
    counts = verdicts(theory.theorem, bound, world, SLOW_RUNS)
    assert counts[NOT_SUPPORTED] + counts[UNTESTED] == SLOW_RUNS and counts[NOT_SUPPORTED] >= needed(0.99, SLOW_RUNS)


@pytest.mark.parametrize(
    "world",
    [World(**LOUD, firing=3.0), World(**LOUD, proportional=0.05), World(**LOUD, proportional=0.05, uneven=0.2)],
    ids=["offset", "proportional", "a little uneven"],
)
def test_prompts_that_are_alike_do_not_test_the_bound(world: World) -> None:
    """Their right sides differ by less than left scatters: a left that is a multiple of right can't be told from an offset."""
    counts = verdicts(theory.theorem, bound, world, SLOW_RUNS)
    assert counts[UNTESTED] >= needed(runs=SLOW_RUNS) and counts[UNTESTED] + counts[SUPPORTED] == SLOW_RUNS


@pytest.mark.parametrize("weakly", [0.15, 0.3])
def test_a_loud_type_that_latents_fire_on_is_no_bound(weakly: float) -> None:
    """Its share of the thinking differs between prompts; the latents fire on it, and weakly at all thinking tokens."""
    counts = verdicts(theory.theorem, bound, LoudType(n=60, latents=60, firing=weakly), SLOW_RUNS)
    assert counts[SUPPORTED] == 0
    tables = [bound(LoudType(n=60, latents=60, firing=weakly), seed)["bound"].iloc[0] for seed in range(4)]
    assert all(table["p"] <= 0.05 and table["r2_low"] > 0.5 for table in tables), "were it not for the types"


def test_a_gain_of_whole_prompts_is_uninformative() -> None:
    """Left follows right in all prompts, and so does the activation of any other latent."""
    counts = verdicts(theory.theorem, bound, World(**LOUD, firing=3.0, prompt_gain=0.7, thinking=(150, 250)), SLOW_RUNS)
    assert counts[UNINFORMATIVE] >= needed(runs=SLOW_RUNS) and counts[SUPPORTED] == 0


def test_reasoning_latents_that_alone_follow_the_norms_are_found() -> None:
    """With 60 prompts, activations that differ by 0.05 of the right side and scatter by a tenth."""
    assert verdicts(theory.theorem, bound, World(**LOUD, proportional=0.05, uneven=0.7))[SUPPORTED] >= needed()


# Domain


def families(world: World, seed: int) -> dict[str, pd.DataFrame]:
    return {"families": family_separation(*world.make(seed), seed=seed)}


@pytest.mark.parametrize(
    "world",
    [
        World(n=80, families=4, family_types=1e-9),  # nothing but the label
        World(n=80, families=4, family_types=0.3, types=8.0),
        World(n=80, families=4, family_types=0.4, vocabulary=300, types=8.0),
    ],
    ids=["null", "loud types", "many types"],
)
def test_types_alone_do_not_make_a_domain(world: World) -> None:
    assert verdicts(norms.domain, families, world)[SUPPORTED] <= allowed()


def test_families_with_vocabularies_of_their_own_are_not_tested() -> None:
    """In one world of many two families share their most frequent type, and tokens are wrong now and then."""
    counts = verdicts(norms.domain, families, World(n=80, families=4, family_types=20.0), SLOW_RUNS)
    assert counts[UNTESTED] >= needed(runs=SLOW_RUNS) and counts[SUPPORTED] == 0


@pytest.mark.parametrize("each", [8, 15, 40])
def test_positions_behind_longer_prompts_do_not_make_a_domain(each: int) -> None:
    world = Placed(n=80, families=4, family_types=1e-9, by="family", each=each, spread=60 if each < 40 else 10)
    assert verdicts(norms.domain, families, world)[SUPPORTED] <= allowed()


def paraphrased(seed: int, *, known: bool, originals: int = 32) -> dict[str, pd.DataFrame]:
    """Families of nothing but a name; norms differ between the originals that prompts are paraphrases of."""
    rng = np.random.default_rng([seed, 12])
    lifts = 8 * rng.normal(size=(originals, 4, 1))
    modes = World(n=160, families=4, prompts=2.0, family_types=1e-9).make(seed)
    for traces in modes:
        for i, trace in enumerate(traces):
            original = int(str(trace.labels["family"])[1]) + 4 * (i // 4 % (originals // 4))
            norms = trace.l2_norms + torch.from_numpy(lifts[original]).float()
            labels = {"original": f"o{original}"} if known else {}
            traces[i] = dataclasses.replace(trace, l2_norms=norms).with_labels(**labels)
    return {"families": family_separation(*modes, seed=seed)}


def test_paraphrases_that_say_their_original_do_not_make_a_domain() -> None:
    """Of 160 prompts five each are of one original; without the label each half knows what the other asks."""
    findings = [norms.domain(Known(paraphrased(seed, known=known), {})) for known in (True, False) for seed in range(RUNS)]
    supported = [finding.verdict(finding.p) == SUPPORTED for finding in findings]
    assert sum(supported[:RUNS]) <= allowed() and sum(supported[RUNS:]) > allowed()


def test_a_domain_that_norms_alone_tell_is_found() -> None:
    """Of 4 families with 20 prompts each whose means differ by 10, twice as much as prompts do."""
    world = World(n=80, families=4, family_types=0.1, family_effect=10.0)
    assert verdicts(norms.domain, families, world)[SUPPORTED] >= needed()


# Difficulty


def trend(world: World, seed: int) -> dict[str, pd.DataFrame]:
    return {"trend": level_trend(*world.make(seed), seed=seed, resamples=DRAWS)}


BOTH_LOUDER = World(n=60, levels=4, harder=4.0, quieter=-4.0, effect=-40.0)
"""Harder problems are louder by the same in both modes, and direct answers louder than thinking."""

LONGER = World(n=60, levels=4, thinking=(20, 40), direct=(15, 20), length=40.0)
"""Harder problems have longer responses, and these are louder."""


@pytest.mark.parametrize(
    "world",
    [
        World(n=60, levels=4),
        LONGER,
        World(n=60, levels=4, thinking=(20, 40), length=0.0, position=4.0),
        World(n=60, levels=4, quieter=4.0),
        Placed(n=60, levels=4, each=15),
        LouderTypes(n=60, levels=4),
        BOTH_LOUDER,
        World(n=60, levels=4, harder=12.0, quieter=-10.0, effect=40.0),  # thinking is the louder mode by a fifth
    ],
    ids=[
        "boring",
        "length",
        "position",
        "quieter direct answers",
        "longer prompts",
        "louder types",
        "both louder",
        "by a factor",
    ],
)
def test_lengths_types_and_quieter_answers_do_not_make_difficulty(world: World) -> None:
    assert verdicts(norms.difficulty, trend, world)[SUPPORTED] <= allowed()


def test_without_the_lengths_the_same_world_has_a_trend() -> None:
    tables = [trend(LONGER, seed)["trend"].set_index(["layer", "part", "given"]).loc["late"] for seed in range(SLOW_RUNS)]
    assert sum(table.loc[("ratio", "nothing"), "p"] <= 0.05 for table in tables) >= 0.9 * SLOW_RUNS


def test_ratios_of_modes_that_both_get_louder_grow() -> None:
    """Their difference doesn't: without it that would be taken for amplification."""
    tables = [
        trend(BOTH_LOUDER, seed)["trend"].set_index(["part", "given", "layer"])["p"].unstack() for seed in range(SLOW_RUNS)
    ]
    given = [("ratio", "length"), ("thinking", "length"), ("ratio", "length and tokens"), ("thinking", "length and tokens")]
    assert sum(table.loc[given, "late"].max() <= 0.05 for table in tables) > SLOW_RUNS / 2


def test_levels_that_follow_from_lengths_are_not_tested() -> None:
    world = World(n=60, levels=4, thinking=(20, 21), harder=5.0)
    assert verdicts(norms.difficulty, trend, world, SLOW_RUNS)[UNTESTED] == SLOW_RUNS


def test_levels_that_follow_from_the_lengths_of_prompts_are_not_tested() -> None:
    world = Placed(n=60, levels=4, harder=5.0, each=30, spread=10)
    assert verdicts(norms.difficulty, trend, world, SLOW_RUNS)[UNTESTED] == SLOW_RUNS


def test_without_types_and_positions_these_worlds_have_trends() -> None:
    for world in (Placed(n=60, levels=4, each=25), LouderTypes(n=60, levels=4)):
        tables = [trend(world, seed)["trend"].set_index(["layer", "part", "given"]).loc["late"] for seed in range(SLOW_RUNS)]
        assert sum(table.loc[("thinking", "nothing"), "p"] <= 0.05 for table in tables) >= 0.9 * SLOW_RUNS


def test_thinking_that_is_louder_on_harder_problems_is_found() -> None:
    """By 4 a level with 60 prompts: 0.8 standard deviations of the prompts' own norms."""
    assert verdicts(norms.difficulty, trend, World(n=60, levels=4, harder=4.0))[SUPPORTED] >= needed()


# Attribution


def attributions(world: World, runs: int = RUNS) -> list[Attribution]:
    return [attribute(*world.make(seed), seed=seed, resamples=DRAWS) for seed in range(runs)]


def test_position_and_type_together_are_not_taken_for_thinking() -> None:
    """Each match leaves what the other does: in a third or more of the worlds no single one takes the difference away."""
    found = attributions(World(n=32, position=1.0, types=6.0, tilt=1.5, length=0.0))
    alone = [f.is_there and not {*f.goes_away, *f.undecided} - {"jointly"} for f in found]
    assert sum(f.stays for f in found) <= allowed() and sum(alone) > RUNS / 3


def test_in_the_boring_world_no_difference_is_said_to_stay() -> None:
    assert sum(f.stays for f in attributions(World(n=32))) <= allowed()


def test_a_difference_of_thinking_is_said_to_stay() -> None:
    """By 4 with 32 prompts, twice a token's noise."""
    assert sum(f.stays for f in attributions(World(n=32, effect=4.0))) >= needed()
