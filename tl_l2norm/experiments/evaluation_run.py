"""Ask all arms the same problems with the same seeds; arms that draw the same responses share them."""

from __future__ import annotations

import dataclasses
import hashlib
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from tl_l2norm.core.errors import InputError, Unsupported
from tl_l2norm.core.storage import content_key
from tl_l2norm.core.trace import Trace
from tl_l2norm.experiments.arms import Arm
from tl_l2norm.experiments.evaluation_files import decisions_of, entry_of, scores_of
from tl_l2norm.experiments.kept_log import KeptLog
from tl_l2norm.experiments.kept_signals import read_kept
from tl_l2norm.experiments.others_scores import STATE_SCORES
from tl_l2norm.experiments.settings import settings_of
from tl_l2norm.interventions.base import Intervention
from tl_l2norm.interventions.intervener import Intervener
from tl_l2norm.models.backend import Backend
from tl_l2norm.recording.completions import Completion, Generations
from tl_l2norm.recording.engine import Engine, model_of
from tl_l2norm.recording.generate import generate, restore
from tl_l2norm.recording.plan import check_context
from tl_l2norm.recording.sampling import Sampling
from tl_l2norm.recording.saved import Journal, keep_recorded, kept_recorded
from tl_l2norm.recording.stops import Stops
from tl_l2norm.recording.traces import Recording
from tl_l2norm.tasks.problems import Problem
from tl_l2norm.text.prompts import ChatPrompt, Mode

_BATCHES = 16
"""In one call of generate with interventions: a log grows with all that it decides, and is searched as responses end."""

SIGNALS = (*STATE_SCORES, "think_at_n", "probe")
"""Scores for which responses are read again."""
DEPTH = ("deep_thinking_ratio", "think_at_n")
"""Those of them that ask each layer for its prediction, which costs most."""

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
    progress: bool
    segment_tokens: int
    divergence: bool
    """Whether responses that are read again are read for `DEPTH` too."""
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
    told: Any = None
    """The interventions as JSON holds them."""
    key: str = ""
    """Of all that the responses depend on, beside prompt and seed."""

    def acts(self, asked: Asked, log: KeptLog | None = None) -> tuple[Intervention, ...]:
        """Its interventions; where it is matched to another's, by that one's log, by default of no response."""
        if self.match is not None and log is None:
            log = KeptLog(self.match.acts(asked), sink_ratio=asked.sink_ratio)
        return self.arm.acts(asked.traces, log)


def sources_of(arms: Sequence[Arm], asked: Asked) -> dict[str, Source]:
    """The responses of each arm by its name; those that are matched to another's come behind it."""
    made: dict[str, Source] = {}
    for arm in sorted(arms, key=lambda arm: arm.match is not None):
        source = Source(
            arm=arm,
            sampling=arm.sampled(asked.sampling),
            max_new_tokens=arm.max_new_tokens or asked.max_new_tokens,
            n=arm.n or asked.n,
            scored=arm.selection is not None,
            matched=any(other.match == arm.name for other in arms),
            match=made[arm.match] if arm.match else None,
        )
        told, match = settings_of(source.acts(asked)), source.match
        key = [told, settings_of(source.sampling), source.max_new_tokens, None if match is None else match.key]
        made[arm.name] = dataclasses.replace(source, told=told, key=content_key(key))
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


def require_runs(asked: Asked, source: Source) -> None:
    """Refuse now what the model can't do, and not when it is this arm's turn.

    Raises:
        ValueError: interventions that aren't of this model, more tokens than it has room for.
        NotImplementedError: what an engine can't do.
    """
    room, acts = source.max_new_tokens, source.acts(asked)
    try:
        check_context(asked.backend, [prompt.tokens for prompt in asked.prompts], room)
        if isinstance(asked.backend, Engine):
            what: dict[str, Any] = {"layers": (), "sink_ratio": asked.sink_ratio, "interventions": acts}
            recording = Recording.of(asked.backend, records=False, **what)
            asked.backend.decoding(recording, source.sampling, Stops.of(asked.backend, (), False), room)
        elif acts:
            Intervener(asked.backend, acts, sink_ratio=asked.sink_ratio)
    except (InputError, Unsupported) as error:
        raise type(error)(f"arm {source.arm.name!r}: {error}") from error


