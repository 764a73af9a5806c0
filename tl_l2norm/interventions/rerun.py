"""Run a layer again at chosen tokens, whatever their norm: the control of ALRR, and representation recycling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool
from torch import Tensor
from typing_extensions import override

from tl_l2norm.core.arguments import Integer, as_integer, as_integers, check_choice, check_share
from tl_l2norm.core.batch import Rows, RowTensors
from tl_l2norm.core.errors import InputError, InputTypeError
from tl_l2norm.core.random_draws import hash_keys
from tl_l2norm.core.thresholds import ThresholdLike
from tl_l2norm.interventions.alrr import ALRR
from tl_l2norm.interventions.base import Intervention
from tl_l2norm.interventions.log import Log
from tl_l2norm.interventions.rule import Decision, Effect, Visit
from tl_l2norm.interventions.selectors import Count, Draws, Matched, Quota, Random, only_of, read_tokens
from tl_l2norm.models.described import Described


@dataclass(frozen=True, eq=False, repr=False)
class Rerun(Intervention):
    """Run block l again on its own output, `h <- (1 - alpha) h + alpha block_l(h)`, at tokens chosen by chance or by their ids
    instead of by their norm, and keep what comes out.

    Beside ALRR it spends the same elsewhere: `Rerun(match=out.log)` runs each layer as often in each sequence as ALRR did, at
    random tokens; with `tokens`, at tokens of these ids alone; with `match_layers`, at other layers.

    `Rerun(p=1, tokens=thinking_tokens(tokenizer), layers=[l], kv="fresh")` is Representation Recycling (RR; Qian et al.,
    "Demystifying Reasoning Dynamics with Mutual Information", arXiv 2506.02867, section 4.1): one middle or high layer's output
    is fed into the same layer once more "whenever the model generates one of these thinking tokens". Here that is where such a
    token is read. The authors' code repeats the pass that is about to write one, every second time (p=0.5), draws again from
    what comes out, and keeps the keys and values of both passes: nothing that one pass over finished tokens could repeat.

    Attributes:
        thresholds: by layer; tokens over theirs are left alone. None: every token may be taken.
        p: probability of each token and layer.
        tokens: ids of the tokens that may be taken, such as `thinking_tokens(model.tokenizer)`; None: all.
        match: instead of p, the log of a run with one ALRR or Rerun, `out.log`: as many re-runs of each sequence and layer,
            each at a token of its own.
        count: of `match`: "reruns" (how often a block ran again, which is what it cost) or "fired" (how many tokens changed).
        match_layers: of `match`: {layer: the log's layer whose number it takes}; by default the same layers.
        alpha: weight of the re-run's state, 0 to 1.
        kv: what a re-run attends to at its own position: the key and value of the "first_pass", or "fresh" ones.
        seed: of the draws.
        layers: which blocks; by default those of `match_layers`, of the thresholds or of the log; the late layers without.
        positions: "decode" (tokens that the model generated and reads back), "all", or a position from which on it acts.
        include_sinks: whether attention sinks count and are acted on, as in the authors' code.
        sink_ratio: a norm over this many times its layer's median over the prompt is a sink's; None for the run's.

    Raises:
        ValueError: neither p nor match or both, or parameters that are out of range or of no effect.

    Examples:
        >>> alrr = l2.ALRR(l2.quantile_thresholds(think, 0.9), layers=[8, 9], growth_eps=0.0)
        >>> chats = [[{"role": "user", "content": question}] for question in ("mod 10: 7A-3", "mod 10: 4B-9")]
        >>> out = l2.generate(model, chats, interventions=[alrr], progress=False)
        >>> control = l2.interventions.Rerun(match=out.log)
        >>> elsewhere = l2.generate(model, chats, interventions=[control], progress=False)
        >>> out.log.reruns()  # by sequence and layer
        {(0, 8): 2, (0, 9): 3, (1, 8): 2, (1, 9): 4}
        >>> elsewhere.log.reruns() == out.log.reruns()
        True
    """

    thresholds: ThresholdLike | None = None
    p: float | None = None
    tokens: Sequence[Integer] | None = None
    match: Log | None = None
    count: Count = "reruns"
    """Of `match`: how often a block ran again, or how many tokens that changed."""
    match_layers: Mapping[int, int] | None = None
    alpha: float = 1.0
    kv: Literal["first_pass", "fresh"] = "first_pass"
    seed: int = 0

    DECISIONS: ClassVar = (Decision("rerun", True),)
    COLUMNS: ClassVar = ("reruns",)
    NEEDS_BLOCK: ClassVar = True

    @override
    def __post_init__(self) -> None:
        if self.match_layers is not None:
            object.__setattr__(self, "match_layers", _as_pairs(self.match_layers))
            if self.layers is None:
                object.__setattr__(self, "layers", tuple(self.match_layers))
        super().__post_init__()
        check_choice("count", self.count, ("reruns", "fired"))
        check_choice("kv", self.kv, ("first_pass", "fresh"))
        check_share("alpha", self.alpha)
        as_integer("seed", self.seed)
        if (self.p is None) == (self.match is None):
            raise InputError("Rerun takes either p=, the probability of each token, or match=, the log of another run")
        if self.match is None:
            check_share("p", self.p)
            if self.match_layers is not None or self.count != "reruns":
                raise InputError("count and match_layers are for match; they do nothing with p")
        self._matched  # noqa: B018 (a log that can't be matched shows here)
        if self.tokens is not None:
            object.__setattr__(self, "tokens", tuple(as_integers("tokens", self.tokens)))
            if not self.tokens:
                raise InputError("tokens are empty: give the ids of those that may be taken, or None for all")

    @cached_property
    def _matched(self) -> Matched | None:
        if self.match is None:
            return None
        return Matched(self.match, only_of(self.match, (ALRR, Rerun)), self.count, self.match_layers or {})

    @override
    def resolve(self, backend: Described) -> tuple[int, ...]:
        if self._matched is None:
            return super().resolve(backend)
        own = self.layers is not None or self.thresholds is not None
        layers = super().resolve(backend) if own else self._matched.acted_at(backend)
        self._matched.require(layers, backend)
        return layers

    @override
    def made_with(self) -> dict[str, float | None]:
        return super().made_with() | {"matched counts": None if self.match is None else self.match.sink_ratio}

    @override
    def new_state(self, layer: int, rows: Rows, d_model: int) -> RowTensors | None:
        draws = hash_keys(self.seed, rows.key, layer)
        return Draws(draws) if self._matched is None else self._matched.begin(layer, rows, draws, 0)

    @override
    def act(self, state: Any, visit: Visit) -> Effect:
        hit = self._chosen(state, visit)
        rows, columns = hit.nonzero(as_tuple=True)  # read back: which rows run again decides how much is computed
        reruns = hit.to(visit.norms.dtype)
        if not len(rows):
            return Effect(visit.stream, hit.to(torch.int8), {"reruns": reruns})
        assert visit.block is not None
        new = visit.block.again(visit.stream, rows, columns, fresh=self.kv == "fresh").to(visit.stream.dtype)
        mixed = torch.lerp(visit.stream[rows, columns], new, self.alpha)
        return Effect(visit.stream.index_put((rows, columns), mixed), hit.to(torch.int8), {"reruns": reruns})

    def _chosen(self, state: Draws | Quota, visit: Visit) -> Bool[Tensor, "batch pos"]:
        free = visit.live if self.thresholds is None else visit.live & (visit.norms <= visit.tau)
        if self.tokens is not None:
            read = read_tokens(visit, "tokens")
            free = free & torch.isin(read, torch.tensor(self.tokens, device=read.device))
        if isinstance(state, Quota):
            return state.take(visit.places.positions, free, visit.live)
        assert self.p is not None
        return free & Random(self.p).choose(state, visit, visit.live)


def _as_pairs(given: Any) -> Mapping[int, int]:
    """Layers here with those of the log."""
    if not isinstance(given, Mapping) or not given:
        raise InputTypeError(f"match_layers is {{layer: the log's layer}}, as in {{0: 9, 1: 10}}, got {given!r:.80}")
    pairs = {
        as_integer("a layer of match_layers", k, least=0): as_integer("a layer of the log", v, least=0)
        for k, v in given.items()
    }
    return MappingProxyType(pairs)
