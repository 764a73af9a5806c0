"""Suppress tokens by their norm while a model thinks, and see whether it still gets the answer."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from tl_l2norm.core.arguments import as_seed, as_share, check_progress, one_or_several
from tl_l2norm.core.errors import InputError, Unmeasurable
from tl_l2norm.core.layers import Layers, resolve_layers
from tl_l2norm.core.measured import OUTCOMES
from tl_l2norm.core.presets import batch_size_of, check_sink_ratio
from tl_l2norm.core.random_draws import sequence_key
from tl_l2norm.core.storage import content_key
from tl_l2norm.core.thresholds import quantile_thresholds
from tl_l2norm.core.trace import Trace, TracesLike, require_comparable, traces_of
from tl_l2norm.experiments.modes import thinking_room
from tl_l2norm.interventions.log import Log, Tally
from tl_l2norm.interventions.suppress import Suppression
from tl_l2norm.models.backend import Backend
from tl_l2norm.models.backends import backend_of
from tl_l2norm.recording.completions import Completion, Generations
from tl_l2norm.recording.generate import generate, restore
from tl_l2norm.recording.saved import Journal, begin, describe_run, locked, may_save, run_folder
from tl_l2norm.tasks.problems import Problem, problems_of, require_distinct
from tl_l2norm.tasks.verifiers import is_correct
from tl_l2norm.text.prompts import ChatPrompt, chat_prompt

QUANTILES = (0.95, 0.8, 0.5)


def suppress_and_ask(
    model: Any,
    problems: Problem | Iterable[Problem],
    traces: TracesLike,
    *,
    quantiles: float | Sequence[float] = QUANTILES,
    layers: Layers = "late",
    max_new_tokens: int | None = None,
    sink_ratio: float | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    save_to: str | Path | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Ask problems in thinking mode, greedily, with decode tokens suppressed: high-norm ones, as many random ones, low-norm
    ones; and with their direction swapped for another token's at equal norm, high-norm ones and as many random ones.

    Args:
        model: a `HookedTransformer` or `TransformerBridge`.
        problems: with known answers.
        traces: of thinking responses of this model, whose quantiles are the thresholds.
        quantiles: a threshold each; 0.8 suppresses the fifth of the tokens whose norm is highest (low: lowest) at each layer.
        layers: where to suppress; the late ones by default.
        max_new_tokens: of a response; by default as in `run_modes`.
        sink_ratio: a norm over this many times its layer's median over the prompt is a sink's, and left alone; that of the
            traces, from which no other can be given.
        batch_size: responses decoded at once, 8 by default (100 for tiny-reasoner).
        seed: of the random arms.
        save_to: a folder to keep responses in as they end; the same call goes on from what is there.
        progress: show a progress bar.

    Returns:
        One entry per arm, quantile and problem: arm, quantile (NaN for "none"), prompt (the problem's id), family, level,
        correct, positions (how many decode positions were changed, at any layer), events (at how many positions and layers),
        tokens (of the response), cut_off, seed, model.

    Raises:
        ValueError: bad input; a problem without a known answer; traces that were recorded with another sink ratio.

    Examples:
        >>> problems = l2.make_mixture(1, families="compact")
        >>> table = l2.experiments.suppress_and_ask(model, problems, think, quantiles=0.5, max_new_tokens=2, progress=False)
        >>> table["arm"].tolist()
        ['none', 'high', 'random', 'swap', 'swap random', 'low']
        >>> table.loc[table["arm"] == "high", ["tokens", "positions"]].values.tolist()  # the last token is not read back
        [[2, 1]]
    """
    backend = backend_of(model)
    problems, traces, seed = problems_of(problems), traces_of(traces), as_seed(seed)
    check_progress(progress)
    if not problems or any(problem.answer is None and problem.verify is None for problem in problems):
        raise Unmeasurable("give problems with known answers: accuracy is what is measured")
    require_distinct(problems)
    quantiles = tuple(dict.fromkeys(as_share("quantiles", q) for q in one_or_several(quantiles, float)))
    if not quantiles:
        raise InputError("no quantiles given")
    batch_size, sink_ratio = batch_size_of(model, batch_size), _sink_ratio(traces, sink_ratio)
    chosen = resolve_layers(layers, backend.n_layers)
    prompts = [chat_prompt(backend.tokenizer, p.question, mode="think", system=p.system) for p in problems]  # type: ignore[arg-type]
    max_new_tokens = thinking_room(backend, prompts) if max_new_tokens is None else max_new_tokens
    taus = {q: dict(quantile_thresholds(traces, q)) for q in sorted({*quantiles, *(1 - q for q in quantiles)})}
    suppressions = _Suppressions(taus, chosen, sink_ratio, seed)
    parent = may_save(backend, save_to)
    depends = {"max_new_tokens": max_new_tokens, "seed": seed, "layers": chosen, "sink_ratio": sink_ratio}
    what = describe_run(backend, **depends) if parent else {}
    place = run_folder(parent, "suppression", what) if parent else None
    frames = []
    with (
        locked(*([place] if place else [])),
        tqdm(total=1 + 3 * len(quantiles), desc="suppression", unit="arm", disable=not progress, delay=2) as bar,
    ):
        journal = begin(place, what, backend) if place else Journal()
        ask = _Asker(backend, problems, prompts, max_new_tokens, batch_size, sink_ratio, journal)
        for q, kind in [(np.nan, "none"), *((q, kind) for q in quantiles for kind in ("scale", "swap", "low"))]:
            frames.append(_arms(ask, q, kind, suppressions))
            bar.update()
    return OUTCOMES.frame(pd.concat(frames, ignore_index=True), seed=seed, model=backend.model_name)


