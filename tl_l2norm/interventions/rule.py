"""What every intervention has: parameters, the layers that it acts on, and one step that decides and changes."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

from jaxtyping import Bool, Float, Int8
from torch import Tensor

from tl_l2norm.core.arguments import as_integer, check_flag
from tl_l2norm.core.batch import Places, Positions, Rows, RowTensors
from tl_l2norm.core.errors import InputError
from tl_l2norm.core.layers import Layers, check_layers, layer_ranges, resolve_layers
from tl_l2norm.core.presets import check_sink_ratio
from tl_l2norm.core.thresholds import AdaptiveIQR, ThresholdLike, Thresholds, as_thresholds
from tl_l2norm.models.block_calls import BlockRun
from tl_l2norm.models.described import Described
from tl_l2norm.models.provenance import provenance


class Decision(NamedTuple):
    """Something that an intervention may decide at a position."""

    name: str
    fired: bool


class Visit(NamedTuple):
    """One layer in one forward pass, as an intervention meets it."""

    layer: int
    stream: Float[Tensor, "batch pos d_model"]
    norms: Float[Tensor, "batch pos"]
    tau: Float[Tensor, "batch pos"] | float
    live: Bool[Tensor, "batch pos"]
    """Where it may act: no prompt, padding, sink or finished row, unless it asks for them. States elsewhere stay as they are,
    whatever it returns for them."""
    places: Places
    block: BlockRun | None
    """The block's pass, for an intervention that runs it again."""
    resid_mid: Float[Tensor, "batch pos d_model"] | None


class Effect(NamedTuple):
    """What an intervention made of a visit."""

    stream: Float[Tensor, "batch pos d_model"]
    decision: Int8[Tensor, "batch pos"]
    """0 for nothing, i + 1 for `DECISIONS[i]`. A state changes only where something is decided: the log then tells of every
    change."""
    columns: Mapping[str, Float[Tensor, "batch pos"]] = MappingProxyType({})
    """What the log notes beside it, by the names in `COLUMNS`."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Rule(ABC):
    """How an intervention decides and what it changes.

    Holds parameters only. Its state belongs to a run and is gone with it.
    """

    layers: Layers = None
    """Which blocks; by default those of the thresholds, the late layers where a threshold adapts."""
    positions: Positions = "decode"
    """On tokens that the model generated and reads back, on "all", or from this position on."""
    include_sinks: bool = False
    """Whether attention sinks count and are acted on, as in the authors' code."""
    sink_ratio: float | None = None
    """A norm over this many times its layer's median over the prompt is a sink's; None for the run's. A run has one."""

    DECISIONS: ClassVar[tuple[Decision, ...]]
    COLUMNS: ClassVar[tuple[str, ...]] = ()
    """What it has noted beside each decision, as columns of floats of the log's events."""
    NEEDS_BLOCK: ClassVar[bool] = False
    NEEDS_THRESHOLDS: ClassVar[bool] = False

    thresholds: ThresholdLike | None

    def __post_init__(self) -> None:
        if not (isinstance(self.positions, str) and self.positions in ("decode", "all")):
            try:
                object.__setattr__(self, "positions", as_integer("positions", self.positions, least=0))
            except InputError as error:
                choices = f"positions must be 'decode', 'all' or a position from 0 on, got {self.positions!r:.80}"
                raise type(error)(choices) from error
        check_layers(self.layers)
        check_flag("include_sinks", self.include_sinks)
        if self.sink_ratio is not None:
            object.__setattr__(self, "sink_ratio", check_sink_ratio(self.sink_ratio))
        if self.thresholds is not None or self.NEEDS_THRESHOLDS:
            object.__setattr__(self, "thresholds", as_thresholds(self.thresholds))

    def __repr__(self) -> str:
        """The parameters that are not their defaults, in one line."""
        told = [(f.name, getattr(self, f.name)) for f in dataclasses.fields(self) if getattr(self, f.name) is not f.default]
        return f"{type(self).__name__}({', '.join(f'{name}={_short(value)}' for name, value in told)})"

    @property
    def needs_resid_mid(self) -> bool:
        """Whether the stream before the MLP's write is needed."""
        return False

    def resolve(self, backend: Described) -> tuple[int, ...]:
        """The layers on this model.

        Raises:
            ValueError: a layer outside the model or without threshold, or thresholds of another model or dtype.
        """
        given = self.thresholds
        if not isinstance(given, Thresholds):
            return resolve_layers("late" if self.layers is None else self.layers, backend.n_layers)
        self._check_provenance(given, backend)
        known = {_at(layer, backend.n_layers) for layer in given}
        chosen = resolve_layers(sorted(known) if self.layers is None else self.layers, backend.n_layers)
        if lacking := [layer for layer in chosen if layer not in known]:
            has = layer_ranges(sorted(known))
            raise InputError(f"{type(self).__name__}: thresholds lack layers {layer_ranges(lacking)}, they have {has}")
        return chosen

    def tau(self, layer: int, n_layers: int) -> float | AdaptiveIQR | None:
        """The threshold of a layer."""
        if not isinstance(self.thresholds, Mapping):
            return self.thresholds
        return {_at(key, n_layers): value for key, value in self.thresholds.items()}[layer]

    def _check_provenance(self, thresholds: Thresholds, backend: Described) -> None:
        source = thresholds.provenance
        if source is None:
            return
        here = provenance(backend, backend.identity(), sink_ratio=source.sink_ratio)
        if not source.same_model(here) or dict(source.options) != dict(here.options):  # hooks beside it are the user's affair
            raise InputError(
                f"{type(self).__name__}: the thresholds are of {source.describe()} but the model is {here.describe()}: norms "
                "of different models, dtypes, weight processing or options of an engine are not comparable; take thresholds "
                "from traces of this model"
            )

    def made_with(self) -> dict[str, float | None]:
        """For each parameter that comes from another run (thresholds, a log) that run's sink ratio; None if it isn't known."""
        return {"thresholds": self.thresholds.sink_ratio if isinstance(self.thresholds, Thresholds) else None}

    def new_state(self, layer: int, rows: Rows, d_model: int) -> RowTensors | None:
        """The state of these sequences at one layer before anything was decided; None if there is none to keep."""
        return None

    @abstractmethod
    def act(self, state: Any, visit: Visit) -> Effect:
        """Decide and change. `state` is what `new_state` gave and is updated in place; `visit.stream` is not.

        Returns:
            The new stream, in the dtype and on the device of `visit.stream`; what was decided; and a column for each name in
            `COLUMNS`. What is returned where the visit isn't live, or nothing was decided, is dropped.
        """

    def outlives(self, rows: Rows, state: Any) -> Mapping[int, Any]:
        """What of the state the log keeps, by the sequence's number, when these sequences leave; nothing by default."""
        return {}


def _short(value: object) -> str:
    if isinstance(value, Thresholds):
        return f"{value.rule} of layers {layer_ranges(list(value))}" if value.rule != "given" else repr(dict(value))
    return repr(value) if isinstance(value, str | int | float | tuple | list | slice | AdaptiveIQR) else "..."


def _at(layer: int, n_layers: int) -> int:
    return resolve_layers(layer, n_layers)[0]
