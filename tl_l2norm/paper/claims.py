"""The paper's claims, one record each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pandas as pd

from tl_l2norm.analysis.correlation import PAPER_RHO
from tl_l2norm.core.schema import Column, N, Schema
from tl_l2norm.paper import verdicts
from tl_l2norm.paper.verdicts import Finding, Known, Missing, Tables


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim of the paper."""

    number: int
    text: str
    """In our words."""
    paper: str
    """The paper's own figure for it."""
    rule: Callable[[Known], Finding]
    """From tables to the verdict."""


CLAIMS = (
    Claim(
        1,
        "reasoning features spike in the last quarter of the layers: flat, then sharp",
        "Qwen3 4B, 8B, 32B",
        verdicts.features_spike,
    ),
    Claim(
        2,
        "the norm has the same two stages, and thinking is above direct at every layer",
        "Qwen3, LLaMA3",
        verdicts.norm_stages,
    ),
    Claim(
        3,
        "the norm follows reasoning features, entropies don't",
        f"rho x 100: norm {PAPER_RHO['norm'][0]} to {PAPER_RHO['norm'][1]}, best entropy {PAPER_RHO['best entropy'][0]} to "
        f"{PAPER_RHO['best entropy'][1]}",
        verdicts.correlation,
    ),
    Claim(
        4,
        "summed activation differences are bounded on both sides by sqrt(norm_think^2 - norm_direct^2)",
        "theorem",
        verdicts.theorem,
    ),
    Claim(
        5,
        "A1: decoder directions are nearly orthogonal",
        "mean cosine < 0.02 in all layers",
        verdicts.assumption("A1"),
    ),
    Claim(
        6, "A2: the SAE's reconstruction is faithful", "R2 > 0.95, residual < 5%", verdicts.assumption("A2 R2", "A2 residual")
    ),
    Claim(
        7,
        "A3: semantic and reasoning parts are nearly orthogonal",
        "cosine < 0.1",
        verdicts.assumption("A3"),
    ),
    Claim(
        8,
        "A4: the two are active on different tokens",
        "overlap < 3%",
        verdicts.assumption("A4"),
    ),
    Claim(
        9, "the loss pulls hardest where the true token is improbable, and norms record the pull", "argument", verdicts.pressure
    ),
    Claim(
        10,
        "thinking tokens have the highest norms",
        "heat map of layer 34",
        verdicts.thinking_tokens,
    ),
    Claim(
        11,
        "training shapes the rise: sharp after RL, gradual after SFT",
        "Qwen3 against LLaMA3",
        verdicts.training,
    ),
    Claim(
        12,
        "suppressing high-norm tokens breaks reasoning, random ones don't",
        "Qwen3-14B curve",
        verdicts.causal,
    ),
    Claim(
        13,
        "norms tell the task's domain",
        "figure",
        verdicts.domain,
    ),
    Claim(
        14,
        "norms tell difficulty: amplification grows with the level",
        "figure",
        verdicts.difficulty,
    ),
    Claim(
        15,
        "ALRR, ERSS and LRS raise accuracy without training",
        "+4.51 points on average, up to 9.13 on AIME",
        verdicts.methods,
    ),
)


CLAIM_VERDICTS = Schema(
    "claims",
    "Analysis.claims",
    (
        Column("number", int, "from 1"),
        Column("claim", str, "in our words"),
        Column("paper", str, "the paper's own figure"),
        Column("measured", str, "in words; empty where it could not be"),
        Column("interval", str, "95%"),
        Column("control", str, "what was measured of controls"),
        N,
        Column("verdict", str, '"supported", "not supported" or "can\'t be tested here"'),
        Column("why", str, "the rule, or why it can't be tested"),
    ),
)


def claims_table(tables: Tables, notes: Mapping[str, str]) -> pd.DataFrame:
    """One entry per claim: number, claim, paper, measured, interval, control, n (prompts), verdict, why.

    Args:
        tables: of an `Analysis`, by name.
        notes: why a table is not there.
    """
    entries = []
    for claim in CLAIMS:
        try:
            finding = claim.rule(Known(tables, notes))
        except Missing as reason:
            finding = Finding(why=str(reason))
        entries.append(
            {
                "number": claim.number,
                "claim": claim.text,
                "paper": claim.paper,
                "measured": finding.measured,
                "interval": finding.interval,
                "control": finding.control,
                "n": finding.n,
                "verdict": finding.verdict,
                "why": finding.why,
            }
        )
    return CLAIM_VERDICTS.frame(entries)
