"""How often each verdict says "supported": where nothing is there, in the boring world, and where something is planted.

python -m benchmarks.rates [--runs 200] [--only WORD] [--keep FILE] [--write]

--write puts the table into docs/claims.md, and what is planted into docs/analysis.md; --keep writes each world's counts as
they come, and goes on from what FILE holds.

The boring world (tests/worlds.py): length, token type and position act on norms and activations, thinking does nothing. The
last entries judge whole tables of it: whether any claim at all is supported after Holm's correction.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from scipy.stats import binomtest

from benchmarks.regions import ANALYSIS, CLAIMS, markdown_table, write_regions
from tests.laws import test_cause_verdict_laws as cause_worlds
from tests.laws import test_correctness_laws as correctness_worlds
from tests.laws import test_deconfounding_laws as mode_worlds
from tests.laws import test_mode_null_laws as mode_nulls
from tests.laws import test_verdict_laws as verdict_worlds
from tests.token_worlds import token_table
from tests.unit.analysis.test_thought_texts import read as thought_texts
from tests.worlds import World
from tl_l2norm.analysis.causal import causal_differences, causal_table
from tl_l2norm.analysis.correctness import correctness_effect
from tl_l2norm.analysis.curves import mode_differences
from tl_l2norm.analysis.deconfounding import mode_effects
from tl_l2norm.analysis.high_norm import high_norm_effect, high_norm_tokens
from tl_l2norm.analysis.importance import importance_table
from tl_l2norm.analysis.link import feature_link
from tl_l2norm.analysis.pairing import shuffle_modes
from tl_l2norm.analysis.pressure_correlation import pressure_table
from tl_l2norm.analysis.pull import pull_link
from tl_l2norm.analysis.reasoning import find_reasoning_features
from tl_l2norm.analysis.rise import dynamics
from tl_l2norm.analysis.separation import family_separation
from tl_l2norm.analysis.shape import rise_shape
from tl_l2norm.analysis.thought_texts import thought_text_table
from tl_l2norm.analysis.trend import level_trend
from tl_l2norm.core.errors import Unmeasurable
from tl_l2norm.core.tables import render_table
from tl_l2norm.paper.claims import claims_table
from tl_l2norm.paper.finding import SUPPORTED, Finding, Known
from tl_l2norm.paper.rules import norms, theory, thinking

Tables = Mapping[str, pd.DataFrame]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A claim in a world."""

    claim: str
    world: str
    planted: bool
    said: Callable[[int], bool]
    """Whether it is supported, by seed."""


def judged(rule: Callable[[Known], Finding], tables: Callable[[int], Tables], seed: int) -> bool:
    """By the claim's own rule and p, before Holm's correction."""
    try:
        finding = rule(cause_worlds.Tables(tables(seed), {}))
    except Unmeasurable:
        return False
    return finding.verdict(finding.p) == SUPPORTED


def case(
    claim: str, world: str, tables: Callable[[int], Tables], rule: Callable[[Known], Finding], planted: bool = False
) -> Case:
    return Case(claim=claim, world=world, planted=planted, said=lambda seed: judged(rule, tables, seed))


def samples(**world: Any) -> Callable[[int], Tables]:
    return lambda seed: {"correctness": correctness_effect(correctness_worlds.world(seed, **world), seed=seed, resamples=500)}


def spoken(**world: Any) -> Callable[[int], Tables]:
    return lambda seed: correctness_worlds.spoken(seed, **world)


def stages(world: World | mode_nulls.Nuisance) -> Callable[[int], Tables]:
    """Of a world's norms."""

    def tables(seed: int) -> Tables:
        think, direct = world.make(seed)
        sources = {"as asked": (think, direct), "shuffled modes": shuffle_modes(think, direct, seed=seed)}
        made = {
            "differences": lambda: pd.concat(
                [mode_differences(*modes, seed=seed, resamples=300).assign(source=name) for name, modes in sources.items()]
            ),
            "dynamics": lambda: dynamics(think, direct, seed=seed, resamples=300),
            "mode_effects": lambda: mode_effects(think, direct, seed=seed, flips=500),
            "shapes": lambda: rise_shape(think, direct, seed=seed, flips=500),
            "high_norm_tokens": lambda: high_norm_tokens(think, direct, seed=seed, resamples=300),
            "top_effects": lambda: high_norm_effect(think, direct, seed=seed, flips=500),
        }
        return dict(_measurable(made))

    return tables