@dataclass(slots=True, eq=False)
class Run:
    """Draws responses and keeps them; those that the journal has are not drawn again."""

    asked: Asked
    journal: Journal
    place: Path | None
    """Where traces and signals are kept beside the journal."""
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
        whole = [owner for own in missing.values() if len(own) == source.n for owner in own]
        rest = [owner for own in missing.values() if len(own) < source.n for owner in own]
        for owners, n in ((whole, source.n), (rest, 1)):
            size = n * max(1, _BATCHES * self.asked.batch_size // n) if source.arm.interventions else max(1, len(owners))
            for start in range(0, len(owners), size):
                self._generate(source, owners[start : start + size], n)

    def _generate(self, source: Source, owners: Sequence[Owner], n: int) -> None:
        """Draw these responses, of which n stand together for each problem."""
        asked, acts = self.asked, source.acts(self.asked, self._log_for(source, owners))
        self.clock = time.perf_counter()

        def keep(done: Generations) -> None:
            self._keep(source, done, {(number := c.prompt_index * n + c.sample): owners[number] for c in done})

        with warnings.catch_warnings():  # that nothing fired is seen in the table of decisions
            warnings.filterwarnings("ignore", message="nothing was changed by")
            generate(
                model_of(asked.backend),
                [asked.prompts[i] for i, _ in owners[::n]],
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
            match.acts(self.asked),
            entries=[self.journal.entries[self.key(match, owner)] for owner in owners],
            seeds=[self.asked.seed_of(owner) for owner in owners],
            prompt_lens=[len(self.asked.prompts[i].tokens) for i, _ in owners],
            sink_ratio=self.asked.sink_ratio,
        )

    def _keep(self, source: Source, done: Generations, owners: Mapping[int, Owner]) -> None:
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

    def response(self, source: Source, owner: Owner) -> Completion:
        """As it was drawn, with its trace where norms are kept."""
        prompt, key = self.asked.prompts[owner[0]], self.key(source, owner)
        if key not in self._restored:
            entry, seed = self.journal.entries[key], self.asked.seed_of(owner)
            made = restore(self.asked.backend, prompt, entry["tokens"], finish_reason=entry["finish_reason"], seed=seed)
            own: dict[str, Any] = {"prompt_index": owner[0], "sample": owner[1], "trace": self.traces.get(key)}
            self._restored[key] = dataclasses.replace(made, **(own | scores_of(entry)))
        return self._restored[key]

    def completion(self, source: Source, owner: Owner) -> Completion:
        """A response as it is judged: with what the prompt forced; one that was cut off is wrong, and has no vote."""
        made = self.response(source, owner)
        answer = self.asked.prompts[owner[0]].answer_prefix + made.answer if made.finish_reason == "stop" else ""
        return dataclasses.replace(made, answer=answer)

    def completions(self, source: Source, arm: Arm) -> Sequence[Completion]:
        """All of an arm, problem by problem; read again where its selection needs that, once for all arms that do."""
        n = arm.n or self.asked.n
        own = [self.completion(source, (i, sample)) for i in range(len(self.asked.problems)) for sample in range(n)]
        if arm.selection not in SIGNALS:
            return own
        if (source.key, n) not in self._read:
            self._read[source.key, n] = read_kept(
                self.place,
                model_of(self.asked.backend),
                own,
                segment_tokens=self.asked.segment_tokens,
                divergence=self.asked.divergence,
                batch_size=self.asked.batch_size,
                progress=self.asked.progress,
            )
        return self._read[source.key, n]
