"""Ask all arms the same problems with the same seeds; arms that draw the same responses share them."""

from __future__ import annotations

import dataclasses
import hashlib
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from tl_l2norm.core.storage import content_key
from tl_l2norm.core.thresholds import iqr_thresholds
from tl_l2norm.core.trace import Trace
from tl_l2norm.experiments.arms import Arm
from tl_l2norm.experiments.evaluation_files import decisions_of, entry_of, scores_of
from tl_l2norm.experiments.kept_log import KeptLog
from tl_l2norm.experiments.others_scores import STATE_SCORES
from tl_l2norm.experiments.selection import select
from tl_l2norm.experiments.settings import settings_of
from tl_l2norm.interventions.base import Intervention
from tl_l2norm.models.backend import Backend
from tl_l2norm.recording.completions import Completion, Generations
from tl_l2norm.recording.engine import Engine, model_of
from tl_l2norm.recording.generate import generate, restore
from tl_l2norm.recording.reading_signals import read_signals
from tl_l2norm.recording.sampling import Sampling
from tl_l2norm.recording.saved import Journal, keep_recorded, kept_recorded
from tl_l2norm.tasks.problems import Problem
from tl_l2norm.tasks.verifiers import is_correct
from tl_l2norm.text.prompts import ChatPrompt, Mode

_BATCHES = 16
"""In one call of generate with interventions: a log grows with all that it decides, and is searched as responses end."""

SIGNALS = (*STATE_SCORES, "think_at_n", "probe")
"""Scores for which responses are read again."""

Owner = tuple[int, int]
"""Number of a problem, and of a response to it."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Asked:
    """What is the same for all arms."""

    backend: Backend | Engine
    problems: Sequence[Problem]
    """By id, so that nothing hangs on the order in which they came."""
    prompts: Sequence[ChatPrompt]
    mode: Mode
    seed: int
    n: int
    sampling: Sampling
    max_new_tokens: int
    sink_ratio: float
    batch_size: int
    traces: Sequence[Trace] = ()
    """Of the calibration."""

    def seed_of(self, owner: Owner) -> int:
        """Of one response, the same in every arm and whatever else is asked."""
        text = f"{self.seed}/{self.mode}/{self.problems[owner[0]].id}/{owner[1]}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Source:
    """Responses that one or several arms draw."""

    arm: Arm
    """The first of them: its interventions are those of all."""
    sampling: Sampling
    max_new_tokens: int
    n: int
    scored: bool
    """Whether norms and probabilities are kept, for a selection."""
    matched: bool
    """Whether it is kept where things were decided, for an arm that is matched to it."""
    match: Source | None
    told: Any
    """The interventions as JSON holds them."""
    key: str
    """Of all that the responses depend on, beside prompt and seed."""

    def acts(self, asked: Asked, log: KeptLog | None) -> tuple[Intervention, ...]:
        """Its interventions."""
        return self.arm.acts(asked.traces, log)


def sources_of(arms: Sequence[Arm], asked: Asked) -> dict[str, Source]:
    """The responses of each arm by its name; those that are matched to another's come behind it."""
    made: dict[str, Source] = {}
    for arm in sorted(arms, key=lambda arm: arm.match is not None):
        match = made[arm.match] if arm.match else None
        log = None if match is None else KeptLog(match.acts(asked, None), sink_ratio=asked.sink_ratio)
        sampling = arm.sampled(asked.sampling)
        limit = arm.max_new_tokens or asked.max_new_tokens
        told = settings_of(arm.acts(asked.traces, log))
        made[arm.name] = Source(
            arm=arm,
            sampling=sampling,
            max_new_tokens=limit,
            n=arm.n or asked.n,
            scored=arm.selection is not None,
            matched=any(other.match == arm.name for other in arms),
            match=match,
            told=told,
            key=content_key([told, settings_of(sampling), limit, None if match is None else match.key]),
        )
    return _joined(made)


def _joined(made: Mapping[str, Source]) -> dict[str, Source]:
    """One source for all arms with the same key, with as much of each as any of them needs."""
    by_key: dict[str, list[Source]] = {}
    for source in made.values():
        by_key.setdefault(source.key, []).append(source)
    whole: dict[str, Source] = {}
    for key, own in by_key.items():  # matched ones behind those they are matched to
        match = own[0].match
        whole[key] = dataclasses.replace(
            own[0],
            n=max(source.n for source in own),
            scored=any(source.scored for source in own),
            matched=any(source.matched for source in own),
            match=None if match is None else whole[match.key],
        )
    return {name: whole[source.key] for name, source in made.items()}


