"""The paper's claims, one record each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from tl_l2norm.analysis.correlation import PAPER_RHO
from tl_l2norm.core.holm import holm
from tl_l2norm.core.schema import Column, N, Schema
from tl_l2norm.paper.finding import Finding, Known, Missing, Tables
from tl_l2norm.paper.rules import causes, features, norms, theory, thinking


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


PRIMARY = 0
"""Named before looking: what a user asks, and what neither mode, prompt nor length explains."""

CLAIMS = (
    Claim(
        0,
        "among thinking responses to one problem, right ones have the higher late norm (ours; the primary endpoint)",
        "",
        thinking.correctness,
    ),
    Claim(
        1,
        "reasoning features spike in the last quarter of the layers: flat, then sharp",
        "Qwen3 4B, 8B, 32B",
        features.spike,
    ),
    Claim(
        2,
        "the norm has the same two stages, and thinking is above direct at every layer",
        "Qwen3, LLaMA3",
        norms.stages,
    ),
    Claim(
        3,
        "the norm follows reasoning features, entropies don't",
        f"rho x 100: norm {PAPER_RHO['norm'][0]} to {PAPER_RHO['norm'][1]}, best entropy {PAPER_RHO['best entropy'][0]} to "
        f"{PAPER_RHO['best entropy'][1]}",
        features.link,
    ),
    Claim(
        4,
        "summed activation differences are bounded on both sides by sqrt(norm_think^2 - norm_direct^2)",
        "theorem",
        theory.theorem,
    ),
    Claim(
        5,
        "A1: decoder directions are nearly orthogonal",
        "mean cosine < 0.02 in all layers",
        theory.assumption("A1", "A1 co-active"),
    ),
    Claim(
        6,
        "A2: the SAE's reconstruction is faithful",
        "R2 > 0.95, residual < 5%",
        theory.assumption("A2 R2", "A2 residual", "A2 gap"),
    ),
    Claim(
        7,
        "A3: semantic and reasoning parts are nearly orthogonal",
        "cosine < 0.1",
        theory.assumption("A3"),
    ),
    Claim(
        8,
        "A4: the two are active on different tokens",
        "overlap < 3%",
        theory.assumption("A4"),
    ),
    Claim(
        9, "the loss pulls hardest where the true token is improbable, and norms record the pull", "argument", causes.pressure
    ),
    Claim(
        10,
        "thinking tokens have the highest norms",
        "heat map of layer 34",
        norms.thinking_tokens,
    ),
    Claim(
        11,
        "training shapes the rise: sharp after RL, gradual after SFT",
        "Qwen3 against LLaMA3",
        norms.training,
    ),
    Claim(
        12,
        "suppressing high-norm tokens breaks reasoning, random ones don't",
        "Qwen3-14B curve",
        causes.suppression,
    ),
    Claim(
        13,
        "norms tell the task's domain",
        "figure",
        norms.domain,
    ),
    Claim(
        14,
        "norms tell difficulty: amplification grows with the level",
        "figure",
        norms.difficulty,
    ),
    Claim(
        15,
        "ALRR, ERSS and LRS raise accuracy without training",
        "+4.51 points on average, up to 9.13 on AIME",
        causes.methods,
    ),
    Claim(16, "the answer hangs on the tokens of the highest norm (ours)", "", thinking.importance),
    Claim(17, "a model's own thought is louder than other text of its length in its place (ours)", "", thinking.thoughts),
)


CLAIM_VERDICTS = Schema(
    "claims",
    "Analysis.claims",
    (
        Column("number", int, "the paper's from 1 to 15; 0, the primary endpoint, and those from 16 on are ours"),
        Column("claim", str, "in our words"),
        Column("paper", str, "the paper's own figure"),
        Column("measured", str, "in words; empty where it could not be"),
        Column("interval", str, "95%"),
        Column("control", str, "what was measured of controls"),
        N,
        Column("p", float, "the greatest of the claim's parts, each as its table says; NaN where there is no verdict"),
        Column("p_adjusted", float, "the same for the primary endpoint, by Holm over all the others"),
        Column("verdict", str, "supported, not supported, uninformative, can't be tested here, or described"),
        Column("why", str, "the rule, or why it can't be tested"),
        Column("unmet", str, "what of the rule is not met, of a claim that was tested and is not supported"),
    ),
)


def claims_table(tables: Tables, notes: Mapping[str, str]) -> pd.DataFrame:
    """One entry per claim: number, claim, paper, measured, interval, control, n (prompts), p, p_adjusted, verdict, why, unmet.

    The primary endpoint (number 0) is tested alone, the others by Holm's procedure together: where none is true, one in twenty
    tables says of any of them that it is supported.

    Args:
        tables: of an `Analysis`, by name.
        notes: why a table is not there.

    Raises:
        InputError: tables that no analysis makes (several analyses' entries, one twice, a p-value of -1), by name.
    """
    known = Known(tables, notes)
    findings = [_judged(claim, known) for claim in CLAIMS]
    adjusted = adjust([claim.number for claim in CLAIMS], [finding.p for finding in findings])
    return CLAIM_VERDICTS.frame(
        {
            "number": claim.number,
            "claim": claim.text,
            "paper": claim.paper,
            "measured": finding.measured,
            "interval": finding.interval,
            "control": finding.control,
            "n": finding.n,
            "p": finding.p,
            "p_adjusted": p,
            "verdict": finding.verdict(p),
            "why": finding.reason(p),
            "unmet": finding.unmet(p),
        }
        for claim, finding, p in zip(CLAIMS, findings, adjusted, strict=True)
    )


def _judged(claim: Claim, known: Known) -> Finding:
    try:
        return claim.rule(known)
    except Missing as reason:
        return Finding(why=str(reason))
    except KeyError as missing:  # of a table that was filtered
        return Finding(why=f"its tables lack the entry {missing}")


def adjust(numbers: Sequence[int], p_values: Sequence[float]) -> list[float]:
    """p-values as they count: the primary endpoint's own, the others' by Holm; NaN stays out of the count."""
    p = np.array(p_values, dtype=np.float64)
    others = ~np.isnan(p) & (np.array(numbers) != PRIMARY)
    if others.any():
        p[others] = holm(p[others])
    return [float(x) for x in p]
