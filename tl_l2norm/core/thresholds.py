"""When a norm counts as high: given values, values from recorded traces, or a quantile that adapts while a model runs."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from typing_extensions import override

from tl_l2norm.core.arguments import as_integer, as_number, as_share, check_flag
from tl_l2norm.core.errors import InputError, InputTypeError, Unmeasurable
from tl_l2norm.core.layers import layer_ranges
from tl_l2norm.core.provenance import Provenance
from tl_l2norm.core.trace import Trace, TracesLike, require_comparable, traces_of


class Thresholds(Mapping[int, float]):
    """The threshold tau of each layer, and of which model and dtype it is.

    A mapping from layers to norms; wherever one is taken, a plain dict does too.

    Raises:
        TypeError: something else than a dict from integers to numbers.
        ValueError: no layer, or a value that is no norm.

    Examples:
        >>> tau = l2.Thresholds({10: 480.0, 11: 505.5})
        >>> tau, tau[11]
        (Thresholds({10: 480, 11: 505.5}, given), 505.5)
    """

    def __init__(
        self,
        values: Mapping[int, float],
        *,
        rule: str = "given",
        provenance: Provenance | None = None,
        sink_ratio: float | None = None,
        prompts: Iterable[str] = (),
    ) -> None:
        if not isinstance(values, Mapping):
            raise InputTypeError(f"thresholds are a dict {{layer: value}}, or iqr_thresholds(traces), got {values!r:.80}")
        self._values = dict(sorted((check_layer(layer), check_value(layer, value)) for layer, value in values.items()))
        if not self._values:
            raise InputError("thresholds are empty: give one for each layer, {layer: value}")
        self.rule = rule
        self.provenance = provenance
        self.sink_ratio = sink_ratio
        """Of the run whose sinks they leave out; None where they leave none out, or nobody says."""
        self.prompts = frozenset(prompts)
        """What they were taken from, `prompt_key` of each: nothing is tested there by them. Empty where nobody says."""

    @override
    def __getitem__(self, layer: int) -> float:
        return self._values[layer]

    @override
    def __iter__(self) -> Iterator[int]:
        return iter(self._values)

    @override
    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        """One line: the rule and the values."""
        values = ", ".join(f"{layer}: {value:.4g}" for layer, value in self._values.items())
        return f"Thresholds({{{values}}}, {self.rule})"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveIQR:
    """A threshold that follows the run: `Q3 + k * max(IQR, min_iqr)` of each layer's norms over the decode tokens so far.

    One sample per live token, sinks left out; a token is judged by those before it. Nothing happens before `warmup` samples.
    The quantiles are exact (linear interpolation); the authors estimate them by P-square from the batch's mean.

    Attributes:
        k: factor of the interquartile range.
        warmup: samples before anything happens; at least 2.
        min_iqr: the least interquartile range.
        scope: whose tokens count: those of the "run", or of each "sequence" its own.

    Examples:
        >>> l2.ALRR(l2.AdaptiveIQR(warmup=50, scope="sequence"), layers="late")
        ALRR(layers='late', thresholds=AdaptiveIQR(k=1.5, warmup=50, min_iqr=0.0, scope='sequence'))
    """

    k: float = 1.5
    warmup: int = 500
    min_iqr: float = 0.0
    scope: Literal["run", "sequence"] = "run"
    """Whether the tokens of all sequences of a run count, or each sequence's own."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "k", _as_factor("k", self.k))
        if as_integer("warmup", self.warmup) < 2:
            raise InputError(f"warmup must be at least 2 samples, got {self.warmup}")
        object.__setattr__(self, "min_iqr", _as_factor("min_iqr", self.min_iqr))
        if self.scope not in ("run", "sequence"):
            raise InputError(f"scope must be 'run' or 'sequence', got {self.scope!r}")


ThresholdLike = Mapping[int, float] | AdaptiveIQR


def as_thresholds(given: Any) -> Thresholds | AdaptiveIQR:
    """Thresholds as they are taken: by layer, or a rule that adapts.

    Raises:
        TypeError: a bare number, a list, a tensor, or traces.
        ValueError: a value that is no norm.
    """
    if isinstance(given, Thresholds | AdaptiveIQR):
        return given
    if isinstance(given, Mapping):
        return Thresholds(given)
    raise InputTypeError(f"thresholds are a dict {{layer: value}}, iqr_thresholds(traces) or AdaptiveIQR(), got {given!r:.80}")


