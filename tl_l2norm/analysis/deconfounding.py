"""What mode does to a quantity when token type, position, length and prompt are allowed to act as well, all at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.sparse import csr_array, diags_array
from torch import Tensor

from tl_l2norm.analysis.covariates import Integers, Projection, indicators, log_powers, occurrence, pooled, smooth
from tl_l2norm.analysis.pairing import Pair, Tokens, compared, infinite, pair_modes
from tl_l2norm.analysis.quantities import Latents, values
from tl_l2norm.core.errors import InputError, Unmeasurable
from tl_l2norm.core.layers import Layers
from tl_l2norm.core.resampling import MIN_PROMPTS, RESAMPLES, Array
from tl_l2norm.core.schema import LAYER, MODEL, QUANTITY, SEED, Column, N, Schema, ends
from tl_l2norm.core.sign_flips import as_extreme, random_signs
from tl_l2norm.core.trace import Trace, TracesLike, traces_of
from tl_l2norm.text.prompts import Mode

MIN_TOLERANCE = 0.1
"""Share of the variance of mode that type, position, length and prompt leave. Below it mode can't be told from them: thinking
responses that are all longer than direct ones tell nothing of mode at equal length."""

_MODES: tuple[Mode, Mode] = ("think", "direct")
_LAST = 8  # tokens of a response, each of which may have a level of its own
_SEEN = 8  # times that a type occurred before, or more
_POOLED_BELOW = 3  # tokens: ids of the token before in fewer have one indicator together
_FACTS = ("prompt", "mode", "token", "index", "length", "position", "to_end", "to_own_end", "seen", "before")
_ROUNDING = 1e-6
"""Share of a quantity's size below which what is left of it is rounding of float32."""

MODE_EFFECTS = Schema(
    "effects of mode",
    "mode_effects",
    (
        LAYER,
        QUANTITY,
        Column("effect", float, "thinking minus direct with all else equal, in units of the quantity"),
        *ends("effect"),
        Column("p", float, "two-sided"),
        Column("p_max", float, "two-sided, over all layers together"),
        Column("tolerance", float, "share of mode's variance that nothing else explains"),
        N,
        Column("n_tokens", int, "tokens that are compared"),
        SEED,
        MODEL,
    ),
)


def mode_effects(
    think: TracesLike,
    direct: TracesLike,
    *,
    quantity: str = "l2_norm",
    layers: Layers = None,
    features: Latents | None = None,
    tokens: Tokens = "read",
    seed: int = 0,
    flips: int = RESAMPLES,
) -> pd.DataFrame:
    """The effect of thinking at each layer, jointly with everything else that may act on a token of a response.

    Of a thinking response with a thought between tags the thought alone is compared: the answer behind it is no thinking.
    Without tags the whole response counts.

    Weighted least squares over tokens whose ids occur in both modes and whose index in the response both modes reach:
    quantity = token id + id of the token before (ids of fewer than 3 tokens together) + how often the id occurred in the
    response before (a level each for 0 to 7 times, one for more) + smooth place + a level each for the last 8 tokens + smooth
    log length + prompt + effect x mode, each prompt's response or responses of a mode with the same weight.

    A place is counted from the beginning of the response or, as drift may, of the sequence; the last tokens and the length are
    those of the response or, as a thought's may, of the thought alone. All of these at once would be mode itself where prompts
    or answers of the modes differ in length. So each way that differs is fitted on its own: the effect is that nearest 0, in an
    interval that holds all of theirs, p is the greatest of theirs, and 1 where two are of opposite signs.

    Not taken out: pairs of types (a type that is loud behind one other alone), tokens further back, what the prompt holds
    already, and drifts by both beginnings with opposite signs.

    Its test is the wild cluster bootstrap-t with the null imposed (Cameron, Gelbach and Miller 2008): residuals of each prompt
    keep or change their sign together, so that neither skew nor what the tokens of a prompt share breaks it. `p_max` counts,
    over the same flips, the greatest |t| of all layers: where mode acts nowhere, 5% of tables hold one of at most 0.05.

    Args:
        think: thinking traces; the label "prompt" pairs them.
        direct: direct ones.
        quantity: "l2_norm", a recorded metric, "feature_sum" or "reasoning_sum".
        layers: which; all that were recorded by default.
        features: for "reasoning_sum".
        tokens: "read", the response's own, or "chosen", those from which they were chosen.
        seed: of the flips.
        flips: how many, 19 or more.

    Returns:
        One entry per layer: layer, quantity, effect (thinking minus direct, in the quantity's unit), low, high, p (two-sided),
        p_max, tolerance (share of mode's variance that nothing else explains, the least), n (prompts),
        n_tokens, seed, model.

    Raises:
        ValueError: modes with different prompts, fewer than 8, traces that are not comparable, an infinite value, or a quantity
            that was not recorded.
        Unmeasurable: mode can't be told from length, position and type.

    Examples:
        Thinking against itself, at the last layer:

        >>> same = [trace.with_labels(mode="again") for trace in think]
        >>> mode_effects(think, same, layers=-1, flips=200)[["layer", "effect", "p_max"]].round(1).values.tolist()
        [[11.0, 0.0, 1.0]]
    """
    think, direct = traces_of(think), traces_of(direct)
    pairs = pair_modes([t.select(layers) for t in think], [t.select(layers) for t in direct])
    effects = effects_on(pairs, lambda trace: values(trace, quantity, features), tokens=tokens, seed=seed, flips=flips)
    first = think[0].select(layers)
    entries = ({"layer": layer, **effect} for layer, effect in zip(first.layers, effects, strict=True))
    return MODE_EFFECTS.frame(entries, quantity=quantity, seed=seed, model=first.provenance.model)