def _measurable(made: Mapping[str, Callable[[], pd.DataFrame]]) -> Iterator[tuple[str, pd.DataFrame]]:
    for name, make in made.items():
        try:
            yield name, make()
        except Unmeasurable:
            continue


def links(world: World) -> Callable[[int], bool]:
    return lambda seed: mode_worlds.link(world, seed)[0]


def shapes(shape: Any, bumps: float, n: int = 24) -> Callable[[int], bool]:
    return lambda seed: mode_worlds.is_broken(mode_worlds.curves(shape, seed, bumps, n), seed)


def importances(**world: Any) -> Callable[[int], Tables]:
    return lambda seed: {"importance": importance_table(token_table(seed, **world), seed=seed, resamples=500)}


def texts(effect: float, only: str | None = None) -> Callable[[int], Tables]:
    return lambda seed: {
        "thought_texts": thought_text_table(thought_texts(seed, n=24, effect=effect, only=only), seed=seed, resamples=500)
    }


def whole(seed: int) -> bool:
    """Whether any claim of a whole table of the boring world is supported."""
    world = World(n=60, layers=8, latents=80, levels=3, families=2)
    think, direct = world.make(seed)
    features = find_reasoning_features(think, direct, seed=seed)
    pressures, outcomes = World(n=24).pressures(seed), World(n=40, harm=0.05).outcomes(seed)
    made = {
        "links": lambda: feature_link(features.held_out(think), features, seed=seed, resamples=300).assign(
            source="trained SAE"
        ),
        "families": lambda: family_separation(think, direct, seed=seed),
        "trend": lambda: level_trend(think, direct, seed=seed, resamples=500),
        "pressure": lambda: pressure_table(pressures, resamples=20),
        "pull_links": lambda: pull_link(pressures, seed=seed, shifts=199, resamples=500),
        "causal": lambda: causal_table(outcomes),
        "causal_differences": lambda: causal_differences(outcomes, seed=seed, resamples=500),
    }
    tables = {
        **stages(world)(seed),
        **dict(_measurable(made)),
        **samples(on_norm=correctness_worlds.straight, on_correct=correctness_worlds.straight)(seed),
        **importances(n=16, boring=1.0)(seed),
        **texts(0.0)(seed),
    }
    constant = {"seed": seed, "model": "by hand"}
    complete = {name: t.assign(**{k: v for k, v in constant.items() if k not in t}) for name, t in tables.items()}
    return bool((claims_table(complete, {})["verdict"] == SUPPORTED).any())


