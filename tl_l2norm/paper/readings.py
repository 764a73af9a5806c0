"""Read off a model what the paper's analysis is made of, and keep it as it comes."""

from __future__ import annotations

import dataclasses
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from tl_l2norm.analysis.correlation import METRIC_NAMES
from tl_l2norm.core.errors import Unmeasurable
from tl_l2norm.core.trace import Trace
from tl_l2norm.experiments.modes import run_modes, thinking_room
from tl_l2norm.experiments.samples import sample_thinking
from tl_l2norm.experiments.suppression import suppress_and_ask
from tl_l2norm.experiments.thought_texts import replaced_thoughts
from tl_l2norm.models.backend import Backend
from tl_l2norm.models.backends import backend_of
from tl_l2norm.models.twin import random_twin
from tl_l2norm.paper.options import Options
from tl_l2norm.recording.importance import token_importance
from tl_l2norm.recording.pressure import optimisation_pressure
from tl_l2norm.recording.saved import ReadOptions, collected, describe_run, run_folder
from tl_l2norm.saes.checks import sae_key
from tl_l2norm.saes.load import untrained_saes
from tl_l2norm.saes.train import SaeRecipe, train_saes
from tl_l2norm.tasks.problems import Problem
from tl_l2norm.tasks.results import Result
from tl_l2norm.text.prompts import ANSWER_PREFIX, chat_prompt

Modes = tuple[tuple[Trace, ...], tuple[Trace, ...]]
"""Thinking and direct traces."""