def _sink_ratio(traces: Sequence[Trace], given: float | None) -> float:
    """That of the traces, whose thresholds leave out the tokens that are left alone here."""
    require_comparable(traces)
    own = traces[0].provenance.sink_ratio
    if given is not None and check_sink_ratio(given) != own:
        raise InputError(f"the traces were recorded with sink_ratio={own:g}, not {given:g}: thresholds are of their tokens")
    return own


@dataclass(frozen=True, slots=True)
class _Suppressions:
    """The interventions of the arms, all at the same layers."""

    taus: Mapping[float, Mapping[int, float]]
    """By quantile and layer."""
    layers: tuple[int, ...]
    sink_ratio: float
    seed: int

    def low(self, q: float) -> Suppression:
        """Scale as many low-norm tokens as lie over the quantile."""
        return Suppression(self.taus[1 - q], which="low", layers=self.layers, sink_ratio=self.sink_ratio)

    def high(self, q: float, how: str) -> Suppression:
        """Scale or swap the tokens over the quantile."""
        seed = self.seed if how == "swap" else None
        return Suppression(self.taus[q], how=how, seed=seed, layers=self.layers, sink_ratio=self.sink_ratio)  # type: ignore[arg-type]


def _arms(ask: _Asker, q: float, kind: str, suppressions: _Suppressions) -> pd.DataFrame:
    """An arm, with the random one that is matched to it where it has one."""
    if kind == "none":
        return ask.frame("none", q, ask("none", None))
    if kind == "low":
        return ask.frame("low", q, ask("low", suppressions.low(q)))
    names = ("high", "random") if kind == "scale" else ("swap", "swap random")
    x = suppressions.high(q, kind)
    high = ask(names[0], x)
    control = ask(names[1], x, matched=high, seed=suppressions.seed)
    return pd.concat([ask.frame(names[0], q, high), ask.frame(names[1], q, control)], ignore_index=True)


