"""Accuracy under suppression: what the outcomes of the arms say, problem by problem."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from tl_l2norm.analysis.accuracy import WILSON, wilson_interval
from tl_l2norm.analysis.paired import mean_difference, p_loss
from tl_l2norm.analysis.pairing import require_prompts
from tl_l2norm.core.errors import InputError
from tl_l2norm.core.measured import OUTCOMES
from tl_l2norm.core.resampling import RESAMPLES, Array
from tl_l2norm.core.schema import MODEL, SEED, Column, Schema, ends
from tl_l2norm.core.sign_flips import sign_flips

ARMS = {
    "none": "nothing suppressed",
    "high": "all high-norm tokens, times 0.1",
    "paired": "high-norm tokens that have a partner, times 0.1",
    "random": "their partners, times 0.1",
    "low": "low-norm tokens, times 0.1",
    "swap": "high-norm tokens that have a partner, direction of another token at equal norm",
    "swap random": "their partners, direction of another token at equal norm",
}
"""What each arm does, in words."""

COMPARISONS = (
    ("paired", "random"),
    ("paired", "none"),
    ("random", "none"),
    ("high", "none"),
    ("high", "low"),
    ("swap", "swap random"),
    ("swap", "none"),
    ("swap random", "none"),
)

MARGIN = 0.1
"""Of accuracy. An arm that loses less keeps to the other; one that loses more breaks the model. Ten points, because the losses
that the paper's claim rests on are several times that, and because with forty problems less can't be told from nothing."""

DOSE = (0.95, 1.25)
"""From and to: how many positions, and positions and layers, a random arm changes, as a share of the arm's. With fewer it is
spared by that alone, which would speak for the claim; with many more it is harmed by that, which would speak against it."""

_MATCHED = {"paired": "random", "swap": "swap random"}
_ARM, _QUANTILE = OUTCOMES["arm"], OUTCOMES["quantile"]
_USED = ("arm", "quantile", "draw", "prompt", "correct", "positions", "events", "tokens", "cut_off", "seed", "model")

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
        Column("draws", int, "of a random arm, over which all of this is the mean"),
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
        Column("quantile", float, "of the threshold; NaN for the mean over those at which the random arm has the dose"),
        Column("thresholds", int, "over which this is the mean"),
        Column("difference", float, "of accuracy, on the same problems, mean over the draws of a random arm"),
        *ends("difference", kind="95% interval over problems"),
        Column("p", float, "two-sided, by flipping the signs of problems"),
        Column("p_margin", float, f"one-sided, that the arm loses {MARGIN:.0%} or more; NaN but against none"),
        Column("positions", float, "changed by the arm, mean per response"),
        Column("against_positions", float, "changed by the other arm, mean per response"),
        Column("events", float, "positions and layers changed by the arm, mean per response"),
        Column("against_events", float, "the same of the other arm"),
        Column(
            "dose", float, "changed by the random arm over changed by the arm, that count which is farther from 1; else NaN"
        ),
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
        response), events (positions and layers, mean per response), tokens (mean length), accuracy, low, high (Wilson, as if
        the draws of a random arm were one), cut_off (share), draws, n (problems), seed, model.

    Raises:
        InputError: a table of other columns or values, no outcomes, those of several models or seeds, or a problem that is in
            a draw of an arm twice.

    Examples:
        >>> right = {"paired": 2, "random": 8}  # of 10 problems
        >>> arms = pd.DataFrame([{"arm": arm, "prompt": i, "correct": i < n} for arm, n in right.items() for i in range(10)])
        >>> counts = {"quantile": 0.8, "draw": 0, "positions": 5, "events": 9, "tokens": 40, "cut_off": False}
        >>> causal_table(arms.assign(**counts, seed=0, model="by hand"))[["arm", "accuracy", "n"]]
              arm  accuracy   n
        0  paired       0.2  10
        1  random       0.8  10
    """
    outcomes = _checked(outcomes)
    entries = []
    for (arm, quantile), group in outcomes.groupby(["arm", "quantile"], sort=False, dropna=False):
        n, draws, accuracy = group["prompt"].nunique(), group["draw"].nunique(), float(group["correct"].mean())
        low, high = wilson_interval(accuracy * n, n)
        means = {name: float(group[name].mean()) for name in ("positions", "events", "tokens")}
        entry = {"arm": arm, "quantile": quantile, "what": ARMS.get(str(arm), str(arm)), **means, "accuracy": accuracy}
        entry |= {"low": low, "high": high, "cut_off": float(group["cut_off"].mean()), "draws": draws, "n": n}
        entries.append(entry)
    return ARM_ACCURACIES.frame(entries, seed=outcomes["seed"].iloc[0], model=outcomes["model"].iloc[0])


