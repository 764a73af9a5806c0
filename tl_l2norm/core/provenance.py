"""Where norms come from, and which of them may be compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tl_l2norm.core.identity import UNKNOWN, same_weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where norms come from. Norms that differ in model, backend's processing or dtype are not comparable."""

    model: str
    backend: str
    dtype: str
    n_layers: int
    """Blocks of the model, recorded or not."""
    centred: bool
    """Whether the weights that write to the stream were centred, which takes the mean out of every norm."""
    sink_ratio: float
    versions: Mapping[str, str]
    seed: int | None = None
    """Key of the sequence's random draws, if it was generated."""
    temperature: float | None = None
    """At which it was sampled, 0 is greedy; None where it was not generated."""
    interventions: tuple[str, ...] = ()
    """What acted on the stream while it was recorded, in this order."""
    fingerprint: str = UNKNOWN
    """Of weights and configuration (`tl_l2norm.models.fingerprint`); "" where it isn't known, as in files of older versions."""
    tokenizer: str = UNKNOWN
    """Hash of the tokenizer."""
    chat_template: str = UNKNOWN
    """Hash of the chat template."""
    foreign_hooks: int = 0
    """Hooks on the model that were not of the run itself, such as a user's ablation: they may have changed the stream."""
    options: Mapping[str, str] = field(default_factory=dict)
    """What an engine was told to do otherwise than by default, as far as norms move with it, such as a quantised KV cache."""

    def comparable(self, other: Provenance) -> bool:
        """Whether norms of both may be put in one table: the same weights in the same dtype and processing, as many hooks,
        the same options of an engine.

        Weights are told apart by their fingerprints, whatever the model is called; where one isn't known, by name. With foreign
        hooks on one of them the stream may be another; what two equal numbers of hooks do can't be told apart.
        """
        mine, others = (self.foreign_hooks, dict(self.options)), (other.foreign_hooks, dict(other.options))
        return self.same_model(other) and mine == others

    def same_model(self, other: Provenance) -> bool:
        """`comparable`, whatever hooks were on the models."""
        if (self.dtype, self.centred) != (other.dtype, other.centred):
            return False
        if UNKNOWN in (self.fingerprint, other.fingerprint):
            return self.model == other.model
        return same_weights(self.fingerprint, other.fingerprint, same_kind=self.backend == other.backend)

    def describe(self) -> str:
        """The model, its dtype and its weights, for messages."""
        notes = [self.dtype, *(["centred weights"] if self.centred else ())]
        notes += [f"weights {self.fingerprint}"] if self.fingerprint else ()
        notes += [f"{self.foreign_hooks} hooks of others"] if self.foreign_hooks else ()
        notes += [f"{name}={value}" for name, value in self.options.items()]
        return f"{self.model} ({', '.join(notes)})"
