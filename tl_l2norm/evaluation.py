"""Run problems in both modes and keep what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tl_l2norm.tasks import Problem
from tl_l2norm.trace import Trace

if TYPE_CHECKING:
    from tl_l2norm.prompts import Mode


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Result:
    """One problem, asked in one mode."""

    problem: Problem
    mode: Mode
    prompt: str
    """The rendered prompt, chat template and all."""
    response: str
    finish_reason: str
    correct: bool | None
    """None where the problem has no known answer."""
    direct: bool | None
    """Whether a direct prompt got a direct answer; None in thinking mode."""
    trace: Trace
