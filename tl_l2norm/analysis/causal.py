"""Accuracy under suppression: what the outcomes of the arms say, problem by problem."""

from __future__ import annotations

import numpy as np
import pandas as pd

from tl_l2norm.analysis.accuracy import wilson_interval
from tl_l2norm.analysis.pairing import require_prompts
from tl_l2norm.core.errors import InputError
from tl_l2norm.core.resampling import RESAMPLES, estimate

ARMS = {
    "none": "nothing suppressed",
    "high": "high-norm tokens, times 0.1",
    "random": "as many random tokens, times 0.1",
    "low": "low-norm tokens, times 0.1",
    "swap": "high-norm tokens, direction of another token at equal norm",
    "swap random": "as many random tokens, direction of another token at equal norm",
}
"""What each arm does, in words."""

COMPARISONS = (("high", "random"), ("high", "low"), ("swap", "swap random"), ("swap", "high"))

_COLUMNS = ("arm", "quantile", "prompt", "correct", "positions", "events", "tokens", "cut_off")


def causal_table(outcomes: pd.DataFrame) -> pd.DataFrame:
    """Accuracy against the number of suppressed positions, a row per arm and quantile.

    Args:
        outcomes: what `suppress_and_ask` returned.

    Returns:
        arm, quantile, what, positions (decode positions changed at any layer, mean per response), events (positions and
        layers, mean per response), tokens (mean length), accuracy, low, high (Wilson), cut_off (share), n (problems), seed,
        model.
    """
    _require(outcomes)
    rows = []
    for (arm, quantile), group in outcomes.groupby(["arm", "quantile"], sort=False, dropna=False):
        right, n = int(group["correct"].sum()), len(group)
        low, high = wilson_interval(right, n)
        means = {name: float(group[name].mean()) for name in ("positions", "events", "tokens")}
        row = {"arm": arm, "quantile": quantile, "what": ARMS.get(str(arm), str(arm)), **means, "accuracy": right / n}
        rows.append(row | {"low": low, "high": high, "cut_off": float(group["cut_off"].mean()), "n": n})
    return pd.DataFrame(rows).assign(seed=outcomes["seed"].iloc[0], model=outcomes["model"].iloc[0])


def causal_differences(outcomes: pd.DataFrame, *, seed: int = 0, resamples: int = RESAMPLES) -> pd.DataFrame:
    """Difference of accuracy between arms on the same problems, at each quantile and over all of them (quantile NaN).

    Returns:
        One row per comparison and quantile: arm, against, quantile, difference, low, high, positions and against_positions
        (changed by either arm, mean per response: only random arms are matched in number), n (problems), seed, model.

    Raises:
        ValueError: fewer than 8 problems.
    """
    _require(outcomes)
    require_prompts(outcomes["prompt"].nunique(), what="problems")
    rows = []
    for arm, against in COMPARISONS:
        sides = [outcomes[outcomes["arm"] == name] for name in (arm, against)]
        if any(side.empty for side in sides):
            continue
        first, second = (_by_quantile(side, "correct") for side in sides)
        differences = (first - second).dropna(axis=1, how="all")
        positions = [_by_quantile(side, "positions")[differences.columns].mean() for side in sides]
        for quantile, column in [*differences.items(), (np.nan, differences.mean(axis=1))]:
            found = estimate(column.to_numpy(), seed=seed, resamples=resamples)
            figures = {"difference": found.mean, "low": found.low, "high": found.high}
            own, other = (float(p.mean() if np.isnan(quantile) else p[quantile]) for p in positions)
            counts = {"positions": own, "against_positions": other, "n": found.n}
            rows.append({"arm": arm, "against": against, "quantile": quantile, **figures, **counts})
    names = ["arm", "against", "quantile", "difference", "low", "high", "positions", "against_positions", "n"]
    return pd.DataFrame(rows, columns=names).assign(seed=seed, model=outcomes["model"].iloc[0])


def _by_quantile(side: pd.DataFrame, name: str) -> pd.DataFrame:
    """A column of one arm's outcomes: a row per prompt, a column per quantile."""
    return side.pivot(index="prompt", columns="quantile", values=name).astype(float)


def _require(outcomes: pd.DataFrame) -> None:
    if missing := set(_COLUMNS) - set(outcomes.columns):
        raise InputError(f"the outcomes lack {sorted(missing)}: give what suppress_and_ask returned")
    if outcomes.empty:
        raise InputError("no outcomes given")
    if (twice := outcomes.duplicated(["arm", "quantile", "prompt"])).any():
        row = outcomes[twice].iloc[0]
        raise InputError(f"the outcomes hold problem {row['prompt']!r} in arm {row['arm']!r} twice: give those of one run")
