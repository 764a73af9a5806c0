"""What an analysis has found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from tl_l2norm.analysis.reasoning import ReasoningFeatures
from tl_l2norm.core.tables import render_table
from tl_l2norm.paper.claims import claims_table


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

    @cached_property
    def _claims(self) -> pd.DataFrame:
        return claims_table(self.tables, self.notes)

    def claims(self) -> pd.DataFrame:
        """One entry per claim of the paper: number, claim, paper (its figure), measured, interval, control, n, p, p_adjusted
        (Holm's), verdict, why.
        """
        return self._claims.copy()

    def __repr__(self) -> str:
        """The claims and their verdicts, for a terminal."""
        facts = ", ".join(f"{name} {value}" for name, value in self.facts.items())
        return f"{render_table(self._claims[['number', 'claim', 'measured', 'control', 'verdict']], width=140)}\n\n{facts}"

    def _repr_html_(self) -> str:
        return str(self._claims.to_html(index=False, escape=True, border=0))