@dataclass(frozen=True, slots=True)
class _Asker:
    """Asks all problems under an intervention; what is in the journal is not asked again."""

    backend: Backend
    problems: Sequence[Problem]
    prompts: Sequence[ChatPrompt]
    max_new_tokens: int
    batch_size: int
    sink_ratio: float
    journal: Journal

    @property
    def seeds(self) -> list[int]:
        """Of the problems, the same in every arm."""
        return [sequence_key(0, i, 0) for i in range(len(self.problems))]

    def __call__(
        self, arm: str, x: Suppression | None, *, matched: Sequence[_Outcome] | None = None, seed: int = 0
    ) -> list[_Outcome]:
        """What came of each problem; `matched`: outcomes of the arm whose numbers of tokens are taken at random, by `seed`."""
        what = [arm, sorted(x.thresholds.items()) if x is not None and isinstance(x.thresholds, Mapping) else None]
        keys = [
            content_key([what, prompt.text, prompt.tokens, seed, matched[i].counts if matched else None])
            for i, (prompt, seed) in enumerate(zip(self.prompts, self.seeds, strict=True))
        ]
        todo = [i for i, key in enumerate(keys) if key not in self.journal.entries]
        if x is not None and matched:
            x = dataclasses.replace(x, which="matched", match=self._tally(x, todo, matched), seed=seed)

        def keep(done: Generations) -> None:
            self.journal.add({keys[todo[c.prompt_index]]: _outcome(c, done.log) for c in done})

        with warnings.catch_warnings():  # that nothing fired is seen in the figures
            warnings.filterwarnings("ignore", message="nothing was changed by")
            if todo:
                generate(
                    self.backend.model,
                    [self.prompts[i] for i in todo],
                    seed=[self.seeds[i] for i in todo],
                    interventions=[x] if x else [],
                    record=False,
                    max_new_tokens=self.max_new_tokens,
                    batch_size=self.batch_size,
                    sink_ratio=self.sink_ratio,
                    on_finish=keep,
                    progress=False,
                )
        return [_Outcome(self.journal.entries[key]) for key in keys]

    def _tally(self, x: Suppression, todo: Sequence[int], matched: Sequence[_Outcome]) -> Tally:
        """The log of the arm to match, of the problems that are asked now and in their order."""
        return Tally(
            x,
            keys={number: self.seeds[i] for number, i in enumerate(todo)},
            fired={(number, layer): n for number, i in enumerate(todo) for layer, n in matched[i].fired.items()},
            live={(number, layer): n for number, i in enumerate(todo) for layer, n in matched[i].live.items()},
        )

    def frame(self, arm: str, quantile: float, outcomes: Sequence[_Outcome]) -> pd.DataFrame:
        """One entry per problem."""
        entries = []
        for problem, prompt, seed, outcome in zip(self.problems, self.prompts, self.seeds, outcomes, strict=True):
            kept = outcome.kept
            reason = kept["finish_reason"]
            response = restore(self.backend.model, prompt, kept["tokens"], finish_reason=reason, seed=seed)
            entries.append(
                {
                    "arm": arm,
                    "quantile": quantile,
                    "prompt": problem.id,
                    "family": problem.family,
                    "level": problem.level,
                    "correct": bool(is_correct(problem, prompt.answer_prefix + response.answer)),
                    "positions": kept["positions"],
                    "events": sum(outcome.fired.values()),
                    "tokens": len(kept["tokens"]),
                    "cut_off": reason == "length",
                }
            )
        return pd.DataFrame(entries).astype({"quantile": float})


@dataclass(frozen=True, slots=True)
class _Outcome:
    """A response under an intervention, as the journal keeps it."""

    kept: Mapping[str, Any]

    @property
    def counts(self) -> list[Any]:
        """Of each layer how often the intervention fired, and could have."""
        return [self.kept["fired"], self.kept["live"]]

    @property
    def fired(self) -> dict[int, int]:
        return dict(self.kept["fired"])

    @property
    def live(self) -> dict[int, int]:
        return dict(self.kept["live"])


def _outcome(completion: Completion, log: Log | None) -> dict[str, Any]:
    """What the journal keeps of a response."""
    number = completion.prompt_index
    kept: dict[str, Any] = {"tokens": list(completion.tokens), "finish_reason": completion.finish_reason}
    kept |= {"text": completion.text, "positions": 0, "fired": [], "live": []}
    if log is not None:
        events = log.events_of([number])
        events = events[events["fired"]]
        kept["positions"] = int(events["position"].nunique())
        kept["fired"] = [[int(layer), int(n)] for layer, n in events.groupby("layer").size().items()]
        kept["live"] = [[layer, n] for (sequence, layer), n in sorted(log.live().items()) if sequence == number]
    return kept
