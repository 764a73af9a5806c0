"""What mode does to a quantity when token type, position, length and prompt are allowed to act as well, all at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_array, diags_array

from tl_l2norm.analysis.covariates import Projection, indicators, log_powers, smooth
from tl_l2norm.analysis.pairing import Pair, Tokens, meant, pair_modes
from tl_l2norm.analysis.quantities import Latents, values
from tl_l2norm.core.arguments import as_integer
from tl_l2norm.core.errors import Unmeasurable
from tl_l2norm.core.layers import Layers
from tl_l2norm.core.resampling import MIN_PROMPTS, RESAMPLES, Array, generator
from tl_l2norm.core.trace import Trace, TracesLike, traces_of

MIN_TOLERANCE = 0.1
"""Share of the variance of mode that type, position, length and prompt leave. Below it mode can't be told from them: thinking
responses that are all longer than direct ones tell nothing of mode at equal length."""


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

    Weighted least squares over tokens whose ids occur in both modes and whose index in the response both modes reach:
    quantity = token id + smooth index + smooth log length + prompt + effect x mode, each response with the same weight. Its
    test is the wild cluster bootstrap-t with the null imposed (Cameron, Gelbach and Miller 2008): residuals of each prompt
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
        flips: how many.

    Returns:
        One row per layer: layer, quantity, effect (thinking minus direct, in the quantity's unit), low, high, p (two-sided),
        p_max, tolerance (share of mode's variance that nothing else explains), n (prompts),
        n_tokens, seed, model.

    Raises:
        ValueError: modes with different prompts, fewer than 8, traces that are not comparable, or a quantity that was not
            recorded.
        Unmeasurable: mode can't be told from length, position and type.
    """
    flips = as_integer("flips", flips, least=1)
    think, direct = traces_of(think), traces_of(direct)
    pairs = pair_modes([t.select(layers) for t in think], [t.select(layers) for t in direct])
    tokens_of = _TokenTable.of(pairs, quantity, features, tokens)
    model = _Model.of(tokens_of)
    first = think[0].select(layers)
    rows = []
    tests = [model.test(y, seed, flips) for y in tokens_of.values]
    greatest = np.max([np.abs(test.null) for test in tests], axis=0)
    for layer, test in zip(first.layers, tests, strict=True):
        half = float(np.quantile(np.abs(test.null), 0.95)) * test.error
        rows.append(
            {
                "layer": layer,
                "quantity": quantity,
                "effect": test.effect,
                "low": test.effect - half,
                "high": test.effect + half,
                "p": _p(np.abs(test.null), abs(test.t)),
                "p_max": _p(greatest, abs(test.t)),
            }
        )
    constant = {"tolerance": model.tolerance, "n": model.n_prompts, "n_tokens": len(tokens_of.mode)}
    return pd.DataFrame(rows).assign(**constant, seed=seed, model=first.provenance.model)


