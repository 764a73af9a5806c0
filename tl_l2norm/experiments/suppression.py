"""Suppress tokens by their norm while a model thinks, and see whether it still gets the answer."""

from __future__ import annotations

import dataclasses
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm.auto import tqdm

from tl_l2norm.core.arguments import as_integer, as_seed, as_share, check_progress, one_or_several
from tl_l2norm.core.errors import InputError, Unmeasurable
from tl_l2norm.core.layers import Layers, resolve_layers
from tl_l2norm.core.measured import OUTCOMES
from tl_l2norm.core.presets import check_sink_ratio
from tl_l2norm.core.prompts import require_own_prompts
from tl_l2norm.core.random_draws import sequence_key
from tl_l2norm.core.storage import content_key
from tl_l2norm.core.thresholds import quantile_thresholds
from tl_l2norm.core.trace import Trace, TracesLike, require_comparable, traces_of
from tl_l2norm.experiments.modes import thinking_room
from tl_l2norm.interventions.log import Log, Tally
from tl_l2norm.interventions.matching import STUDY
from tl_l2norm.interventions.suppress import Suppression
from tl_l2norm.models.backend import Backend
from tl_l2norm.recording.completions import Completion, Generations
from tl_l2norm.recording.engine import Engine, generator_of, model_of, rows_at_once
from tl_l2norm.recording.generate import generate, restore
from tl_l2norm.recording.saved import Journal, begin, describe_run, locked, may_save, run_folder
from tl_l2norm.tasks.problems import Problem, problems_of, require_distinct
from tl_l2norm.tasks.verifiers import is_correct
from tl_l2norm.text.prompts import ChatPrompt, chat_prompt

QUANTILES = (0.95, 0.8, 0.5)
DRAWS = 3

_Fired = list[list[Any]]
"""Layers, and the positions that were changed there, as JSON keeps them."""

