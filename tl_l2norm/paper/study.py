"""The paper's whole analysis in one call, with the controls that it lacks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tl_l2norm.analysis.correctness import MIN_SAMPLES
from tl_l2norm.analysis.correlation import MIN_TOKENS
from tl_l2norm.analysis.pairing import require_prompts
from tl_l2norm.core.arguments import as_integer, as_seed, one_or_several
from tl_l2norm.core.errors import InputError
from tl_l2norm.core.presets import batch_size_of, sink_ratio_of, temperature_of
from tl_l2norm.core.protocols import SparseAutoencoder
from tl_l2norm.core.resampling import MIN_PROMPTS
from tl_l2norm.experiments.samples import require_spread
from tl_l2norm.experiments.suppression import QUANTILES, as_quantiles
from tl_l2norm.models.backends import backend_of
from tl_l2norm.paper.options import Options
from tl_l2norm.paper.readings import Readings
from tl_l2norm.paper.result import Analysis
from tl_l2norm.paper.stages import Study
from tl_l2norm.recording.saved import locked, may_save
from tl_l2norm.saes.checks import check_saes, training_note
from tl_l2norm.tasks.problems import Problem, problems_of

CONTROLS = ("untrained SAE", "random-weight model", "shuffled modes")

CONTROL_STATES = 100_000
"""States that each SAE of the random-weight model is trained on, unless more are asked for."""


def analyse(
    model: Any,
    saes: Mapping[int, SparseAutoencoder] | None,
    problems: Problem | Iterable[Problem],
    *,
    controls: str | Iterable[str] = CONTROLS,
    control_states: int = CONTROL_STATES,
    quantiles: float | Sequence[float] = QUANTILES,
    samples: int = 8,
    temperature: float | None = None,
    swapped_tokens: int = 16,
    max_new_tokens: int | None = None,
    max_direct_tokens: int = 32,
    sink_ratio: float | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    save_to: str | Path | None = None,
    progress: bool = True,
) -> Analysis:
    """Ask problems in both modes and measure everything that the paper claims: features, curves, correlations, theory, causes.

    Reasoning features are chosen on half of the problems; all that concerns them is measured on the other half. What a table
    can't be made of (no known answers, one family, no features) is noted, and the claim's verdict says so.

    Args:
        model: a `HookedTransformer` or `TransformerBridge` whose tokenizer has a chat template.
        saes: SAEs on `resid_post` by layer, all layers for the curves; None or {} leaves out what needs them.
        problems: distinct ones, at least 16 with SAEs and 8 without; 200 for the causal test to have narrow intervals.
        controls: which of `CONTROLS`. "random-weight model" draws a twin of the model and trains SAEs on it, which takes
            longest; without SAELens, which trains them, it is left out with a warning.
        control_states: how many states each of those SAEs is trained on.
        quantiles: of the causal test, a threshold each; () leaves it out.
        samples: of each problem, thinking, for the primary endpoint: do norms tell right from wrong responses to one problem?
            4 or more, better 8; 0 leaves it out.
        temperature: of those samples; choose it before norms are looked at, so that many problems have right and wrong ones and
            at most 5% state no answer; 1 by default (2.2 for tiny-reasoner: 5% state none).
        swapped_tokens: of each thinking response, each swapped alone for another at equal norm: 8, which a rank correlation
            takes, or better more, as tokens that no other response holds don't count; 0 leaves that out.
        max_new_tokens: of a thinking response; by default as in `run_modes`.
        max_direct_tokens: of a direct response.
        sink_ratio: a norm over this many times its layer's median over the prompt is marked as an attention sink and left
            out; by default what the SAEs were trained with (`train_saes` keeps it), else 5 (20 for tiny-reasoner).
        batch_size: sequences at once, 8 by default (100 for tiny-reasoner).
        seed: of halves, shuffles, controls and resampling.
        save_to: a folder to keep everything in as it comes: responses, traces, SAEs, outcomes, `tables/*.csv` and
            `claims.csv`. The same call goes on from what is there; tables that this one doesn't make are taken away.
        progress: show progress bars.

    Raises:
        ValueError: bad input; the message says what to do.
    """
    backend = backend_of(model)
    saes = check_saes(backend, {} if saes is None else saes)
    problems, controls = problems_of(problems), one_or_several(controls, str)
    require_prompts(len(problems), 2 * MIN_PROMPTS if saes else MIN_PROMPTS, what="problems")
    if unknown := set(controls) - set(CONTROLS):
        raise InputError(f"unknown controls {sorted(unknown)}: there are {', '.join(map(repr, CONTROLS))}")
    options = Options(
        controls=frozenset(controls),
        control_states=control_states,
        quantiles=as_quantiles(chosen) if (chosen := one_or_several(quantiles, float)) else (),
        samples=_none_or("samples", samples, least=MIN_SAMPLES, why="to tell right from wrong ones of a problem"),
        temperature=require_spread(temperature_of(model, temperature)),
        swapped_tokens=_none_or(
            "swapped_tokens", swapped_tokens, least=MIN_TOKENS, why="which a rank correlation takes of each response"
        ),
        max_new_tokens=max_new_tokens,
        max_direct_tokens=max_direct_tokens,
        sink_ratio=sink_ratio_of(model, _trained_with(saes) if sink_ratio is None else sink_ratio),
        batch_size=batch_size_of(model, batch_size),
        seed=as_seed(seed),
        progress=progress,
        readings=may_save(backend, save_to),
        tables=Path(save_to) / "tables" if save_to else None,
    )
    with locked(*([options.readings] if options.readings else [])):
        return Study(Readings(backend=backend, saes=saes, problems=tuple(problems), options=options)).run()


def _none_or(name: str, given: int, *, least: int, why: str) -> int:
    """None, or as many as what is made of them takes."""
    n = as_integer(name, given, least=0)
    if 0 < n < least:
        raise InputError(f"{name} must be at least {least}, {why}, or 0 for none; got {n}")
    return n


def _trained_with(saes: Mapping[int, Any]) -> float | None:
    """The sink ratio that the SAEs were trained with: the same tokens are left out."""
    for sae in saes.values():
        if (ratio := training_note(sae).sink_ratio) is not None:
            return float(ratio)
    return None