def effects_on(
    pairs: Mapping[str, Sequence[Pair]],
    read: Callable[[Trace], Float[Tensor, "row pos"]],
    *,
    tokens: Tokens = "read",
    seed: int = 0,
    flips: int = RESAMPLES,
) -> list[dict[str, float]]:
    """The effect of mode on each row of what `read` gives of a trace: effect, low, high, p, p_max, tolerance, n, n_tokens."""
    table = _TokenTable.of(pairs, read, tokens)
    shared, root = table.shared_covariates(), np.sqrt(table.weight)
    models = (_Model.of(table, shared.beside(*_columns(*places), root_weight=root)) for places in table.places())
    fits = [_fitted(model, table.values, seed, flips) for model in models]
    return [_of_all(entries) | {"n": table.n_prompts, "n_tokens": len(table.mode)} for entries in zip(*fits, strict=True)]


def _fitted(model: _Model, values: Array, seed: int, flips: int) -> list[dict[str, float]]:
    """An entry for each row of values [layer, token]."""
    tests = [model.test(y, seed, flips) for y in values]
    drawn = np.abs(np.stack([test.t for test in tests], axis=1))
    p, p_max = as_extreme(drawn, drawn[0]), as_extreme(drawn.max(1, keepdims=True), drawn[0])
    return [
        {
            "effect": test.effect,
            "low": test.effect - test.half,
            "high": test.effect + test.half,
            "p": float(p[i]),
            "p_max": float(p_max[i]),
            "tolerance": model.tolerance,
        }
        for i, test in enumerate(tests)
    ]


def _of_all(entries: Sequence[dict[str, float]]) -> dict[str, float]:
    """What every fit says: the effect nearest 0, in an interval that holds all of theirs, with the greatest p.

    Where they are of opposite signs no sign can be told: p is 1.
    """
    effects = [entry["effect"] for entry in entries]
    opposite = min(effects) < 0 < max(effects)
    return {
        "effect": min(effects, key=abs),
        "low": min(entry["low"] for entry in entries),
        "high": max(entry["high"] for entry in entries),
        "tolerance": min(entry["tolerance"] for entry in entries),
    } | {name: 1.0 if opposite else max(entry[name] for entry in entries) for name in ("p", "p_max")}


