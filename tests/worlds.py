"""The boring world: length, token type and position act on norms and activations, thinking does nothing, or what is planted."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tests.planted import Array, response
from tl_l2norm.core.trace import Trace

Modes = tuple[list[Trace], list[Trace]]

_NORM = 200.0
_STREAM = 7  # of the made-up data: not the one that prompts are resampled by


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """How responses come about. Norms are about 100 to 200; what acts on them is in their unit."""

    n: int = 24
    """Prompts."""
    layers: int = 4
    thinking: tuple[int, int] = (20, 60)
    """Tokens of a thinking response, from and to."""
    direct: tuple[int, int] = (8, 40)
    vocabulary: int = 40
    types: float = 3.0
    """Standard deviation of the types' loudness; types of thinking are louder by half of it."""
    tilt: float = 1.0
    """How unlike the types of the two modes are."""
    position: float = 0.1
    """Drift: this times index^0.7."""
    length: float = 2.0
    """This times the log length, at every token."""
    response: float = 1.0
    """Scale of the skewed offset of a whole response."""
    token: float = 2.0
    """Scale of the skewed noise of a token."""
    effect: float = 0.0
    """Planted: of thinking, at every token and layer."""
    latents: int = 0
    """SAE latents of the last layer: each fires on its own types, and every other on 30% of all tokens, whatever the mode."""
    reasoning: float = 0.0
    """Planted: latents 0 to 4 fire more on a third of the thinking tokens, and norms are higher by this there (last layer)."""
    firing: float = 0.0
    """Planted: the same latents fire there, and no norm follows."""
    gain: float = 0.0
    """All activations of a token are multiplied by exp(gain x its norm's noise): a norm that is a mere gain."""
    uneven: float = 0.0
    """Standard deviation over prompts of the log of the planted effect."""
    proportional: float = 0.0
    """Planted: latents 0 to 4 fire more in thinking, by this times the root of what the effect adds to squared norms."""
    prompt_gain: float = 0.0
    """Standard deviation of the log of what multiplies all norms and activations of a prompt, in both modes."""
    families: int = 2
    """Of problems; their label is there with levels, or where they differ by one of the next two."""
    family_types: float = 0.0
    """How unlike the types of families are: from 5 or so they share hardly any."""
    family_effect: float = 0.0
    """Planted: standard deviation over families and layers of an effect of the family on the norms of thinking."""
    harder: float = 0.0
    """Planted: thinking is louder by this for each level."""
    quieter: float = 0.0
    """Direct answers are quieter by this for each level."""
    levels: int = 0
    """Labels "level" 1 to so many and "family"; a level's thinking is longer."""
    types_by_latent: int = field(default=4)

    def make(self, seed: int) -> Modes:
        """Traces of both modes."""
        rng = np.random.default_rng([seed, _STREAM])
        loud = self.types * rng.normal(size=(self.layers, self.vocabulary))
        frequency, tilt = rng.normal(size=self.vocabulary), self.tilt * rng.normal(size=self.vocabulary)
        loud += 0.5 * self.types * np.sign(tilt)
        own_types = self.family_types * rng.normal(size=(self.families, self.vocabulary)) if self.family_types else None
        own_effect = self.family_effect * rng.normal(size=(self.families, self.layers, 1)) if self.family_effect else None
        fires = np.array([rng.permutation(self.vocabulary)[: self.types_by_latent] for _ in range(self.latents)])
        think: list[Trace] = []
        direct: list[Trace] = []
        for prompt in range(self.n):
            own = _NORM + 5 * rng.normal(size=(self.layers, 1))
            level = prompt % self.levels + 1 if self.levels else 0
            family = prompt // max(self.levels, 1) % self.families
            lift = self.effect * (np.exp(self.uneven * rng.normal()) if self.uneven else 1.0)
            gain = np.exp(self.prompt_gain * rng.normal()) if self.prompt_gain else 1.0
            for thinks in (True, False):
                low, high = self.thinking if thinks else self.direct
                k = int(rng.integers(low, high)) + (5 * level if thinks else 0)
                chances = np.exp(
                    frequency + (0.5 if thinks else -0.5) * tilt + (0.0 if own_types is None else own_types[family])
                )
                ids = rng.choice(self.vocabulary, size=k, p=chances / chances.sum())
                noise = self.token * _skewed(rng, (self.layers, k))
                norms = own + loud[:, ids] + self.position * np.arange(k) ** 0.7 + self.length * np.log(k)
                norms += self.response * _skewed(rng, (self.layers, 1)) + noise + lift * thinks
                norms += self.harder * level if thinks else -self.quieter * level
                norms += 0.0 if own_effect is None or not thinks else own_effect[family]
                reasons = (rng.random(k) < 1 / 3) & thinks
                norms[-1] += self.reasoning * reasons
                acts = gain * self._acts(rng, ids, reasons, noise[-1], fires) if self.latents else None
                if acts is not None and self.proportional and thinks:
                    rise = self.proportional * np.sqrt(lift * (2 * _NORM + lift)) / 5
                    acts[:, :5] += gain * rise * rng.exponential(size=(k, 5))
                labels = {"level": level, "family": f"f{family}"} if self._labelled else {}
                name = "think" if thinks else "direct"
                trace = response(gain * norms, prompt=f"p{prompt:03}", mode=name, tokens=ids, acts=acts, labels=labels)
                (think if thinks else direct).append(trace)
        return think, direct

    @property
    def _labelled(self) -> bool:
        return bool(self.levels or self.family_types or self.family_effect)

    def _acts(
        self,
        rng: np.random.Generator,
        ids: NDArray[np.int64],
        reasons: NDArray[np.bool_],
        noise: Array,
        fires: NDArray[np.int64],
    ) -> Array:
        """[token, latent]"""
        on_type = (ids[:, None, None] == fires[None]).any(-1)
        rate = np.where(np.arange(self.latents) % 2 == 0, 0.03, 0.3)
        acts = rng.exponential(size=on_type.shape) * (on_type | (rng.random(on_type.shape) < rate))
        if self.reasoning or self.firing:
            acts[:, :5] += rng.exponential(size=(len(ids), 5)) * reasons[:, None]
        scaled: Array = acts * np.exp(self.gain * noise)[:, None]
        return scaled


def _skewed(rng: np.random.Generator, size: tuple[int, ...]) -> Array:
    return rng.exponential(size=size) - 1