def causal_differences(outcomes: pd.DataFrame, *, seed: int = 0, resamples: int = RESAMPLES) -> pd.DataFrame:
    """Difference of accuracy between arms on the same problems, at each quantile and over them (quantile NaN).

    `p` flips the signs of problems, each with the mean over the draws of a random arm: to take an arm for one more draw, and
    relabel them, would count draws that took the same tokens as so many. Over the quantiles, arms are
    compared at those thresholds at which the random arm changed 95 to 125% as much as its own (at all of them, if there is
    none): `dose` says whether it did.

    `p_margin` is of a t-test that the arm loses ten points of accuracy or more, with one more problem at which all is lost:
    else few problems without a loss would pass for no loss at all.

    Intervals are score intervals of paired shares; the mean over several quantiles, of which a problem may get some right, is
    resampled.

    Returns:
        One entry per comparison and quantile: arm, against, quantile, thresholds (how many), difference, low, high, p,
        p_margin, positions and against_positions (changed by either arm, mean per response), events and against_events
        (positions and layers), dose (of the random arm, as a share of the arm's), n (problems), seed, model.

    Raises:
        ValueError: arms of other names, arms that lack a problem, a quantile or a draw of others,
            fewer than 8 problems, or as `causal_table`. One problem under two ids is refused by `suppress_and_ask`, which sees
            its prompt; here it can't be told.

    Examples:
        >>> right = {"paired": 2, "random": 8}  # of 10 problems
        >>> arms = pd.DataFrame([{"arm": arm, "prompt": i, "correct": i < n} for arm, n in right.items() for i in range(10)])
        >>> counts = {"quantile": 0.8, "draw": 0, "positions": 5, "events": 9, "tokens": 40, "cut_off": False}
        >>> differences = causal_differences(arms.assign(**counts, seed=0, model="by hand"))
        >>> differences[["arm", "against", "quantile", "difference", "p", "dose", "n"]].round(2)
              arm against  quantile  difference     p  dose   n
        0  paired  random       0.8        -0.6  0.03   1.0  10
        1  paired  random       NaN        -0.6  0.03   1.0  10
    """
    outcomes = _checked(outcomes)
    _require_arms(outcomes)
    _require_same(outcomes)
    require_prompts(outcomes["prompt"].nunique(), what="problems")
    arms = {str(name): _Arm.of(own) for name, own in outcomes.groupby("arm", sort=False)}
    entries = []
    for name, against in COMPARISONS:
        if name not in arms or against not in arms:
            continue
        first, second = arms[name], arms[against].at(arms[name].quantiles)
        kept = _with_dose(arms, name, against)
        for quantile, which in [*((q, [q]) for q in first.quantiles), (np.nan, kept)]:
            entry = _compare(first.mean(which), second.mean(which), _MATCHED.get(name) == against, seed, resamples)
            entry["p_margin"] = (
                p_loss(_differences(first.mean(which), second.mean(which)), MARGIN) if against == "none" else np.nan
            )
            entries.append({"arm": name, "against": against, "quantile": quantile, "thresholds": len(which), **entry})
    return ARM_DIFFERENCES.frame(entries, seed=seed, model=outcomes["model"].iloc[0])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Counts:
    """One arm over some thresholds."""

    correct: Array
    """[prompt, draw] share of the thresholds; NaN where a prompt lacks one."""
    positions: float
    events: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Arm:
    """The outcomes of one arm."""

    quantiles: list[float]
    values: dict[str, dict[float, pd.DataFrame]]
    """By column and quantile a row per prompt, a column per draw."""

    @classmethod
    def of(cls, outcomes: pd.DataFrame) -> _Arm:
        parts = dict(list(outcomes.groupby("quantile", sort=False, dropna=False)))
        values = {
            name: {float(q): part.pivot(index="prompt", columns="draw", values=name).astype(float) for q, part in parts.items()}
            for name in ("correct", "positions", "events")
        }
        return cls(quantiles=[float(q) for q in parts], values=values)

    def at(self, quantiles: Sequence[float]) -> _Arm:
        """At these; the arm without any threshold is the same at all of them."""
        if not np.isnan(self.quantiles).all():
            return self
        values = {name: dict.fromkeys(quantiles, next(iter(own.values()))) for name, own in self.values.items()}
        return _Arm(quantiles=list(quantiles), values=values)

    def mean(self, quantiles: Sequence[float]) -> _Counts:
        means = {name: sum(own[q] for q in quantiles) / len(quantiles) for name, own in self.values.items()}
        counts = {name: float(means[name].mean(axis=1).mean()) for name in ("positions", "events")}
        return _Counts(correct=means["correct"].sort_index().to_numpy(), **counts)


def _with_dose(arms: Mapping[str, _Arm], name: str, against: str) -> list[float]:
    """The thresholds at which the random arm, for swaps that of swaps, has the dose; all if there is none, or no such arm."""
    every = arms[name].quantiles
    arm = "swap" if {name, against} & {"swap", "swap random"} else "paired"
    control = _MATCHED[arm]
    if arm not in arms or control not in arms:
        return every
    doses = {q: _dose(arms[arm].mean([q]), arms[control].mean([q])) for q in every if q in arms[arm].quantiles}
    return [q for q, dose in doses.items() if DOSE[0] <= dose <= DOSE[1]] or every


