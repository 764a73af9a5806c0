"""The paper's methods on the tiny reasoner, at the levels that it seldom saw: a quarter of an hour on 2 cores.

python -m benchmarks.tiny_reasoner settings --out FOLDER   training problems at several temperatures: how TEMPERATURE was chosen
python -m benchmarks.tiny_reasoner samples --out FOLDER    240 problems x 16 responses: selection, right against wrong responses
python -m benchmarks.tiny_reasoner cool --out FOLDER       selection at temperature 1
python -m benchmarks.tiny_reasoner arms --out FOLDER       ALRR and ERSS beside their controls, 400 problems
python -m benchmarks.tiny_reasoner doses --out FOLDER      the same problems, with more and more tokens suppressed
python -m benchmarks.pages --tiny FOLDER                   writes what they found into docs/claims.md

Each goes on from what FOLDER holds.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

import tl_l2norm as l2
from benchmarks.arm_sets import ALRR, alike_arms, methods, selections, steered, suppression_arms
from benchmarks.parts import run_part
from tl_l2norm.tasks.problems import Problem

CELLS = (("modular", 12), ("swaps", 12), ("circuit", 8), ("pointers", 9))
"""Families at their hardest level, at which thinking is right in 80 to 90%."""
TEMPERATURES = (0.0, 0.6, 1.0, 1.4, 1.8, 2.2)
TEMPERATURE, COOL = 1.8, 1.0
"""Of samples: the highest of these at which every family is right in 20 to 90% of training problems. The cooler one was added
when results of the former had been seen: its longest responses, and its loudest, are those that went astray."""
SEGMENT = 6  # tokens of a thought's segments, eight of a thought: the authors' 500 are for thoughts of thousands
ROOM = 160  # tokens: a few at most are cut off at that temperature
SAMPLED, N_SAMPLES = 60, 16  # problems of each cell, responses to each
TESTED = 100  # problems of each cell that interventions are tried on
DOSES = (0.99, 0.95, 0.8, 0.5)
"""Quantiles over which norms are suppressed."""
LATE, MIDDLE, EARLY = (9, 10, 11), (4, 5, 6), (0, 1, 2)
READ_TWICE = ("deep_thinking_ratio", "think_at_n", "net_change", "cumulative_change", "aligned_change", "probe")
"""Selections by signals that are read off finished responses."""


def ask(n: int, split: str, seed: int) -> list[Problem]:
    """`n` problems of each cell."""
    return [p for family, level in CELLS for p in l2.make_problems(family, n, level=level, split=split, seed=seed)]  # type: ignore[arg-type]


def settings(out: Path) -> None:
    """How many training problems are thought out at each temperature, and how many responses are cut off."""
    model, problems = l2.load_model("tiny-reasoner"), ask(60, "train", seed=3)
    rows = []
    for temperature in TEMPERATURES:
        results = l2.run_modes(model, problems, modes="think", max_new_tokens=ROOM, temperature=temperature)
        rows += [
            {"temperature": temperature, "family": r.problem.family, "right": r.correct, "cut off": r.finish_reason == "length"}
            for r in results
        ]
    table = pd.DataFrame(rows).astype({"right": float}).groupby(["temperature", "family"], as_index=False).mean()
    table.to_csv(out / "settings.csv", index=False)
    print(table.round(2).to_string())


def samples(out: Path) -> None:
    """What selection by each score gets, and whether norms tell right from wrong responses of the same problems."""
    found = choose(TEMPERATURE, out / "selection")
    effect = l2.analysis.correctness_effect(l2.analysis.correctness_samples(found.samples["baseline"]))
    effect.to_csv(out / "correctness.csv", index=False)
    print(effect.to_string(index=False))


def cool(out: Path) -> None:
    """The same selections at a temperature at which few responses go astray."""
    choose(COOL, out / "cool")


def choose(temperature: float, out: Path) -> l2.experiments.Results:
    """Every selection among the same responses."""
    found = l2.evaluate(
        l2.load_model("tiny-reasoner"),
        ask(SAMPLED, "test", seed=4),
        selections(READ_TWICE),
        n=N_SAMPLES,
        temperature=temperature,
        max_new_tokens=ROOM,
        segment_tokens=SEGMENT,
        calibration=ask(12, "train", seed=4),
        out=out,
    )
    print(found)
    return found


def arms(out: Path) -> None:
    """ALRR and ERSS beside what spends the same elsewhere, greedy."""
    model = l2.load_model("tiny-reasoner")

    def at(layers: tuple[int, ...]) -> Callable[[Any, Any], Any]:
        return lambda traces, log: l2.interventions.Rerun(match=log, match_layers=dict(zip(layers, LATE, strict=True)))

    def along_means(traces: Any) -> l2.ERSS:
        tau = l2.quantile_thresholds(traces, q=0.95)
        vectors = l2.interventions.mean_difference(model, traces, thresholds=tau, layers=LATE)
        return steered(towards="vectors", vectors=vectors)(traces)

    elsewhere = [
        l2.Arm("re-runs in the middle", at(MIDDLE), match=ALRR),
        l2.Arm("early re-runs", at(EARLY), match=ALRR),
    ]
    intervene(model, out / "arms", methods(elsewhere, [l2.Arm("ERSS, difference of means", along_means)]))


def doses(out: Path) -> None:
    """More and more tokens suppressed, as many others, partners of the same type and place, and directions swapped; greedy."""
    tried = [arm for q in DOSES for arm in suppression_arms(q)]
    tried += [arm for q in (0.95, 0.8) for arm in [*alike_arms(q), *suppression_arms(q, how="swap")]]
    intervene(l2.load_model("tiny-reasoner"), out / "doses", [l2.Arm("baseline"), *tried])


def intervene(model: Any, out: Path, tried: list[l2.Arm]) -> None:
    """All of them on the same problems."""
    found = l2.evaluate(
        model,
        ask(TESTED, "test", seed=5),
        tried,
        max_new_tokens=ROOM,
        calibration=ask(25, "train", seed=5),
        out=out,
    )
    print(found)


PARTS: dict[str, Callable[[Path], None]] = {
    "settings": settings,
    "samples": samples,
    "cool": cool,
    "arms": arms,
    "doses": doses,
}


if __name__ == "__main__":
    run_part(__doc__, PARTS)
