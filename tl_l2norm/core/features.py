"""SAE feature activations of one sequence, kept sparse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_l2norm.core.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FeatureActs:
    """Feature activations [pos, d_sae] at one layer; a latent that is not listed is 0.

    The active latents at position i are `latents[starts[i] : starts[i + 1]]`, in ascending order, with the same part of
    `values`: compressed sparse rows.

    Examples:
        >>> acts = FeatureActs.of_dense(torch.tensor([[0.0, 2.0, 0.0], [1.0, 0.0, 3.0]]))
        >>> acts, acts.l0.tolist(), acts.total().tolist()
        (FeatureActs(2 positions x 3 latents, 3 active), [1, 2], [2.0, 4.0])
        >>> acts.at(1)
        {2: 3.0, 0: 1.0}
    """

    starts: Int[Tensor, " bounds"]
    """[pos + 1]"""
    latents: Int[Tensor, " active"]
    values: Float[Tensor, " active"]
    d_sae: int
    sae: str = ""
    """What encoded: architecture, width, hook point and model of the SAE."""

    def __post_init__(self) -> None:
        if len(self.latents) != len(self.values) or self.starts.ndim != 1 or int(self.starts[-1]) != len(self.values):
            raise InputError(
                f"FeatureActs has {len(self.latents)} latents and {len(self.values)} values, starts end at "
                f"{self.starts[-1:].tolist()}: the three must agree"
            )

    def __len__(self) -> int:
        """Number of positions."""
        return len(self.starts) - 1

    def __repr__(self) -> str:
        """One line."""
        return f"FeatureActs({len(self)} positions x {self.d_sae} latents, {len(self.values)} active)"

    @property
    def l0(self) -> Int[Tensor, " pos"]:
        """How many latents are active at each position."""
        return self.starts.diff()

    @property
    def _positions(self) -> Int[Tensor, " active"]:
        """Position of each active latent."""
        # numpy: torch's own starts threads for these few numbers, which on busy cores takes milliseconds
        return torch.from_numpy(np.repeat(np.arange(len(self)), self.l0.numpy()))

    def dense(self) -> Float[Tensor, "pos d_sae"]:
        """All activations, as `sae.encode` gives them."""
        acts = torch.zeros(len(self), self.d_sae, dtype=self.values.dtype)
        acts[self._positions, self.latents.long()] = self.values
        return acts

    def total(self, latents: Sequence[int] | Int[Tensor, " chosen"] | None = None) -> Float[Tensor, " pos"]:
        """Summed activation at each position, of some latents or of all.

        Raises:
            IndexError: a latent outside 0 to d_sae - 1.
        """
        values = self.values
        if latents is not None:
            weight = torch.zeros(self.d_sae)
            weight[torch.as_tensor(latents, dtype=torch.long)] = 1.0
            values = values * weight[self.latents.long()]
        return torch.zeros(len(self), dtype=values.dtype).index_add_(0, self._positions, values)

    def weighted_sum(self, weights: Float[Tensor, " pos"]) -> Float[Tensor, " d_sae"]:
        """Sum over positions of each latent's activation times the position's weight."""
        values = self.values * weights[self._positions]
        return torch.from_numpy(np.bincount(self.latents.numpy(), values.numpy(), minlength=self.d_sae)).to(values.dtype)

    def at(self, position: int) -> dict[int, float]:
        """Active latents at one position, the strongest first."""
        start, end = self.starts[position % len(self)].item(), self.starts[position % len(self) + 1].item()
        pairs = zip(self.latents[start:end].tolist(), self.values[start:end].tolist(), strict=True)
        return dict(sorted(pairs, key=lambda pair: -pair[1]))

    def select(self, positions: Int[Tensor, " chosen"]) -> FeatureActs:
        """These positions, in this order."""
        counts = self.l0[positions]
        starts = _starts(counts)
        shift = torch.repeat_interleave(self.starts[positions] - starts[:-1], counts)
        index = torch.arange(int(starts[-1])) + shift
        return FeatureActs(
            starts=starts, latents=self.latents[index], values=self.values[index], d_sae=self.d_sae, sae=self.sae
        )

    @classmethod
    def join(cls, parts: Sequence[FeatureActs]) -> FeatureActs:
        """The positions of several, one after the other."""
        counts = torch.cat([part.l0 for part in parts])
        return cls(
            starts=_starts(counts),
            latents=torch.cat([part.latents for part in parts]),
            values=torch.cat([part.values for part in parts]),
            d_sae=parts[0].d_sae,
            sae=parts[0].sae,
        )

    @classmethod
    def of_dense(cls, feature_acts: Float[Tensor, "pos d_sae"], sae: str = "") -> FeatureActs:
        """Those of a matrix as `sae.encode` gives it, on the CPU."""
        positions, latents = feature_acts.nonzero(as_tuple=True)
        counts = torch.bincount(positions, minlength=len(feature_acts))
        return cls(
            starts=_starts(counts).cpu(),
            latents=latents.to(torch.int32).cpu(),
            values=feature_acts[positions, latents].float().cpu(),
            d_sae=feature_acts.shape[1],
            sae=sae,
        )


def _starts(counts: Int[Tensor, " pos"]) -> Int[Tensor, " bounds"]:
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])
