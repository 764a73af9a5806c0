"""Suppress tokens by their norm while a model thinks, and see whether it still gets the answer."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from tl_l2norm.arguments import check_share, one_or_several
from tl_l2norm.backends import Backend, backend_of
from tl_l2norm.errors import InputError, Unmeasurable
from tl_l2norm.generation import Generations, generate
from tl_l2norm.hook_names import Layers, resolve_layers
from tl_l2norm.interventions.events import Log
from tl_l2norm.interventions.suppress import HighNormSuppression
from tl_l2norm.presets import batch_size_of, check_sink_ratio
from tl_l2norm.prompts import chat_prompt
from tl_l2norm.storage import content_key, replace_file
from tl_l2norm.tasks import Problem, problems_of
from tl_l2norm.thresholds import quantile_thresholds
from tl_l2norm.trace import Trace, TracesLike, require_comparable, traces_of
from tl_l2norm.verifiers import is_correct

QUANTILES = (0.95, 0.8, 0.5)


def suppress_and_ask(
    model: Any,
    problems: Problem | Iterable[Problem],
    traces: TracesLike,
    *,
    quantiles: float | Sequence[float] = QUANTILES,
    layers: Layers = "late",
    max_new_tokens: int = 256,
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
        max_new_tokens: of a response.
        sink_ratio: a norm over this many times its layer's median over the prompt is a sink's, and left alone; that of the
            traces, from which no other can be given.
        batch_size: responses decoded at once, 8 by default (100 for tiny-reasoner).
        seed: of the random arms.
        save_to: a folder to keep each arm's outcomes in as they come; the same call goes on from what is there.
        progress: show a progress bar.

    Returns:
        One row per arm, quantile and problem: arm, quantile (NaN for "none"), prompt, family, level, correct, positions (decode
        positions changed at any layer), events (positions and layers), tokens (of the response), cut_off, seed, model.

    Raises:
        ValueError: bad input; a problem without a known answer; traces that were recorded with another sink ratio.
    """
    backend = backend_of(model)
    problems, traces = problems_of(problems), traces_of(traces)
    if not problems or any(problem.answer is None and problem.verify is None for problem in problems):
        raise Unmeasurable("give problems with known answers: accuracy is what is measured")
    quantiles = one_or_several(quantiles, float)
    for q in quantiles:
        check_share("quantiles", q)
    batch_size, sink_ratio = batch_size_of(model, batch_size), _sink_ratio(traces, sink_ratio)
    chosen = resolve_layers(layers, backend.n_layers)
    taus = {q: dict(quantile_thresholds(traces, q)) for q in sorted({*quantiles, *(1 - q for q in quantiles)})}
    ask = _Asker(backend, problems, {"max_new_tokens": max_new_tokens, "batch_size": batch_size, "sink_ratio": sink_ratio})
    common = {"layers": chosen, "sink_ratio": sink_ratio, "seed": seed}
    key = [max_new_tokens, sorted(taus.items()), sorted(common.items())]
    frames = []
    with tqdm(total=1 + 3 * len(quantiles), desc="suppression", unit="arm", disable=not progress, delay=2) as bar:
        for q, kind in [(np.nan, "none"), *((q, kind) for q in quantiles for kind in ("scale", "swap", "low"))]:
            place = Path(save_to) / f"{ask.key([*key, q, kind])}.json" if save_to else None
            frames.append(_kept(place, partial(_arms, ask, q, kind, taus, common)))
            bar.update()
    return pd.concat(frames, ignore_index=True).assign(seed=seed, model=backend.model_name)


def _sink_ratio(traces: Sequence[Trace], given: float | None) -> float:
    """That of the traces, whose thresholds leave out the tokens that are left alone here."""
    require_comparable(traces)
    own = traces[0].provenance.sink_ratio
    if given is not None and check_sink_ratio(given) != own:
        raise InputError(f"the traces were recorded with sink_ratio={own:g}, not {given:g}: thresholds are of their tokens")
    return own


def _arms(
    ask: _Asker, q: float, kind: str, taus: Mapping[float, Mapping[int, float]], common: Mapping[str, Any]
) -> pd.DataFrame:
    """An arm, with the random one that is matched to it where it has one."""
    if kind == "none":
        return ask("none", q, None)[0]
    if kind == "low":
        return ask("low", q, HighNormSuppression(taus[1 - q], mode="low", **common))[0]
    names = ("high", "random") if kind == "scale" else ("swap", "swap random")
    high, log = ask(names[0], q, HighNormSuppression(taus[q], action=kind, **common))  # type: ignore[arg-type]
    control = HighNormSuppression(taus[q], mode="random", match=log, action=kind, **common)  # type: ignore[arg-type]
    return pd.concat([high, ask(names[1], q, control)[0]], ignore_index=True)


def _kept(place: Path | None, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """What an earlier run saved, or what is made now, saved."""
    if place is not None and place.is_file():
        return pd.DataFrame(json.loads(place.read_text())).astype({"quantile": float})
    frame = make()
    if place is not None:
        place.parent.mkdir(parents=True, exist_ok=True)
        replace_file(place, frame.to_json(orient="records").encode())
    return frame


class _Asker:
    """Asks all problems under an intervention."""

    def __init__(self, backend: Backend, problems: Sequence[Problem], options: Mapping[str, Any]) -> None:
        self.backend, self.problems, self.options = backend, problems, options
        self.prompts = [chat_prompt(backend.tokenizer, p.question, mode="think") for p in problems]  # type: ignore[arg-type]

    def key(self, what: object) -> str:
        """Hash of model, problems and parameters."""
        b = self.backend
        return content_key([b.model_name, b.name, str(b.dtype), [p.id for p in self.problems], what])

    def __call__(self, arm: str, quantile: float, x: HighNormSuppression | None) -> tuple[pd.DataFrame, Log | None]:
        with warnings.catch_warnings():  # that nothing fired is seen in the figures
            warnings.filterwarnings("ignore", message="nothing was changed by")
            interventions = [x] if x else []
            out = generate(
                self.backend.model, self.prompts, interventions=interventions, layers=[0], progress=False, **self.options
            )
        positions, events = _counts(out)
        rows = [
            {
                "arm": arm,
                "quantile": quantile,
                "prompt": problem.id,
                "family": problem.family,
                "level": problem.level,
                "correct": bool(is_correct(problem, prompt.answer_prefix + completion.text)),
                "positions": positions.get(i, 0),
                "events": events.get(i, 0),
                "tokens": len(completion.tokens),
                "cut_off": completion.finish_reason == "length",
            }
            for i, (problem, prompt, completion) in enumerate(zip(self.problems, self.prompts, out, strict=True))
        ]
        return pd.DataFrame(rows), out.log


def _counts(out: Generations) -> tuple[dict[int, int], dict[int, int]]:
    """For each response at how many positions, and at how many positions and layers, something was changed."""
    if out.log is None:
        return {}, {}
    events = out.events()
    fired = events[events["fired"]]
    return (
        fired.groupby("sequence")["position"].nunique().to_dict(),
        fired.groupby("sequence").size().to_dict(),
    )
