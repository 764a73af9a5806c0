"""Whether tokens with a large norm are those on which the answer hangs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_array, diags_array, hstack
from scipy.special import ndtri
from scipy.stats import rankdata

from tl_l2norm.analysis.correlation import MIN_TOKENS
from tl_l2norm.analysis.covariates import (
    LAST,
    OCCURRENCES,
    Integers,
    Projection,
    before,
    indicators,
    occurrence,
    own_curves,
    pooled,
    ranks_within,
    spline,
    to_end,
)
from tl_l2norm.analysis.pairing import require_prompts
from tl_l2norm.analysis.token_tables import as_tokens
from tl_l2norm.core.errors import InputError, Unmeasurable
from tl_l2norm.core.measured import TOKEN_IMPORTANCES
from tl_l2norm.core.resampling import MIN_PROMPTS, RESAMPLES, Array, bootstrap_mean, generator
from tl_l2norm.core.schema import QUANTITY, SEED, Column, N, Schema, ends
from tl_l2norm.core.sign_flips import as_extreme, random_signs

_SHIFTS = 20
_SLOPES_FROM = 20
_POOLED_BELOW = 3  # tokens: ids of the token before in fewer have one indicator together
_SECOND_POOLED_BELOW = 20  # the same of the one before that
_DEGREE = 2  # of each response's own curve
_UNKNOWN = 0.2  # of tokens, whose previous one may be missing
_NEEDED = ("sequence", "prompt", "position", "token_id", "layer", "importance", "entropy", "cosine", "late_norm")
_TOLERANCE = 0.1  # share of the norm's variance within responses that is to be left
_LATE_NORMS = ("late_norm", "late_norm_but_the_last")
_PREVIOUS, _SECOND, _OCCURRENCE, _LEFT = "previous_token_id", "second_previous_token_id", "occurrence", "left"


IMPORTANCES = Schema(
    "importances",
    "importance_table",
    (
        Column("layer", int, "after which single tokens were swapped"),
        QUANTITY,
        Column("given", str, '"nothing" or "the rest": type, place, entropy and dose'),
        Column("rho", float, "rank correlation with the importance of tokens, mean over prompts"),
        *ends("rho"),
        Column("p", float, "two-sided"),
        Column("p_max", float, "over all norms together"),
        Column("shifted", float, "rho with importances turned in a circle within responses"),
        Column("p_shifted", float, "that rho is no more than that"),
        N,
        Column("n_tokens", int, "tokens"),
        SEED,
    ),
)


def importance_table(tokens: pd.DataFrame, *, seed: int = 0, resamples: int = RESAMPLES) -> pd.DataFrame:
    """Spearman's rho of the importance of tokens with their norm, and with entropy, over the tokens of a response.

    - given "nothing": ranks within each response.
    - given "the rest": of both, what response, token id, the ids of the token before (ids with fewer than 3 tokens together)
      and of the one before that (fewer than 20), how often the id was there before (up to 8), the last six places of the
      thought, smooth place (from the beginning and as a share of the thought), a line and a curve of each response's own,
      entropy (for
      entropies: the late norm) and dose (`cosine`) leave, by one regression over all responses, in which ids with 20 tokens or
      more have slopes of their own; only tokens whose id occurs in two prompts or more. The norm goes in as it is,
      importance by the normal scores of its ranks over all tokens, and the norm's residuals are ranked: ranks within responses
      on both sides, which make no sum of a sum, found something in 97% of worlds where there was nothing.

    Then the mean over prompts, a response needing 8 tokens. p is by signs of prompts' residuals (wild cluster bootstrap-t, as
    in `mode_effects`). `shifted` is the control: the same with the importances of each response turned in a circle by random
    amounts, so that they keep their values and how alike neighbours are, and lose their tokens; `p_shifted` tests that rho is
    no more than that. A verdict takes the late norm's rho given the rest, with the larger of p and p_shifted.

    It says whether norms mark the tokens on which the written answer hangs, beyond what their type, place, entropy and dose
    tell. It can't say that a norm causes anything: the swap keeps it.

    Where first occurrences of a type are a deviation of the noise louder and heavier, or the last three tokens three, 1 of 40
    worlds got a verdict (without what stands round a token 40 and 30); where both follow the token before 1 of 40, where each
    response drifts in its own way none. Half of the norm's own noise in importance is found in 37 of 40 worlds of 16 prompts
    with 12 to 36 tokens and in 39 of 40 of 24 prompts. What is still left in both: type and place that act together in a way
    that is no sum (a type that counts near the end alone: 10 of 40 such worlds got a verdict; the two tokens behind a full
    stop: 9 of 40), what comes from tokens further back, or from rare ones, and a response's own drift that is no parabola.
    Sections of 5 to 15 tokens that are loud and weigh much together, 0.7 deviations, get one in 40 of 40: nothing here tells
    them from a link.

    Of 8 prompts no p is under 2 of 256 flips, of several layers times their number: beside six or more other claims that are
    tested, no effect can then be supported after Holm's correction. 10 prompts are enough for 25 such figures.

    Args:
        tokens: from one call of `token_importance`; without `previous_token_id`, the tokens before are to be in the table.
            Without `second_previous_token_id`, `occurrence` or `left` these are what the tokens in the table tell.
        seed: of shifts, flips and resampling.
        resamples: how many flips and resamples.

    Returns:
        One row per swapped layer, quantity and given: layer, quantity ("l2_norm_0", ..., "late_norm", "late_norm_but_the_last",
        "entropy", "next_entropy"), given, rho, low, high, p (two-sided, signs flipped by prompt), p_max (over all norms of
        that layer and given; of an entropy its p), shifted, p_shifted, n (prompts), n_tokens, seed.

    Raises:
        ValueError: columns or values that are missing, a token that is there twice, several prompts under one number (as of two
            tables that were joined), several models or seeds, or fewer than 8 prompts. One prompt under two labels is refused
            by `token_importance`, which sees its tokens; here it can't be told.
        Unmeasurable: fewer than 8 prompts have 8 tokens whose ids recur; covariates leave less than 10% of the norm's variance
            within responses, or are nearly as many as the tokens.

    Examples:
        >>> tokens = l2.recording.token_importance(model, think, progress=False)
        >>> table = l2.analysis.importance_table(tokens, resamples=200).set_index(["given", "quantity"])
        >>> bool(abs(table.loc[("nothing", "late_norm"), "rho"]) < 1)
        True
    """
    tokens = _read(tokens)
    if not (norms := _norms(tokens)):
        raise Unmeasurable(f"the table of {TOKEN_IMPORTANCES.name} holds no norms, l2_norm_0 and so on or late_norm")
    rivals = [name for name in ("entropy", "next_entropy") if name in tokens]
    frames = []
    for layer, own in tokens.groupby("layer", sort=True):
        own = own.dropna(subset=["importance", "cosine"])
        require_prompts(own["prompt"].nunique())
        for given in ("nothing", "the rest"):
            kept = _long(own if given == "nothing" else _recurring(own))
            for names, covariate in ((norms, "entropy"), (rivals, "late_norm" if "late_norm" in norms else norms[-1])):
                read = _Tokens.of(kept, names, seed)
                found = _tested(read, names, covariate if given == "the rest" else None, seed, resamples)
                frames.append(found.assign(layer=layer, given=given, n_tokens=len(kept)))
    frame = pd.concat(frames, ignore_index=True)
    is_rival = frame["quantity"].isin(rivals)
    frame.loc[is_rival, "p_max"] = frame.loc[is_rival, "p"]
    return IMPORTANCES.frame(frame, seed=seed)


def _read(table: pd.DataFrame) -> pd.DataFrame:
    """The table, if it can be one of `token_importance`, with the id of the token before each, -1 where that isn't known."""
    schema = TOKEN_IMPORTANCES
    there = [c.name for c in schema.columns if c.optional and isinstance(table, pd.DataFrame) and c.name in table]
    tokens = as_tokens(schema, table, [*_NEEDED, *there], by=["layer"], gaps=("importance", "cosine", *_LATE_NORMS))
    for name in _norms(tokens):
        odd = ~np.isfinite(pd.to_numeric(tokens[name], errors="coerce").to_numpy(dtype=np.float64))
        if odd.any():
            raise InputError(
                f"the table of {schema.name}: {name} is no number in {odd.sum()} of {len(odd)} tokens: drop these, or give "
                f"what {schema.maker} returns"
            )
    tokens = tokens.sort_values(["layer", "sequence", "position"], kind="stable", ignore_index=True)
    for name, make in _AROUND.items():
        tokens = tokens if name in tokens else tokens.assign(**{name: make(tokens)})
    return tokens


