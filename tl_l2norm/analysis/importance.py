"""Whether tokens with a large norm are those on which the answer hangs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.interpolate import BSpline
from scipy.sparse import csr_array, hstack
from scipy.stats import rankdata

from tl_l2norm.analysis.pairing import require_prompts
from tl_l2norm.core.errors import InputError, Unmeasurable
from tl_l2norm.core.resampling import MIN_PROMPTS, RESAMPLES, Array, bootstrap_mean, generator
from tl_l2norm.core.sign_flips import sign_flips

MIN_TOKENS = 8
"""A rank correlation over fewer tokens of a response says nothing."""

_SHIFTS = 20
_NEEDED = ("sequence", "prompt", "position", "token_id", "layer", "importance", "entropy", "cosine", "late_norm")


def importance_table(tokens: pd.DataFrame, *, seed: int = 0, resamples: int = RESAMPLES) -> pd.DataFrame:
    """Spearman's rho of the importance of tokens with their norm, and with entropy, over the tokens of a response.

    - given "nothing": ranks within each response.
    - given "the rest": of both ranks, what response, token id, smooth position (from the beginning and as a share of the
      thought), rank of the entropy (for entropies: of the late norm) and rank of the dose (`cosine`) leave, by one regression
      over all responses; only tokens whose id occurs in two prompts or more.

    Then the mean over prompts, a response needing 8 tokens. `shifted` is the control: the same with the importances of each
    response turned in a circle by random amounts, so that they keep their values and how alike neighbours are, and lose their
    tokens; `p_shifted` tests that rho is no more than that. A verdict takes rho given the rest, with the larger of p_max and
    p_shifted.

    It says whether norms mark the tokens on which the written answer hangs, beyond what their type, place, entropy and dose
    tell. It can't say that a norm causes anything: the swap keeps it. Where type and place act together in a way that is no
    sum (a type that counts near the end alone), some of that is left in both.

    Args:
        tokens: from `token_importance`.
        seed: of shifts, flips and resampling.
        resamples: how many flips and resamples.

    Returns:
        One row per swapped layer, quantity and given: layer, quantity ("l2_norm_0", ..., "late_norm", "late_norm_but_last",
        "entropy", "next_entropy"), given, rho, low, high, p (two-sided, signs flipped by prompt), p_max (over all norms of
        that layer and given; of an entropy its p), shifted, p_shifted, n (prompts), n_tokens, seed.

    Raises:
        ValueError: columns that are missing, or fewer than 8 prompts.
        Unmeasurable: fewer than 8 prompts have 8 tokens whose ids recur.
    """
    if missing := sorted(set(_NEEDED) - set(tokens.columns)):
        raise InputError(f"the table lacks {missing}: give what token_importance(...) returns, of results of run_modes")
    norms = [name for name in tokens.columns if name.startswith("l2_norm_")]
    norms += [name for name in ("late_norm", "late_norm_but_last") if name in tokens and not tokens[name].isna().any()]
    rivals = [name for name in ("entropy", "next_entropy") if name in tokens]
    rows = []
    for layer, own in tokens.groupby("layer", sort=True):
        own = own.dropna(subset=["importance", "cosine"])
        require_prompts(own["prompt"].nunique())
        for given in ("nothing", "the rest"):
            kept = own if given == "nothing" else _recurring(own)
            for names, covariate in ((norms, "entropy"), (rivals, "late_norm")):
                found = _Ranks.of(kept, names, seed).correlate(covariate if given == "the rest" else None)
                entries = _tested(found, names, seed, resamples)
                rows += [{"layer": layer, "given": given, "n_tokens": len(kept), **entry} for entry in entries]
    columns = ["layer", "quantity", "given", "rho", "low", "high", "p", "p_max", "shifted", "p_shifted", "n", "n_tokens"]
    frame = pd.DataFrame(rows)[columns]
    is_rival = frame["quantity"].isin(rivals)
    frame.loc[is_rival, "p_max"] = frame.loc[is_rival, "p"]
    return frame.assign(seed=seed)


def _recurring(tokens: pd.DataFrame) -> pd.DataFrame:
    """Tokens whose id occurs in two prompts or more, of responses that have 8 of them."""
    kept = tokens[tokens.groupby("token_id")["prompt"].transform("nunique") >= 2]
    kept = kept[kept.groupby("sequence")["position"].transform("size") >= MIN_TOKENS]
    if kept["prompt"].nunique() < MIN_PROMPTS:
        raise Unmeasurable(
            f"{kept['prompt'].nunique()} prompts have {MIN_TOKENS} tokens of types that occur in others too: at least "
            f"{MIN_PROMPTS} are needed to tell importance from token type"
        )
    return kept


def _tested(found: Array, names: Sequence[str], seed: int, resamples: int) -> list[dict[str, object]]:
    """Rows of a table from rho and its control, [2, prompt, quantity]."""
    rho, shifted = found
    n = (~np.isnan(rho)).sum(0)
    if n.min(initial=len(rho)) < MIN_PROMPTS:
        raise Unmeasurable(f"{n.min()} prompts have {MIN_TOKENS} tokens that differ in both: at least {MIN_PROMPTS} are needed")
    mean, low, high = bootstrap_mean(rho, seed=seed, resamples=resamples)
    own = sign_flips(rho, seed=seed, flips=resamples)
    against = sign_flips(rho - shifted, seed=seed, flips=resamples)
    columns = {
        "quantity": names,
        "rho": mean,
        "low": low,
        "high": high,
        "p": own.p,
        "p_max": own.p_max,
        "shifted": np.nanmean(shifted, axis=0),
        "p_shifted": against.p,
        "n": n,
    }
    return pd.DataFrame(columns).to_dict("records")  # type: ignore[return-value]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Ranks:
    """Ranks within responses, as shares of their length about 0."""

    tokens: pd.DataFrame
    response: NDArray[np.intp]
    prompt: NDArray[np.intp]
    """Of each response."""
    quantities: Array
    """[token, quantity]"""
    importance: Array
    """[token, 1 + shift]: as they are, then turned in circles."""

    @classmethod
    def of(cls, tokens: pd.DataFrame, names: Sequence[str], seed: int) -> _Ranks:
        tokens = tokens.sort_values(["sequence", "position"], kind="stable", ignore_index=True)
        response = np.unique(tokens["sequence"], return_inverse=True)[1]
        prompt = np.unique(tokens["prompt"][np.unique(response, return_index=True)[1]].astype(str), return_inverse=True)[1]
        rng, ranks = generator(seed), _ranked(tokens["importance"].to_numpy()[:, None], response)
        turned = np.repeat(ranks, 1 + _SHIFTS, axis=1)
        for number in range(len(prompt)):
            at = np.flatnonzero(response == number)
            for column in range(1, 1 + _SHIFTS):
                turned[at, column] = np.roll(ranks[at, 0], rng.integers(1, max(2, len(at))))
        quantities = _ranked(tokens[list(names)].to_numpy(dtype=np.float64), response)
        return cls(tokens=tokens, response=response, prompt=prompt, quantities=quantities, importance=turned)

    def correlate(self, covariate: str | None) -> Array:
        """rho with importance, and the mean of rho with importances that are turned: [2, prompt, quantity]."""
        first, second = self.quantities, self.importance
        if covariate is not None:
            both = np.concatenate([first, second], axis=1)
            left = both - _fitted(self._design(covariate), both)
            first, second = left[:, : first.shape[1]], left[:, first.shape[1] :]
        found = np.full((len(self.prompt), second.shape[1], first.shape[1]), np.nan)
        for number in range(len(self.prompt)):
            at = self.response == number
            if at.sum() >= MIN_TOKENS:
                found[number] = _correlations(second[at], first[at])
        by_response = np.stack([found[:, 0], found[:, 1:].mean(1)])
        return np.stack([_means(own, self.prompt) for own in by_response])

    def _design(self, covariate: str) -> csr_array:
        """Response, token id, position and ranks: [token, covariate]."""
        index = self.tokens.groupby("sequence")["position"].transform(lambda own: own - own.min()).to_numpy(dtype=np.float64)
        share = _ranked(index[:, None], self.response)[:, 0]
        ranks = _ranked(self.tokens[[covariate, "cosine"]].to_numpy(dtype=np.float64), self.response)
        smooth = [_smooth(np.sqrt(index)), _smooth(share), *(_smooth(own) for own in ranks.T)]
        ids = np.unique(self.tokens["token_id"], return_inverse=True)[1]
        return csr_array(hstack([_indicators(self.response), _indicators(ids), *map(csr_array, smooth)]))


def _fitted(design: csr_array, y: Array) -> Array:
    cross = (design.T @ design).toarray()
    fitted: Array = design @ (np.linalg.pinv(cross, rcond=1e-10, hermitian=True) @ (design.T @ y))
    return fitted


def _indicators(x: NDArray[np.intp]) -> csr_array:
    return csr_array((np.ones(len(x)), (np.arange(len(x)), x)))


def _smooth(x: Array) -> Array:
    """A cubic spline with knots at the quartiles; nothing of what doesn't vary."""
    spread = x.max() - x.min()
    if spread == 0:
        return np.zeros((len(x), 1))
    at = (x - x.min()) / spread
    inner = np.unique(np.quantile(at, [0.25, 0.5, 0.75]))
    knots = np.concatenate([np.zeros(4), inner[(inner > 0) & (inner < 1)], np.ones(4)])
    basis: Array = BSpline.design_matrix(np.clip(at, 0, 1 - 1e-12), knots, 3).toarray()
    return basis[:, 1:]


def _ranked(x: Array, response: NDArray[np.intp]) -> Array:
    """Ranks within each response, about 0, as shares of its length."""
    found = np.empty(x.shape)
    for number in np.unique(response):
        at = response == number
        ranks = rankdata(x[at], axis=0)
        found[at] = (ranks - ranks.mean(0)) / at.sum()
    return found


def _correlations(first: Array, second: Array) -> Array:
    """Pearson's r of every column of one with every column of the other; NaN where a column is constant."""
    first, second = first - first.mean(0), second - second.mean(0)
    scale = np.sqrt((first**2).sum(0)[:, None] * (second**2).sum(0)[None])
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Array = np.where(scale > 1e-9, first.T @ second / scale, np.nan)
    return found


def _means(by_response: Array, prompt: NDArray[np.intp]) -> Array:
    """Mean over the responses of each prompt, NaN left out."""
    return pd.DataFrame(by_response).groupby(prompt).mean().to_numpy()
