"""What an analysis has found."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from tl_l2norm.analysis.reasoning import ReasoningFeatures
from tl_l2norm.core.tables import WIDTH
from tl_l2norm.paper.claims import claims_table
from tl_l2norm.paper.summary import summary, summary_html
from tl_l2norm.paper.tables import frames_of


@dataclass(frozen=True, kw_only=True, eq=False)
class Analysis:
    """Tables of everything that was measured, and what could not be, with the reason; `analyse` makes it.

    Attributes:
        tables: by name, with the columns of `paper.tables.SCHEMAS`, seed and model.
        notes: why a table is not there.
        features: reasoning features by source: the trained SAEs, and the controls.
        facts: what was run.

    Examples:
        >>> dynamics = l2.analysis.dynamics(think, direct)
        >>> notes = {"causal_outcomes": "no answer is known"}
        >>> analysis = Analysis(tables={"dynamics": dynamics}, notes=notes, features={}, facts={})
        >>> analysis.claims().query("number == 12")[["verdict", "why"]].iloc[0].tolist()
        ["can't be tested here", 'no answer is known']
    """

    tables: Mapping[str, pd.DataFrame]
    """By name, with the columns of `paper.tables.SCHEMAS`, seed and model."""
    notes: Mapping[str, str]
    """Why a table is not there."""
    features: Mapping[str, ReasoningFeatures]
    """Reasoning features by source: the trained SAEs, and the controls."""
    facts: Mapping[str, str]
    """What was run."""

    def __post_init__(self) -> None:
        frames_of(self.tables)

    @cached_property
    def _claims(self) -> pd.DataFrame:
        return claims_table(self.tables, self.notes)

    def claims(self) -> pd.DataFrame:
        """One entry per claim: number, claim, paper (its figure), measured, interval, control, n, p, p_adjusted (Holm's),
        verdict, why (the rule, or why it can't be tested), unmet (what of the rule is not met).

        Raises:
            InputError: tables that no analysis makes, by name: an entry twice, a p-value outside 0 to 1 or missing.
        """
        return self._claims.copy()

    def __repr__(self) -> str:
        """The claims with their verdicts and reasons, and what was run, for a terminal."""
        facts = "; ".join(f"{name}: {value}" for name, value in self.facts.items())
        text = summary(self._claims, self.tables)
        return f"{text}\n\n{textwrap.fill(facts, WIDTH, break_on_hyphens=False)}" if facts else text

    def _repr_html_(self) -> str:
        return summary_html(self._claims, self.tables)
