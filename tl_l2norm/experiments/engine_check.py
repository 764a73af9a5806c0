"""What `selfcheck` measures of an engine, alone and against the same model in TransformerLens."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from tl_l2norm.core.errors import InputError
from tl_l2norm.core.random_draws import uniform
from tl_l2norm.core.trace import Trace
from tl_l2norm.experiments.measures import TEXTS, Measure, relative, tolerance
from tl_l2norm.interventions.suppress import Suppression
from tl_l2norm.models.backends import backend_of
from tl_l2norm.models.described import Described
from tl_l2norm.models.provenance import provenance
from tl_l2norm.recording.collect import collect
from tl_l2norm.recording.completions import Completion, Generations
from tl_l2norm.recording.engine import Engine
from tl_l2norm.recording.generate import generate

_MORE = 24  # tokens that are generated
_SEED, _SHARE, _SCALE = 1, 0.3, 0.1  # of a planted suppression


def engine_measures(engine: Engine, against: Any) -> Iterator[Measure]:
    """What to measure of an engine.

    Args:
        engine: which is checked.
        against: the same model as `load_model` loads it; None leaves out what is compared with it.

    Raises:
        ValueError: `against` is another model, or in another dtype.
    """
    if against is not None:
        _require_same(engine, backend_of(against))
    runs, missing = _Runs(engine, against), against is None
    alone = "give the same model as load_model loads it, selfcheck(engine, against=model)" if missing else None
    theirs = "against the given model in one pass over the same tokens"
    yield Measure("norms", f"norms of responses {theirs}", False, runs.norms, alone)
    yield Measure("rows", "tokens that were read and don't have exactly one row of norms", True, runs.rows)
    yield Measure("batch", "norms of a response among others against alone", False, runs.batch)
    planted = "norms that a suppression of planned tokens at the last layer changed and should not have, or the other way round"
    yield Measure("suppression", planted, True, runs.suppression)
    yield Measure("suppressed", f"norms of suppressed responses, all layers, {theirs}", False, runs.suppressed, alone)
    yield Measure("hooks left", "hooks of ours still attached", True, runs.hooks_left)


def _require_same(engine: Engine, other: Described) -> None:
    ours, theirs = (provenance(one, one.identity(), sink_ratio=2.0) for one in (engine, other))
    if not ours.same_model(theirs):
        raise InputError(f"against= is another model: the engine has {ours.describe()}, it has {theirs.describe()}")


class _Runs:
    """What an engine writes of a few prompts, each run made when it is first asked for."""

    def __init__(self, engine: Engine, against: Any) -> None:
        self.engine, self.against = engine, against
        self.hooks = engine.identity().foreign_hooks
        room = max(2, engine.n_ctx // 2)
        texts = (*TEXTS, " ".join(TEXTS * 3))
        assert engine.tokenizer is not None
        self.prompts = [list(engine.tokenizer(text).input_ids)[:room] for text in texts]

    def write(self, prompts: Sequence[Any], **options: Any) -> Generations:
        room = self.engine.n_ctx - max(map(len, prompts))
        return generate(
            self.engine, prompts, max_new_tokens=min(_MORE, room), ignore_eos=True, progress=False, sink_ratio=20.0, **options
        )

    @cached_property
    def sampled(self) -> Generations:
        return self.write(self.prompts, n=2, temperature=1.0)

    def norms(self) -> float:
        return self._off(self.sampled)

    def _off(self, out: Generations, **options: Any) -> float:
        """How far norms are off those of one pass over the same tokens."""
        truth = collect(self.against, out, progress=False, **options)
        return max(relative(ours.l2_norms, one.l2_norms) for ours, one in zip(out.traces, truth, strict=True))

    def rows(self) -> float:
        return float(sum(_without_row(response) for response in self.sampled))

    def batch(self) -> float:
        off = 0.0
        for prompt, response in zip(self.prompts, self.sampled[::2], strict=True):
            (alone,) = self.write([prompt], seed=[response.seed], temperature=1.0).traces
            among = response.trace
            assert among is not None
            n = _in_common(alone, among)
            off = max(off, relative(among.l2_norms[:, :n], alone.l2_norms[:, :n]))
        return off

    def suppression(self) -> float:
        last = self.engine.n_layers - 1
        plain = self.write(self.prompts)
        changed = self.write(self.prompts, interventions=self._planted(last))
        wrong, n_planned = 0, 0
        for response, before, after in zip(plain, plain.traces, changed.traces, strict=True):
            n = _in_common(before, after)
            expected = before.l2_norms[:, :n].clone()
            planned = _planned(response, last)[:n]
            expected[last, planned] *= _SCALE
            off = (after.l2_norms[:, :n] / expected - 1).abs()
            wrong, n_planned = wrong + int((off > tolerance(self.engine.dtype)).sum()), n_planned + int(planned.sum())
        return float(wrong) if n_planned else math.inf

    def suppressed(self) -> float:
        planted = self._planted(self.engine.n_layers // 2)
        return self._off(self.write(self.prompts, interventions=planted), interventions=planted)

    def _planted(self, layer: int) -> Suppression:
        return Suppression(which="random", p=_SHARE, scale=_SCALE, seed=_SEED, layers=[layer], include_sinks=True)

    def hooks_left(self) -> float:
        return float(self.engine.identity().foreign_hooks - self.hooks)


def _without_row(response: Completion) -> int:
    assert response.trace is not None
    read = torch.tensor([*response.prompt_tokens, *response.tokens[:-1]])
    tokens, norms = response.trace.tokens, response.trace.l2_norms
    if len(tokens) != len(read):
        return abs(len(tokens) - len(read))
    return int(((tokens != read) | ~(norms.isfinite() & (norms > 0)).all(0)).sum())


def _in_common(first: Trace, second: Trace) -> int:
    """How many tokens both begin with: in half precision a near tie falls one way alone and another way among others."""
    n = min(len(first), len(second))
    same = first.tokens[:n] == second.tokens[:n]
    return n if bool(same.all()) else int((~same).int().argmax())


def _planned(response: Completion, layer: int) -> Bool[Tensor, " pos"]:
    """Which tokens the planted suppression draws, said without any intervention."""
    assert response.trace is not None
    positions = torch.arange(len(response.trace))
    drawn = uniform(_SEED, response.seed, layer, positions) < _SHARE
    return drawn & (positions >= len(response.prompt_tokens))
