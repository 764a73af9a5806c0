"""Stages about thinking itself: right and wrong samples of a problem, single tokens, other text in a thought's place."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol, runtime_checkable

import pandas as pd

from tl_l2norm.analysis.correctness import correctness_effect
from tl_l2norm.analysis.importance import importance_table
from tl_l2norm.analysis.sample_norms import correctness_samples
from tl_l2norm.analysis.thought_texts import difficulty_at_length, thought_text_table
from tl_l2norm.paper.options import Options
from tl_l2norm.paper.readings import Readings
from tl_l2norm.tasks.results import Result


@runtime_checkable
class Study(Protocol):
    """What a stage reads, and where it puts its tables."""

    options: Options
    readings: Readings
    results: tuple[Result, ...]
    tables: dict[str, pd.DataFrame]
    notes: dict[str, str]
    seed: int

    def add(self, name: str, make: Callable[[], pd.DataFrame], *, of: str | None = None) -> None:
        """A table, or why it can't be made."""


def thinking_stages(study: Study) -> dict[str, Callable[[], None]]:
    """By the name that the progress bar shows; what was left out is noted."""
    stages = {"samples": _samples, "importance": _importance, "other thoughts": _thoughts}
    return {name: partial(stage, study) for name, stage in stages.items()}


def _samples(study: Study) -> None:
    """Several samples of each problem: do norms tell the right ones?"""
    if not study.options.samples:
        study.notes["samples"] = "several samples of each problem were left out (samples=0)"
        return
    study.add("samples", lambda: correctness_samples(study.readings.samples()))
    study.add("correctness", lambda: correctness_effect(study.tables["samples"], seed=study.seed), of="samples")


def _importance(study: Study) -> None:
    """Single tokens swapped: do norms tell those that the answer hangs on?"""
    if not study.options.swapped_tokens:
        study.notes["importance"] = "the swap of single tokens was left out (swapped_tokens=0)"
        return
    study.add("importance", lambda: importance_table(study.readings.importances(study.results), seed=study.seed))


def _thoughts(study: Study) -> None:
    """Other text in place of thoughts, and levels at equal length: what of the norm is left without this reasoning?"""
    study.add("thought_texts", lambda: thought_text_table(study.readings.replaced(study.results), seed=study.seed))
    think = [result.trace for result in study.results if result.mode == "think"]
    study.add("levels_at_length", lambda: difficulty_at_length(think, seed=study.seed))
