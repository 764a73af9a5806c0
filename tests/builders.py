"""Results of a few tokens, for what is drawn."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from tests.traces import PROVENANCE, make_trace
from tl_l2norm.core.trace import Trace
from tl_l2norm.tasks.problems import Problem
from tl_l2norm.tasks.results import Result
from tl_l2norm.text.prompts import Mode

__all__ = ["NASTY", "make_result", "make_results", "make_trace"]

NASTY = (
    "<|start|>",
    "<think>",
    "<script>alert(1)</script>",
    "</script>",
    "a<b & c",
    "<img src=x onerror=alert(2)>",
    '"><svg onload=alert(3)>',
    "line\nbreak",
    "🦊",
    "",
    "&lt;",
    "{{ 7*7 }}",
    "${alert(4)}",
    "  ",
    "\u202eright to left",
    "\x00\x1b",
)
"""Tokens that a page could take for something else; the tenth ends no character."""


def make_result(index: int, mode: Mode, *, trace: Trace | None = None, **fields: Any) -> Result:
    """The answer to problem `index`; in thinking mode norms are 1 higher at layer 0, 10 higher at layer 1."""
    higher = 1.0 if mode == "think" else 0.0
    if trace is None:
        base = [10.0 + index + higher, 12.0 + index + higher]
        norms = [[25_000.0, 9.0, *base], [25_000.0, 90.0, *(10 * norm for norm in base)]]
        trace = make_trace(["<|start|>", " ask", " an", "swer"], norms=norms, prompt_len=2, think=1 if mode == "think" else 0)
    problem = fields.get("problem") or Problem(question=f"What is {index} + 1?", answer=str(index + 1), family="sums", level=1)
    if trace.prompt_len > 1 and trace.provenance.model == PROVENANCE["model"]:  # no two problems ask the same
        last, asked = torch.tensor([trace.prompt_len - 1]), 1000 + int(problem.id[:6], 16) % 40_000  # of any vocabulary
        trace = dataclasses.replace(trace, tokens=trace.tokens.index_fill(0, last, asked))
    defaults: dict[str, Any] = {
        "problem": problem,
        "prompt": "<|start|> ask",
        "control": "instruction",
        "response": " answer",
        "answer": " answer",
        "finish_reason": "stop",
        "correct": index % 2 == 0,
        "direct": True if mode == "direct" else None,
    }
    return Result(mode=mode, trace=trace, **{**defaults, **fields})


def make_results(n: int, *modes: Mode, **fields: Any) -> list[Result]:
    """Problems 0 to n - 1 in each mode."""
    return [make_result(i, mode, **fields) for i in range(n) for mode in modes or ("think", "direct")]
