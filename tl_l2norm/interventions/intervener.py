"""What applies a run's interventions to a model."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.hook_points import HookPoint
from typing_extensions import override

from tl_l2norm.core.batch import Batch, Pass, Places, Positions, Rows, RowTensors
from tl_l2norm.core.errors import InputError, InputTypeError
from tl_l2norm.core.layers import layer_ranges
from tl_l2norm.core.norms import l2_norms
from tl_l2norm.core.presets import sink_ratio_of
from tl_l2norm.core.thresholds import AdaptiveIQR, RunningIQR
from tl_l2norm.interventions.checks import check_declared, check_effect
from tl_l2norm.interventions.log import Entry, FinalThreshold, Log
from tl_l2norm.interventions.rule import Effect, Rule, Visit
from tl_l2norm.models.backend import Backend
from tl_l2norm.models.described import Described
from tl_l2norm.models.hooks import HookFn, attached, counting_writes
from tl_l2norm.models.observer import Ledger, Observer, Recorded

UNSEEN = (
    "the first pass over this batch was not seen: attach before it, and fwd_hooks only to passes over whole sequences (with "
    "generate use `with x.hooks(model)`)"
)
JUDGED = "judged norm"
BOUNDS = "sink bounds"
"""What a batch keeps with (BOUNDS, layer): for each sequence the norm there over which a token is a sink."""
_ADAPTIVE = "adaptive threshold"


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """One intervention at one layer."""

    index: int
    layer: int
    intervention: Rule
    tau: float | AdaptiveIQR | None


class Reading(NamedTuple):
    """A pass over a batch, as the hooks need it."""

    now: Pass
    busy: Mapping[Positions, bool]
    """Whether somebody who acts there may have something to do."""
    of_prompts: bool
    """Whether it reads tokens of a prompt for the first time."""


class Intervener(Observer):
    """Applies a run's interventions to the residual stream of one model, by hooks, and logs what they decide.

    At each layer they act in the order given, each on what the one before it made of the stream.
    """

    def __init__(
        self, backend: Described, interventions: Sequence[Rule], *, sink_ratio: float | None = None, records: bool = False
    ) -> None:
        """`records`: whether `take` gives the norms by which tokens were taken for sinks, which traces need."""
        if odd := [x for x in interventions if not isinstance(x, Rule)]:
            raise InputTypeError(f"interventions are Suppression(...), ALRR(...), ERSS(...), ..., got {odd[0]!r:.80}")
        for intervention in interventions:
            check_declared(intervention)
        self.backend = backend
        self.sink_ratio = _one_sink_ratio(backend, interventions, sink_ratio)
        self.log = Log(interventions, sink_ratio=self.sink_ratio)
        self.sites: dict[int, list[Site]] = {}
        for index, intervention in enumerate(interventions):
            for layer in intervention.resolve(backend):
                site = Site(index, layer, intervention, intervention.tau(layer, backend.n_layers))
                self.sites.setdefault(layer, []).append(site)
        self.sites = dict(sorted(self.sites.items()))
        self.blocks = backend.block_runs(self._layers_where(lambda x: x.NEEDS_BLOCK))
        self._mid_layers = self._layers_where(lambda x: x.needs_resid_mid)
        self._resid_mid: dict[int, Tensor] = {}
        self._shared: dict[Site, RunningIQR] = {}
        self.reading: Reading | None = None
        self._n_raised: dict[int, Int[Tensor, ""]] = {}
        """By layer, how many tokens that are no sinks there were raised over the bound of sinks."""
        self._ledger = Ledger() if records else None

    def _layers_where(self, wanted: Callable[[Rule], bool]) -> tuple[int, ...]:
        return tuple(layer for layer, sites in self.sites.items() if any(wanted(site.intervention) for site in sites))

    @property
    def here(self) -> Backend:
        """The backend of a model that runs in this process under our hooks."""
        assert isinstance(self.backend, Backend), self.backend
        return self.backend

    @property
    def acts_on_prompts(self) -> bool:
        """Whether an intervention may act on a token of a prompt."""
        return any(x.positions != "decode" for x in self.log.interventions)

    def hooks(self) -> list[tuple[HookPoint, HookFn]]:
        """Hook points with the hooks to put on them, in this order."""
        mids = [(self.here.resid_mid(layer), partial(self._note_mid, layer)) for layer in self._mid_layers]
        return [*mids, *((self.here.resid_post(layer), partial(self.visit, layer)) for layer in self.sites)]

    @override
    @contextmanager
    def attached(self) -> Iterator[Log]:
        """Keep all hooks on the model inside the context; warns at its end if an intervention never fired."""
        with self.resumed():
            yield self.log
        self.finish()

    @override
    @contextmanager
    def resumed(self) -> Iterator[None]:
        with self.blocks.recording(), attached(self.hooks()):
            yield

    @override
    def begin(self, batch: Batch) -> None:
        self.log.begin(batch.rows)

    @override
    def next_pass(self, now: Pass) -> None:
        rows, places = now.batch.rows, now.places()
        if self._ledger is not None:
            self._ledger.next_pass(now)
        self.log.note(places)
        first = (BOUNDS, next(iter(self.sites), 0)) not in now.batch
        options = {x.positions for x in self.log.interventions}
        # At a step of decoding nobody asks the device: something is nearly always to be done.
        asked = first or now.n_pos > 1
        busy = {where: not asked or bool(places.eligible(where).any()) for where in options}
        self.reading = Reading(now, busy, asked and bool((places.positions[:, 0] < rows.prompt_len).any()))

    @override
    def take(self, n_rows: int) -> list[Recorded]:
        """For each row the norms [pos] by (JUDGED, layer), as they were before any intervention acted at that layer."""
        return [{} for _ in range(n_rows)] if self._ledger is None else self._ledger.take(n_rows)

    def visit(self, layer: int, stream: Float[Tensor, "batch pos d_model"], hook: Any) -> Tensor | None:
        """The hook on `resid_post` of a layer: every intervention there, in their order."""
        reading, places = self._where(stream)
        batch = reading.now.batch
        block = self.blocks.take(layer) if layer in self.blocks.blocks else None
        mid = self._resid_mid.pop(layer, None)
        norms = l2_norms(stream)
        if reading.of_prompts:
            batch.keep((BOUNDS, layer), places.prompt_bounds(norms, self.sink_ratio))
        before, judged = stream, norms
        bounds: Float[Tensor, " batch"] = batch.recall((BOUNDS, layer))
        sink = (norms > bounds[:, None]) | (places.positions == 0)
        for site in self.sites[layer]:
            if reading.busy[site.intervention.positions]:
                live = places.eligible(site.intervention.positions)
                live = live if site.intervention.include_sinks else live & ~sink
                visit = Visit(layer, stream, norms, 0.0, live, places, block, mid)
                stream, norms = self._act(site, batch, visit)
        if self._ledger is not None:
            self._ledger.note((JUDGED, layer), judged)
        if stream is before:
            return None
        n_raised = ((norms > bounds[:, None]) & ~sink & places.real).sum()
        self._n_raised[layer] = n_raised + self._n_raised.get(layer, 0)
        return stream

    def _where(self, stream: Float[Tensor, "batch pos d_model"]) -> tuple[Reading, Places]:
        if self.reading is None:
            raise RuntimeError(UNSEEN)
        places = self.reading.now.places(stream.device)
        if places.positions.shape != stream.shape[:2]:
            shapes = f"{tuple(stream.shape[:2])} tokens, expected {tuple(places.positions.shape)}"
            raise RuntimeError(f"a forward pass over {shapes}")
        return self.reading, places

    def _act(self, site: Site, batch: Batch, visit: Visit) -> tuple[Tensor, Tensor]:
        """The stream and its norms after one intervention."""
        device = visit.stream.device
        if isinstance(site.tau, AdaptiveIQR):
            visit = visit._replace(tau=self._running(site, site.tau, batch, device).judge(visit.norms, visit.live))
        else:
            visit = visit._replace(tau=torch.nan if site.tau is None else site.tau)
        effect = _acted(site.intervention, self._state(site, batch, device), visit)
        decision, stream, after = effect.decision * visit.live, visit.stream, visit.norms
        if effect.stream is not visit.stream:
            stream = torch.where((decision != 0)[..., None], effect.stream, visit.stream)
            after = l2_norms(stream)
        entry = Entry(site.layer, visit.places, visit.live, decision, visit.tau, visit.norms, after, effect.columns)
        self.log.add(site.index, entry)
        return stream, after

    def _state(self, site: Site, batch: Batch, device: torch.device) -> RowTensors | None:
        """What the intervention remembers of each sequence."""

        def make(rows: Rows, device: torch.device) -> RowTensors | None:
            return site.intervention.new_state(site.layer, rows, self.backend.d_model)

        return batch.remember(site, device, make)

    def _running(self, site: Site, rule: AdaptiveIQR, batch: Batch, device: torch.device) -> RunningIQR:
        if rule.scope == "sequence":
            return batch.remember((_ADAPTIVE, site), device, lambda rows, device: RunningIQR(rule, len(rows), device))
        if site not in self._shared:
            self._shared[site] = RunningIQR(rule, 1, device)
        return self._shared[site]

    def _note_mid(self, layer: int, stream: Float[Tensor, "batch pos d_model"], hook: Any) -> None:
        self._resid_mid[layer] = stream.detach()

    @override
    def leave(self, batch: Batch) -> None:
        """Let the log keep what outlives the sequences."""
        self.reading = None
        for key, value in batch.remembered().items():
            match key:
                case Site() if value is not None:
                    for number, kept in key.intervention.outlives(batch.rows, value).items():
                        self.log.kept[key.index].setdefault(number, {})[key.layer] = kept
                case (tag, Site() as site) if tag == _ADAPTIVE:
                    ends = self.log.final_thresholds.setdefault((site.index, site.layer), [])
                    now = (batch.rows.number, value.current(), value.counts)
                    ends += map(FinalThreshold, *(values.tolist() for values in now))

    @override
    def finish(self) -> None:
        """The run is over: note the thresholds that it shared, and warn of interventions that never fired."""
        for site, running in self._shared.items():
            self.log.final_thresholds[site.index, site.layer] = [
                FinalThreshold("run", float(running.current()), int(running.counts))
            ]
        if raised := {layer: int(n) for layer, n in self._n_raised.items() if n}:
            warnings.warn(
                f"{sum(raised.values())} tokens were raised over {self.sink_ratio:g} times the prompt's median norm at layers "
                f"{layer_ranges(sorted(raised))}: at the layers behind them they count as attention sinks, are left alone and "
                "left out of every aggregate; give a larger sink_ratio if they should count",
                stacklevel=3,
            )
        if idle := self.log.idle():
            n = self.log.counts().set_index(["intervention", "decision"])["n"]
            judged = ", ".join(f"{name} (0 of {n[name, 'live tokens']} tokens and layers)" for name in idle)
            warnings.warn(f"nothing was changed by {judged}: see log.counts() and the thresholds", stacklevel=3)


def _acted(intervention: Rule, state: Any, visit: Visit) -> Effect:
    """What an intervention makes of a visit, checked; its stream is the visit's own where it returns that."""
    shown = counting_writes(visit.stream)
    before = shown._version
    try:
        effect = intervention.act(state, visit._replace(stream=shown))
    except Exception as error:
        error.add_note(f"in {type(intervention).__name__}.act at layer {visit.layer}")
        raise
    check_effect(intervention, effect, visit)
    if shown._version != before:
        raise InputError(
            f"{type(intervention).__name__}.act wrote into visit.stream at layer {visit.layer}: return a new one, as "
            "torch.where(hit[..., None], changed, visit.stream)"
        )
    return effect._replace(stream=visit.stream) if effect.stream is shown else effect


def _one_sink_ratio(backend: Described, interventions: Sequence[Rule], given: float | None) -> float:
    """The run's sink ratio: given by whoever drives it, else by an intervention, else the model's.

    Raises:
        ValueError: interventions, or the traces that their thresholds come from, that have another.
    """
    asked = sorted({ratio for ratio in (given, *(x.sink_ratio for x in interventions)) if ratio is not None})
    if len(asked) > 1:
        raise InputError(
            f"sink ratios {', '.join(f'{ratio:g}' for ratio in asked)} in one run: what an intervention leaves alone as a sink "
            "and what the trace marks as one are the same; give sink_ratio=... to the run and none to interventions"
        )
    ratio = asked[0] if asked else sink_ratio_of(getattr(backend, "model", backend))
    for x in interventions:
        for what, other in x.made_with().items():
            if other not in (None, ratio):
                raise InputError(
                    f"{type(x).__name__}: its {what} leave out tokens over {other:g} times the median norm as sinks, this run "
                    f"those over {ratio:g} times: give sink_ratio={other:g}, or take them from a run with sink_ratio={ratio:g}"
                )
    return ratio