@dataclass(frozen=True, kw_only=True)
class Readings:
    """The model-side half of an analysis. What is in the folder is not made again."""

    backend: Backend
    saes: Mapping[int, Any]
    problems: tuple[Problem, ...]
    options: Options

    def ask(self) -> tuple[Result, ...]:
        """Answers to the problems in both modes."""
        o = self.options
        return run_modes(
            self.backend.model,
            self.problems,
            seed=o.seed,
            save_to=o.readings / "results" if o.readings else None,
            max_new_tokens=o.max_new_tokens,
            max_direct_tokens=o.max_direct_tokens,
            sink_ratio=o.sink_ratio,
            batch_size=o.batch_size,
            progress=o.progress,
        )

    def room(self) -> int:
        """How many tokens a thinking response may have."""
        tokenizer: Any = self.backend.tokenizer
        prompts = [chat_prompt(tokenizer, p.question, mode="think", system=p.system) for p in self.problems]
        return self.options.max_new_tokens or thinking_room(self.backend, prompts)

    def record(self, results: Sequence[Result]) -> Modes:
        """Metrics and features of the responses."""
        return _by_mode(self._collected("traces", self.backend.model, [r.trace for r in results], self.saes, METRIC_NAMES))

    def with_untrained_saes(self, modes: Modes) -> Modes:
        """The same traces with the features of untrained SAEs."""
        traces, blank = [*modes[0], *modes[1]], untrained_saes(self.saes, seed=self.options.seed)
        own = self._collected("untrained", self.backend.model, traces, blank, ("l2_norm",))
        return _by_mode([dataclasses.replace(t, features=u.features) for t, u in zip(traces, own, strict=True)])

    def with_random_weights(self, modes: Modes) -> tuple[Modes, Any, dict[int, Any]]:
        """What the model with random weights makes of the same tokens, that model, and SAEs trained on it."""
        traces, o = [*modes[0], *modes[1]], self.options
        twin = random_twin(self.backend.model, seed=o.seed + 1)  # a draw of its own: the SAEs' weights are drawn from `seed`
        sae = next(iter(self.saes.values()))
        active = [acts.l0.double().mean().item() for trace in traces[:50] for acts in trace.features.values()]
        recipe = SaeRecipe(
            d_sae=int(sae.cfg.d_sae),
            k=max(1, round(sum(active) / len(active))),
            n_states=o.control_states,
            batch_size=min(512, o.control_states),
            lr=1e-3 * (2**14 / int(sae.cfg.d_sae)) ** 0.5,  # five times the usual: there are few steps
            seed=o.seed,
        )
        with _folder(o.readings, "random_model") as place:
            own_saes = train_saes(
                twin,
                traces,
                layers=list(self.saes),
                recipe=recipe,
                save_to=place,
                sink_ratio=o.sink_ratio,
                progress=o.progress,
            )
        whole = self._collected("random_model_traces", twin, traces, own_saes, METRIC_NAMES)
        return _by_mode(whole), twin, own_saes

    def pressures(self, results: Sequence[Result]) -> pd.DataFrame:
        """Pull of the loss on thinking responses as they were written, and on direct answers as they should have been."""
        items, starts, labels = [], [], []
        for result in results:
            prompt = result.trace.tokens[: result.trace.prompt_len].tolist()
            tokens = result.trace.tokens.tolist()
            if result.mode == "direct":
                if result.problem.answer is None:
                    continue
                space = " " if result.prompt.endswith(ANSWER_PREFIX) else ""
                answer = self.backend.tokenizer(space + result.problem.answer, add_special_tokens=False)  # type: ignore[misc]
                tokens = [*prompt, *answer["input_ids"]]
            if len(tokens) > len(prompt):
                items.append(tokens)
                starts.append(len(prompt))
                labels.append({"mode": result.mode, "prompt": result.problem.id})
        if not items:
            raise Unmeasurable("no response has a token")
        pressure = optimisation_pressure(
            self.backend.model,
            items,
            prompt_lens=starts,
            labels=labels,
            sink_ratio=self.options.sink_ratio,
            batch_size=self.options.batch_size,
            progress=self.options.progress,
        )
        return pressure.assign(model=self.backend.model_name)

    def samples(self) -> tuple[Result, ...]:
        """Several thinking responses to each problem whose answer is known."""
        o, known = self.options, [p for p in self.problems if p.answer is not None or p.verify is not None]
        if not known:
            raise Unmeasurable("no problem has a known answer: nothing says which responses are right")
        return sample_thinking(
            self.backend.model,
            known,
            n=o.samples,
            temperature=o.temperature,
            max_new_tokens=o.max_new_tokens,
            sink_ratio=o.sink_ratio,
            batch_size=o.batch_size,
            seed=o.seed,
            save_to=o.readings,
            progress=o.progress,
        )

    def importances(self, results: Sequence[Result]) -> pd.DataFrame:
        """What single tokens of the thinking responses that state an answer are worth to it."""
        o, stated = self.options, [r.trace for r in results if r.mode == "think" and "answer_at" in r.trace.labels]
        if not stated:
            raise Unmeasurable("no thinking response states an answer")
        return token_importance(
            self.backend.model, stated, max_tokens=o.swapped_tokens, seed=o.seed, batch_size=o.batch_size, progress=o.progress
        )

    def replaced(self, results: Sequence[Result]) -> tuple[Trace, ...]:
        """The thinking responses that state an answer, with other text in place of their thoughts."""
        o, stated = self.options, [r for r in results if r.mode == "think" and "answer_at" in r.trace.labels]
        if not stated:
            raise Unmeasurable("no thinking response states an answer")
        with warnings.catch_warnings():  # the table's n says how many have another's
            warnings.filterwarnings("ignore", message="only .* share family and length")
            return replaced_thoughts(self.backend.model, stated, seed=o.seed, batch_size=o.batch_size, progress=o.progress)

    def outcomes(self, think: Sequence[Trace]) -> pd.DataFrame:
        """Answers under suppression, with thresholds from these traces."""
        o = self.options
        return suppress_and_ask(
            self.backend.model,
            self.problems,
            think,
            quantiles=o.quantiles,
            max_new_tokens=o.max_new_tokens,
            seed=o.seed,
            save_to=o.readings / "causal" if o.readings else None,
            sink_ratio=o.sink_ratio,
            batch_size=o.batch_size,
            progress=o.progress,
        )

    def _collected(
        self, name: str, model: Any, traces: Sequence[Trace], saes: Mapping[int, Any], metrics: Sequence[str]
    ) -> tuple[Trace, ...]:
        """Traces of the same sequences, read once more in one pass each; from an earlier run where they are there."""
        o, place = self.options, None
        if o.readings:
            what = describe_run(
                backend_of(model),
                sink_ratio=o.sink_ratio,
                metrics=list(metrics),
                saes={layer: sae_key(sae) for layer, sae in saes.items()},
                sequences=[trace.tokens.tolist() for trace in traces],
            )
            place = run_folder(o.readings, name, what)
        labels = [trace.labels for trace in traces]
        reading = ReadOptions(
            saes=saes or None,
            metrics=tuple(metrics),
            sink_ratio=o.sink_ratio,
            batch_size=o.batch_size,
            progress=o.progress,
        )
        return collected(place, model, list(traces), labels=labels, reading=reading)


def _folder(parent: Path | None, name: str) -> AbstractContextManager[str | Path]:
    """A folder to keep things in, or one for now."""
    return nullcontext(parent / name) if parent else tempfile.TemporaryDirectory(prefix="tl_l2norm_")


def _by_mode(traces: Sequence[Trace]) -> Modes:
    think, direct = (tuple(t for t in traces if t.labels["mode"] == mode) for mode in ("think", "direct"))
    return think, direct