_EARLY = 0.9  # share of the plain response by whose end a random arm has its number: it may end before


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
    draws: int = DRAWS,
    seed: int = 0,
    save_to: str | Path | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Ask problems in thinking mode, greedily, with decode tokens suppressed: high-norm ones, low-norm ones, and pairs.

    A high-norm token has a partner where its response under nothing holds another token of the same id that is not high at the
    same layer, the first at which it is high itself: once scaled down it is high at none after. The arm "paired" suppresses
    those high-norm tokens that have one, each at that layer alone, the arm "random" their partners, the nearest that are free:
    as many of each response, layer and token id, within the same eight positions or, where there is none, as soon as there is
    one after. They differ in the norm alone. Responses end otherwise than the one under nothing, so that numbers are used up by
    the time that this would be nine tenths over. Random arms are drawn several times, and
    "paired" takes of each token id no more than the first of them found partners for. "swap" and "swap random" are the same,
    with the direction swapped for another token's at equal norm.

    Args:
        model: a `HookedTransformer` or `TransformerBridge`, or an engine of `load_engine`.
        problems: with known answers.
        traces: of thinking responses of this model, whose quantiles are the thresholds.
        quantiles: a threshold each; 0.8 suppresses the fifth of the tokens whose norm is highest (low: lowest) at each layer.
        layers: where to suppress; the late ones by default.
        max_new_tokens: of a response; by default as in `run_modes`.
        sink_ratio: a norm over this many times its layer's median over the prompt is a sink's, and left alone; that of the
            traces, from which no other can be given.
        batch_size: responses decoded at once, 8 by default (100 for tiny-reasoner); an engine has its own.
        draws: of each random arm.
        seed: of the random arms.
        save_to: a folder to keep responses in as they end; the same call goes on from what is there.
        progress: show a progress bar.

    Returns:
        One entry per arm, quantile, draw and problem: arm, quantile (NaN for "none"), draw (of a random arm, from 0; 0 of the
        others), prompt (the problem's id), family, level, correct, positions (how many decode positions were changed, at any
        layer), events (at how many positions and layers), tokens (of the response), cut_off, seed, model.

    Raises:
        ValueError: bad input; a problem without a known answer, or two that ask the same; traces that were recorded with
            another sink ratio.

    Examples:
        >>> problems = l2.make_mixture(1, families="compact")
        >>> table = l2.experiments.suppress_and_ask(model, problems, think, quantiles=0.5, max_new_tokens=2, progress=False)
        >>> table["arm"].tolist()
        ['none', 'high', 'low', 'paired', 'random', 'random', 'random', 'swap', 'swap random', 'swap random', 'swap random']
        >>> table.loc[table["arm"] == "high", ["tokens", "positions"]].values.tolist()  # the last token is not read back
        [[2, 1]]
    """
    backend = generator_of(model)
    problems, traces, seed = _answerable(problems), traces_of(traces), as_seed(seed)
    if any(trace.labels.get("mode") == "direct" for trace in traces):
        raise InputError("the traces are of direct answers: thresholds are quantiles of thinking responses, give those")
    check_progress(progress)
    draws, quantiles = as_integer("draws", draws, least=1), as_quantiles(quantiles)
    batch_size, sink_ratio = rows_at_once(model, batch_size), _sink_ratio(traces, sink_ratio)
    chosen = resolve_layers(layers, backend.n_layers)
    prompts = [chat_prompt(backend.tokenizer, p.question, mode="think", system=p.system) for p in problems]  # type: ignore[arg-type]
    require_own_prompts((f"{p.id} ({p.family})", prompt.tokens) for p, prompt in zip(problems, prompts, strict=True))
    max_new_tokens = thinking_room(backend, prompts) if max_new_tokens is None else max_new_tokens
    taus = {q: dict(quantile_thresholds(traces, q)) for q in sorted({*quantiles, *(1 - q for q in quantiles)})}
    common: dict[str, Any] = {"layers": chosen, "sink_ratio": sink_ratio}
    parent = may_save(backend, save_to)
    depends = {"max_new_tokens": max_new_tokens, "seed": seed, **common}
    what = describe_run(backend, **depends) if parent else {}
    place = run_folder(parent, "suppression", what) if parent else None
    frames = []
    with (
        locked(*([place] if place else [])),
        tqdm(total=1 + 4 * len(quantiles), desc="suppression", unit="arm", disable=not progress, delay=2) as bar,
    ):
        journal = begin(place, what, backend) if place else Journal()
        ask = _Asker(backend, problems, prompts, max_new_tokens, batch_size, sink_ratio, journal)
        # factors of 1 change nothing: the log says what was high
        ask.plain = ask("none", [Suppression(taus[q], scale=1.0, **common) for q in quantiles])
        frames.append(ask.frame("none", np.nan, ask.plain))
        for i, q in enumerate(quantiles):
            high = Suppression(taus[q], **common)
            frames.append(ask.frame("high", q, ask("high", [high])))
            frames.append(ask.frame("low", q, ask("low", [Suppression(taus[1 - q], which="low", **common)])))
            bar.update(2)
            for arm, control, x in (("paired", "random", high), ("swap", "swap random", dataclasses.replace(high, how="swap"))):
                frames += ask.pair(arm, control, x, i, q, [sequence_key(seed, draw, 0) for draw in range(draws)])
                bar.update()
    return OUTCOMES.frame(pd.concat(frames, ignore_index=True), seed=seed, model=backend.model_name)


def _answerable(given: Problem | Iterable[Problem]) -> Sequence[Problem]:
    """Distinct problems with known answers."""
    problems = problems_of(given)
    if not problems or any(problem.answer is None and problem.verify is None for problem in problems):
        raise Unmeasurable("give problems with known answers: accuracy is what is measured")
    require_distinct(problems)
    return problems


def as_quantiles(given: float | Sequence[float]) -> tuple[float, ...]:
    """Distinct shares, at least one."""
    quantiles = tuple(dict.fromkeys(as_share("quantiles", q) for q in one_or_several(given, float)))
    if not quantiles:
        raise InputError("no quantiles given")
    return quantiles


def _sink_ratio(traces: Sequence[Trace], given: float | None) -> float:
    """That of the traces, whose thresholds leave out the tokens that are left alone here."""
    require_comparable(traces)
    own = traces[0].provenance.sink_ratio
    if given is not None and check_sink_ratio(given) != own:
        raise InputError(f"the traces were recorded with sink_ratio={own:g}, not {given:g}: thresholds are of their tokens")
    return own


@dataclass(slots=True)
class _Asker:
    """Asks all problems under an intervention; what is in the journal is not asked again."""

    backend: Backend | Engine
    problems: Sequence[Problem]
    prompts: Sequence[ChatPrompt]
    max_new_tokens: int
    batch_size: int
    sink_ratio: float
    journal: Journal
    plain: Sequence[_Outcome] = ()
    """What came of each problem where nothing was suppressed."""

    @property
    def seeds(self) -> list[int]:
        """Of the problems, the same in every arm."""
        return [sequence_key(0, i, 0) for i in range(len(self.problems))]

    def __call__(
        self,
        arm: str,
        interventions: Sequence[Suppression],
        *,
        pairs: int | None = None,
        seed: int = 0,
        paid: Sequence[_Outcome] | None = None,
    ) -> list[_Outcome]:
        """What came of each problem; `pairs`: number of the threshold whose high tokens are matched, by draws from `seed`."""
        high = [] if pairs is None else [self._high(i, pairs, paid) for i in range(len(self.problems))]
        what = [arm, *(sorted(x.thresholds.items()) for x in interventions if isinstance(x.thresholds, Mapping))]
        keys = [
            content_key([what, prompt.text, prompt.tokens, own, [seed, high[i], STUDY] if high else None])
            for i, (prompt, own) in enumerate(zip(self.prompts, self.seeds, strict=True))
        ]
        todo = [i for i, key in enumerate(keys) if key not in self.journal.entries]
        if pairs is not None and todo:
            which: Literal["matched", "high"] = "matched" if "random" in arm else "high"
            match = self._tally(interventions[0], todo, high)
            interventions = [dataclasses.replace(x, which=which, match=match, alike=STUDY, seed=seed) for x in interventions]

        def keep(done: Generations) -> None:
            assert done.log is not None
            make = _plain_outcome if arm == "none" else _outcome
            self.journal.add({keys[todo[c.prompt_index]]: make(c, done.log) for c in done})

        with warnings.catch_warnings():  # that nothing fired is seen in the figures
            warnings.filterwarnings("ignore", message="nothing was changed by")
            if todo:
                generate(
                    model_of(self.backend),
                    [self.prompts[i] for i in todo],
                    seed=[self.seeds[i] for i in todo],
                    interventions=interventions,
                    record=False,
                    max_new_tokens=self.max_new_tokens,
                    batch_size=self.batch_size,
                    sink_ratio=self.sink_ratio,
                    on_finish=keep,
                    progress=False,
                )
        return [_Outcome(self.journal.entries[key]) for key in keys]

    def _high(self, i: int, pairs: int, paid: Sequence[_Outcome] | None) -> _Fired:
        """What was high under nothing; of each layer and token id as many as were `paid`, by another arm, the first ones."""
        plain = self.plain[i]
        high: _Fired = plain.kept["high"][pairs]
        if paid is None:
            return high
        left = Counter(paid[i].fired)
        kept: _Fired = []
        for layer, places in high:
            own = []
            for at, key in ((at, (layer, plain.token(at))) for at in places):
                if left[key] > 0:
                    left[key] -= 1
                    own.append(at)
            kept.append([layer, own])
        return kept

    def _tally(self, x: Suppression, todo: Sequence[int], high: Sequence[_Fired]) -> Tally:
        """The log of what was high under nothing, of the problems that are asked now and in their order."""
        plain = {number: self.plain[i] for number, i in enumerate(todo)}
        return Tally(
            x,
            keys={number: self.seeds[i] for number, i in enumerate(todo)},
            prompt_lens={number: own.kept["prompt_len"] for number, own in plain.items()},
            paces=dict.fromkeys(plain, 1 / _EARLY),
            fired_at=_columns((n, layer, at) for n, i in enumerate(todo) for layer, places in high[i] for at in places),
            read=_columns((n, *place) for n, own in plain.items() for place in own.read),
        )

    def pair(
        self, arm: str, control: str, x: Suppression, number: int, quantile: float, seeds: Sequence[int]
    ) -> list[pd.DataFrame]:
        """An arm and, for each seed, that of its tokens' partners: the arm takes no more than the first of these did."""
        partners = [self(control, [x], pairs=number, seed=own) for own in seeds]
        own = self(arm, [x], pairs=number, seed=seeds[0], paid=partners[0])
        return [self.frame(arm, quantile, own), *(self.frame(control, quantile, p, draw) for draw, p in enumerate(partners))]

    def frame(self, arm: str, quantile: float, outcomes: Sequence[_Outcome], draw: int = 0) -> pd.DataFrame:
        """One entry per problem."""
        entries = []
        for problem, prompt, seed, outcome in zip(self.problems, self.prompts, self.seeds, outcomes, strict=True):
            kept = outcome.kept
            reason = kept["finish_reason"]
            response = restore(self.backend, prompt, kept["tokens"], finish_reason=reason, seed=seed)
            entries.append(
                {
                    "arm": arm,
                    "quantile": quantile,
                    "draw": draw,
                    "prompt": problem.id,
                    "family": problem.family,
                    "level": problem.level,
                    "correct": bool(is_correct(problem, prompt.answer_prefix + response.answer)),
                    "positions": kept["positions"],
                    "events": kept["events"],
                    "tokens": len(kept["tokens"]),
                    "cut_off": reason == "length",
                }
            )
        return pd.DataFrame(entries).astype({"quantile": float})


