"""Choose among settings on problems that are not tested on; what is chosen remembers them."""

from __future__ import annotations

import dataclasses
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from tl_l2norm.core.arguments import one_or_several
from tl_l2norm.core.errors import InputError
from tl_l2norm.experiments.arms import ORACLE, Arm, arms_of
from tl_l2norm.experiments.evaluation import Evaluation
from tl_l2norm.experiments.evaluation_results import Results, idle_arms
from tl_l2norm.experiments.scores import NORM_SCORES
from tl_l2norm.recording.saved import locked, may_save
from tl_l2norm.tasks.problems import Problem, problems_of, question_key
from tl_l2norm.text.prompts import Mode


def tune(
    model: Any,
    problems: Problem | Iterable[Problem],
    arms: Arm | Iterable[Arm],
    *,
    n: int = 1,
    temperature: float = 0.0,
    mode: Mode = "think",
    max_new_tokens: int | None = None,
    sink_ratio: float | None = None,
    batch_size: int | None = None,
    segment_tokens: int | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    progress: bool = True,
) -> Arm:
    """The arm that gets the most of these problems right; among equals the one that costs least, then the first.

    It remembers the problems, and `evaluate` refuses to test it on any of them, and how many settings were tried, which is said
    beside its results. Arms that are made of a calibration's traces are made of the plain model's on these problems.

    Args:
        model: as in `evaluate`.
        problems: to choose on: a side of `split_problems`, never of the test.
        arms: one for each setting, two or more.
        n: responses to each problem, unless an arm says otherwise.
        temperature: 0 is greedy; unless an arm says otherwise.
        mode: "think" or "direct".
        max_new_tokens: of a response; by default what the lengths of the plain model's ask for.
        sink_ratio: as in `evaluate`.
        batch_size: as in `evaluate`.
        segment_tokens: as in `evaluate`.
        seed: as in `evaluate`.
        out: a folder to keep responses in; the same call goes on from what is there.
        progress: show a progress bar, and what was chosen.

    Warns:
        UserWarning: the best of them changed nothing.

    Raises:
        ValueError: bad input; a single setting, or one that sees the answers; a folder of another run.

    Examples:
        >>> problems = l2.make_mixture(8, families="compact", levels=[2])
        >>> calibration, test = l2.experiments.split_problems(problems, share=0.3)
        >>> grid = [l2.Arm(f"scale {x}", l2.Suppression({11: 300.0}, scale=x)) for x in (0.5, 0.9)]
        >>> chosen = l2.tune(model, calibration, grid, progress=False)
        >>> chosen.tried, chosen.calibrated_on == {problem.id for problem in calibration}
        (2, True)
    """
    given = one_or_several(arms, Arm)
    if len(given) == 1:
        raise InputError("one setting leaves nothing to choose: give several arms")
    if seers := [arm.name for arm in given if isinstance(arm, Arm) and arm.selection == ORACLE]:
        raise InputError(
            f"arm {seers[0]!r} selects by the answers, which no other choice can beat: leave it out of what is tuned"
        )
    tried, problems = arms_of(given, tested=False), problems_of(problems)
    controls = {arm.name: arm.control for arm in tried}
    tried = tuple(dataclasses.replace(arm, control=()) for arm in tried)  # of a claim, and here nothing is claimed
    by_traces = any(arm.needs_calibration or arm.match or arm.selection in NORM_SCORES for arm in tried)
    run = Evaluation.of(
        model,
        problems,
        tried,
        n=n,
        temperature=temperature,
        mode=mode,
        max_new_tokens=max_new_tokens,
        calibration=problems if max_new_tokens is None or by_traces else None,
        sink_ratio=sink_ratio,
        batch_size=batch_size,
        segment_tokens=segment_tokens,
        seed=seed,
        progress=progress,
    )
    folder = may_save(run.backend, out, "out")
    with locked(*([folder] if folder else [])):
        results, made = run.run(folder, tests=False)
    chosen = _chosen(results, made)
    n_tried = sum(max(1, arm.tried) for arm in tried)
    if progress:
        tqdm.write(f"{chosen.name!r} is the best of {n_tried} settings on {len(problems)} problems", file=sys.stderr)
    if chosen.name in idle_arms(results.decisions):
        warnings.warn(
            f"{chosen.name!r} is the best of these settings and changed nothing: what changes something gets no more right, or "
            "the thresholds are out of reach",
            stacklevel=2,
        )
    known = frozenset(chosen.calibrated_on) | {problem.id for problem in problems}
    asked = frozenset(chosen.questions) | {question_key(problem) for problem in problems}
    return dataclasses.replace(chosen, control=controls[chosen.name], calibrated_on=known, tried=n_tried, questions=asked)


def _chosen(results: Results, arms: Iterable[Arm]) -> Arm:
    """The most right, then the cheapest; `max` takes the first of equals."""
    accuracy = results.to_frame().drop_duplicates("arm").set_index("arm")["accuracy"]
    passes = results.costs().set_index("arm")["layer_passes"]
    return max(arms, key=lambda arm: (accuracy[arm.name], -passes[arm.name]))
