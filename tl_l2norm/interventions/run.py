"""The state of a run: which sequences are in the batch, and what each intervention remembers of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from tl_l2norm.core.errors import InputError, InputTypeError
from tl_l2norm.core.norms import l2_norms
from tl_l2norm.core.presets import sink_ratio_of
from tl_l2norm.core.thresholds import AdaptiveIQR, RunningIQR, Thresholds
from tl_l2norm.interventions.log import Entry, Log
from tl_l2norm.interventions.rows import Places, Rows, RowTensors
from tl_l2norm.interventions.rule import Rule, Visit
from tl_l2norm.models.backend import Backend
from tl_l2norm.models.hooks import HookFn, attached


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """One intervention at one layer."""

    index: int
    layer: int
    intervention: Rule
    tau: float | AdaptiveIQR | None


class Batch:
    """The sequences that are being read, and everything that is remembered of each."""

    def __init__(self, rows: Rows, d_model: int) -> None:
        self.rows, self._d_model = rows, d_model
        self.bounds: dict[int, Float[Tensor, " batch"]] = {}
        self.states: dict[Site, RowTensors | None] = {}
        self.adaptive: dict[Site, RunningIQR] = {}

    def state(self, site: Site, device: torch.device) -> RowTensors | None:
        """What an intervention remembers at a layer."""
        if site not in self.states:
            self.states[site] = site.intervention.new_state(site.layer, self.rows.to(device), self._d_model)
        return self.states[site]

    def running(self, site: Site, rule: AdaptiveIQR, device: torch.device) -> RunningIQR:
        """An adaptive threshold with samples of each sequence."""
        if site not in self.adaptive:
            self.adaptive[site] = RunningIQR(rule, len(self.rows.number), device)
        return self.adaptive[site]

    def select(self, rows: Int[Tensor, " rows"]) -> None:
        """Keep these sequences, in this order."""
        self.rows = self.rows.select(rows)
        self.bounds = {at: bound[rows.to(bound.device)] for at, bound in self.bounds.items()}
        self.states = {site: state and state.select(rows) for site, state in self.states.items()}
        for running in self.adaptive.values():
            running.select(rows)

    def join(self, other: Batch) -> None:
        """Put the sequences of another batch after these."""
        self.bounds = {at: torch.cat([bound, other.bounds[at]]) for at, bound in self.bounds.items()}
        for site in {*self.states, *other.states}:
            known = self.states.get(site) or other.states.get(site)
            if known is not None:
                mine, new = self.state(site, known.device), other.state(site, known.device)
                assert mine is not None and new is not None
                self.states[site] = mine.join(new)
        for site in {*self.adaptive, *other.adaptive}:
            known_running = self.adaptive.get(site) or other.adaptive[site]
            at = (site, known_running.rule, known_running.counts.device)
            self.running(*at).join(other.running(*at))
        self.rows = self.rows.join(other.rows)


class Run:
    """Interventions at work on one model. They act in the order given, layer by layer.

    Whoever drives it says which sequences a batch has (`begin`, `select`, `join`) and when a pass starts (`next_pass`).
    """

    def __init__(self, backend: Backend, interventions: Sequence[Rule], *, sink_ratio: float | None = None) -> None:
        if odd := [x for x in interventions if not isinstance(x, Rule)]:
            raise InputTypeError(f"interventions are HighNormSuppression(...), ALRR(...), ERSS(...), ..., got {odd[0]!r:.80}")
        self.backend = backend
        self.sink_ratio = _one_sink_ratio(backend, interventions, sink_ratio)
        self.log = Log(interventions)
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
        self._batch: Batch | None = None
        self._places: dict[torch.device, Places] = {}
        self._busy: dict[Any, bool] = {}

    def _layers_where(self, wanted: Any) -> tuple[int, ...]:
        return tuple(layer for layer, sites in self.sites.items() if any(wanted(site.intervention) for site in sites))

    @property
    def acts_on_prompts(self) -> bool:
        """Whether an intervention may act on a token of a prompt."""
        return any(x.positions != "decode" for x in self.log.interventions)

    def hooks(self) -> list[tuple[HookPoint, HookFn]]:
        """All hooks of the run."""
        mids = [(self.backend.resid_mid(layer), partial(self._note_mid, layer)) for layer in self._mid_layers]
        return [*mids, *((self.backend.resid_post(layer), partial(self.visit, layer)) for layer in self.sites)]

    @contextmanager
    def attached(self) -> Iterator[Log]:
        """Keep all hooks on the model inside the context; warns at its end if an intervention never fired."""
        hooks = self.hooks()
        with self.blocks.recording(), attached(hooks):
            yield self.log
        self.finish()

    def begin(self, rows: Rows) -> Batch | None:
        """Start a new batch; returns the one before, for `join`."""
        before, self._batch = self._batch, Batch(rows, self.backend.d_model)
        self.log.keys.update(zip(rows.number.tolist(), rows.key.tolist(), strict=True))
        return before

    def renumber(self, owner: Int[Tensor, " rows"], rows: Rows) -> None:
        """Make several sequences of each, which share the prompt that was read; only where none of it is acted on."""
        position = self.batch.rows.position[owner]
        self.batch.select(owner)
        self.batch.rows = rows
        self.batch.rows.position = position
        self.batch.states = {}  # nothing acted on a shared prompt, and draws and quotas are each sample's own
        self.log.keys.update(zip(rows.number.tolist(), rows.key.tolist(), strict=True))

    def join(self, before: Batch) -> None:
        """Put the batch behind one that `begin` gave back."""
        before.join(self.batch)
        self._batch = before

    def select(self, rows: Int[Tensor, " rows"]) -> None:
        """Keep these sequences of the batch."""
        kept = set(rows.tolist())
        self._hand_out(torch.tensor([i for i in range(len(self.batch.rows.number)) if i not in kept], dtype=torch.long))
        self.batch.select(rows)

    @property
    def batch(self) -> Batch:
        """The batch that is being read."""
        if self._batch is None:
            raise RuntimeError(
                "the first pass over this batch was not seen: attach before it, and fwd_hooks only to passes over whole "
                "sequences (with generate use `with x.hooks(model)`)"
            )
        return self._batch

    def next_pass(self, n_pos: int, real: Bool[Tensor, "batch pos"] | None = None) -> None:
        """A forward pass over the next columns starts; `real` where its mask says more than padding on the left."""
        rows = self.batch.rows
        places = Places.of(rows, n_pos, real)
        self._places = {places.positions.device: places}
        options = {x.positions for x in self.log.interventions}
        self._busy = {where: n_pos == 1 or bool(places.eligible(where).any()) for where in options}
        self._reads_prompt = bool((rows.position < rows.prompt_len).any()) if n_pos > 1 or not self.batch.bounds else False
        rows.position = rows.position + n_pos

    def visit(self, layer: int, stream: Float[Tensor, "batch pos d_model"], hook: Any) -> Tensor | None:
        """The hook on `resid_post` of a layer: every intervention there, in their order."""
        places = self._places_on(stream)
        block = self.blocks.take(layer) if layer in self.blocks.blocks else None
        mid = self._resid_mid.pop(layer, None)
        norms = l2_norms(stream)
        if self._reads_prompt:
            self.batch.bounds[layer] = places.prompt_bounds(norms, self.sink_ratio)
        before = stream
        for site in self.sites[layer]:
            if self._busy[site.intervention.positions]:
                visit = Visit(layer, stream, norms, 0.0, self._live(site, places, norms), places, block, mid)
                stream, norms = self._act(site, visit)
        return None if stream is before else stream

    def _places_on(self, stream: Tensor) -> Places:
        if not self._places:
            raise RuntimeError("the start of this forward pass was not seen")
        if stream.device not in self._places:
            self._places[stream.device] = next(iter(self._places.values())).to(stream.device)
        places = self._places[stream.device]
        if places.positions.shape != stream.shape[:2]:
            shapes = f"{tuple(stream.shape[:2])} tokens, expected {tuple(places.positions.shape)}"
            raise RuntimeError(f"a forward pass over {shapes}")
        return places

    def _live(self, site: Site, places: Places, norms: Float[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
        x = site.intervention
        live = places.eligible(x.positions)
        if x.include_sinks:
            return live
        return live & (places.positions > 0) & (norms <= self.batch.bounds[site.layer][:, None])

    def _act(self, site: Site, visit: Visit) -> tuple[Tensor, Tensor]:
        device = visit.stream.device
        if isinstance(site.tau, AdaptiveIQR):
            visit = visit._replace(tau=self._running(site, site.tau, device).judge(visit.norms, visit.live))
        else:
            visit = visit._replace(tau=torch.nan if site.tau is None else site.tau)
        effect = site.intervention.act(self.batch.state(site, device), visit)
        after = visit.norms if effect.stream is visit.stream else l2_norms(effect.stream)
        entry = Entry(site.layer, visit.places, visit.live, effect.decision, visit.tau, visit.norms, after, effect.columns)
        self.log.add(site.index, entry)
        return effect.stream, after

    def _running(self, site: Site, rule: AdaptiveIQR, device: torch.device) -> RunningIQR:
        if rule.scope == "sequence":
            return self.batch.running(site, rule, device)
        if site not in self._shared:
            self._shared[site] = RunningIQR(rule, 1, device)
        return self._shared[site]

    def _note_mid(self, layer: int, stream: Float[Tensor, "batch pos d_model"], hook: Any) -> None:
        self._resid_mid[layer] = stream.detach()

    def _hand_out(self, leaving: Int[Tensor, " rows"]) -> None:
        """Let interventions keep what outlives the sequences that leave."""
        rows = self.batch.rows.select(leaving)
        for site, state in self.batch.states.items():
            if state is not None and len(leaving):
                for number, kept in site.intervention.outlives(rows, state.select(leaving)).items():
                    self.log.kept[site.index].setdefault(number, {})[site.layer] = kept
        for site, running in self.batch.adaptive.items():
            now = (rows.number, running.current()[leaving], running.counts[leaving])
            ends = self.log.final_thresholds.setdefault((site.index, site.layer), [])
            ends += zip(*(values.tolist() for values in now), strict=True)

    def finish_batch(self) -> None:
        """All sequences of the batch leave."""
        if self._batch is not None:
            self._hand_out(torch.arange(len(self._batch.rows.number)))
        self._batch, self._places = None, {}

    def finish(self) -> None:
        """The run is over."""
        self.finish_batch()
        for site, running in self._shared.items():
            self.log.final_thresholds[site.index, site.layer] = [("run", float(running.current()), int(running.counts))]
        if idle := self.log.idle():
            n = self.log.counts().set_index(["intervention", "decision"])["n"]
            judged = ", ".join(f"{name} (0 of {n[name, 'live tokens']} tokens and layers)" for name in idle)
            warnings.warn(f"nothing was changed by {judged}: see log.counts() and the thresholds", stacklevel=3)


def _one_sink_ratio(backend: Backend, interventions: Sequence[Rule], given: float | None) -> float:
    """The run's: given by whoever drives it, else by an intervention, else the model's.

    Raises:
        ValueError: interventions, or the traces that their thresholds come from, that have another.
    """
    asked = sorted({ratio for ratio in (given, *(x.sink_ratio for x in interventions)) if ratio is not None})
    if len(asked) > 1:
        raise InputError(
            f"sink ratios {', '.join(f'{ratio:g}' for ratio in asked)} in one run: what an intervention leaves alone as a sink "
            "and what the trace marks as one are the same; give sink_ratio=... to the run and none to interventions"
        )
    ratio = asked[0] if asked else sink_ratio_of(backend.model)
    for x in interventions:
        other = x.thresholds.sink_ratio if isinstance(x.thresholds, Thresholds) else None
        if other not in (None, ratio):
            raise InputError(
                f"{type(x).__name__}: its thresholds leave out tokens over {other:g} times the median norm as sinks, this run "
                f"those over {ratio:g} times: give sink_ratio={other:g}, or take them from traces with sink_ratio={ratio:g}"
            )
    return ratio
