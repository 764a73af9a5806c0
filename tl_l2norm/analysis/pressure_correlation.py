"""What the pull of the loss at the last layer goes with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from tl_l2norm.analysis.correlation import MIN_TOKENS, pearson, unexplained
from tl_l2norm.analysis.pairing import require_prompts
from tl_l2norm.core.errors import InputError
from tl_l2norm.core.resampling import MIN_PROMPTS, RESAMPLES, Array, Estimate, estimate, generator, interval

PRESSURE_PAIRS = (("pressure", "p_true"), ("pressure", "l2_norm"), ("l2_norm", "p_true"))


def pressure_table(pressure: pd.DataFrame, *, seed: int = 0, resamples: int = RESAMPLES) -> pd.DataFrame:
    """What the pull of the loss at the last layer goes with: the true token's probability, and the norm.

    Spearman's rho by mode: "tokens" is over the tokens of a response, then the mean over prompts (8 tokens or more), "partial"
    the same given the position; "prompts" is over prompts, of the means over each response's tokens.

    Args:
        pressure: what `optimisation_pressure` returned, with the labels mode and prompt.
        seed: of the resampling of prompts.
        resamples: how many.

    Returns:
        One row per mode, pair and scope: mode, quantity, against, scope, rho, low, high, n (prompts), seed.

    Raises:
        ValueError: labels that are missing, or fewer than 8 prompts.
    """
    if missing := {"mode", "prompt", "pressure", "p_true", "l2_norm", "is_sink", "position"} - set(pressure.columns):
        raise InputError(
            f"the table lacks {sorted(missing)}: optimisation_pressure(..., labels=[{{'mode': ..., 'prompt': ...}}])"
        )
    kept = pressure[~pressure["is_sink"]]
    rows = []
    for mode, group in kept.groupby("mode", sort=False):
        responses = [own for _, own in group.groupby("sequence", sort=False)]
        prompts = [own["prompt"].iloc[0] for own in responses]
        require_prompts(len(set(prompts)))
        for first, second in PRESSURE_PAIRS:
            found = _by_scope(responses, prompts, first, second, seed, resamples)
            for scope, e in found.items():
                row = {"mode": mode, "quantity": first, "against": second, "scope": scope}
                rows.append({**row, "rho": e.mean, "low": e.low, "high": e.high, "n": e.n})
    return pd.DataFrame(rows).assign(seed=seed)


def _by_scope(
    responses: Sequence[pd.DataFrame], prompts: Sequence[str], first: str, second: str, seed: int, resamples: int
) -> dict[str, Estimate]:
    within = np.array([_within(own, first, second) for own in responses])
    by_prompt = pd.DataFrame(within, columns=["tokens", "partial"]).groupby(np.array(prompts), sort=False).mean()
    found = {scope: estimate(by_prompt[scope].to_numpy(), seed=seed, resamples=resamples) for scope in by_prompt}
    means = np.array([[own[first].mean(), own[second].mean()] for own in responses])
    found["prompts"] = _over_prompts(
        pd.DataFrame(means).groupby(np.array(prompts), sort=False).mean().to_numpy(), seed, resamples
    )
    return {scope: e for scope, e in found.items() if e.n >= MIN_PROMPTS}


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
