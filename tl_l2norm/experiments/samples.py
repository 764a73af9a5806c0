"""Ask problems several times each, thinking, and keep what came of it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tl_l2norm.core.arguments import as_integer, as_number, as_seed, check_progress
from tl_l2norm.core.errors import InputError
from tl_l2norm.core.layers import Layers, resolve_layers
from tl_l2norm.core.presets import sink_ratio_of
from tl_l2norm.core.prompts import require_own_prompts
from tl_l2norm.core.storage import content_key
from tl_l2norm.core.trace import Label, Trace
from tl_l2norm.experiments.modes import drawn_at, judged, thinking_room
from tl_l2norm.models.backend import Backend
from tl_l2norm.recording.completions import Completion, Generations
from tl_l2norm.recording.engine import Engine, generator_of, model_of, must_record, rows_at_once
from tl_l2norm.recording.generate import generate, restore
from tl_l2norm.recording.saved import (
    Journal,
    ReadOptions,
    begin,
    collected,
    describe_run,
    keep_recorded,
    kept_recorded,
    locked,
    may_save,
    run_folder,
)
from tl_l2norm.tasks.problems import Problem, problems_of, require_distinct
from tl_l2norm.tasks.results import Result
from tl_l2norm.text.prompts import ChatPrompt, chat_prompt


def sample_thinking(
    model: Any,
    problems: Problem | Iterable[Problem],
    *,
    n: int = 8,
    temperature: float = 1.0,
    max_new_tokens: int | None = None,
    layers: Layers = None,
    sink_ratio: float | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    save_to: str | Path | None = None,
    progress: bool = True,
) -> tuple[Result, ...]:
    """Ask every problem `n` times in thinking mode, verify the answers and record the norms: what `correctness_samples` reads.

    A problem tells something where some of its responses are right and others wrong: choose temperature and levels by accuracy,
    before norms are looked at, so that many problems have both.

    Args:
        model: a `HookedTransformer` or `TransformerBridge` whose tokenizer has a chat template, or an engine of `load_engine`.
        problems: distinct ones.
        n: responses to each, from 2 on; `correctness_effect` needs 4, and 8 or more leave it much more.
        temperature: over 0, where responses to one problem differ.
        max_new_tokens: of a response; by default as in `run_modes`. Responses that are cut off there can't be judged as the
            others can: `correctness_effect` gives no verdict where they are over 5%.
        layers: which blocks to record; all by default.
        sink_ratio: a norm over this many times its layer's median over the prompt is marked as an attention sink; 5 by default
            (20 for tiny-reasoner).
        batch_size: responses that are decoded at once, 8 by default (100 for tiny-reasoner); an engine has its own.
        seed: of sampling; a problem's samples don't depend on which other problems are asked.
        save_to: a folder to keep responses and norms in as they come; the same call goes on from what is there.
        progress: show progress bars.

    Returns:
        One result per sample, those of a problem together. Traces carry the labels mode, prompt (the problem's id), family,
        level, sample (from 0), log_prob (mean log-probability of the response's tokens at temperature 1, in nats) and, where
        the response states an answer, answer_at.

    Raises:
        ValueError: bad input.

    Examples:
        >>> problems = l2.make_mixture(2, families="compact")
        >>> samples = l2.experiments.sample_thinking(model, problems, n=3, temperature=1.5, max_new_tokens=40, progress=False)
        >>> [result.trace.labels["sample"] for result in samples]
        [0, 1, 2, 0, 1, 2]
    """
    backend = generator_of(model)
    if backend.tokenizer is None:
        raise InputError("the model has no tokenizer: set model.tokenizer to ask it questions")
    problems, seed = problems_of(problems), as_seed(seed)
    n = as_integer("n", n, least=2)
    temperature = require_spread(as_number("temperature", temperature))
    check_progress(progress)
    batch_size, sink_ratio = rows_at_once(model, batch_size), sink_ratio_of(model, sink_ratio)
    if not problems:
        raise InputError("no problems given")
    require_distinct(problems)
    prompts = [chat_prompt(backend.tokenizer, p.question, mode="think", system=p.system) for p in problems]
    require_own_prompts((f"{p.id} ({p.family})", prompt.tokens) for p, prompt in zip(problems, prompts, strict=True))
    run = _Sampling(
        backend=backend,
        problems=problems,
        prompts=prompts,
        n=n,
        seed=seed,
        temperature=temperature,
        max_new_tokens=thinking_room(backend, prompts) if max_new_tokens is None else max_new_tokens,
        reading=ReadOptions(
            layers=resolve_layers(layers, backend.n_layers), sink_ratio=sink_ratio, batch_size=batch_size, progress=progress
        ),
    )
    parent = may_save(backend, save_to)
    place = run_folder(parent, "samples", run.what()) if parent else None
    with locked(*([place] if place else [])):
        return run.results(place)


def require_spread(temperature: float) -> float:
    """The temperature.

    Raises:
        ValueError: it is 0, and samples of one problem are all alike.
    """
    if not temperature > 0:
        raise InputError(f"temperature is over 0 where samples of one problem are to differ, got {temperature:g}")
    return temperature


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sampling:
    """Problems asked several times each with the same options."""

    backend: Backend | Engine
    problems: Sequence[Problem]
    prompts: Sequence[ChatPrompt]
    n: int
    seed: int
    temperature: float
    max_new_tokens: int
    reading: ReadOptions
    """Of the responses, once they are there."""

    def what(self) -> dict[str, Any]:
        """All that responses and their traces depend on, beside the prompts and the number of samples."""
        return describe_run(
            self.backend,
            mode="think",
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            layers=self.reading.layers,
            sink_ratio=self.reading.sink_ratio,
        )

    def results(self, place: Path | None) -> tuple[Result, ...]:
        """What came of each sample, those of a problem together."""
        watched = must_record(self.backend)
        journal = begin(place, self.what(), self.backend) if place else Journal()
        recorded = self._ask(journal, watched, place)
        owners = [(i, sample) for i in range(len(self.problems)) for sample in range(self.n)]
        entries = [journal.entries[self._key(i, sample)] for i, sample in owners]
        completions = [
            restore(
                self.backend,
                self.prompts[i],
                entry["tokens"],
                finish_reason=entry["finish_reason"],
                seed=self._seed_of(i, sample),
            )
            for (i, sample), entry in zip(owners, entries, strict=True)
        ]
        if watched:
            traces = [recorded[self._key(*owner)] for owner in owners]
        else:
            labels = [labels_of(self.problems[i], s, e["log_prob"]) for (i, s), e in zip(owners, entries, strict=True)]
            traces = list(collected(place, model_of(self.backend), completions, labels=labels, reading=self.reading))
        return tuple(
            sampled(
                self.problems[i],
                self.prompts[i],
                dataclasses.replace(completion, trace=trace, sample=sample),
                log_prob=entry["log_prob"],
                temperature=self.temperature,
            )
            for (i, sample), completion, trace, entry in zip(owners, completions, traces, entries, strict=True)
        )

    def _ask(self, journal: Journal, watched: bool, place: Path | None) -> dict[str, Trace]:
        """Sample the problems of which a sample isn't in the journal, which keeps them; their traces by key, if watched."""
        keys = [[self._key(i, sample) for sample in range(self.n)] for i in range(len(self.problems))]
        recorded = kept_recorded(place, journal.entries) if place and watched else {}
        todo = [i for i, own in enumerate(keys) if not set(own) <= set(recorded if watched else journal.entries)]

        def keep(done: Generations) -> None:
            own = {keys[todo[c.prompt_index]][c.sample]: _kept(c, self.problems[todo[c.prompt_index]]) for c in done}
            if watched:
                recorded.update(zip(own, done.traces, strict=True))
            journal.add(keep_recorded(place, own, done.traces) if place and watched else own)

        if todo:
            generate(
                model_of(self.backend),
                [self.prompts[i] for i in todo],
                n=self.n,
                temperature=self.temperature,
                max_new_tokens=self.max_new_tokens,
                seed=[self._seed_of(i, sample) for i in todo for sample in range(self.n)],
                layers=self.reading.layers if watched else -1,  # probabilities are noted beside norms
                sink_ratio=self.reading.sink_ratio,
                batch_size=self.reading.batch_size,
                on_finish=keep,
                progress=f"{len(todo)} problems, {self.n} samples each" if self.reading.progress else False,
            )
        return recorded

    def _key(self, i: int, sample: int) -> str:
        prompt = self.prompts[i]
        return content_key([prompt.text, prompt.tokens, self._seed_of(i, sample)])

    def _seed_of(self, i: int, sample: int) -> int:
        text = f"{self.seed}/think/{self.problems[i].id}/{sample}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


def labels_of(problem: Problem, sample: int, log_prob: float) -> dict[str, Label]:
    """What the trace of a thinking response says of it."""
    named: dict[str, Label] = {"mode": "think", "prompt": problem.id, "family": problem.family, "level": problem.level}
    return {**named, "sample": sample, "log_prob": log_prob}


def sampled(problem: Problem, prompt: ChatPrompt, completion: Completion, *, log_prob: float, temperature: float) -> Result:
    """A thinking response as one of a problem's samples: judged, its trace labelled.

    Args:
        problem: what was asked.
        prompt: as it was asked.
        completion: with a trace.
        log_prob: mean log-probability of its tokens at temperature 1, nats.
        temperature: it was drawn at.
    """
    assert completion.trace is not None
    trace = drawn_at(completion.trace, seed=completion.seed, temperature=temperature)
    trace = trace.with_labels(**labels_of(problem, completion.sample, log_prob))
    return judged(problem, prompt, dataclasses.replace(completion, trace=trace), "think")


def _kept(completion: Completion, problem: Problem) -> dict[str, Any]:
    """What is written of a response: tokens and their mean log-probability; the rest is for people who look into the file."""
    assert completion.logprobs is not None
    return {
        "tokens": list(completion.tokens),
        "finish_reason": completion.finish_reason,
        "log_prob": float(completion.logprobs.double().mean()),
        "problem": problem.id,
        "text": completion.text,
    }