@dataclass(slots=True, eq=False)
class Run:
    """Draws responses and keeps them; those that the journal has are not drawn again."""

    asked: Asked
    journal: Journal
    place: Path | None
    """Where traces are kept beside the journal."""
    bar: tqdm[Any]
    traces: dict[str, Trace] = field(default_factory=dict)
    """Of scored responses, by their keys."""
    clock: float = 0.0
    _restored: dict[str, Completion] = field(default_factory=dict)
    _read: dict[tuple[str, int], Sequence[Completion]] = field(default_factory=dict)

    def key(self, source: Source, owner: Owner) -> str:
        """Of one response in the journal."""
        prompt = self.asked.prompts[owner[0]]
        return content_key([source.key, prompt.text, prompt.tokens, self.asked.seed_of(owner)])

    def is_kept(self, source: Source, owner: Owner) -> bool:
        """Whether this response is there, with all that is needed of it."""
        key = self.key(source, owner)
        return key in self.journal.entries and (not source.scored or key in self.traces)

    def load(self, sources: Sequence[Source]) -> None:
        """Read the traces that an earlier run kept."""
        if self.place is not None:
            keys = {self.key(source, owner) for source in sources if source.scored for owner in self.owners(source)}
            self.traces |= kept_recorded(self.place, {k: e for k, e in self.journal.entries.items() if k in keys})
        kept = sum(self.is_kept(source, owner) for source in sources for owner in self.owners(source))
        self.bar.n = self.bar.initial = kept  # the time left goes by what is drawn now

    def owners(self, source: Source) -> list[Owner]:
        """All responses of a source."""
        return [(i, sample) for i in range(len(self.asked.problems)) for sample in range(source.n)]

    def draw(self, source: Source) -> None:
        """Draw what isn't there: the responses to a problem together, and one by one what a killed run left of them."""
        missing: dict[int, list[Owner]] = {}
        for owner in self.owners(source):
            if not self.is_kept(source, owner):
                missing.setdefault(owner[0], []).append(owner)
        whole = [own for own in missing.values() if len(own) == source.n]
        rest = [[owner] for own in missing.values() if len(own) < source.n for owner in own]
        for groups, n in ((whole, source.n), (rest, 1)):
            for part in self._parts(source, groups, n):
                self._generate(source, part, n)

    def _parts(self, source: Source, groups: list[list[Owner]], n: int) -> Iterator[list[list[Owner]]]:
        size = len(groups)
        if source.arm.interventions:
            size = max(1, _BATCHES * self.asked.batch_size // n)
        for start in range(0, len(groups), max(1, size)):
            yield groups[start : start + size]

    def _generate(self, source: Source, groups: Sequence[Sequence[Owner]], n: int) -> None:
        owners = [owner for group in groups for owner in group]
        asked, acts = self.asked, source.acts(self.asked, self._log_for(source, owners))
        self.clock = time.perf_counter()

        def keep(done: Generations) -> None:
            self._keep(source, done, {c.prompt_index * n + c.sample: owners[c.prompt_index * n + c.sample] for c in done}, n)

        with warnings.catch_warnings():  # that nothing fired is seen in the table of decisions
            warnings.filterwarnings("ignore", message="nothing was changed by")
            generate(
                model_of(asked.backend),
                [asked.prompts[group[0][0]] for group in groups],
                n=n,
                **{f.name: getattr(source.sampling, f.name) for f in dataclasses.fields(Sampling)},
                seed=[asked.seed_of(owner) for owner in owners],
                interventions=acts,
                record=source.scored,
                max_new_tokens=source.max_new_tokens,
                batch_size=asked.batch_size,
                sink_ratio=asked.sink_ratio,
                on_finish=keep,
                progress=False,
            )

    def _log_for(self, source: Source, owners: Sequence[Owner]) -> KeptLog | None:
        """What the arm did that this one is matched to, of the same responses."""
        match = source.match
        if match is None:
            return None
        return KeptLog(
            match.acts(self.asked, None),
            entries=[self.journal.entries[self.key(match, owner)] for owner in owners],
            seeds=[self.asked.seed_of(owner) for owner in owners],
            prompt_lens=[len(self.asked.prompts[i].tokens) for i, _ in owners],
            sink_ratio=self.asked.sink_ratio,
        )

    def _keep(self, source: Source, done: Generations, owners: Mapping[int, Owner], n: int) -> None:
        now = time.perf_counter()
        seconds, self.clock = (now - self.clock) / len(done), now
        decided = {} if done.log is None else decisions_of(done.log, list(owners), events=source.matched)
        entries = {}
        for completion, (number, owner) in zip(done, owners.items(), strict=True):
            entry = entry_of(completion, self.asked.problems[owner[0]].id, seconds=seconds, scores=source.scored)
            entries[self.key(source, owner)] = entry | {"sample": owner[1]} | decided.get(number, {})
        if source.scored:
            self.traces.update(zip(entries, done.traces, strict=True))
            if self.place is not None:
                entries = keep_recorded(self.place, entries, done.traces)
        self.journal.add(entries)
        self.bar.update(len(entries))

    def completion(self, source: Source, owner: Owner) -> Completion:
        """A response as it was drawn; what is judged of it begins with what the prompt forced."""
        prompt, key = self.asked.prompts[owner[0]], self.key(source, owner)
        if key in self._restored:
            return self._restored[key]
        entry = self.journal.entries[key]
        made = restore(
            self.asked.backend,
            prompt,
            entry["tokens"],
            finish_reason=entry["finish_reason"],
            seed=self.asked.seed_of(owner),
        )
        answer = prompt.answer_prefix + made.answer
        own: dict[str, Any] = {"answer": answer, "prompt_index": owner[0], "sample": owner[1], "trace": self.traces.get(key)}
        self._restored[key] = dataclasses.replace(made, **(own | scores_of(entry)))
        return self._restored[key]

    def completions(self, source: Source, arm: Arm) -> Sequence[Completion]:
        """All of an arm, problem by problem; read again where its selection needs that, once for all arms that do."""
        n = arm.n or self.asked.n
        own = [self.completion(source, (i, sample)) for i in range(len(self.asked.problems)) for sample in range(n)]
        if arm.selection not in SIGNALS:
            return own
        if (source.key, n) not in self._read:
            model, size = model_of(self.asked.backend), self.asked.batch_size
            self._read[source.key, n] = read_signals(model, own, batch_size=size, progress=False)
        return self._read[source.key, n]


def outcomes_of(run: Run, arm: Arm, source: Source) -> Iterator[dict[str, Any]]:
    """One entry for each answer of an arm, problem by problem."""
    asked, n = run.asked, arm.n or run.asked.n
    completions = run.completions(source, arm)
    answers = completions if arm.selection is None else _chosen(asked, arm, completions)
    for answer in answers:
        problem, i = asked.problems[answer.prompt_index], answer.prompt_index
        behind = [(i, answer.sample)] if arm.selection is None else [(i, sample) for sample in range(n)]
        entries = [run.journal.entries[run.key(source, owner)] for owner in behind]
        tokens, reruns = sum(len(e["tokens"]) for e in entries), sum(e["reruns"] for e in entries)
        yield {
            "arm": arm.name,
            "prompt": problem.id,
            "family": problem.family,
            "level": problem.level,
            "sample": answer.sample,
            "correct": answer.finish_reason == "stop" and bool(is_correct(problem, answer.answer)),
            "responses": len(entries),
            "cut_off": sum(e["finish_reason"] == "length" for e in entries) / len(entries),
            "tokens": tokens,
            "reruns": reruns,
            "layer_passes": asked.backend.n_layers * tokens + reruns,
            "seconds": sum(e["seconds"] for e in entries),
        }


def _chosen(asked: Asked, arm: Arm, completions: Sequence[Completion]) -> Sequence[Completion]:
    """One response to each problem; those of the same tokens have the same scores, whatever stood beside them in a batch."""
    assert arm.selection is not None
    alike: dict[tuple[int, tuple[int, ...]], Completion] = {}
    for own in completions:
        alike.setdefault((own.prompt_index, own.tokens), own)
    completions = [dataclasses.replace(alike[own.prompt_index, own.tokens], sample=own.sample) for own in completions]
    thresholds = arm.thresholds
    if thresholds is None and asked.traces:
        thresholds = iqr_thresholds(asked.traces)
    assert not callable(thresholds)
    return select(
        completions, by=arm.selection, thresholds=thresholds, layers=arm.layers, problems=asked.problems, seed=asked.seed
    )


def decisions_table(run: Run, arms: Sequence[Arm], sources: Mapping[str, Source]) -> pd.DataFrame:
    """How often the interventions of each arm decided what."""
    entries = [
        {"arm": arm.name, "intervention": name, "decision": decision, "fired": fired, "n": n}
        for arm in arms
        for i in range(len(run.asked.problems))
        for sample in range(arm.n or run.asked.n)
        for name, decision, fired, n in run.journal.entries[run.key(sources[arm.name], (i, sample))]["decisions"]
    ]
    names = ["arm", "intervention", "decision", "fired"]
    frame = pd.DataFrame(entries, columns=[*names, "n"])
    return frame.groupby(names, sort=False, as_index=False)["n"].sum()
