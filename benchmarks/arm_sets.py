"""Arms that are tried on several models: the paper's methods, each beside what spends the same elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import tl_l2norm as l2
from tl_l2norm.experiments.scores import NORM_SCORES

LRS = ("event_area", "event_area_per_token", "norm_sum", "late_area")
RIVALS = ("shortest", "longest", "logprob", "majority")
"""Selections that LRS is held against."""
OTHERS = ("self_certainty", "confidence")
ALRR_AS_PUBLISHED, ALRR, ERSS, HIGH = "ALRR, as published", "ALRR", "ERSS", "high"


def selections(more: Sequence[str] = ()) -> list[l2.Arm]:
    """The baseline, LRS, its rivals and `more` scores, and what no selection can beat."""
    scores = (*LRS, *RIVALS, *OTHERS, *more, "oracle")
    return [
        l2.Arm("baseline"),
        *(l2.Arm(name, selection=name, control=RIVALS if name in NORM_SCORES else ()) for name in scores),
    ]


def high(q: float) -> Callable[[Any], Any]:
    """Thresholds at a quantile of the calibration's norms."""
    return lambda traces: l2.quantile_thresholds(traces, q=q)


def suppression_arms(q: float, how: Literal["scale", "swap"] = "scale") -> list[l2.Arm]:
    """Norms over their `q` quantile suppressed in the late layers, or their directions swapped; and as many other tokens."""

    def suppressed(traces: Any) -> l2.Suppression:
        return l2.Suppression(high(q)(traces), layers="late", how=how)

    def matched(traces: Any, log: Any) -> l2.Suppression:
        return l2.Suppression(high(q)(traces), layers="late", which="matched", how=how, match=log)

    name = f"{HIGH if how == 'scale' else how} {1 - q:.0%}"
    return [l2.Arm(name, suppressed, control=f"matched {name}"), l2.Arm(f"matched {name}", matched, match=name)]


def alike_arms(q: float) -> list[l2.Arm]:
    """Those of `suppression_arms(q)` that have a partner, another token of the same type at a like place, and the partners."""

    def alike(which: Literal["high", "matched"]) -> Callable[[Any, Any], l2.Suppression]:
        likeness = ("token", "position")
        return lambda traces, log: l2.Suppression(high(q)(traces), layers="late", which=which, match=log, alike=likeness)

    of = f"{HIGH} {1 - q:.0%}"
    partners = f"partners of {of}"
    return [
        l2.Arm(f"{of} with partners", alike("high"), match=of, control=partners),
        l2.Arm(partners, alike("matched"), match=of),
    ]


def steered(**towards: Any) -> Callable[[Any], l2.ERSS]:
    """ERSS with settings that fire in short responses."""
    return lambda traces: l2.ERSS(high(0.95)(traces), layers="late", patience=8, p=1.0, cos_min=0.3, **towards)


def methods(elsewhere: Sequence[l2.Arm] = (), towards: Sequence[l2.Arm] = ()) -> list[l2.Arm]:
    """The baseline, ALRR and ERSS beside their controls.

    Args:
        elsewhere: more controls of ALRR, with re-runs elsewhere.
        towards: more controls of ERSS, which steer to something else.
    """
    reruns = [l2.Arm("random re-runs", lambda traces, log: l2.interventions.Rerun(match=log), match=ALRR), *elsewhere]
    states = [
        l2.Arm("ERSS, random states", steered(towards="random")),
        l2.Arm("ERSS, random direction", steered(towards="direction")),
        *towards,
    ]
    often = l2.Arm(
        ALRR,
        lambda traces: l2.ALRR(high(0.95)(traces), layers="late", growth_eps=0.0),
        control=[arm.name for arm in reruns],
    )
    return [
        l2.Arm("baseline"),
        l2.Arm(ALRR_AS_PUBLISHED, lambda traces: l2.ALRR(l2.iqr_thresholds(traces), layers="late")),
        often,
        *reruns,
        l2.Arm(ERSS, steered(), control=[arm.name for arm in states]),
        *states,
    ]