def _norms(tokens: pd.DataFrame) -> list[str]:
    norms = [name for name in tokens.columns if isinstance(name, str) and name.startswith("l2_norm_")]
    return norms + [name for name in _LATE_NORMS if name in tokens and not tokens[name].isna().all()]


def _previous(tokens: pd.DataFrame) -> NDArray[np.integer]:
    """Ids of the tokens before, of a table that lacks them, from the tokens that are there."""
    ids = tokens.set_index(["layer", "sequence", "position"])["token_id"]
    before = pd.MultiIndex.from_frame(tokens[ids.index.names].assign(position=tokens["position"] - 1))
    previous = ids.reindex(before)
    is_first = (tokens["position"] == tokens.groupby(["layer", "sequence"])["position"].transform("min")).to_numpy()
    if (lacking := previous.isna().to_numpy() & ~is_first).mean() > _UNKNOWN:
        raise InputError(
            f"the table of {TOKEN_IMPORTANCES.name} lacks {_PREVIOUS}, and the tokens before {lacking.sum()} of "
            f"{len(tokens)} are not in it: read the responses again by {TOKEN_IMPORTANCES.maker}, or add that column"
        )
    return np.asarray(previous.fillna(-1), dtype=np.int64)


def _response(tokens: pd.DataFrame) -> Integers:
    """Number of each token's response, at the layer behind which it was swapped."""
    numbers: Integers = tokens.groupby(["layer", "sequence"]).ngroup().to_numpy()
    return numbers