def quantile_thresholds(traces: TracesLike, q: float = 0.95, *, include_sinks: bool = False) -> Thresholds:
    """Each layer's `q` quantile of the norms of decode tokens, sinks left out.

    Args:
        traces: with responses, of one model.
        q: share of the norms that lie below.
        include_sinks: whether attention sinks count.

    Raises:
        ValueError: q outside 0 to 1, traces that can't be compared, or no decode token.

    Examples:
        >>> tau = l2.quantile_thresholds(think, q=0.9)
        >>> above = [trace.at(11)[trace.is_response] > tau[11] for trace in think]
        >>> round(torch.cat(above).float().mean().item(), 1)
        0.1
    """
    q = as_share("q", q)
    return _of_traces(traces, lambda norms: float(np.quantile(norms, q)), f"{q:g} quantile", include_sinks)


def iqr_thresholds(traces: TracesLike, k: float = 1.5, *, include_sinks: bool = False) -> Thresholds:
    """`Q3 + k * (Q3 - Q1)` of each layer's norms of decode tokens, sinks left out: the paper's rule for outliers.

    Args:
        traces: with responses, of one model.
        k: how many interquartile ranges over the third quartile.
        include_sinks: whether attention sinks count.

    Raises:
        ValueError: k below 0, traces that can't be compared, or no decode token.

    Examples:
        >>> tau = l2.iqr_thresholds([trace.select("late") for trace in think], k=1.5)
        >>> list(tau), tau.rule
        ([9, 10, 11], 'Q3 + 1.5 IQR')
    """
    k = _as_factor("k", k)

    def outlying(norms: np.ndarray) -> float:
        first, third = np.quantile(norms, [0.25, 0.75])
        return float(third + k * (third - first))

    return _of_traces(traces, outlying, f"Q3 + {k:g} IQR", include_sinks)


def _of_traces(given: TracesLike, tau_of: Callable[[np.ndarray], float], rule: str, include_sinks: bool) -> Thresholds:
    """What a rule makes of each layer's norms."""
    check_flag("include_sinks", include_sinks)
    traces = traces_of(given)
    require_comparable(traces)
    values = {layer: tau_of(norms) for layer, norms in _decode_norms(traces, include_sinks).items()}
    source = traces[0].provenance
    prompts = {prompt_key(trace.tokens[: trace.prompt_len].tolist()) for trace in traces}
    sink_ratio = None if include_sinks else source.sink_ratio
    return Thresholds(values, rule=rule, provenance=source, sink_ratio=sink_ratio, prompts=prompts)


def prompt_key(tokens: Sequence[int]) -> str:
    """Short hash of a prompt's token ids, by which it is known again."""
    return hashlib.sha256(",".join(map(str, tokens)).encode()).hexdigest()[:16]


def _as_factor(name: str, value: float) -> float:
    number = as_number(name, value, "0 or more")
    if not (math.isfinite(number) and number >= 0):
        raise InputError(f"{name} must be 0 or more, got {value}")
    return number


def _decode_norms(traces: Sequence[Trace], include_sinks: bool) -> dict[int, np.ndarray]:
    """Norms of decode tokens by layer."""
    kept = [t.is_response.expand(t.is_sink.shape) & (~t.is_sink | include_sinks) for t in traces]
    norms = {
        layer: torch.cat([trace.l2_norms[i][keep[i]] for trace, keep in zip(traces, kept, strict=True)]).double().numpy()
        for i, layer in enumerate(traces[0].layers)
    }
    empty = [layer for layer, sample in norms.items() if not len(sample)]
    if empty:
        raise Unmeasurable(
            f"no decode token in these traces at layers {layer_ranges(empty)}: thresholds come from responses; give traces of "
            "generate(...), or collect(..., prompt_lens=...)"
        )
    return norms


def check_layer(layer: int) -> int:
    """A layer of a threshold, as an int."""
    if isinstance(layer, bool) or not hasattr(layer, "__index__"):
        raise InputTypeError(f"thresholds are given by layer, {{layer: value}}, got the key {layer!r}")
    return layer.__index__()