def cases() -> list[Case]:
    """Every verdict in its own null, in the boring world and where its effect is planted."""
    length = {"on_norm": correctness_worlds.straight, "on_correct": correctness_worlds.straight}
    curved = {"on_norm": correctness_worlds.u_shaped, "on_correct": correctness_worlds.u_shaped}
    made = [
        case("0 correctness", "nothing acts (100 problems x 8)", samples(), thinking.correctness),
        case("0 correctness", "length acts on both", samples(**length), thinking.correctness),
        case("0 correctness", "length acts on both, U-shaped", samples(**curved), thinking.correctness),
        case("0 correctness", "right responses have more loud types", spoken(more=0.1, level=0.5), thinking.correctness),
        *(
            case("0 correctness", f"beta {beta} ({n} x 8)", samples(beta=beta, problems=n), thinking.correctness, planted=True)
            for beta, n in ((0.2, 100), (0.4, 100), (0.4, 200))
        ),
    ]
    for name, shape in mode_worlds.SMOOTH.items():
        said = shapes(shape, 0.05)
        made.append(
            Case(claim="1, 2 two stages", world=f"{name}, layers with bumps of their own (28)", planted=False, said=said)
        )
    pieces = (mode_worlds.X - 0.75).clip(0) * 4
    for n, bumps in ((24, 0.0), (100, 0.0), (100, 0.05)):
        world = f"two straight pieces{', layers with bumps of their own' if bumps else ''} (28 layers, {n} prompts)"
        made.append(Case(claim="1, 2 two stages", world=world, planted=True, said=shapes(pieces, bumps, n)))
    late = World(n=48, layers=8)
    made += [
        case("2 norm by stages", "boring (48 prompts)", stages(late), norms.stages),
        *(
            case(
                "2 norm by stages",
                f"thinking {effect:g} louder, five times that at the last of {layers} layers (48)",
                stages(World(n=48, layers=layers, effect=effect, rise=100.0)),
                norms.stages,
                True,
            )
            for effect, layers in ((25, 12), (10, 28), (25, 28))
        ),
        case("10 thinking tokens", "boring (24)", stages(World(layers=8)), norms.thinking_tokens),
        *(
            case("10 thinking tokens", f"{name} ({world.n})", stages(world), norms.thinking_tokens)
            for name, world in mode_nulls.NUISANCES.items()
        ),
        *(
            case(
                "10 thinking tokens",
                f"{noises:g} token noises louder (48)",
                stages(World(n=48, layers=8, effect=2 * noises)),
                norms.thinking_tokens,
                True,
            )
            for noises in (1.5, 3)
        ),
        Case(
            claim="3 features (its statistic; no verdict)", world="boring", planted=False, said=links(World(n=32, latents=160))
        ),
        Case(
            claim="3 features (its statistic; no verdict)",
            world="features without norms",
            planted=False,
            said=links(World(n=32, latents=160, firing=1.0)),
        ),
        Case(
            claim="3 features (its statistic; no verdict)",
            world="a norm that is a gain",
            planted=False,
            said=links(World(n=32, latents=160, firing=1.0, gain=0.3)),
        ),
        Case(
            claim="3 features (its statistic; no verdict)",
            world="the norm follows them (16 held out)",
            planted=True,
            said=links(World(n=32, latents=160, reasoning=3.0)),
        ),
    ]
    loud = verdict_worlds.LOUD
    for claim, rule, tables, nulls, planted in (
        (
            "4 theorem",
            theory.theorem,
            verdict_worlds.bound,
            {
                "boring": World(n=60, latents=60),
                "an offset": World(**loud, firing=3.0, uneven=0.7),
                "a loud type that latents fire on": verdict_worlds.LoudType(n=60, latents=60, firing=0.15),
                "a gain of whole prompts": World(**loud, firing=3.0, prompt_gain=0.7, thinking=(150, 250)),
            },
            {"reasoning latents alone follow (60)": World(**loud, proportional=0.05, uneven=0.7)},
        ),
        (
            "13 domain",
            norms.domain,
            verdict_worlds.families,
            {
                "labels alone": World(n=80, families=4, family_types=1e-9),
                "loud types": World(n=80, families=4, family_types=0.3, types=8.0),
                "vocabularies of their own": World(n=80, families=4, family_types=20.0),
                "longer prompts": verdict_worlds.Placed(n=80, families=4, family_types=1e-9, by="family", each=15),
            },
            {
                "one prompt deviation (80)": World(n=80, families=4, family_types=0.1, family_effect=5.0),
                "two prompt deviations (80)": World(n=80, families=4, family_types=0.1, family_effect=10.0),
            },
        ),
        (
            "14 difficulty",
            norms.difficulty,
            verdict_worlds.trend,
            {
                "boring": World(n=60, levels=4),
                "longer and louder": verdict_worlds.LONGER,
                "quieter direct answers": World(n=60, levels=4, quieter=4.0),
                "longer prompts": verdict_worlds.Placed(n=60, levels=4, each=15),
                "louder types": verdict_worlds.LouderTypes(n=60, levels=4),
                "both modes louder": verdict_worlds.BOTH_LOUDER,
            },
            {
                "0.4 prompt deviations a level (60)": World(n=60, levels=4, harder=2.0),
                "0.8 prompt deviations a level (60)": World(n=60, levels=4, harder=4.0),
            },
        ),
    ):
        for planted_too, worlds in ((False, nulls), (True, planted)):
            made += [
                case(claim, name, lambda seed, t=tables, w=world: t(w, seed), rule, planted_too)
                for name, world in worlds.items()
            ]
    for claim, finding, nulls, planted in (
        (
            "9 pull",
            cause_worlds.of_pull,
            cause_worlds.PULL_NULLS,
            {
                f"the pull grows by 0.4 with the norm of {what} ({world.n})": world
                for what, world in cause_worlds.PULL_PLANTED.items()
            }
            | {
                "the pull grows by 0.2 with the norm of the state that predicts (60)": replace(
                    cause_worlds.PULL_PLANTED["the state that predicts"], pull=0.2
                )
            },
        ),
        (
            "12 suppression",
            cause_worlds.of_suppression,
            cause_worlds.SUPPRESSION_NULLS,
            {
                "high norms cost a tenth of the right answers each (120)": replace(
                    cause_worlds.SUPPRESSION_PLANTED, norm_harm=0.1
                ),
                "a fifth (120)": cause_worlds.SUPPRESSION_PLANTED,
                "a fifth (200)": replace(cause_worlds.SUPPRESSION_PLANTED, n=200),
                "a fifth (300)": replace(cause_worlds.SUPPRESSION_PLANTED, n=300),
                "three tenths (200)": cause_worlds.SUPPRESSION_SEEN,
            },
        ),
    ):
        for planted_too, worlds in ((False, nulls), (True, planted)):
            for name, world in worlds.items():

                def said(seed: int, finding: Any = finding, world: World = world) -> bool:
                    one = finding(world, seed)
                    return bool(one.verdict(one.p) == SUPPORTED)

                made.append(Case(claim=claim, world=name, planted=planted_too, said=said))
    made += [
        case("16 single tokens", "nothing acts (16)", importances(n=16), thinking.importance),
        case("16 single tokens", "boring (16)", importances(n=16, boring=1.0), thinking.importance),
        case("16 single tokens", "the token before (16)", importances(n=16, before=1.0), thinking.importance),
        case("16 single tokens", "each response drifts (16)", importances(n=16, drift=1.0), thinking.importance),
        case("16 single tokens", "first occurrences (16)", importances(n=16, first=1.0), thinking.importance),
        case("16 single tokens", "the last three (16)", importances(n=16, end=3.0), thinking.importance),
        *(
            case(
                "16 single tokens",
                f"{effect:g} of the norm's noise (24)",
                importances(n=24, effect=effect),
                thinking.importance,
                True,
            )
            for effect in (0.25, 0.5)
        ),
        case("17 own thought", "nothing acts (24)", texts(0.0), thinking.thoughts),
        case("17 own thought", "one family of three is four deviations louder (24)", texts(8.0, "a"), thinking.thoughts),
        case("17 own thought", "two deviations (24)", texts(4.0), thinking.thoughts, True),
        case("17 own thought", "four deviations (24)", texts(8.0), thinking.thoughts, True),
        Case(claim="any, after Holm", world="a whole table of the boring world", planted=False, said=whole),
    ]
    return made


