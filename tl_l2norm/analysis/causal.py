"""Accuracy under suppression: what the outcomes of the arms say, problem by problem."""

from __future__ import annotations

import numpy as np
import pandas as pd

from tl_l2norm.analysis.accuracy import WILSON, wilson_interval
from tl_l2norm.analysis.pairing import require_prompts
from tl_l2norm.core.errors import InputError
from tl_l2norm.core.measured import OUTCOMES
from tl_l2norm.core.resampling import RESAMPLES, estimate
from tl_l2norm.core.schema import MODEL, SEED, Column, Schema, ends

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

_ARM, _QUANTILE = OUTCOMES["arm"], OUTCOMES["quantile"]
_USED = ("arm", "quantile", "prompt", "correct", "positions", "events", "tokens", "cut_off", "seed", "model")

ARM_ACCURACIES = Schema(
    "accuracies by arm",
    "causal_table",
    (
        _ARM,
        _QUANTILE,
        Column("what", str, "the arm in words"),
        Column("positions", float, "decode positions changed at any layer, mean per response"),
        Column("events", float, "positions and layers changed, mean per response"),
        Column("tokens", float, "mean length of a response"),
        Column("accuracy", float, "share of correct answers"),
        *ends("accuracy", kind=WILSON),
        Column("cut_off", float, "share that ran into max_new_tokens"),
        Column("n", int, "problems"),
        OUTCOMES["seed"],
        MODEL,
    ),
)

ARM_DIFFERENCES = Schema(
    "differences between arms",
    "causal_differences",
    (
        _ARM,
        Column("against", str, "the arm that is subtracted"),
        Column("quantile", float, "of the threshold; NaN for the mean over all of them"),
        Column("difference", float, "of accuracy, on the same problems"),
        *ends("difference", kind="95% interval over problems"),
        Column("positions", float, "changed by the arm, mean per response"),
        Column("against_positions", float, "changed by the other arm, mean per response"),
        Column("n", int, "problems"),
        SEED,
        MODEL,
    ),
)


def causal_table(outcomes: pd.DataFrame) -> pd.DataFrame:
    """Accuracy against the number of suppressed positions, by arm and quantile.

    Args:
        outcomes: what `suppress_and_ask` returned.

    Returns:
        One entry per arm and quantile: arm, quantile, what, positions (decode positions changed at any layer, mean per
        response), events (positions and layers, mean per response), tokens (mean length), accuracy, low, high (Wilson), cut_off
        (share), n (problems), seed, model.

    Raises:
        InputError: a table of other columns or values, no outcomes, those of several models, or a problem that is in an arm
            twice.

    Examples:
        >>> right = {"high": 2, "random": 8}  # of 10 problems
        >>> arms = pd.DataFrame([{"arm": arm, "prompt": i, "correct": i < n} for arm, n in right.items() for i in range(10)])
        >>> counts = {"quantile": 0.8, "positions": 5, "events": 9, "tokens": 40, "cut_off": False}
        >>> causal_table(arms.assign(**counts, seed=0, model="by hand"))[["arm", "accuracy", "n"]]
              arm  accuracy   n
        0    high       0.2  10
        1  random       0.8  10
    """
    _require(outcomes)
    entries = []
    for (arm, quantile), group in outcomes.groupby(["arm", "quantile"], sort=False, dropna=False):
        right, n = int(group["correct"].sum()), len(group)
        low, high = wilson_interval(right, n)
        means = {name: float(group[name].mean()) for name in ("positions", "events", "tokens")}
        entry = {"arm": arm, "quantile": quantile, "what": ARMS.get(str(arm), str(arm)), **means, "accuracy": right / n}
        entries.append(entry | {"low": low, "high": high, "cut_off": float(group["cut_off"].mean()), "n": n})
    return ARM_ACCURACIES.frame(entries, seed=outcomes["seed"].iloc[0], model=outcomes["model"].iloc[0])


def causal_differences(outcomes: pd.DataFrame, *, seed: int = 0, resamples: int = RESAMPLES) -> pd.DataFrame:
    """Difference of accuracy between arms on the same problems, at each quantile and over all of them (quantile NaN).

    Returns:
        One entry per comparison and quantile: arm, against, quantile, difference, low, high, positions and against_positions
        (changed by either arm, mean per response: only random arms are matched in number), n (problems), seed, model.

    Raises:
        ValueError: fewer than 8 problems, or as `causal_table`.

    Examples:
        >>> right = {"high": 2, "random": 8}  # of 10 problems
        >>> arms = pd.DataFrame([{"arm": arm, "prompt": i, "correct": i < n} for arm, n in right.items() for i in range(10)])
        >>> counts = {"quantile": 0.8, "positions": 5, "events": 9, "tokens": 40, "cut_off": False}
        >>> differences = causal_differences(arms.assign(**counts, seed=0, model="by hand"))
        >>> differences[["arm", "against", "quantile", "difference", "n"]].round(2)
            arm against  quantile  difference   n
        0  high  random       0.8        -0.6  10
        1  high  random       NaN        -0.6  10
    """
    _require(outcomes)
    require_prompts(outcomes["prompt"].nunique(), what="problems")
    entries = []
    for arm, against in COMPARISONS:
        sides = [outcomes[outcomes["arm"] == name] for name in (arm, against)]
        if any(side.empty for side in sides):
            continue
        first, second = (_by_quantile(side, "correct") for side in sides)
        differences = (first - second).dropna(axis=1, how="all")
        positions = [_by_quantile(side, "positions")[differences.columns].mean() for side in sides]
        for quantile, column in [*differences.items(), (np.nan, differences.mean(axis=1))]:
            e = estimate(column.to_numpy(), seed=seed, resamples=resamples)
            figures = {"difference": e.mean, "low": e.low, "high": e.high}
            own, other = (float(p.mean() if np.isnan(quantile) else p[quantile]) for p in positions)
            counts = {"positions": own, "against_positions": other, "n": e.n}
            entries.append({"arm": arm, "against": against, "quantile": quantile, **figures, **counts})
    return ARM_DIFFERENCES.frame(entries, seed=seed, model=outcomes["model"].iloc[0])


def _by_quantile(side: pd.DataFrame, name: str) -> pd.DataFrame:
    """A column of one arm's outcomes: a row per prompt, a column per quantile."""
    return side.pivot(index="prompt", columns="quantile", values=name).astype(float)


def _require(outcomes: pd.DataFrame) -> None:
    if OUTCOMES.check(outcomes, *_USED).empty:
        raise InputError("no outcomes given")
    if (twice := outcomes.duplicated(["arm", "quantile", "prompt"])).any():
        prompt, arm = (outcomes.loc[twice, name].tolist()[0] for name in ("prompt", "arm"))
        raise InputError(f"the outcomes hold problem {prompt!r} in arm {arm!r} twice: give those of one run")
    if len(models := outcomes["model"].unique()) > 1:
        raise InputError(f"the outcomes are of {len(models)} models, {', '.join(map(str, models))}: give those of one")
