"""Run a layer again where the norm peaks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from tl_l2norm.core.arguments import check_choice, check_count, check_finite, check_share
from tl_l2norm.core.norms import l2_norms
from tl_l2norm.core.thresholds import ThresholdLike
from tl_l2norm.interventions.base import Intervention
from tl_l2norm.interventions.rule import Decision, Effect, Visit

_RERUN, _GROWTH, _FELL, _BLEW_UP, _OVER = range(1, 6)


@dataclass(frozen=True, eq=False, repr=False)
class ALRR(Intervention):
    """Adaptive layer-wise reasoning recursion (the paper's first method): where `tau < n < blowup * tau`, run block l again on
    its own output.

    `h' = block_l(h)`, `n' = ||h'||`. Stop and keep h if `n' <= tau`, `(n' - n) / n < growth_eps` or `n' >= blowup * tau`;
    otherwise `h <- (1 - alpha) h + alpha h'` and go on from n', up to `max_iters` times. Nothing of a re-run is stored in the
    KV cache, and hooks inside the block don't hear it.

    Attributes:
        thresholds: by layer: a dict, `quantile_thresholds(...)`, `iqr_thresholds(...)` or `AdaptiveIQR()`.
        max_iters: how often a block runs again at the most.
        growth_eps: the least relative growth of the norm that counts.
        blowup: times tau, the norm from which on nothing is done.
        alpha: weight of the re-run's state, 0 to 1.
        kv: what a re-run attends to at its own position: the key and value of the "first_pass" (the authors'), or "fresh"
            ones.
        layers: which blocks; by default those of the thresholds, the late layers without or where they adapt.
        positions: "decode" (tokens that the model generated and reads back), "all", or a position from which on it acts.
        include_sinks: whether attention sinks count and are acted on, as in the authors' code.
        sink_ratio: a norm over this many times its layer's median over the prompt is a sink's; None for the run's.

    Examples:
        >>> rerun = l2.ALRR(l2.quantile_thresholds(think, 0.9), layers="late", growth_eps=0.0)
        >>> chat = [{"role": "user", "content": "mod 10: 7A-3"}]
        >>> l2.generate(model, [chat], interventions=[rerun], progress=False).log
        intervention             decision  fired  n
                ALRR          live tokens  False 36
                ALRR                rerun   True  9
                ALRR     growth too small  False  0
                ALRR fell below threshold  False  0
                ALRR              blew up  False  2
                ALRR          over blowup  False  0
    """

    thresholds: ThresholdLike
    max_iters: int = 1
    growth_eps: float = 0.2
    blowup: float = 1.5
    alpha: float = 1.0
    kv: Literal["first_pass", "fresh"] = "first_pass"
    """What the re-run attends to at its own position: the first pass' key and value (the authors'), or its own."""

    DECISIONS: ClassVar = (
        Decision("rerun", True),
        Decision("growth too small", False),
        Decision("fell below threshold", False),
        Decision("blew up", False),
        Decision("over blowup", False),
    )
    COLUMNS: ClassVar = ("reruns",)
    NEEDS_BLOCK: ClassVar = True
    NEEDS_THRESHOLDS: ClassVar = True

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("max_iters", self.max_iters, 1)
        check_finite("growth_eps", self.growth_eps)
        check_finite("blowup", self.blowup, over=1.0)
        check_share("alpha", self.alpha)
        check_choice("kv", self.kv, ("first_pass", "fresh"))

    @override
    def act(self, state: Any, visit: Visit) -> Effect:
        over = visit.live & (visit.norms >= self.blowup * visit.tau)
        decision = over.to(torch.int8) * _OVER
        reruns = torch.zeros_like(visit.norms)
        active = visit.live & (visit.norms > visit.tau) & ~over
        rows, columns = active.nonzero(as_tuple=True)  # read back: which rows run again decides how much is computed
        stream, norms = visit.stream, visit.norms
        if not len(rows):
            return Effect(stream, decision, {"reruns": reruns})
        tau = visit.tau.expand_as(norms) if isinstance(visit.tau, Tensor) else torch.full_like(norms, visit.tau)
        for iteration in range(self.max_iters):
            if not len(rows):
                break
            assert visit.block is not None
            new = visit.block.again(stream, rows, columns, fresh=self.kv == "fresh")
            new_norms = l2_norms(new)
            stop = self._stop(norms[rows, columns], new_norms, tau[rows, columns])
            if iteration == 0:
                decision[rows, columns] = torch.where(stop == 0, _RERUN, stop).to(torch.int8)
            reruns[rows, columns] += 1
            good = stop == 0
            rows, columns = rows[good], columns[good]
            mixed = torch.lerp(stream[rows, columns], new[good].to(stream.dtype), self.alpha)
            stream = stream.index_put((rows, columns), mixed)
            norms = norms.index_put((rows, columns), new_norms[good])
        return Effect(stream, decision, {"reruns": reruns})

    def _stop(self, before: Float[Tensor, " hits"], after: Float[Tensor, " hits"], tau: Float[Tensor, " hits"]) -> Tensor:
        """Why to stop here, 0 to go on."""
        stop = torch.where(after >= self.blowup * tau, _BLEW_UP, 0)
        stop = torch.where((after - before) / before < self.growth_eps, _GROWTH, stop)
        return torch.where(after <= tau, _FELL, stop)
