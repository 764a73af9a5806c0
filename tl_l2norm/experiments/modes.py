"""Ask problems in both modes and keep what came of it."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tl_l2norm.core.arguments import as_integer, as_names, as_seed, check_choice, check_progress
from tl_l2norm.core.errors import InputError
from tl_l2norm.core.layers import Layers, resolve_layers
from tl_l2norm.core.presets import sink_ratio_of
from tl_l2norm.core.prompts import require_own_prompts
from tl_l2norm.core.protocols import SparseAutoencoder
from tl_l2norm.core.storage import content_key
from tl_l2norm.core.trace import Label, Trace
from tl_l2norm.models.backend import Backend
from tl_l2norm.models.described import Described
from tl_l2norm.recording.collect import collect
from tl_l2norm.recording.completions import Completion, Generations
from tl_l2norm.recording.engine import Engine, generator_of, model_of, must_record, rows_at_once
from tl_l2norm.recording.generate import generate, restore
from tl_l2norm.recording.saved import (
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
from tl_l2norm.saes.checks import sae_key
from tl_l2norm.tasks.problems import Problem, problems_of, require_distinct
from tl_l2norm.tasks.results import Result
from tl_l2norm.tasks.verifiers import extract_answer, is_correct
from tl_l2norm.text.boundaries import Boundaries
from tl_l2norm.text.prompts import ChatPrompt, Mode, chat_prompt, is_direct

MODES: tuple[Mode, ...] = ("think", "direct")

_ROOM, _ROOM_INSTRUCTED = 4096, 256


def run_modes(
    model: Any,
    problems: Problem | Iterable[Problem],
    *,
    modes: Mode | Sequence[Mode] = MODES,
    max_new_tokens: int | None = None,
    max_direct_tokens: int = 32,
    temperature: float = 0.0,
    seed: int = 0,
    layers: Layers = None,
    saes: Mapping[int, SparseAutoencoder] | None = None,
    sink_ratio: float | None = None,
    batch_size: int | None = None,
    save_to: str | Path | None = None,
    progress: bool = True,
) -> tuple[Result, ...]:
    """Ask every problem in every mode, verify the answers and record the norms.

    Args:
        model: a `HookedTransformer` or `TransformerBridge` whose tokenizer has a chat template, or an engine of `load_engine`.
        problems: distinct ones; their ids pair the modes.
        modes: which, in this order.
        max_new_tokens: of a thinking response; by default `thinking_room`.
        max_direct_tokens: of a direct response.
        temperature: 0 is greedy.
        seed: of sampling.
        layers: which blocks to record; all by default.
        saes: SAEs by layer, whose feature activations are recorded beside the norms.
        sink_ratio: a norm over this many times its layer's median over the prompt is marked as an attention sink; 5 by default
            (20 for tiny-reasoner).
        batch_size: responses that are decoded at once, 8 by default (100 for tiny-reasoner); an engine has its own.
        save_to: a folder to keep results in as they come; the same call goes on from what is there.
        progress: show progress bars.

    Returns:
        One result per mode and problem. Traces carry the labels mode, prompt (the problem's id), family, level and, where the
        response states an answer, answer_at (position of its first token).

    Raises:
        ValueError: bad input; no problems, or the same one twice; a model without tokenizer or chat template.

    Examples:
        >>> problems = l2.make_mixture(2, families="compact")
        >>> results = l2.run_modes(model, problems, modes="think", progress=False)
        >>> [(result.answer.strip(), result.correct) for result in results]
        [('4', True), ('3', True)]
        >>> results[0].trace
        Trace(12 layers x 30 tokens (18 prompt), tiny-reasoner on bridge, mode='think', prompt=..., answer_at=29)
    """
    backend = generator_of(model)
    if backend.tokenizer is None:
        raise InputError("the model has no tokenizer: set model.tokenizer to ask it questions")
    problems, modes, seed = problems_of(problems), _modes(modes), as_seed(seed)
    limits = {"think": max_new_tokens, "direct": as_integer("max_direct_tokens", max_direct_tokens, least=1)}
    check_progress(progress)
    reading = ReadOptions(
        layers=resolve_layers(layers, backend.n_layers),
        saes=saes,
        sink_ratio=sink_ratio_of(model, sink_ratio),
        batch_size=rows_at_once(model, batch_size),
        progress=progress,
    )
    if not problems:
        raise InputError("no problems given")
    require_distinct(problems)
    interviews = [_interview(backend, mode, problems, limits[mode], temperature, seed, reading) for mode in modes]
    parent = may_save(backend, save_to)
    places = [interview.place(parent) if parent else None for interview in interviews]
    with locked(*filter(None, places)):
        asked = [interview.ask(place) for interview, place in zip(interviews, places, strict=True)]
        steps = zip(interviews, asked, places, strict=True)
        return tuple(result for interview, own, place in steps for result in interview.read(own, place))


def _modes(given: Any) -> tuple[Mode, ...]:
    names = as_names("modes", given)
    if not names:
        raise InputError("no modes given")
    for name in names:
        check_choice("modes", name, MODES)
    return tuple(mode for name in names for mode in MODES if mode == name)


def thinking_room(backend: Described, prompts: Sequence[ChatPrompt]) -> int:
    """How many tokens a thinking response may have where nobody says: what the context has left, up to 4,096 for a model whose
    template thinks and 256 for one that is asked to by an instruction.
    """
    assert backend.tokenizer is not None
    thinks = Boundaries(backend.tokenizer).thinks() is not None or not prompts[0].control.startswith("instruction")
    left = backend.n_ctx - max(len(prompt.tokens) for prompt in prompts) + 1
    return max(1, min(left, _ROOM if thinks else _ROOM_INSTRUCTED))


def _interview(
    backend: Backend | Engine,
    mode: Mode,
    problems: Sequence[Problem],
    max_new_tokens: int | None,
    temperature: float,
    seed: int,
    reading: ReadOptions,
) -> _Interview:
    prompts = [chat_prompt(backend.tokenizer, p.question, mode=mode, system=p.system) for p in problems]  # type: ignore[arg-type]
    require_own_prompts((f"{p.id} ({p.family})", prompt.tokens) for p, prompt in zip(problems, prompts, strict=True))
    return _Interview(
        backend=backend,
        mode=mode,
        problems=problems,
        prompts=prompts,
        max_new_tokens=thinking_room(backend, prompts) if max_new_tokens is None else max_new_tokens,
        temperature=temperature,
        seeds=[_seed(seed, mode, problem) for problem in problems],
        reading=reading,
        watched=must_record(backend),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Interview:
    """Problems that are asked in one mode with the same options."""

    backend: Backend | Engine
    mode: Mode
    problems: Sequence[Problem]
    prompts: Sequence[ChatPrompt]
    max_new_tokens: int
    temperature: float
    seeds: Sequence[int]
    reading: ReadOptions
    """Of the responses, once they are there."""
    watched: bool
    """Whether to record while decoding, see `must_record`."""

    def place(self, parent: Path) -> Path:
        """The folder of these responses."""
        return run_folder(parent, self.mode, self._what())

    def _what(self) -> dict[str, Any]:
        """All that responses and their traces depend on, beside the prompts."""
        return describe_run(
            self.backend,
            mode=self.mode,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            layers=self.reading.layers,
            saes={layer: sae_key(sae) for layer, sae in (self.reading.saes or {}).items()},
            sink_ratio=self.reading.sink_ratio,
        )

    def ask(self, place: Path | None) -> list[Completion]:
        """The response to each problem: that of an earlier run where it is kept, or one of now, kept as it ends."""
        seeds = list(self.seeds)
        if place is None:
            return list(self._generate(range(len(self.problems)), None))
        journal = begin(place, self._what(), self.backend)
        # What a response depends on: not what its problem's answer is, by which it is judged anew each time.
        keys = [content_key([prompt.text, prompt.tokens, seed]) for prompt, seed in zip(self.prompts, seeds, strict=True)]
        traces = kept_recorded(place, journal.entries) if self.watched else {}
        todo = [i for i, key in enumerate(keys) if key not in (traces if self.watched else journal.entries)]

        def keep(done: Generations) -> None:
            own = {keys[todo[c.prompt_index]]: _kept(c, self.problems[todo[c.prompt_index]]) for c in done}
            if self.watched:
                traces.update(zip(own, done.traces, strict=True))
                own = keep_recorded(place, own, done.traces)
            journal.add(own)

        if todo:
            self._generate(todo, keep)
        completions = []
        for key, prompt, seed in zip(keys, self.prompts, seeds, strict=True):
            entry = journal.entries[key]
            reason = entry["finish_reason"]
            completion = restore(self.backend, prompt, entry["tokens"], finish_reason=reason, seed=seed)
            completions.append(dataclasses.replace(completion, trace=traces.get(key)))
        return completions

    def _generate(self, chosen: Sequence[int], on_finish: Callable[[Generations], None] | None) -> Sequence[Completion]:
        prompts = [self.prompts[i] for i in chosen]
        if not self.watched:  # weights that give NaN show before anything is decoded
            collect(model_of(self.backend), prompts[:1], progress=False)
        return generate(
            model_of(self.backend),
            prompts,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            seed=[self.seeds[i] for i in chosen],
            record=self.watched,
            saes=self.reading.saes if self.watched else None,
            layers=self.reading.layers,
            labels=[self._labels()[i] for i in chosen],
            batch_size=self.reading.batch_size,
            sink_ratio=self.reading.sink_ratio,
            on_finish=on_finish,
            progress=f"{self.mode}, {len(chosen)} problems" if self.reading.progress else False,
        )

    def _labels(self) -> list[dict[str, Label]]:
        return [{"mode": self.mode, "prompt": p.id, "family": p.family, "level": p.level} for p in self.problems]

    def read(self, completions: Sequence[Completion], place: Path | None) -> list[Result]:
        """The result of each problem, its norms from one pass over the finished response.

        Norms of the decode loop are the same to float tolerance, but their last bits depend on which responses were decoded
        side by side, and so on where a run was interrupted.
        """
        labels = self._labels()
        if self.watched:
            completions = [
                dataclasses.replace(c, trace=c.trace.with_labels(**own))  # type: ignore[union-attr]
                for c, own in zip(completions, labels, strict=True)
            ]
        else:
            traces = collected(place, model_of(self.backend), completions, labels=labels, reading=self.reading)
            drawn = [drawn_at(t, seed=s, temperature=self.temperature) for t, s in zip(traces, self.seeds, strict=True)]
            completions = [dataclasses.replace(c, trace=trace) for c, trace in zip(completions, drawn, strict=True)]
        return [judged(*asked, self.mode) for asked in zip(self.problems, self.prompts, completions, strict=True)]


def drawn_at(trace: Trace, *, seed: int, temperature: float) -> Trace:
    """The trace with how its tokens were drawn in its provenance."""
    source = dataclasses.replace(trace.provenance, seed=seed, temperature=float(temperature))
    return dataclasses.replace(trace, provenance=source)


def judged(problem: Problem, prompt: ChatPrompt, completion: Completion, mode: Mode) -> Result:
    """A response, of which the trace is there, as an answer to its problem; where it answers is noted with the trace."""
    trace = completion.trace
    assert trace is not None
    answer = prompt.answer_prefix + completion.answer
    at = answer_at(problem, trace, completion.answer, prefix=prompt.answer_prefix)
    return Result(
        problem=problem,
        mode=mode,
        prompt=prompt.text,
        control=prompt.control,
        response=completion.text,
        answer=answer,
        finish_reason=completion.finish_reason,
        correct=is_correct(problem, answer),
        direct=_was_direct(completion) if mode == "direct" else None,
        trace=trace if at is None else trace.with_labels(answer_at=at),
    )


def _was_direct(completion: Completion) -> bool:
    """Whether it is an answer and nothing else; one that didn't end isn't."""
    ended = completion.finish_reason == "stop" and not completion.thinking.strip()
    return ended and is_direct(completion.answer)


def _kept(completion: Completion, problem: Problem) -> dict[str, Any]:
    """What is written of a response: its tokens say all; the rest is for people who look into the file."""
    return {
        "tokens": list(completion.tokens),
        "finish_reason": completion.finish_reason,
        "problem": problem.id,
        "question": problem.question,
        "text": completion.text,
    }


def answer_at(problem: Problem, trace: Trace, answer: str | None = None, *, prefix: str = "") -> int | None:
    """Position of the token at which the stated answer begins, looked for behind the last thought.

    None where the response states no answer, or states it in words that aren't literally in its text.

    Args:
        problem: which was asked.
        trace: of the response.
        answer: what of the response is judged (`Completion.answer`); by default the texts of the tokens behind the thought.
        prefix: the beginning that the prompt forced.
    """
    thoughts = [i for i, segment in enumerate(trace.segments) if segment == "think"]
    start = thoughts[-1] + 1 if thoughts else trace.prompt_len
    texts = trace.str_tokens[start:]
    text = prefix + "".join(texts)
    given = extract_answer(problem, text if answer is None else prefix + answer)
    starts = [m.start() for m in re.finditer(rf"(?<!\w){re.escape(given)}(?!\w)", text)] if given else []
    if not starts or starts[-1] < len(prefix):
        return None
    ends = itertools.accumulate(map(len, texts), initial=len(prefix))
    return start - 1 + next(i for i, end in enumerate(ends) if end > starts[-1])


def _seed(seed: int, mode: Mode, problem: Problem) -> int:
    """A problem's own seed: its sample doesn't depend on which other problems are asked."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{mode}/{problem.id}".encode()).digest()[:6], "big")
