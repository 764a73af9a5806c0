"""What the pull of the loss at the last layer goes with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from tl_l2norm.analysis.correlation import MIN_TOKENS, pearson, unexplained
from tl_l2norm.analysis.pairing import require_prompts
from tl_l2norm.analysis.token_tables import as_tokens
from tl_l2norm.core.measured import PRESSURES
from tl_l2norm.core.resampling import MIN_PROMPTS, RESAMPLES, Array, Estimate, estimate, generator, interval
from tl_l2norm.core.schema import SEED, Column, N, Schema, ends

PRESSURE_PAIRS = (
    ("pull", "p_true"),
    ("pull", "l2_norm"),
    ("pressure", "p_true"),
    ("pressure", "l2_norm"),  # about -0.6 where the norm has nothing to do with the loss: there is 1 / ||h|| in the pressure
    ("l2_norm", "p_true"),
)


PRESSURE_CORRELATIONS = Schema(
    "correlations of the pull",
    "pressure_table",
    (
        Column("mode", str, '"think" or "direct"'),
        Column("quantity", str, "a column of `optimisation_pressure`"),
        Column("against", str, "another one"),
        Column("scope", str, '"tokens", "partial" or "prompts"'),
        Column("rho", float, "Spearman's"),
        *ends("rho"),
        N,
        SEED,
    ),
)

_USED = ("mode", "prompt", "sequence", "position", "pressure", "pull", "p_true", "l2_norm", "is_sink")


def pressure_table(pressure: pd.DataFrame, *, seed: int = 0, resamples: int = RESAMPLES) -> pd.DataFrame:
    """What the pull of the loss at the last layer goes with: the true token's probability, and the norm.

    Spearman's rho by mode: "tokens" is over the tokens of a response, then the mean over prompts (8 tokens or more), "partial"
    the same given the position; "prompts" is over prompts, of the means over each response's tokens. A description: that a pull
    falls with the probability is nearly so by construction, and what drifts along a response correlates with all that does;
    `pull_link` is the test.

    Args:
        pressure: what `optimisation_pressure` returned, with the labels mode and prompt.
        seed: of the resampling of prompts.
        resamples: how many.

    Returns:
        One entry per mode, pair and scope: mode, quantity, against, scope, rho, low, high, n (prompts), seed.

    Raises:
        ValueError: labels or values that are missing, a token that is there twice, several prompts under one number, as of two
            tables that were joined, or fewer than 8 prompts. One prompt under two labels is refused by `optimisation_pressure`,
            which sees its tokens; here it can't be told.

    Examples:
        >>> rising = np.arange(8.0)
        >>> tokens = {"position": rising, "pull": -rising, "pressure": -rising, "p_true": rising / 8, "l2_norm": rising}
        >>> pressure = pd.concat(pd.DataFrame({**tokens, "sequence": i, "prompt": f"p{i}"}) for i in range(8))
        >>> table = pressure_table(pressure.assign(mode="think", is_sink=False))
        >>> table[table["scope"] == "tokens"][["quantity", "against", "rho", "n"]].round(2)
           quantity  against  rho  n
        0      pull   p_true -1.0  8
        2      pull  l2_norm -1.0  8
        4  pressure   p_true -1.0  8
        6  pressure  l2_norm -1.0  8
        8   l2_norm   p_true  1.0  8
    """
    tokens = as_tokens(PRESSURES, pressure, _USED)
    kept = tokens[~tokens["is_sink"]]
    entries = []
    for mode, group in kept.groupby("mode", sort=False):
        responses = [own for _, own in group.groupby("sequence", sort=False)]
        prompts = [own["prompt"].iloc[0] for own in responses]
        require_prompts(len(set(prompts)))
        for first, second in PRESSURE_PAIRS:
            for scope, e in _by_scope(responses, prompts, first, second, seed, resamples).items():
                entry = {"mode": mode, "quantity": first, "against": second, "scope": scope}
                entries.append({**entry, "rho": e.mean, "low": e.low, "high": e.high, "n": e.n})
    return PRESSURE_CORRELATIONS.frame(entries, seed=seed)


def _by_scope(
    responses: Sequence[pd.DataFrame], prompts: Sequence[str], first: str, second: str, seed: int, resamples: int
) -> dict[str, Estimate]:
    within = np.array([_within(own, first, second) for own in responses])
    by_prompt = pd.DataFrame(within, columns=["tokens", "partial"]).groupby(np.array(prompts), sort=False).mean()
    rhos = {scope: estimate(by_prompt[scope].to_numpy(), seed=seed, resamples=resamples) for scope in by_prompt}
    means = np.array([[own[first].mean(), own[second].mean()] for own in responses])
    rhos["prompts"] = _over_prompts(
        pd.DataFrame(means).groupby(np.array(prompts), sort=False).mean().to_numpy(), seed, resamples
    )
    return {scope: e for scope, e in rhos.items() if e.n >= MIN_PROMPTS}


def _within(own: pd.DataFrame, first: str, second: str) -> tuple[float, float]:
    """rho, and rho given the position, over the tokens of one response."""
    if len(own) < MIN_TOKENS:
        return np.nan, np.nan
    ranks = rankdata(own[[first, second]].to_numpy(dtype=np.float64).T, axis=1)
    covariates = np.stack([np.ones(len(own)), own["position"].to_numpy(dtype=np.float64)])
    left = unexplained(ranks, covariates)
    return float(pearson(ranks[0], ranks[1])), float(pearson(left[0], left[1]))


def _over_prompts(means: Array, seed: int, resamples: int) -> Estimate:
    rng = generator(seed)
    chosen = rng.integers(0, len(means), size=(resamples, len(means)))
    ranks = rankdata(means[chosen], axis=1)
    whole = rankdata(means, axis=0)
    return interval(float(pearson(whole[:, 0], whole[:, 1])), pearson(ranks[..., 0], ranks[..., 1]), len(means))