@dataclass(frozen=True, slots=True)
class _Outcome:
    """A response under an intervention, as the journal keeps it."""

    kept: Mapping[str, Any]

    def token(self, position: int) -> int:
        """Id of the token there, behind the prompt."""
        return int(self.kept["tokens"][position - self.kept["prompt_len"]])

    @property
    def fired(self) -> list[tuple[int, int]]:
        """Layer and token id of each change."""
        return [(layer, self.token(at)) for layer, places in self.kept["fired"] for at in places]

    @property
    def read(self) -> list[tuple[int, int]]:
        """Position and id of each token that was read back: all but the last."""
        return list(enumerate(self.kept["tokens"][:-1], self.kept["prompt_len"]))


def _columns(entries: Iterable[tuple[int, ...]]) -> NDArray[np.int64]:
    """One after the other: [3, entry]."""
    return np.array(list(entries), dtype=np.int64).reshape(-1, 3).T


def _outcome(completion: Completion, log: Log) -> dict[str, Any]:
    events = log.events_of([completion.prompt_index])
    events = events[events["fired"]]
    counts = {"positions": int(events["position"].nunique()), "events": len(events), "fired": _by_layer(events)}
    return _entry(completion) | counts


def _plain_outcome(completion: Completion, log: Log) -> dict[str, Any]:
    events = log.events_of([completion.prompt_index]).sort_values("layer", kind="stable")
    firsts = events.drop_duplicates(["intervention", "position"])
    high = [_by_layer(firsts[firsts["intervention"] == name]) for name in log.names]
    return _entry(completion) | {"positions": 0, "events": 0, "high": high}


def _by_layer(events: pd.DataFrame) -> _Fired:
    return [[int(layer), sorted(at.tolist())] for layer, at in events.groupby("layer")["position"]]


def _entry(completion: Completion) -> dict[str, Any]:
    entry: dict[str, Any] = {"tokens": list(completion.tokens), "finish_reason": completion.finish_reason}
    return entry | {"text": completion.text, "prompt_len": len(completion.prompt_tokens)}