_AROUND: Mapping[str, Callable[[pd.DataFrame], Integers]] = {
    _PREVIOUS: lambda tokens: _previous(tokens),
    _SECOND: lambda tokens: before(tokens[_PREVIOUS].to_numpy(), _response(tokens), by=1),
    _OCCURRENCE: lambda tokens: occurrence(tokens["token_id"].to_numpy(), _response(tokens), most=OCCURRENCES),
    _LEFT: lambda tokens: to_end(_response(tokens), most=LAST),
}
"""Columns of what stands round a token, and how a table that lacks them tells of those tokens that it holds."""


def _recurring(tokens: pd.DataFrame) -> pd.DataFrame:
    """Tokens whose id occurs in two prompts or more."""
    return tokens[tokens.groupby("token_id")["prompt"].transform("nunique") >= 2]


def _long(tokens: pd.DataFrame) -> pd.DataFrame:
    """Those of responses that have at least 8."""
    kept = tokens[tokens.groupby("sequence")["position"].transform("size") >= MIN_TOKENS]
    if (n := kept["prompt"].nunique()) < MIN_PROMPTS:
        raise Unmeasurable(
            f"{n} prompts have {MIN_TOKENS} tokens, of types that occur in others too: at least {MIN_PROMPTS} are needed"
        )
    return kept


def _tested(tokens: _Tokens, names: Sequence[str], covariate: str | None, seed: int, resamples: int) -> pd.DataFrame:
    """One row per quantity: rho with importance, and with importances that are turned."""
    model = _Model.of(tokens, covariate)
    rho, shifted = model.rho(0), np.mean([model.rho(k) for k in range(1, 1 + _SHIFTS)], axis=0)
    n = (~np.isnan(rho)).sum(0)
    if n.min(initial=len(rho)) < MIN_PROMPTS:
        raise Unmeasurable(f"{n.min()} prompts have {MIN_TOKENS} tokens that differ in both: at least {MIN_PROMPTS} are needed")
    mean, low, high = bootstrap_mean(rho, seed=seed, resamples=resamples)
    y = model.importance
    p, p_max = model.test(y[:, 0], seed, resamples)
    p_shifted, _ = model.test(y[:, 0] - y[:, 1:].mean(1), seed, resamples)
    columns = {"quantity": names, "rho": mean, "low": low, "high": high, "p": p, "p_max": p_max}
    return pd.DataFrame({**columns, "shifted": np.nanmean(shifted, axis=0), "p_shifted": p_shifted, "n": n})


