"""What is chosen before a test, on problems that are not in it: thresholds, the length of responses, what a test can see."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tl_l2norm.analysis.arms import CUT_OFF
from tl_l2norm.analysis.paired import smallest_difference
from tl_l2norm.core.arguments import as_number, as_seed
from tl_l2norm.core.errors import InputError, Unmeasurable
from tl_l2norm.core.trace import Trace
from tl_l2norm.experiments.arms import ORACLE, Arm
from tl_l2norm.experiments.modes import run_modes, thinking_room
from tl_l2norm.models.described import Described
from tl_l2norm.tasks.problems import Problem, problems_of, require_distinct
from tl_l2norm.tasks.results import Result
from tl_l2norm.text.prompts import ChatPrompt, Mode

DIRECT_ROOM = 32
"""Tokens of a direct answer where nobody says, as in `run_modes`."""
DISCORDANCE = 0.2
"""Guess of the share of problems that two arms answer differently in right and wrong, where no calibration says more."""

_ENOUGH = 59  # the longest of so many is longer than 95% of all in 95% of cases


def split_problems(
    problems: Problem | Iterable[Problem], *, share: float = 0.25, seed: int = 0
) -> tuple[tuple[Problem, ...], tuple[Problem, ...]]:
    """A part to calibrate and tune on, and the rest to test on; a problem's side hangs on its id and the seed alone.

    Args:
        problems: distinct ones.
        share: of the problems that go to calibration, about.
        seed: another one splits otherwise.

    Returns:
        Calibration and test, in the order given.

    Raises:
        ValueError: bad input, or so few problems that a side is empty.

    Examples:
        >>> calibration, test = l2.experiments.split_problems(l2.make_mixture(12, families="compact"), share=0.5)
        >>> len(calibration) + len(test), {p.id for p in calibration} & {p.id for p in test}
        (12, set())
    """
    given, seed = problems_of(problems), as_seed(seed)
    require_distinct(given)
    if not 0 < as_number("share", share) < 1:
        raise InputError(f"share is between 0 and 1, got {share}")
    sides: tuple[list[Problem], list[Problem]] = ([], [])
    for problem in given:
        place = int.from_bytes(hashlib.sha256(f"{seed}/{problem.id}".encode()).digest()[:6], "big") / 2**48
        sides[place >= share].append(problem)
    if not all(sides):
        raise InputError(f"{len(given)} problems are too few to split, one side is empty: give more, or another share or seed")
    return tuple(sides[0]), tuple(sides[1])


def answerable(given: Any, *, least: int = 1) -> tuple[Problem, ...]:
    """Distinct problems with known answers, by id: nothing hangs on their order.

    Raises:
        InputError: fewer than `least`, or one twice.
        Unmeasurable: an answer that isn't known.
    """
    problems = problems_of(given)
    if len(problems) < least:
        raise InputError("no problems given")
    if unknown := [problem for problem in problems if problem.answer is None and problem.verify is None]:
        raise Unmeasurable(
            f"{len(unknown)} problems have no known answer, such as {unknown[0].question!r:.60}: accuracy is what is measured"
        )
    require_distinct(problems)
    return tuple(sorted(problems, key=lambda problem: problem.id))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Calibration:
    """Responses of the plain model to problems that are not tested on."""

    results: tuple[Result, ...]

    @property
    def traces(self) -> tuple[Trace, ...]:
        """Of them all."""
        return tuple(result.trace for result in self.results)

    @property
    def ids(self) -> frozenset[str]:
        """Of the problems."""
        return frozenset(result.problem.id for result in self.results)

    def limit(self, room: int) -> int:
        """How long responses may get in the test, see `token_limit`."""
        lengths = [len(result.trace.tokens) - result.trace.prompt_len + 1 for result in self.results]
        return token_limit(lengths, room)

    @property
    def cut_off(self) -> float:
        """Share of the responses that ran into their own limit."""
        return float(np.mean([result.finish_reason == "length" for result in self.results]))

    @property
    def discordance(self) -> float:
        """Share of problems on which two arms of this accuracy differ whose answers have nothing to do with each other."""
        right, n = sum(bool(result.correct) for result in self.results), len(self.results)
        accuracy = (right + 1) / (n + 2)
        return 2 * accuracy * (1 - accuracy)


def calibrate(
    model: Any,
    problems: Sequence[Problem],
    *,
    mode: Mode,
    room: int,
    temperature: float,
    seed: int,
    sink_ratio: float,
    batch_size: int | None,
    save_to: Path | None,
    progress: bool,
) -> Calibration:
    """Ask the plain model, with room for `room` tokens."""
    results = run_modes(
        model,
        problems,
        modes=mode,
        max_new_tokens=room,
        max_direct_tokens=room,
        temperature=temperature,
        seed=seed,
        sink_ratio=sink_ratio,
        batch_size=batch_size,
        save_to=save_to,
        progress=progress,
    )
    return Calibration(results=results)


def room_for(backend: Described, prompts: Sequence[ChatPrompt], mode: Mode) -> int:
    """How many tokens a response may have where nobody says."""
    return thinking_room(backend, prompts) if mode == "think" else DIRECT_ROOM


def token_limit(lengths: Sequence[int], room: int) -> int:
    """Tokens that a response may have in the test, so that under 5% are cut off though interventions may make them longer: half
    as many again as all but 2% of the calibration's have. Of fewer than 59 responses, of which the longest is too often shorter
    than 5% of all, it is four times the longest. In steps of 16, and no more than there is room for.

    Args:
        lengths: of the calibration's responses, in tokens.
        room: of the model's context, or what the calibration had.

    Examples:
        >>> token_limit([100, 120, 140], 4096), token_limit([100] * 60, 4096), token_limit([100, 4096], 4096)
        (560, 160, 4096)
    """
    if not lengths:
        raise Unmeasurable("no responses to take a limit from")
    few = len(lengths) < _ENOUGH
    wanted = 4 * max(lengths) if few else 1.5 * float(np.quantile(lengths, 0.98, method="higher"))
    return min(room, 16 * math.ceil(wanted / 16))


def power_note(n: int, n_arms: int, calibration: Calibration | None) -> str:
    """What a test of n problems can see, in words, before it is run: by `smallest_difference`, at the first step of Holm."""
    discordance = DISCORDANCE if calibration is None else calibration.discordance
    least = smallest_difference(n, discordance=discordance, tests=n_arms)
    guess = "a guess" if calibration is None else "as if answers were independent, by the calibration's accuracy"
    arms = "one arm" if n_arms == 1 else f"the first of {n_arms} arms by Holm"
    sees = "no difference, however large," if math.isnan(least) else f"differences of {100 * least:.1f} points and more"
    return (
        f"power: {n} problems show {sees} in 80% of runs (exact McNemar, {arms}, if arms differ on {discordance:.0%} of the "
        f"problems, {guess})"
    )


def notes_before(arms: Sequence[Arm], n: int, calibration: Calibration | None, *, tests: bool) -> list[str]:
    """What is said before n problems are asked: the power of the test, how arms were tuned, what will be cut off."""
    n_tested = sum(arm.selection != ORACLE for arm in arms[1:])
    notes = [power_note(n, n_tested, calibration)] if tests and n_tested else []
    notes += [
        f"{arm.name!r}: the best of {arm.tried} settings that were tried on {len(set(arm.calibrated_on))} other problems"
        for arm in arms
        if arm.tried
    ]
    if calibration and calibration.cut_off > CUT_OFF:
        notes.append(
            f"{calibration.cut_off:.0%} of the calibration's responses ran into the limit: as many of the test's will, and "
            "count as wrong; give more room (max_new_tokens) or easier problems"
        )
    return notes