@dataclass(frozen=True, slots=True, kw_only=True)
class _TokenTable:
    """Tokens of all responses that are compared, one after the other."""

    prompt: Integers
    mode: Integers
    """1 for thinking."""
    token: Integers
    index: Integers
    """In the response."""
    length: Integers
    """Of the response."""
    position: Integers
    """In the sequence."""
    to_end: Integers
    """Tokens behind it, to the end of the response."""
    to_own_end: Integers
    """Tokens behind it, to the end of what is compared: of a thought between tags, to the thought's."""
    seen: Integers
    """How often its type occurred in the response before."""
    before: Integers
    """Id of the token before."""
    weight: Array
    """1 over the tokens of its prompt and mode."""
    values: Array
    """[layer, token]"""

    @classmethod
    def of(
        cls, pairs: Mapping[str, Sequence[Pair]], read: Callable[[Trace], Float[Tensor, "row pos"]], tokens: Tokens
    ) -> _TokenTable:
        parts, read_off = [np.zeros((len(_FACTS), 0), dtype=np.int64)], []
        for number, members in enumerate(pairs.values()):
            for side, mode in enumerate(_MODES):
                for trace in {id(pair[side]): pair[side] for pair in members}.values():  # each once
                    y = read(trace).double().numpy()
                    at = _usable(trace, mode, tokens, y)
                    own_end = int(compared(trace, mode, tokens).nonzero().max()) if len(at) else 0
                    parts.append(np.stack(np.broadcast_arrays(number, 1 - side, *_facts(trace, at, own_end))))
                    read_off.append(y[:, at])
        facts, y = _comparable(np.concatenate(parts, axis=1), np.concatenate(read_off, axis=1))
        prompt, mode_of = facts[:2]
        if (n := len(np.unique(prompt))) < MIN_PROMPTS:
            raise Unmeasurable(
                f"{n} prompts have tokens of the same types and places in both modes: at least {MIN_PROMPTS} are needed to "
                "tell mode from them. It takes direct answers of more than a word or two, and thoughts that use their words "
                "at the same places; more problems help, and families that share words"
            )
        prompt = np.unique(prompt, return_inverse=True)[1]
        counts = np.zeros((n, 2))
        np.add.at(counts, (prompt, mode_of), 1)
        weight = 1 / counts[prompt, mode_of]
        return cls(**dict(zip(_FACTS, (prompt, *facts[1:]), strict=True)), weight=weight, values=y)

    @property
    def n_prompts(self) -> int:
        return int(self.prompt.max()) + 1

    def shared_covariates(self) -> Projection:
        """All but those of place and length."""
        before = pooled(self.before, least=_POOLED_BELOW)
        columns = (self.prompt, self.token, before, np.minimum(self.seen, _SEEN))
        return Projection.on(*map(indicators, columns), root_weight=np.sqrt(self.weight))

    def places(self) -> list[tuple[Integers, Integers, Integers]]:
        """Every way to count from the beginning, to the end, and how long all is, but those that are others plus a constant."""
        starts, ends = [self.index], [(self.to_end, self.length)]
        if np.ptp(self.position - self.index):
            starts.append(self.position)
        if np.ptp(behind := self.to_end - self.to_own_end):
            ends.append((self.to_own_end, self.length - behind))
        return [(start, *end) for start, end in product(starts, ends)]


def _columns(start: Integers, to_end: Integers, length: Integers) -> tuple[csr_array, csr_array, csr_array]:
    """Covariates of a place: smooth from the beginning, a level for each of the last tokens, and powers of the log length."""
    return smooth(start), indicators(np.minimum(to_end, _LAST)), log_powers(length)


def _facts(trace: Trace, at: Integers, own_end: int) -> tuple[Integers | int, ...]:
    """What the table holds of the tokens at these positions of a response, from its token on."""
    ids, start, n = trace.tokens.numpy(), trace.prompt_len, len(trace)
    own = np.zeros(n - start, dtype=np.int64)  # one group
    seen = np.concatenate([np.zeros(start, dtype=np.int64), occurrence(ids[start:], own, most=n)])
    before = np.where(at > 0, ids[at - 1], -1)
    return ids[at], at - start, n - start, at, n - 1 - at, own_end - at, seen[at], before