def _p(null: Array, value: float) -> float:
    """Share of flips that are as large, the data's own among them."""
    return float((1 + (null >= value - 1e-12).sum()) / (1 + len(null)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _TokenTable:
    """Tokens of all responses that are compared, one after the other."""

    prompt: NDArray[np.intp]
    mode: NDArray[np.intp]
    """1 for thinking."""
    token: NDArray[np.int64]
    index: NDArray[np.int64]
    """In the response."""
    length: NDArray[np.int64]
    """Of the response."""
    weight: Array
    """1 over the tokens of its prompt and mode."""
    values: Array
    """[layer, token]"""

    @classmethod
    def of(cls, pairs: Mapping[str, Sequence[Pair]], quantity: str, features: Latents | None, tokens: Tokens) -> _TokenTable:
        parts, read = [], []
        for number, members in enumerate(pairs.values()):
            sides = [{id(pair[m]): pair[m] for pair in members}.values() for m in (1, 0)]  # each trace once
            for mode, traces in enumerate(sides):
                for trace in traces:
                    y = values(trace, quantity, features).double().numpy()
                    at = np.flatnonzero(_usable(trace, tokens, y))
                    read.append(y[:, at])
                    own = (number, mode, trace.tokens.numpy()[at], at - trace.prompt_len, len(trace) - trace.prompt_len)
                    parts.append(np.stack(np.broadcast_arrays(*own)))
        prompt, mode, token, index, length = np.concatenate(parts, axis=1)
        y = np.concatenate(read, axis=1)
        kept = _in_both(token, mode) & (index <= min(index[mode == m].max(initial=-1) for m in (0, 1)))
        prompt, mode, token, index, length, y = (x[..., kept] for x in (prompt, mode, token, index, length, y))
        both = np.intersect1d(prompt[mode == 0], prompt[mode == 1])
        kept = np.isin(prompt, both)
        prompt, mode, token, index, length, y = (x[..., kept] for x in (prompt, mode, token, index, length, y))
        if len(both) < MIN_PROMPTS:
            raise Unmeasurable(
                f"{len(both)} prompts have tokens of the same types and places in both modes: at least {MIN_PROMPTS} are "
                "needed to tell mode from them"
            )
        counts = np.zeros((len(pairs), 2))
        np.add.at(counts, (prompt, mode), 1)
        prompt = np.unique(prompt, return_inverse=True)[1]
        weight = 1 / counts[counts.sum(1) > 0][prompt, mode]
        return cls(prompt=prompt, mode=mode, token=token, index=index, length=length, weight=weight, values=y)


def _usable(trace: Trace, tokens: Tokens, y: Array) -> NDArray[np.bool_]:
    """Response tokens that are no sink at any layer and have a value."""
    usable: NDArray[np.bool_] = (meant(trace, tokens) & ~trace.is_sink.any(0)).numpy() & ~np.isnan(y).any(0)
    return usable


def _in_both(token: NDArray[np.int64], mode: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Tokens whose id occurs in both modes."""
    return np.isin(token, np.intersect1d(token[mode == 0], token[mode == 1]))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Test:
    effect: float
    error: float
    """Cluster-robust standard error."""
    t: float
    null: Array
    """[flip] t where the signs of prompts' residuals are drawn."""


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
    def of(cls, table: _TokenTable) -> _Model:
        root = np.sqrt(table.weight)
        blocks = indicators(table.prompt), indicators(table.token), smooth(table.index), log_powers(table.length)
        projection = Projection.on(*blocks, root_weight=root)
        mode = (table.mode - 0.5) * root
        rest = projection.rest(mode)
        tolerance = float((rest @ rest) / (mode @ mode))
        if tolerance < MIN_TOLERANCE:
            raise Unmeasurable(
                f"mode can't be told from length, position and token type: they explain {1 - tolerance:.1%} of it; compare "
                "responses whose lengths overlap"
            )
        group = csr_array(indicators(table.prompt).T)
        return cls(projection=projection, root_weight=root, rest=rest, group=group, tolerance=tolerance)

    @property
    def n_prompts(self) -> int:
        return int(self.group.shape[0])

    def test(self, y: Array, seed: int, flips: int) -> _Test:
        """The effect on y [token], and t under flipped residuals.

        The scores of a flipped data set are linear in the flips: each prompt's own, less what refitting covariates and effect
        takes away.
        """
        covariates, inverse = self.projection.covariates, self.projection.inverse
        residual = self.projection.rest(y * self.root_weight)
        size = self.rest @ self.rest
        own = self.group @ (self.rest * residual)
        design = (self.group @ (diags_array(self.rest) @ covariates)).toarray() @ inverse
        drawn = (self.group @ (diags_array(residual) @ covariates)).toarray()
        leverage = self.group @ self.rest**2
        signs = np.vstack([np.ones(self.n_prompts), generator(seed).choice([-1.0, 1.0], size=(flips, self.n_prompts))])
        effects = signs @ own / size
        scores = signs * own - (signs @ drawn) @ design.T - effects[:, None] * leverage
        errors = np.sqrt((scores**2).sum(1)) / size
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.where(errors > 1e-12 * np.abs(effects).max(initial=0), effects / errors, 0.0)
        return _Test(effect=float(effects[0]), error=float(errors[0]), t=float(t[0]), null=t[1:])