def _dose(own: _Counts, control: _Counts) -> float:
    """Positions or events of the control as a share of the arm's, whichever is farther from 1; NaN where there are none."""
    if not own.positions or not own.events:
        return float("nan")
    shares = control.positions / own.positions, control.events / own.events
    return max(shares, key=lambda share: max(share, 1 / share) if share else np.inf)


def _differences(own: _Counts, other: _Counts) -> Array:
    gained: Array = own.correct.mean(1) - other.correct.mean(1)
    return gained


def _compare(own: _Counts, other: _Counts, matched: bool, seed: int, resamples: int) -> dict[str, float]:
    differences = _differences(own, other)
    e = mean_difference(differences, seed=seed, resamples=resamples)
    return {
        "difference": e.mean,
        "low": e.low,
        "high": e.high,
        "p": float(sign_flips(differences[:, None], seed=seed, flips=resamples).p[0]),
        "positions": own.positions,
        "against_positions": other.positions,
        "events": own.events,
        "against_events": other.events,
        "dose": _dose(own, other) if matched else float("nan"),
        "n": e.n,
    }


def _require_same(outcomes: pd.DataFrame) -> None:
    """Arms are compared problem by problem: refuse those that were asked others, or at other quantiles."""
    every = set(outcomes["prompt"])
    for (arm, quantile, draw), own in outcomes.groupby(["arm", "quantile", "draw"], dropna=False):
        if lacking := every - set(own["prompt"]):
            raise InputError(
                f"arm {arm!r} (quantile {quantile:g}, draw {draw}) lacks {len(lacking)} of the {len(every)} problems, such as "
                f"{min(lacking)!r}: arms are compared on the same ones"
            )
    _require_each(outcomes)


def _require_each(outcomes: pd.DataFrame) -> None:
    """Refuse an arm that lacks a quantile of the others, or at a quantile a draw of its own."""
    arms = {str(arm): own for arm, own in outcomes.groupby("arm") if own["quantile"].notna().any()}
    every = set().union(*(own["quantile"] for own in arms.values()))
    for arm, own in arms.items():
        if lacking := every - set(own["quantile"]):
            raise InputError(f"arm {arm!r} lacks the quantile {min(lacking):g} that another arm has: give all of one run")
        for quantile, at in own.groupby("quantile"):
            if lacking := set(own["draw"]) - set(at["draw"]):
                raise InputError(
                    f"arm {arm!r} lacks draw {min(lacking)} at the quantile {quantile:g}, which it has at another: the mean "
                    "over quantiles is of the same draws, give all of one run"
                )


def _require_arms(outcomes: pd.DataFrame) -> None:
    """Arms are compared by name: refuse unknown ones, which would be left out unsaid."""
    arms = set(outcomes["arm"])
    if unknown := sorted(map(str, arms - set(ARMS))):
        raise InputError(f"unknown arm {unknown[0]!r}: arms are compared by name, one of {', '.join(map(repr, ARMS))}")
    if (lacking := outcomes["quantile"].isna() & (outcomes["arm"] != "none")).any():
        raise InputError(f"quantile is missing in {lacking.sum()} outcomes of arm {outcomes.loc[lacking, 'arm'].iloc[0]!r}")


def _checked(outcomes: pd.DataFrame) -> pd.DataFrame:
    """The table; refuses what isn't such a one."""
    outcomes = OUTCOMES.check(outcomes, *_USED)
    if outcomes.empty:
        raise InputError("no outcomes given")
    for name in ("arm", "prompt"):
        if count := int(outcomes[name].isna().sum()):
            raise InputError(f"{name} is missing in {count} outcomes: pandas reads NA and null in a CSV file as missing")
    for name in ("positions", "events", "tokens"):
        values = outcomes[name].astype(float)
        if (odd := ~(np.isfinite(values) & (values >= 0))).any():
            raise InputError(f"{name} is how many, 0 or more, got {values[odd].iloc[0]:g} in {odd.sum()} outcomes")
    if (twice := outcomes.duplicated(["arm", "quantile", "draw", "prompt"])).any():
        prompt, arm = (outcomes.loc[twice, name].tolist()[0] for name in ("prompt", "arm"))
        raise InputError(f"the outcomes hold problem {prompt!r} in arm {arm!r} twice: give those of one run")
    for name, what in (("model", "models"), ("seed", "seeds")):
        if len(several := outcomes[name].unique()) > 1:
            raise InputError(
                f"the outcomes are of {len(several)} {what}, {', '.join(map(str, several))}: give those of one run"
            )
    return outcomes