def rate(index: int, start: int, stop: int) -> int:
    """How many of the runs with these seeds say so: for a process of its own."""
    warnings.simplefilter("ignore")
    said = cases()[index].said
    return sum(said(seed) for seed in range(start, stop))


def read(file: Path | None, runs: int) -> dict[str, int]:
    """Counts by claim and world, of as many runs."""
    lines = file.read_text().splitlines() if file and file.is_file() else []
    return {entry["name"]: entry["supported"] for entry in map(json.loads, lines) if entry["runs"] == runs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200, help="of each world")
    parser.add_argument("--only", default="", metavar="WORD", help="claims or worlds that hold this")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="counts of worlds, one JSON line each")
    parser.add_argument("--write", action="store_true", help="put the table into docs/claims.md")
    options = parser.parse_args()
    chosen = [(i, c) for i, c in enumerate(cases()) if options.only in f"{c.claim} {c.world}"]
    kept, rows = read(options.keep, options.runs), []
    with ProcessPoolExecutor(2) as pool:
        half = options.runs // 2
        for index, one in chosen:
            began, name = time.perf_counter(), f"{one.claim}, {one.world}"
            if name not in kept:
                parts = [pool.submit(rate, index, *span) for span in ((0, half), (half, options.runs))]
                kept[name] = sum(part.result() for part in parts)
                if options.keep:
                    with options.keep.open("a") as file:
                        file.write(json.dumps({"name": name, "runs": options.runs, "supported": kept[name]}) + "\n")
            count = kept[name]
            interval = binomtest(count, options.runs).proportion_ci(method="wilson")
            row = {
                "claim": one.claim,
                "world": one.world,
                "planted": "yes" if one.planted else "no",
                "supported": f"{count / options.runs:.1%} [{interval.low:.1%}, {interval.high:.1%}]",
            }
            rows.append(row)
            print(*row.values(), f"{time.perf_counter() - began:.0f} s", sep="  ", flush=True)
    print(render_table(pd.DataFrame(rows)))
    if options.write:
        write_regions(CLAIMS, {"rates": f"{options.runs} worlds each, seeds from 0.\n\n{markdown_table(rows)}"})
        planted = [
            {"claim": r["claim"], "planted (prompts)": r["world"], "found": r["supported"]}
            for r in rows
            if r["planted"] == "yes"
        ]
        write_regions(ANALYSIS, {"power": markdown_table(planted)})


if __name__ == "__main__":
    main()
