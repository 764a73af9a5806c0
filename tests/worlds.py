"""The boring world: length, token type and position act on norms and activations, thinking does nothing, or what is planted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.signal import lfilter
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tests.planted import Array, response
from tl_l2norm.core.batch import Places, Rows
from tl_l2norm.core.trace import Trace
from tl_l2norm.interventions.log import Entry, Log
from tl_l2norm.interventions.matching import STUDY, Likeness
from tl_l2norm.interventions.rule import Visit
from tl_l2norm.interventions.suppress import Suppression

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
    prompts: float = 5.0
    """Standard deviation of the prompts' own norms."""
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
    rise: float = 0.0
    """Norms rise by this over the last quarter of the layers, evenly, prompts by amounts of their own; and what is planted of
    thinking to five times its size."""
    answers: int = 1
    """Tokens of a thinking response that are its answer, the last ones."""
    answer: float = 0.0
    """Planted: of these alone."""
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
    autocorrelation: float = 0.0
    """Of a token's noise with the one before it, and of the pull's."""
    pull: float = 0.0
    """Planted: the pull of the loss grows by this with the norm of the state that predicts, both in standard deviations."""
    pull_back: float = 0.0
    """The same with the norm of the token itself, one position later."""
    accuracy: float = 0.85
    """Of thinking where nothing is suppressed; problems differ."""
    harm: float = 0.0
    """Share of right answers that each changed token costs, whichever it is."""
    type_harm: float = 0.0
    """The same where the token is of the loudest fifth of the types."""
    late_harm: float = 0.0
    """The same where the token is in the first third of its response."""
    first: float = 0.0
    """The first token of each type in a response is louder by this many `token`, and of higher pull by this."""
    first_harm: float = 0.0
    """The same as `harm` where the token is the first of its type."""
    norm_harm: float = 0.0
    """Planted: the same where its norm was high."""
    random_length: float = 1.0
    """Of a response under random suppression, as a share of the plain one."""

    def make(self, seed: int) -> Modes:
        """Traces of both modes."""
        rng = np.random.default_rng([seed, _STREAM])
        loud = self.types * rng.normal(size=(self.layers, self.vocabulary))
        frequency, tilt = rng.normal(size=self.vocabulary), self.tilt * rng.normal(size=self.vocabulary)
        loud += 0.5 * self.types * np.sign(tilt)
        own_types = self.family_types * rng.normal(size=(self.families, self.vocabulary)) if self.family_types else None
        own_effect = self.family_effect * rng.normal(size=(self.families, self.layers, 1)) if self.family_effect else None
        fires = np.array([rng.permutation(self.vocabulary)[: self.types_by_latent] for _ in range(self.latents)])
        late = (np.linspace(0, 1, self.layers)[:, None] - 0.75).clip(0) * 4
        think: list[Trace] = []
        direct: list[Trace] = []
        for prompt in range(self.n):
            own = _NORM + self.prompts * rng.normal(size=(self.layers, 1))
            level = prompt % self.levels + 1 if self.levels else 0
            family = prompt // max(self.levels, 1) % self.families
            lift = self.effect * (np.exp(self.uneven * rng.normal()) if self.uneven else 1.0)
            gain = np.exp(self.prompt_gain * rng.normal()) if self.prompt_gain else 1.0
            steep = self.rise * late * np.exp(0.2 * rng.normal()) if self.rise else 0.0
            for thinks in (True, False):
                low, high = self.thinking if thinks else self.direct
                k = int(rng.integers(low, high)) + (5 * level if thinks else 0)
                chances = np.exp(
                    frequency + (0.5 if thinks else -0.5) * tilt + (0.0 if own_types is None else own_types[family])
                )
                ids = rng.choice(self.vocabulary, size=k, p=chances / chances.sum())
                noise = self.token * self._smoothed(_skewed(rng, (self.layers, k)))
                norms = own + loud[:, ids] + self.position * np.arange(k) ** 0.7 + self.length * np.log(k)
                norms += self.response * _skewed(rng, (self.layers, 1)) + noise
                norms += steep + lift * thinks * (1 + 4 * late * bool(self.rise))
                norms += self.harder * level if thinks else -self.quieter * level
                norms += self.first * self.token * _first(ids)
                norms += 0.0 if own_effect is None or not thinks else own_effect[family]
                norms[:, k - self.answers :] += self.answer * thinks
                reasons = (rng.random(k) < 1 / 3) & thinks
                norms[-1] += self.reasoning * reasons
                acts = gain * self._acts(rng, ids, reasons, noise[-1], fires) if self.latents else None
                if acts is not None and self.proportional and thinks:
                    rise = self.proportional * np.sqrt(lift * (2 * _NORM + lift)) / 5
                    acts[:, :5] += gain * rise * rng.exponential(size=(k, 5))
                labels = {"level": level, "family": f"f{family}"} if self._labelled else {}
                name = "think" if thinks else "direct"
                said: dict[str, Any] = {"prompt": f"p{prompt:03}", "mode": name, "answer_at": k - self.answers if thinks else 0}
                trace = response(gain * norms, tokens=ids, acts=acts, labels=labels, **said)
                (think if thinks else direct).append(trace)
        return think, direct

    def pressures(self, seed: int) -> pd.DataFrame:
        """What `optimisation_pressure` would say of the thinking responses, whose pulls follow types and position too."""
        rng = np.random.default_rng([seed, _STREAM, 1])
        pulls, own = rng.normal(size=(2, self.vocabulary)), rng.normal(size=(self.n, 2))
        frames = []
        for i, trace in enumerate(self.make(seed)[0]):
            ids, norms = trace.tokens.numpy()[trace.prompt_len :], trace.l2_norms[-1].double().numpy()[trace.prompt_len :]
            at = np.linspace(0, 1, len(ids) - 1)
            z = (norms - norms.mean()) / norms.std()
            log = pulls[0, ids[:-1]] + pulls[1, ids[1:]] + own[i, 0] + 0.5 * own[i, 1] * at + 2 * at**3
            log += self._smoothed(_skewed(rng, (1, len(at))))[0] + self.pull * z[:-1] + self.pull_back * z[1:]
            log += self.first * _first(ids)[1:]
            columns = {"token_id": ids[1:], "state_token_id": ids[:-1], "l2_norm": norms[:-1], "next_l2_norm": norms[1:]}
            columns |= {"pull": np.exp(log), "pressure": np.exp(log) / norms[:-1], "p_true": 1 / (1 + np.exp(log))}
            frames.append(pd.DataFrame(columns).assign(sequence=i, prompt=f"p{i:03}", position=range(len(at))))
        frame = pd.concat(frames, ignore_index=True)
        return frame.assign(loss=-np.log(frame["p_true"]), mode="think", is_sink=False, next_is_sink=False)

    def outcomes(self, seed: int, *, draws: int = 3, alike: Sequence[Likeness] = STUDY) -> pd.DataFrame:
        """What `suppress_and_ask` would say of the thinking responses, matched as it matches, at three thresholds."""
        rng = np.random.default_rng([seed, _STREAM, 2])
        traces = self.make(seed)[0]
        response = [slice(trace.prompt_len, None) for trace in traces]
        norms = pad_sequence([t.l2_norms[-1][at] for t, at in zip(traces, response, strict=True)], True, torch.nan)
        tokens = pad_sequence([t.tokens[at] for t, at in zip(traces, response, strict=True)], True, -1)
        known, live = norms[~norms.isnan()], ~norms.isnan()
        means = torch.tensor([known[tokens[live] == t].mean() for t in range(self.vocabulary)]).nan_to_num(0)
        loud = torch.isin(tokens, means.argsort()[-self.vocabulary // 5 :])
        length = live.sum(1, keepdim=True)
        at = torch.arange(norms.shape[1])[None]
        risk = self.harm + self.type_harm * loud + self.late_harm * (at < length / 3)
        risk = risk + self.first_harm * torch.stack([torch.from_numpy(_first(own)) for own in tokens.numpy()])
        ease = np.clip(self.accuracy + 0.3 * (rng.random(self.n) - 0.5), 0, 1)
        frames = []

        def ask(arm: str, quantile: float, draw: int, changed: Tensor, risk: Tensor) -> None:
            kept = torch.where(changed, 1 - risk, 1.0).prod(1).numpy()
            counts = changed.sum(1).numpy()
            columns = {"prompt": [f"p{i:03}" for i in range(self.n)], "correct": rng.random(self.n) < ease * kept}
            columns |= {"positions": counts, "events": counts, "tokens": length[:, 0].numpy(), "cut_off": False}
            frames.append(pd.DataFrame(columns).assign(arm=arm, quantile=quantile, draw=draw, seed=seed, model="by hand"))

        ask("none", np.nan, 0, live & False, risk)
        for quantile in (0.95, 0.8, 0.5):
            tau = float(known.quantile(quantile))
            high = live & (norms > tau)
            ask("high", quantile, 0, high, risk + self.norm_harm)
            paired = _matched(norms, tokens, live, high, live, tau, "high", alike, 0)
            ask("paired", quantile, 0, paired, risk + self.norm_harm)
            shorter = live & (at < self.random_length * length)
            for draw in range(draws):
                ask("random", quantile, draw, _matched(norms, tokens, live, high, shorter, tau, "matched", alike, draw), risk)
        return pd.concat(frames, ignore_index=True)

    def _smoothed(self, noise: Array) -> Array:
        """[..., token] with this autocorrelation and the same variance."""
        found: Array = lfilter([(1 - self.autocorrelation**2) ** 0.5], [1, -self.autocorrelation], noise)
        return found

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


def _matched(
    norms: Tensor,
    tokens: Tensor,
    live: Tensor,
    high: Tensor,
    shorter: Tensor,
    tau: float,
    which: Literal["high", "matched"],
    alike: Sequence[Likeness],
    seed: int,
) -> Tensor:
    """What either side of the pairs takes of responses that may be shorter: [prompt, index]."""
    n, zeros = len(norms), torch.zeros(len(norms), dtype=torch.long)
    rows = Rows.of(number=torch.arange(n), key=torch.arange(n), prompt_len=zeros, padding=zeros)
    length = int(live.sum(1).max())
    places = Places.of(rows, zeros, length, live, tokens)
    log, x = Log([Suppression({0: tau})]), norms.nan_to_num(0)
    log.begin(rows)
    log.note(places)
    log.add(0, Entry(0, places, live, high.to(torch.int8), tau, x, x, {}))
    log.paces = dict.fromkeys(range(n), 1 / 0.9)
    control = Suppression({0: tau}, which=which, match=log, alike=alike, seed=seed)
    visit = Visit(0, x[..., None], x, tau, shorter, places, None, None)
    return control.act(control.new_state(0, rows, 1), visit).decision == 1


def _first(ids: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether it is the first of its type."""
    return np.isin(np.arange(len(ids)), np.unique(ids, return_index=True)[1])


def _skewed(rng: np.random.Generator, size: tuple[int, ...]) -> Array:
    return rng.exponential(size=size) - 1
