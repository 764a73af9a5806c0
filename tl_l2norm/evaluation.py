"""Ask problems in both modes and keep what came of it."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tl_l2norm.arguments import check_choice, one_or_several
from tl_l2norm.backends import Backend, backend_of
from tl_l2norm.errors import InputError
from tl_l2norm.generation import Completion, generate
from tl_l2norm.hook_names import Layers, resolve_layers
from tl_l2norm.presets import batch_size_of, sink_ratio_of
from tl_l2norm.prompts import ChatPrompt, Mode, chat_prompt, is_direct
from tl_l2norm.protocols import SparseAutoencoder
from tl_l2norm.saes import check_saes, sae_key
from tl_l2norm.storage import content_key, load_traces, replace_file, save_traces
from tl_l2norm.tasks import Problem, problems_of
from tl_l2norm.trace import Label, Trace
from tl_l2norm.verifiers import extract_answer, is_correct

MODES: tuple[Mode, ...] = ("think", "direct")

_CHUNK = 32  # problems between two saves


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Result:
    """One problem, asked in one mode."""

    problem: Problem
    mode: Mode
    prompt: str
    """The rendered prompt, chat template and all."""
    response: str
    """What the model wrote after it."""
    finish_reason: str
    correct: bool | None
    """None where the problem has no known answer."""
    direct: bool | None
    """Whether a direct prompt got a direct answer; None in thinking mode."""
    trace: Trace


def run_modes(
    model: Any,
    problems: Problem | Iterable[Problem],
    *,
    modes: Mode | Sequence[Mode] = MODES,
    max_new_tokens: int = 256,
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
        model: a `HookedTransformer` or `TransformerBridge` whose tokenizer has a chat template.
        problems: distinct ones; their ids pair the modes.
        modes: which, in this order.
        max_new_tokens: of a thinking response.
        max_direct_tokens: of a direct response.
        temperature: 0 is greedy.
        seed: of sampling.
        layers: which blocks to record; all by default.
        saes: SAEs by layer, whose feature activations are recorded beside the norms.
        sink_ratio: a norm over this many times its layer's median over the prompt is marked as an attention sink; 5 by default
            (20 for tiny-reasoner).
        batch_size: responses that are decoded at once, 8 by default (100 for tiny-reasoner).
        save_to: a folder to keep results in as they come; the same call goes on from what is there.
        progress: show progress bars.

    Returns:
        One result per mode and problem. Traces carry the labels mode, prompt (the problem's id), family, level and, where the
        response states an answer, answer_at (position of its first token).
    """
    backend = backend_of(model)
    if backend.tokenizer is None:
        raise InputError("the model has no tokenizer: set model.tokenizer to ask it questions")
    problems, modes = problems_of(problems), one_or_several(modes, str)
    batch_size, sink_ratio = batch_size_of(model, batch_size), sink_ratio_of(model, sink_ratio)
    for mode in modes:
        check_choice("modes", mode, MODES)
    if not problems:
        raise InputError("no problems given")
    if len({problem.id for problem in problems}) < len(problems):
        raise InputError("some problems are the same: the modes are paired by problem, so give each once")
    limits = {"think": max_new_tokens, "direct": max_direct_tokens}
    chosen = resolve_layers(layers, backend.n_layers)
    options = {"temperature": temperature, "layers": chosen, "batch_size": batch_size, "saes": saes, "sink_ratio": sink_ratio}
    sae_keys = {layer: sae_key(sae) for layer, sae in check_saes(backend, saes or {}).items()} if save_to else {}
    found: list[Result] = []
    for mode in modes:
        for start in range(0, len(problems), _CHUNK if save_to else len(problems)):
            chunk = problems[start : start + _CHUNK] if save_to else problems
            seeds = [_seed(seed, mode, problem) for problem in chunk]
            name = f"{mode}, {len(problems)} problems" if progress else False
            run = _Run(backend, mode, limits[mode], {**options, "seed": seeds, "progress": name}, sae_keys)
            found.extend(run.resume(chunk, Path(save_to)) if save_to else run.ask(chunk))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _Run:
    """Problems asked in one mode with the same options."""

    backend: Backend
    mode: Mode
    max_new_tokens: int
    options: dict[str, Any]
    sae_keys: Mapping[int, str]

    def ask(self, problems: Sequence[Problem]) -> list[Result]:
        prompts = [chat_prompt(self.backend.tokenizer, p.question, mode=self.mode) for p in problems]  # type: ignore[arg-type]
        labels: list[dict[str, Label]] = [
            {"mode": self.mode, "prompt": p.id, "family": p.family, "level": p.level} for p in problems
        ]
        completions = generate(self.backend.model, prompts, max_new_tokens=self.max_new_tokens, labels=labels, **self.options)
        return [self._judge(*row) for row in zip(problems, prompts, completions, strict=True)]

    def _judge(self, problem: Problem, prompt: ChatPrompt, completion: Completion) -> Result:
        assert completion.trace is not None
        at = answer_at(problem, completion.trace)
        trace = completion.trace if at is None else completion.trace.with_labels(answer_at=at)
        return Result(
            problem=problem,
            mode=self.mode,
            prompt=prompt.text,
            response=completion.text,
            finish_reason=completion.finish_reason,
            correct=is_correct(problem, prompt.answer_prefix + completion.text),
            direct=is_direct(completion.text) if self.mode == "direct" else None,
            trace=trace,
        )

    def resume(self, problems: Sequence[Problem], folder: Path) -> list[Result]:
        """Results of an earlier run of the same problems with the same model and options, or those of now, saved."""
        place = folder / f"{self.mode}-{self._key(problems)}"
        if (place / "results.json").is_file():
            fields = json.loads((place / "results.json").read_text())
            traces = load_traces(place)
            return [Result(problem=p, mode=self.mode, trace=t, **f) for p, t, f in zip(problems, traces, fields, strict=True)]
        results = self.ask(problems)
        save_traces(place, [result.trace for result in results])
        names = ("prompt", "response", "finish_reason", "correct", "direct")
        fields = [{name: getattr(result, name) for name in names} for result in results]
        replace_file(place / "results.json", json.dumps(fields, ensure_ascii=False, indent=1).encode())
        return results

    def _key(self, problems: Sequence[Problem]) -> str:
        b = self.backend
        what = [b.model_name, b.name, str(b.dtype), self.max_new_tokens, [p.id for p in problems]]
        kept = {name: value for name, value in self.options.items() if name not in ("batch_size", "progress", "saes")}
        kept["saes"] = dict(self.sae_keys)
        return content_key([what, kept])


def answer_at(problem: Problem, trace: Trace) -> int | None:
    """Position of the token at which the answer that a response states begins; None where it states none, or in other words."""
    texts = trace.str_tokens[trace.prompt_len :]
    text = "".join(texts)
    given = extract_answer(problem, text)
    found = [m.start() for m in re.finditer(rf"(?<!\w){re.escape(given)}(?!\w)", text)] if given else []
    if not found:
        return None
    ends = itertools.accumulate(map(len, texts))
    return trace.prompt_len + next(i for i, end in enumerate(ends) if end > found[-1])


def _seed(seed: int, mode: Mode, problem: Problem) -> int:
    """A problem's own seed: its sample doesn't depend on which other problems are asked."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{mode}/{problem.id}".encode()).digest()[:6], "big")
