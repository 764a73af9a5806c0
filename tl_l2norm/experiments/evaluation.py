"""Evaluate arms on the same problems: what helps, what harms, and what it costs."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tqdm.auto import tqdm

from tl_l2norm.analysis.arms import ARM_OUTCOMES
from tl_l2norm.core.arguments import as_integer, as_seed, check_choice, check_progress
from tl_l2norm.core.errors import InputError, Unsupported
from tl_l2norm.core.presets import sink_ratio_of
from tl_l2norm.core.prompts import require_own_prompts
from tl_l2norm.core.thresholds import prompt_key
from tl_l2norm.experiments.arms import Arm, arms_of, comparisons
from tl_l2norm.experiments.calibration import Calibration, answerable, calibrate, notes_before, room_for
from tl_l2norm.experiments.evaluation_files import open_journal, require_same
from tl_l2norm.experiments.evaluation_outcomes import (
    all_outcomes,
    curves_table,
    decisions_table,
    require_segments,
    require_thresholds,
)
from tl_l2norm.experiments.evaluation_results import Results
from tl_l2norm.experiments.evaluation_run import DEPTH, SIGNALS, Asked, Run, require_runs, sources_of
from tl_l2norm.experiments.kept_samples import samples_of
from tl_l2norm.experiments.modes import MODES
from tl_l2norm.interventions.base import Intervention
from tl_l2norm.models.backend import Backend
from tl_l2norm.recording.collect import collect
from tl_l2norm.recording.engine import Engine, generator_of, model_of, must_record, rows_at_once
from tl_l2norm.recording.sampling import Sampling
from tl_l2norm.recording.saved import describe_run, locked, may_save
from tl_l2norm.recording.signals import SEGMENT_TOKENS
from tl_l2norm.tasks.problems import Problem, question_key
from tl_l2norm.text.prompts import ChatPrompt, Mode, chat_prompt


def evaluate(
    model: Any,
    problems: Problem | Iterable[Problem],
    arms: Arm | Iterable[Arm],
    *,
    n: int = 1,
    temperature: float = 0.0,
    mode: Mode = "think",
    max_new_tokens: int | None = None,
    calibration: Problem | Iterable[Problem] | None = None,
    sink_ratio: float | None = None,
    batch_size: int | None = None,
    segment_tokens: int | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    progress: bool = True,
) -> Results:
    """Ask every arm the same problems with the same seeds, and hold each against the baseline.

    The baseline is the arm of that name, else the first. A response that is cut off counts as wrong. Arms with the same
    interventions, sampling and limit share their responses: selections choose among those that the baseline is the mean of.

    Before the run it is said, with `progress`, which difference so many problems can show (`smallest_difference`): the smallest
    that the exact McNemar test finds in 80% of runs, at the first step of Holm's procedure, if arms differ on 20% of the
    problems (a guess) or, with a calibration of accuracy a, on 2 a (1 - a), as if their answers were independent.

    Args:
        model: a `HookedTransformer` or `TransformerBridge` whose tokenizer has a chat template, or an engine of `load_engine`.
        problems: distinct ones with known answers, to test on.
        arms: two or more, with names of their own.
        n: responses to each problem, unless an arm says otherwise.
        temperature: 0 is greedy; unless an arm says otherwise.
        mode: "think" or "direct".
        max_new_tokens: of a response, unless an arm says otherwise; by default what the calibration's lengths ask for, without
            one as in `run_modes`.
        calibration: other problems, which the plain model is asked first: arms make their thresholds of its traces, the limit
            of its lengths.
        sink_ratio: a norm over this many times its layer's median over the prompt is a sink's, and left alone; 5 by default (20
            for tiny-reasoner).
        batch_size: responses that are decoded at once, 8 by default (100 for tiny-reasoner); an engine has its own.
        segment_tokens: of a thought's segments, whose changes "net_change", "cumulative_change" and "aligned_change" go by; the
            authors' 500 by default, of which shorter thoughts than 1,000 tokens have no two. With another one the responses in
            `out` are kept, and read again.
        seed: of sampling, resamples and signs; what a response draws hangs on it, the problem and its number alone.
        out: a folder to keep responses in as they end; the same call goes on from what is there, and ends in the same tables.
        progress: show a progress bar with the time that is left.

    Returns:
        `Results`: tables of accuracy, paired differences, verdicts, costs and decisions.

    Raises:
        ValueError: bad input; an arm that was calibrated or tuned on a problem of the test; a folder of another evaluation, or
            one that another process works in.

    Examples:
        >>> problems = l2.make_mixture(8, families="compact", levels=[2])
        >>> calibration, test = l2.experiments.split_problems(problems, share=0.3)
        >>> arms = [l2.Arm("baseline"), l2.Arm("ALRR", lambda traces: l2.ALRR(l2.iqr_thresholds(traces)))]
        >>> found = l2.evaluate(model, test, arms, calibration=calibration, progress=False)
        >>> found.to_frame()[["arm", "against", "verdict"]]
                arm   against           verdict
        0  baseline                    baseline
        1      ALRR  baseline  too few problems
    """
    asked = Evaluation.of(
        model,
        problems,
        arms_of(arms),
        n=n,
        temperature=temperature,
        mode=mode,
        max_new_tokens=max_new_tokens,
        calibration=calibration,
        sink_ratio=sink_ratio,
        batch_size=batch_size,
        segment_tokens=segment_tokens,
        seed=seed,
        progress=progress,
    )
    asked.require_unseen(asked.arms)
    folder = may_save(asked.backend, out, "out")
    with locked(*([folder] if folder else [])):
        return asked.run(folder, tests=True)[0]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evaluation:
    """Arguments, checked."""

    backend: Backend | Engine
    problems: Sequence[Problem]
    prompts: Sequence[ChatPrompt]
    arms: Sequence[Arm]
    calibration: Sequence[Problem]
    n: int
    sampling: Sampling
    mode: Mode
    max_new_tokens: int | None
    sink_ratio: float
    batch_size: int
    segment_tokens: int
    seed: int
    progress: bool

    @classmethod
    def of(cls, model: Any, problems: Any, arms: Sequence[Arm], **given: Any) -> Evaluation:
        """Check everything that can be checked before a token is written."""
        backend = generator_of(model)
        if backend.tokenizer is None:
            raise InputError("the model has no tokenizer: set model.tokenizer to ask it questions")
        check_choice("mode", given["mode"], MODES)
        check_progress(given["progress"])
        test, calibration = answerable(problems), answerable(given["calibration"] or (), least=0)
        prompts = [chat_prompt(backend.tokenizer, p.question, mode=given["mode"], system=p.system) for p in test]
        require_own_prompts((f"{p.id} ({p.family})", prompt.tokens) for p, prompt in zip(test, prompts, strict=True))
        limit, segment = given["max_new_tokens"], given["segment_tokens"]
        made = cls(
            backend=backend,
            problems=test,
            prompts=prompts,
            arms=arms,
            calibration=calibration,
            n=as_integer("n", given["n"], least=1),
            sampling=Sampling(temperature=given["temperature"]),
            mode=given["mode"],
            max_new_tokens=None if limit is None else as_integer("max_new_tokens", limit, least=1),
            sink_ratio=sink_ratio_of(model, given["sink_ratio"]),
            batch_size=rows_at_once(model, given["batch_size"]),
            segment_tokens=SEGMENT_TOKENS if segment is None else as_integer("segment_tokens", segment, least=1),
            seed=as_seed(given["seed"]),
            progress=bool(given["progress"]),
        )
        made._check_arms()
        return made

    def _check_arms(self) -> None:
        by_name = {arm.name: arm.n or self.n for arm in self.arms}
        for arm in self.arms:
            n, sampling = arm.n or self.n, arm.sampled(self.sampling)
            if arm.match is not None and n > (others := by_name[arm.match]):
                raise InputError(
                    f"arm {arm.name!r} takes {n} responses to each problem and {arm.match!r}, to which it is matched, "
                    f"{others}: give it no more, n="
                )
            if n > 1 and sampling.temperature == 0:
                raise InputError(
                    f"arm {arm.name!r} takes {n} responses at temperature 0, which are all the same: give temperature=, or n=1"
                )
            if arm.selection is not None and n == 1:
                raise InputError(f"arm {arm.name!r} selects by {arm.selection!r} among one response: give n=, from 2 on")
            if arm.selection in SIGNALS and (arm.interventions or isinstance(self.backend, Engine)):
                raise Unsupported(
                    f"arm {arm.name!r}: {arm.selection!r} reads responses again, which an engine can't do, and which gives "
                    "other states where something intervened: take a model of load_model, without interventions in this arm"
                )
            if arm.needs_calibration and not self.calibration:
                raise InputError(
                    f"arm {arm.name!r} is made of a calibration's traces: give calibration=, problems that aren't in the test, "
                    "such as a side of l2.experiments.split_problems(problems)"
                )

    def require_unseen(self, arms: Sequence[Arm], acts: Mapping[str, Sequence[Intervention]] = MappingProxyType({})) -> None:
        """Refuse to test arms on what something of them was chosen on; `acts`: their interventions, once they are made.

        Raises:
            InputError: which arm, and how many of the problems.
        """
        ids, questions = {problem.id for problem in self.problems}, {question_key(problem) for problem in self.problems}
        prompts = {prompt_key(prompt.tokens) for prompt in self.prompts}
        others = {prompt_key(prompt.tokens) for prompt in self._asked_for(self.calibration)}
        if both := len(ids & {problem.id for problem in self.calibration}) or len(prompts & others):
            raise InputError(
                f"{both} problems of the calibration are in the test too: what is chosen on them can't be tested there"
            )
        for arm in arms:
            seen = ids & set(arm.calibrated_on) or questions & set(arm.questions)
            taken = prompts & arm.prompts(acts.get(arm.name, ()))
            if seen or taken:
                what = "was tuned on" if seen else "has thresholds that were taken from responses to"
                raise InputError(
                    f"arm {arm.name!r} {what} {len(seen or taken)} of the {len(ids)} problems of the test: on those it was "
                    "chosen, and can't be tested; take other problems for either"
                )

    def run(self, folder: Path | None, *, tests: bool) -> tuple[Results, Sequence[Arm]]:
        """Calibrate, ask every arm and judge; returns the arms beside it, as they were made of the calibration.

        Args:
            folder: where to keep what ends.
            tests: whether arms are tested here, and may not have been chosen on these problems.
        """
        told = self._told() | {"tuned": None if tests else True}
        require_same(folder, told)
        if not must_record(self.backend):  # weights that give NaN show before anything is decoded
            collect(model_of(self.backend), self.prompts[:1], progress=False)
        calibration = self._calibrate(folder)
        asked = self._asked(calibration)
        traces, ids = asked.traces, sorted(calibration.ids) if calibration else ()
        arms = [arm.made_of(traces, ids) if arm.needs_calibration or arm.match else arm for arm in self.arms]
        sources = sources_of(arms, asked)
        if tests:
            self.require_unseen(arms, {arm.name: replace(sources[arm.name], arm=arm).acts(asked) for arm in arms})
        distinct = list(dict.fromkeys(sources.values()))
        for source in distinct:
            require_runs(asked, source)
        for arm in arms:
            require_thresholds(arm, self.backend)
            require_segments(arm, asked)
        settings = {**told, "max_new_tokens": asked.max_new_tokens}
        settings["arms"] = {arm.name: arm.settings() | {"interventions": sources[arm.name].told} for arm in arms}
        journal = open_journal(folder, settings, self.backend)
        notes = notes_before(arms, len(self.problems), calibration, tests=tests)
        self._say(notes)
        total = sum(source.n for source in distinct) * len(self.problems)
        with tqdm(total=total, desc="evaluate", unit="response", disable=not self.progress, delay=2) as bar:
            run = Run(asked=asked, journal=journal, place=folder, bar=bar)
            run.load(distinct)
            for source in distinct:
                bar.set_postfix_str(source.arm.name)
                run.draw(source)
        entries, left_out = all_outcomes(run, arms, sources, tests=tests)
        arms = [arm for arm in arms if arm.name not in left_out]
        unscored = [f"{name!r} is left out: {reason}" for name, reason in left_out.items()]
        self._say(unscored)
        results = Results(
            outcomes=ARM_OUTCOMES.frame(entries, seed=self.seed, model=self.backend.model_name),
            decisions=decisions_table(run, arms, sources),
            comparisons=comparisons(arms, lambda a, b: _drawn(asked, sources, a) == _drawn(asked, sources, b)),
            settings=settings | {"segment_tokens": self.segment_tokens},
            notes=(*notes, *unscored),
            seed=self.seed,
            samples={arm.name: own for arm in arms if (own := samples_of(run, arm, sources[arm.name]))},
            curves=curves_table(run, arms, sources),
        )
        if folder is not None:
            results.save(folder / "results.json")
        return results, arms

    def _told(self) -> dict[str, Any]:
        """What the outcomes depend on, as far as it is known before anything is asked."""
        arms = {arm.name: None for arm in self.arms}
        return describe_run(
            self.backend,
            mode=self.mode,
            n=self.n,
            temperature=self.sampling.temperature,
            seed=self.seed,
            sink_ratio=self.sink_ratio,
            problems={p.id: prompt_key(prompt.tokens) for p, prompt in zip(self.problems, self.prompts, strict=True)},
            calibration=sorted(problem.id for problem in self.calibration),
            names=list(arms),
            **({} if self.max_new_tokens is None else {"max_new_tokens": self.max_new_tokens}),
        )

    def _calibrate(self, folder: Path | None) -> Calibration | None:
        if not self.calibration:
            return None
        return calibrate(
            model_of(self.backend),
            self.calibration,
            mode=self.mode,
            room=self.max_new_tokens or self._room(),
            temperature=self.sampling.temperature,
            seed=self.seed,
            sink_ratio=self.sink_ratio,
            batch_size=self.batch_size,
            save_to=folder / "calibration" if folder else None,
            progress=self.progress,
        )

    def _asked_for(self, problems: Sequence[Problem]) -> list[ChatPrompt]:
        assert self.backend.tokenizer is not None
        return [chat_prompt(self.backend.tokenizer, p.question, mode=self.mode, system=p.system) for p in problems]

    def _room(self) -> int:
        return room_for(self.backend, [*self.prompts, *self._asked_for(self.calibration)], self.mode)

    def _asked(self, calibration: Calibration | None) -> Asked:
        limit = self.max_new_tokens
        if limit is None:
            limit = self._room() if calibration is None else calibration.limit(self._room())
        return Asked(
            backend=self.backend,
            problems=self.problems,
            prompts=self.prompts,
            mode=self.mode,
            seed=self.seed,
            n=self.n,
            sampling=self.sampling,
            max_new_tokens=limit,
            sink_ratio=self.sink_ratio,
            batch_size=self.batch_size,
            progress=self.progress,
            segment_tokens=self.segment_tokens,
            divergence=any(arm.selection in DEPTH for arm in self.arms),
            traces=calibration.traces if calibration else (),
        )

    def _say(self, notes: Sequence[str]) -> None:
        for note in notes if self.progress else ():
            tqdm.write(note, file=sys.stderr)


def _drawn(asked: Asked, sources: Mapping[str, Any], arm: Arm) -> tuple[str, int]:
    """Which responses an arm has."""
    return sources[arm.name].key, arm.n or asked.n