def _comparable(facts: Integers, y: Array) -> tuple[Integers, Array]:
    """Tokens [fact, token] whose id and index both modes have, of prompts that both modes then still have."""
    _, mode, token, index, *_ = facts
    kept = np.isin(token, _shared(token, mode)) & (index <= min(index[mode == m].max(initial=-1) for m in (0, 1)))
    facts, y = facts[:, kept], y[:, kept]
    kept = np.isin(facts[0], _shared(facts[0], facts[1]))
    return facts[:, kept], y[:, kept]


def _shared(x: Integers, mode: Integers) -> Integers:
    """Values that occur in both modes."""
    return np.intersect1d(x[mode == 0], x[mode == 1])


def _usable(trace: Trace, mode: Mode, tokens: Tokens, y: Array) -> Integers:
    """Where response tokens are no sink at any layer and have a value; nowhere in an empty response."""
    held = (compared(trace, mode, tokens) & ~trace.is_sink.any(0)).numpy() & ~np.isnan(y).any(0)
    if np.isinf(y[:, held]).any():
        raise InputError(infinite(trace))
    return np.flatnonzero(held & (len(trace) > trace.prompt_len))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Test:
    effect: float
    error: float
    """Cluster-robust standard error."""
    t: Array
    """[draw] where the signs of prompts' residuals are drawn, its own the first."""

    @property
    def half(self) -> float:
        """Half of the 95% interval."""
        return float(np.quantile(np.abs(self.t), 0.95)) * self.error


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Model:
    """Weighted least squares of a quantity on mode and covariates, by prompt. All is times the root of the weight."""

    projection: Projection
    root_weight: Array
    rest: Array
    """[token] mode, what the covariates don't explain of it."""
    group: csr_array
    """[prompt, token] sums over prompts."""
    tolerance: float

    @classmethod
    def of(cls, table: _TokenTable, projection: Projection) -> _Model:
        root: Array = np.sqrt(table.weight)
        mode = (table.mode - 0.5) * root
        rest = projection.rest(mode)
        tolerance = float((rest @ rest) / (mode @ mode))
        if not tolerance >= MIN_TOLERANCE:
            raise Unmeasurable(
                f"mode can't be told from length, position and token type: they explain {1 - tolerance:.1%} of it; compare "
                "responses whose lengths overlap"
            )
        group = csr_array(indicators(table.prompt).T)
        return cls(projection=projection, root_weight=root, rest=rest, group=group, tolerance=tolerance)

    def test(self, y: Array, seed: int, flips: int) -> _Test:
        """The effect on y [token], and t under flipped residuals.

        The scores of a flipped data set are linear in the flips: each prompt's own, less what refitting covariates and effect
        takes away.
        """
        covariates, inverse = self.projection.covariates, self.projection.inverse
        weighted = y * self.root_weight
        residual = self.projection.rest(weighted)
        if np.abs(residual).max() <= _ROUNDING * np.abs(weighted).max():
            residual = np.zeros_like(residual)
        size = self.rest @ self.rest
        parts = self.rest * residual
        own = self.group @ parts
        own = np.where(np.abs(own) <= _ROUNDING * (self.group @ np.abs(parts)), 0.0, own)
        design = (self.group @ (diags_array(self.rest) @ covariates)).toarray() @ inverse
        drawn = (self.group @ (diags_array(residual) @ covariates)).toarray()
        leverage = self.group @ self.rest**2
        signs = random_signs(self.group.shape[0], seed=seed, flips=flips)
        effects = signs @ own / size
        scores = signs * own - (signs @ drawn) @ design.T - effects[:, None] * leverage
        errors = np.sqrt((scores**2).sum(1)) / size
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.where(errors > 1e-12 * np.abs(effects).max(initial=0), effects / errors, 0.0)
        return _Test(effect=float(effects[0]), error=float(errors[0]), t=t)