def check_value(layer: int, value: float) -> float:
    """A threshold's value, as a float.

    Raises:
        ValueError: NaN or negative. Infinity is fine: it never triggers.
    """
    number = as_number(f"the threshold of layer {layer}", value, "a norm, 0 or more")
    if not number >= 0:
        raise InputError(f"the threshold of layer {layer} must be a norm, 0 or more, got {value}")
    return number


class RunningIQR:
    """The state of an `AdaptiveIQR` at one layer: every sample so far, sorted, one row per sequence or one for all.

    Past its count a row holds infinity.
    """

    def __init__(self, rule: AdaptiveIQR, rows: int, device: torch.device) -> None:
        self.rule = rule
        owners = 1 if rule.scope == "run" else rows
        self.samples: Float[Tensor, "owner capacity"] = torch.empty(owners, 0, device=device)
        self.counts: Int[Tensor, " owner"] = torch.zeros(owners, dtype=torch.long, device=device)
        self._added = 0

    def select(self, rows: Int[Tensor, " rows"]) -> RunningIQR:
        """The state of these sequences; with scope "run" they share one, which stays as it is."""
        if self.rule.scope == "run":
            return self
        rows = rows.to(self.counts.device)
        return self._with(self.samples[rows], self.counts[rows])

    def join(self, other: RunningIQR) -> RunningIQR:
        """The state of these sequences and those of another one."""
        width = max(self.samples.shape[1], other.samples.shape[1])
        samples = torch.cat([_widen(self.samples, width), _widen(other.samples, width)])
        return self._with(samples, torch.cat([self.counts, other.counts]))

    def _with(self, samples: Float[Tensor, "owner capacity"], counts: Int[Tensor, " owner"]) -> RunningIQR:
        state = RunningIQR(self.rule, 0, counts.device)
        state.samples, state.counts, state._added = samples, counts, self._added
        return state

    def judge(self, norms: Float[Tensor, "batch pos"], live: Bool[Tensor, "batch pos"]) -> Float[Tensor, "batch pos"]:
        """The threshold for each token, NaN during warm-up; then the live ones join the samples, column by column."""
        columns = []
        for column in range(norms.shape[1]):
            columns.append(self.current().expand(len(norms)))
            self._add(torch.where(live[:, column], norms[:, column], torch.inf), live[:, column])
        return torch.stack(columns, dim=1)

    def current(self) -> Float[Tensor, " owner"]:
        """The threshold now."""
        first, third = self._quantile(0.25), self._quantile(0.75)
        tau = third + self.rule.k * (third - first).clamp_min(self.rule.min_iqr)
        return torch.where(self.counts >= self.rule.warmup, tau, torch.nan)

    def _quantile(self, q: float) -> Float[Tensor, " owner"]:
        if self.samples.shape[1] == 0:
            return torch.full(self.counts.shape, torch.nan, device=self.counts.device)
        place = (self.counts - 1).clamp_min(0) * q
        low = place.floor().long()
        high = torch.minimum(low + 1, (self.counts - 1).clamp_min(0))
        below, above = (self.samples.gather(1, index[:, None])[:, 0] for index in (low, high))
        return torch.lerp(below, above, (place - low).to(below.dtype))

    def _add(self, new: Float[Tensor, " batch"], live: Bool[Tensor, " batch"]) -> None:
        """Merge sorted samples; what is not live is infinity and stays at the end, past the count."""
        shared = self.rule.scope == "run"
        new = new[None].sort(dim=1).values if shared else new[:, None]
        old = self.samples
        merged = old.new_empty(len(old), old.shape[1] + new.shape[1])
        behind = torch.searchsorted(old, new, right=True) + torch.arange(new.shape[1], device=new.device)
        merged.scatter_(1, behind, new)
        before = torch.searchsorted(new, old) + torch.arange(old.shape[1], device=old.device)
        merged.scatter_(1, before, old)
        self.counts = self.counts + (live.sum() if shared else live)
        self._added += 1
        self.samples = merged if self._added % 256 else merged[:, : int(self.counts.max())].contiguous()


def _widen(samples: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(samples, (0, width - samples.shape[1]), value=torch.inf)