@dataclass(frozen=True, kw_only=True, eq=False)
class _Tokens:
    """Tokens of all responses, one after the other."""

    table: pd.DataFrame
    response: NDArray[np.intp]
    prompt: NDArray[np.intp]
    """Of each token."""
    quantities: Array
    """[token, quantity]"""
    names: Sequence[str]
    """Of the quantities."""
    importance: Array
    """[token, 1 + shift]: as it is, then turned in circles."""

    @classmethod
    def of(cls, table: pd.DataFrame, names: Sequence[str], seed: int) -> _Tokens:
        table = table.sort_values(["sequence", "position"], kind="stable", ignore_index=True)
        response, prompt = (np.unique(table[name].astype(str), return_inverse=True)[1] for name in ("sequence", "prompt"))
        rng, own = generator(seed), table["importance"].to_numpy(dtype=np.float64)
        turned = np.repeat(own[:, None], 1 + _SHIFTS, axis=1)
        for number in np.unique(response):
            at = np.flatnonzero(response == number)
            for column in range(1, 1 + _SHIFTS):
                turned[at, column] = np.roll(own[at], rng.integers(1, max(2, len(at))))
        quantities = table[list(names)].to_numpy(dtype=np.float64)
        return cls(table=table, response=response, prompt=prompt, quantities=quantities, names=names, importance=turned)

    def design(self, covariate: str | None) -> csr_array:
        """Response; and token id, smooth place, entropy (or norm) and dose, and the slopes of frequent ids in these."""
        responses = indicators(self.response)
        if covariate is None:
            return responses
        index = self.table.groupby("sequence")["position"].transform(lambda own: own - own.min()).to_numpy(dtype=np.float64)
        share = ranks_within(index[:, None], self.response)[:, 0]
        others = _normal_scores(self.table[[covariate, "cosine"]].to_numpy(dtype=np.float64)).T
        smooth = [spline(own) for own in (np.sqrt(index), share, *others)]
        ids, counts = np.unique(self.table["token_id"], return_inverse=True, return_counts=True)[1:]
        types, previous = indicators(ids), indicators(pooled(self.table[_PREVIOUS].to_numpy(), least=_POOLED_BELOW))
        second = indicators(pooled(self.table[_SECOND].to_numpy(), least=_SECOND_POOLED_BELOW))
        most = {_OCCURRENCE: OCCURRENCES, _LEFT: LAST}
        steps = [indicators(np.minimum(self.table[name].to_numpy(), number)) for name, number in most.items()]
        curves = own_curves(index.astype(np.int64), self.response, _DEGREE)
        frequent = types[:, np.flatnonzero(counts >= _SLOPES_FROM)]
        slopes = [csr_array(frequent * own[:, None]) for own in (share, np.log1p(index), *others)]
        return csr_array(hstack([responses, curves, types, previous, second, *steps, *smooth, *slopes]))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Model:
    """What covariates leave of importance and quantities, by prompt."""

    projection: Projection
    group: csr_array
    """[prompt, token] sums over prompts."""
    importance: Array
    """[token, 1 + shift] residuals."""
    weights: Array
    """[token, quantity]: with the residuals of importance they sum to a prompt's rho; NaN where it has none."""

    @classmethod
    def of(cls, tokens: _Tokens, covariate: str | None) -> _Model:
        projection = Projection.on(tokens.design(covariate))
        rank = (lambda x: ranks_within(x, tokens.response)) if covariate is None else _normal_scores
        y, x = rank(tokens.importance), tokens.quantities
        y, x = projection.rest(y), projection.rest(x)
        at = list(tokens.names).index("late_norm") if "late_norm" in tokens.names else -1
        why = projection.why_too_little(tokens.quantities[:, at], x[:, at], tokens.response, _TOLERANCE)
        if covariate is not None and why:
            raise Unmeasurable(
                f"nothing can be said of {tokens.names[at]} given the rest: {why} (types of the tokens and of those before, "
                "place, entropy, dose, a curve of each response): give more responses, or more of their tokens"
            )
        x, within = ranks_within(x, tokens.response), indicators(tokens.response)
        scale = np.sqrt((within.T @ x**2) * (within.T @ y[:, :1] ** 2))
        scale = np.where(scale > 1e-9, scale, np.nan)[tokens.response]
        pairs = np.unique(np.stack([tokens.response, tokens.prompt]), axis=1)[1]
        weights = x / scale / np.bincount(pairs)[tokens.prompt][:, None]
        group = csr_array(indicators(tokens.prompt).T)
        return cls(projection=projection, group=group, importance=y, weights=weights)

    def rho(self, column: int) -> Array:
        """Of each prompt, the mean over its responses: [prompt, quantity]."""
        found: Array = self.group @ (self.weights * self.importance[:, [column]])
        return found

    def test(self, y: Array, seed: int, flips: int) -> tuple[Array, Array]:
        """P and p_max of each quantity's mean rho with y [token], by the wild cluster bootstrap-t over prompts.

        Residuals of a prompt keep or change their sign together and all covariates are fitted again, for fits that prompts
        share make their figures alike: plain sign flips would take too many for more than chance.
        """
        weights, covariates = np.nan_to_num(self.weights), self.projection.covariates
        signs = random_signs(self.group.shape[0], seed=seed, flips=flips)
        drawn = signs @ (self.group @ (diags_array(y) @ covariates)).toarray()
        t = np.zeros((len(signs), weights.shape[1]))
        for k, own in enumerate(weights.T):
            fitted = (self.group @ (diags_array(own) @ covariates)).toarray() @ self.projection.inverse
            scores = signs * (self.group @ (own * y)) - drawn @ fitted.T
            size = np.sqrt((scores**2).sum(1))
            t[:, k] = np.abs(np.divide(scores.sum(1), size, out=np.zeros(len(signs)), where=size > 1e-12))
        return as_extreme(t, t[0]), as_extreme(t.max(1, keepdims=True), t[0])


def _normal_scores(x: Array) -> Array:
    """Normal quantiles of the ranks of each column over all tokens."""
    found: Array = ndtri((rankdata(x, axis=0) - 0.5) / len(x))
    return found
