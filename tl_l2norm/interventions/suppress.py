"""Suppress tokens by their norm: the paper's causal test, and its controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from typing_extensions import override

from tl_l2norm.core.arguments import as_integer, check_choice, check_finite, check_share
from tl_l2norm.core.batch import Rows, RowTensors
from tl_l2norm.core.errors import InputError, InputTypeError
from tl_l2norm.core.random_draws import hash_keys
from tl_l2norm.core.thresholds import ThresholdLike
from tl_l2norm.interventions.base import Intervention
from tl_l2norm.interventions.log import Log
from tl_l2norm.interventions.matching import Alike, Likeness, Plan, as_likeness
from tl_l2norm.interventions.operators import Clamp, Operator, Scale, Swap
from tl_l2norm.interventions.rule import Decision, Effect, Visit
from tl_l2norm.interventions.selectors import Matched, Over, Random, Selector, only_of
from tl_l2norm.models.described import Described

_SUPPRESSED, _NO_EARLIER = 1, 2


@dataclass(frozen=True, eq=False, repr=False)
class Suppression(Intervention):
    """Scale down the states of some tokens, clamp their norm, or exchange their content: any `which` with any `how`.

    Most blocks read the stream through RMSNorm or LayerNorm: a state that is scaled by 0.1 keeps its direction, which is all
    that the next block reads, and everything that later blocks add to it weighs ten times as much. "swap" is the other half of
    the test: it keeps the norm and changes the direction to that of an earlier state. What breaks by "swap" and not by "scale"
    hangs on the content of these states, not on their norm.

    The earlier state is that of a token drawn uniformly among all earlier live tokens of the sequence at that layer, as this
    intervention met it (reservoir sampling). One float32 state [d_model] is kept for each sequence and layer; no gradient flows
    through a swapped state. Where there is no earlier live token, or the one drawn has norm 0, nothing is changed and the log
    says "no earlier token", not fired; matched tokens are never drawn there.

    Attributes:
        thresholds: by layer: a dict, `quantile_thresholds(...)`, `iqr_thresholds(...)` or `AdaptiveIQR()`; none for random
            tokens.
        which: "high" (norms over the threshold), "low" (under it), "random" tokens, or "matched": as many as in another run's
            log.
        how: "scale" (`h * scale`), "clamp" (`h * min(1, (tau / 4) / ||h||)`) or "swap" (another's direction, at equal norm).
        scale: of how="scale"; 0.1 by default.
        p: of which="random": probability of each token and layer; 0.05 by default.
        match: of which="matched" or "high": the log of a run with one suppression, `out.log`.
        alike: of `match`: in what tokens are like those of the log beside their number: "token" (of the same ids), "position"
            (in the same eight positions), or both; with "token" also "occurrence" (none the first of its id in the response).
        seed: of what is drawn: which="random" and "matched", how="swap"; 0 by default.
        layers: which blocks; by default those of the thresholds, the late layers without or where they adapt.
        positions: "decode" (tokens that the model generated and reads back), "all", or a position from which on it acts.
        include_sinks: whether attention sinks count and are acted on, as in the authors' code.
        sink_ratio: a norm over this many times its layer's median over the prompt is a sink's; None for the run's.

    Raises:
        ValueError: parameters that are missing, out of range, or of no effect with this `which` and `how`.

    Examples:
        >>> high = l2.Suppression(l2.quantile_thresholds(think, 0.9), layers=[8, 9])
        >>> chats = [[{"role": "user", "content": question}] for question in ("mod 10: 7A-3", "mod 10: 4B-9")]
        >>> l2.generate(model, chats, interventions=[high], progress=False).log
        intervention         decision  fired  n
         Suppression      live tokens  False 56
         Suppression       suppressed   True  8
         Suppression no earlier token  False  0
    """

    thresholds: ThresholdLike | None = None
    which: Literal["high", "low", "random", "matched"] = "high"
    """Norms over the threshold, norms under it, random tokens, or as many random ones as in another run's log."""
    how: Literal["scale", "clamp", "swap"] = "scale"
    """`h * scale`, `h * min(1, (tau / 4) / ||h||)`, or `||h|| * v / ||v||`, v the state of a random earlier token."""
    scale: float | None = None
    """Of how="scale"; 0.1 by default."""
    p: float | None = None
    """Of which="random": probability of each token and layer; 0.05 by default."""
    match: Log | None = None
    """Of which="matched": the log of a run with one suppression, `out.log`. As many tokens of each sequence and layer are taken
    as fired there, none of them over the threshold. Of which="high" with `alike`: as many, all of them over it."""
    alike: Likeness | Sequence[Likeness] = ()
    """Of `match`: in what tokens are like those of the log beside their number. "token": of the same ids, as many of each as
    have a partner, another token of that id there that didn't fire; the high ones and their partners are then as many.
    "position": in the same eight positions. What finds none there is taken as soon as there is one after.
    "occurrence", with "token": the first token of an id in a response is left alone on both sides."""
    seed: int | None = None
    """Of what is drawn: which="random" and "matched", how="swap"; 0 by default."""

    DECISIONS: ClassVar = (Decision("suppressed", True), Decision("no earlier token", False))

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("which", self.which, ("high", "low", "random", "matched"))
        check_choice("how", self.how, ("scale", "clamp", "swap"))
        object.__setattr__(self, "alike", as_likeness(self.alike))
        self._refuse_idle()
        if self.scale is not None:
            check_finite("scale", self.scale, least=0.0)
        if self.p is not None:
            check_share("p", self.p)
        if self.seed is not None:
            as_integer("seed", self.seed)
        needs = "which" if self.which != "random" else "how" if self.how == "clamp" else ""
        if self.thresholds is None and needs:
            given = "a dict {layer: value}, iqr_thresholds(traces) or AdaptiveIQR()"
            raise InputError(f"{needs}={getattr(self, needs)!r} needs thresholds: {given}")
        if self.which == "matched" or self.match is not None:
            self._control  # noqa: B018 (a log that can't be matched shows here)

    def _refuse_idle(self) -> None:
        """Refuse parameters that would do nothing."""
        draws = self.which in ("random", "matched") or self.how == "swap"
        for name, works, where in (
            ("scale", self.how == "scale", "how='scale'"),
            ("p", self.which == "random", "which='random'"),
            ("match", self.which == "matched" or (self.which == "high" and self.alike), "which='matched'"),
            ("alike", self.which in ("matched", "high") and self.match is not None, "match"),
            ("seed", draws or self.alike, "which='random' or 'matched' and for how='swap'"),
        ):
            if getattr(self, name) not in (None, ()) and not works:
                raise InputError(f"{name} is for {where}; it does nothing with which={self.which!r}, how={self.how!r}")

    @cached_property
    def _control(self) -> Matched | Alike:
        index = _matched(self.match)
        assert self.match is not None
        if not self.alike:
            return Matched(self.match, index)
        high = self.which == "high"
        return Alike(Plan.of(self.match, index, as_likeness(self.alike), high=high), high)

    @property
    def _selector(self) -> Selector:
        if self.match is not None:
            return self._control
        return Random(0.05 if self.p is None else self.p) if self.which == "random" else Over(under=self.which == "low")

    @property
    def _operator(self) -> Operator:
        if self.how == "scale":
            return Scale(0.1 if self.scale is None else self.scale)
        return Clamp() if self.how == "clamp" else Swap()

    @override
    def resolve(self, backend: Described) -> tuple[int, ...]:
        layers = super().resolve(backend)
        if self.match is not None:
            Matched(self.match, _matched(self.match)).require(layers, backend)
        return layers

    @override
    def made_with(self) -> dict[str, float | None]:
        return super().made_with() | {"matched counts": None if self.match is None else self.match.sink_ratio}

    @override
    def new_state(self, layer: int, rows: Rows, d_model: int) -> RowTensors:
        draws, operator = hash_keys(self.seed or 0, rows.key, layer), self._operator
        chosen = self._selector.begin(layer, rows, draws, operator.skipped)
        return _Memory(chosen, operator.begin(draws, d_model))

    @override
    def act(self, state: Any, visit: Visit) -> Effect:
        stream, able = self._operator.changed(state.changed, visit)
        hit = self._selector.choose(state.chosen, visit, able)
        changed = hit & able
        decision = torch.where(changed, _SUPPRESSED, hit * _NO_EARLIER).to(torch.int8)
        return Effect(torch.where(changed[..., None], stream, visit.stream), decision)


@dataclass(slots=True, eq=False)
class _Memory(RowTensors):
    """What selector and operator remember of each sequence."""

    chosen: RowTensors | None
    changed: RowTensors | None


def _matched(log: Any) -> int:
    """Which intervention of the log is matched: its only suppression."""
    if log is None:
        raise InputTypeError(
            "which='matched' needs match=, the log of a run with one Suppression, such as out.log; that of a run without "
            "interventions is None"
        )
    return only_of(log, (Suppression,))
