"""Curves of arms: accuracy against how many responses one is selected from, and against how much was suppressed."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from tl_l2norm.analysis.accuracy import WILSON
from tl_l2norm.analysis.arms import ARM_TABLE
from tl_l2norm.core.schema import Column, Schema, ends

LIVE = "live tokens"
"""How many tokens, layer by layer, an intervention had to judge: among the decisions, as in `Log.counts`."""

_ARM, _PROBLEMS = Column("arm", str, "its name"), Column("n", int, "problems")

ARM_CURVES = Schema(
    "accuracies of arms against the number of responses",
    "evaluate(...).curves",
    (
        _ARM,
        Column("responses", int, "from which one is selected"),
        Column("accuracy", float, "expected over all subsets of so many of its responses"),
        *ends("accuracy", kind="95% interval over problems"),
        _PROBLEMS,
    ),
)

SUPPRESSED = Schema(
    "accuracies against how much was suppressed",
    "evaluate(...).suppressed()",
    (
        _ARM,
        Column("kind", str, 'which tokens, and what became of them; "" of the baseline'),
        Column("share", float, "of the tokens that were judged, layer by layer, that were changed"),
        Column("accuracy", float, "share of right answers"),
        *ends("accuracy", kind=WILSON),
        _PROBLEMS,
    ),
)


def suppressed_table(table: pd.DataFrame, decisions: pd.DataFrame, kinds: Mapping[str, str]) -> pd.DataFrame:
    """Accuracy of arms against the share of tokens that they changed, the baseline with 0 before them.

    Args:
        table: what `arm_table` returns, not grouped.
        decisions: how often the arms' interventions decided what.
        kinds: what each arm suppressed, and how, by its name; others are left out.

    Returns:
        One entry per arm: arm, kind, share, accuracy, low, high, n; none where no two arms suppressed another share.

    Examples:
        >>> table = pd.DataFrame({"arm": ["plain", "some", "more"], "accuracy": [0.8, 0.5, 0.4], "n": 10})
        >>> table = table.assign(low=0.2, high=0.9)
        >>> decisions = [("some", "live tokens", False, 90), ("some", "high", True, 9), ("more", "live tokens", False, 90)]
        >>> decisions = pd.DataFrame([*decisions, ("more", "high", True, 45)], columns=["arm", "decision", "fired", "n"])
        >>> suppressed_table(table, decisions, {"some": "high", "more": "high"})[["arm", "share", "accuracy"]]
             arm  share  accuracy
        0  plain    0.0       0.8
        1   some    0.1       0.5
        2   more    0.5       0.4
    """
    arms = ARM_TABLE.check(table, "arm", "n", "accuracy", "low", "high").drop_duplicates("arm")
    judged = decisions[decisions["decision"] == LIVE].groupby("arm")["n"].sum()
    changed = decisions[decisions["fired"].astype(bool)].groupby("arm")["n"].sum()
    shares = {arm: float(changed.get(arm, 0) / judged[arm]) for arm in kinds if judged.get(arm, 0)}
    if len(set(shares.values())) < 2:
        return SUPPRESSED.frame([])
    baseline = str(arms["arm"].iloc[0])
    shares, kinds = {baseline: 0.0, **shares}, {baseline: "", **kinds}
    own = arms[arms["arm"].isin(shares)]
    columns = {"kind": own["arm"].map(kinds), "share": own["arm"].map(shares)}
    return SUPPRESSED.frame(own[["arm", "accuracy", "low", "high", "n"]].assign(**columns).reset_index(drop=True))
