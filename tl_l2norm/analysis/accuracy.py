"""Accuracy by mode, family and level."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from tl_l2norm.core.arguments import as_names
from tl_l2norm.core.errors import InputError
from tl_l2norm.core.prompts import require_own_prompts
from tl_l2norm.core.schema import Column, Schema, ends
from tl_l2norm.tasks.results import Result, results_of

MUCH_CUT_OFF = 0.2
"""Share of a mode's responses that were cut off, above which a report begins with it."""

_Z = 1.959963984540054  # 97.5% point of the standard normal


WILSON = "95% Wilson interval"

ACCURACIES = Schema(
    "accuracies",
    "accuracy_table",
    (
        Column("mode", str, '"think" or "direct"', optional=True),
        Column("family", str, "of the problems", optional=True),
        Column("level", int, "of the problems", optional=True),
        Column("accuracy", float, "share of correct answers; NaN where none is known"),
        *ends("accuracy", kind=WILSON),
        Column("n", int, "problems with a known answer"),
        Column("not_direct", float, "share of direct responses that were not direct; NaN in thinking mode"),
        Column("cut_off", float, "share that ran into max_new_tokens"),
    ),
)


def wilson_interval(successes: int | float, n: int | float) -> tuple[float, float]:
    """95% score interval of a proportion (Wilson, 1927); unlike the bootstrap it has a width at 0 and at 1.

    Successes are a sum of shares where a unit was tried several times; n may be what dependent tries are worth.

    Examples:
        >>> low, high = wilson_interval(9, 10)
        >>> print(f"{low:.2f} to {high:.2f}")
        0.60 to 0.98
    """
    if n < 1 or not 0 <= successes <= n:
        raise InputError(f"need 0 <= successes <= n and n >= 1, got {successes} of {n}")
    p, z2 = successes / n, _Z**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z * (p * (1 - p) / n + z2 / (4 * n * n)) ** 0.5 / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def accuracy_table(results: Result | Sequence[Result], *, by: str | Sequence[str] = ("mode",)) -> pd.DataFrame:
    """Share of correct answers with its 95% Wilson interval, grouped by any of mode, family and level.

    A problem counts once: several responses to it by the share of them that is right.

    Columns: those of `by`, then accuracy, low, high, n (problems with a known answer), not_direct (share of direct responses
    that were not direct; NaN in thinking mode) and cut_off (share that ran into max_new_tokens). Accuracy is NaN where no
    answer is known.

    Raises:
        InputError: no results, problems that ask the same, or a group that is none of mode, family and level.

    Examples:
        >>> accuracy_table(results)[["mode", "accuracy", "low", "high", "n"]].round(2)
             mode  accuracy   low  high   n
        0  direct      0.67  0.39  0.86  12
        1   think      1.00  0.76  1.00  12
    """
    results, by = results_of(results), as_names("by", by)
    if not results:
        raise InputError("no results given")
    require_own_prompts((r.problem.id, r.trace.tokens[: r.trace.prompt_len].tolist()) for r in results)
    responses = [
        {
            "problem": r.problem.id,
            "mode": r.mode,
            "family": r.problem.family,
            "level": r.problem.level,
            "correct": r.correct,
            "direct": r.direct,
            "cut_off": r.finish_reason == "length",
        }
        for r in results
    ]
    if not by or set(by) - {"mode", "family", "level"}:
        raise InputError(f"can't group by {list(by)}: give any of mode, family, level")
    groups = pd.DataFrame(responses).groupby(list(by), sort=True)
    return ACCURACIES.frame((_entry(dict(zip(by, key, strict=True)), group) for key, group in groups), by=by)


def _entry(key: dict[str, object], group: pd.DataFrame) -> dict[str, object]:
    known, checked, cut_off = (_by_problem(group, name) for name in ("correct", "direct", "cut_off"))
    low, high = wilson_interval(float(known.sum()), len(known)) if len(known) else (float("nan"), float("nan"))
    return {
        **key,
        "accuracy": known.mean() if len(known) else float("nan"),
        "low": low,
        "high": high,
        "n": len(known),
        "not_direct": 1 - checked.mean() if len(checked) else float("nan"),
        "cut_off": cut_off.mean(),
    }


def _by_problem(group: pd.DataFrame, name: str) -> pd.Series:  # type: ignore[type-arg]
    """Share of each problem's responses of which something holds, where that is known."""
    known = group.dropna(subset=[name])
    return known[name].astype(float).groupby(known["problem"], sort=False).mean()


def cut_off_warnings(accuracy: pd.DataFrame) -> list[str]:
    """Why the modes whose responses were cut off too often say little, if there are any; of a table by mode alone."""
    names = {"think": ("thinking", "max_new_tokens"), "direct": ("direct", "max_direct_tokens")}
    accuracy = ACCURACIES.check(accuracy, "mode", "cut_off")
    shares = {mode: share for mode, share in zip(accuracy["mode"], accuracy["cut_off"], strict=True) if share > MUCH_CUT_OFF}
    if not shares:
        return []
    those = " and ".join(f"{share:.0%} of the {names[mode][0]}" for mode, share in shares.items())
    return [
        f"WARNING: {those} responses were cut off at the token limit, before they ended: accuracy and norms are those of "
        f"unfinished responses. Give them more room ({', '.join(names[mode][1] for mode in shares)}), or shorter problems "
        "where the limit is already what the model's context has left."
    ]
