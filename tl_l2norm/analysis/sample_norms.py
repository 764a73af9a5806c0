"""Mean norms of several responses to each problem, and their levels beside the types of their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from tl_l2norm.analysis.curves import response_means
from tl_l2norm.analysis.pairing import require_numbers
from tl_l2norm.analysis.token_rest import response_levels
from tl_l2norm.core.errors import InputError
from tl_l2norm.core.layers import BUT_LAST, LATE, late_groups
from tl_l2norm.core.prompts import require_own_prompts
from tl_l2norm.core.resampling import Array
from tl_l2norm.core.schema import MODEL, Column, Schema
from tl_l2norm.core.trace import Trace, require_comparable
from tl_l2norm.tasks.results import Result, results_of
from tl_l2norm.tasks.verifiers import extract_answer

GIVEN_TYPES = "late given types"

SAMPLES = Schema(
    "samples",
    "correctness_samples",
    (
        Column("prompt", str, "the problem's id"),
        Column("family", str, "the problem's"),
        Column("level", int, "the problem's", optional=True),
        Column("sample", int, "number of the response to the problem, from 0"),
        Column("correct", bool, "whether it is right"),
        Column("cut_off", bool, "whether it ran into max_new_tokens or states no answer"),
        Column("length", int, "tokens of the response"),
        Column("log_prob", float, "mean log-probability of its tokens, nats"),
        Column(LATE, float, "mean norm over the response's tokens and the late layers"),
        Column(GIVEN_TYPES, float, "the same beside what the tokens' types and places add"),
        Column(BUT_LAST, float, "the same without the model's last block; NaN where that is all"),
        MODEL,
    ),
)
"""Beside these, a column for each recorded layer, by number."""


def correctness_samples(results: Result | Sequence[Result]) -> pd.DataFrame:
    """One row per response of `sample_thinking`.

    Columns: prompt, family, level, sample, correct, cut_off (it ran into max_new_tokens, or ended without stating an answer:
    wrong by construction), length (tokens of the response), log_prob (their mean log-probability, nats), then mean norms over
    the response's tokens, sinks left out: "late" (the last quarter of the layers), "late given types" (its level beside what
    the types and places of its tokens add, by least squares over the tokens of all these responses: norm = response + type +
    smooth index; so types are compared within responses, and what raises a response whole is no type's), "late but the last"
    (without the model's last block, whose output the unembedding alone reads; NaN where that is all) and one for each layer, by
    number; then model. A response of one token was never read back: its norms are NaN.

    Raises:
        ValueError: results that are not thinking, have no known answer or no label log_prob, traces that are not comparable, a
            norm that is NaN, or problems that ask the same.

    Examples:
        >>> problems = l2.make_mixture(2, families="compact")
        >>> options = {"temperature": 2.5, "max_new_tokens": 40, "progress": False}
        >>> results = l2.experiments.sample_thinking(model, problems, n=4, **options)
        >>> l2.analysis.correctness_samples(results)["sample"].tolist()
        [0, 1, 2, 3, 0, 1, 2, 3]
    """
    results = results_of(results)
    if not results:
        raise InputError("no results given")
    traces = [result.trace for result in results]
    require_comparable(traces)
    asked = [(r.problem.id, r.trace.tokens[: r.trace.prompt_len].tolist()) for r in results]
    require_own_prompts(asked)
    require_numbers(traces)
    for i, result in enumerate(results):
        if result.mode != "think":
            raise InputError(f"result {i} is of the mode {result.mode!r}: give thinking responses, from sample_thinking")
        if result.correct is None:
            raise InputError(f"the problem of result {i} has no known answer: nothing says which of its responses are right")
        if missing := [name for name in ("sample", "log_prob") if name not in result.trace.labels]:
            raise InputError(f"result {i} lacks the label {missing[0]!r} on its trace: sample with sample_thinking")
    levels = _given_types(traces)
    samples = pd.DataFrame([_entry(result, level) for result, level in zip(results, levels, strict=True)])
    return SAMPLES.check(samples)


def _given_types(traces: Sequence[Trace]) -> Array:
    """[response] Late norm beside types and places; NaN for a response of which every token is a sink at some late layer."""
    levels, parts = np.full(len(traces), np.nan), [np.zeros((4, 0))]
    for number, trace in enumerate(traces):
        rows = late_groups(trace.layers, trace.provenance.n_layers).get(LATE, [])
        at = np.flatnonzero((trace.is_response & ~trace.is_sink[rows].any(0)).numpy()) if rows else np.arange(0)
        norms = trace.l2_norms[rows].double().numpy()[:, at].sum(0) / max(len(rows), 1)
        parts.append(np.stack(np.broadcast_arrays(number, trace.tokens.numpy()[at], at - trace.prompt_len, norms)))
    facts = np.concatenate(parts, axis=1)
    if facts.size:
        number, token, index = facts[:3].astype(np.int64)
        held, response = np.unique(number, return_inverse=True)
        levels[held] = response_levels(response, token, index, facts[3])
    return levels


def _entry(result: Result, given_types: float) -> dict[Any, Any]:
    trace, means = result.trace, response_means(result.trace).double().numpy()
    groups = late_groups(trace.layers, trace.provenance.n_layers)
    return {
        "prompt": result.problem.id,
        "family": result.problem.family,
        "level": result.problem.level,
        "sample": trace.labels["sample"],
        "correct": result.correct,
        "cut_off": result.finish_reason == "length" or not (result.correct or extract_answer(result.problem, result.answer)),
        "length": len(trace) - trace.prompt_len + 1,
        "log_prob": trace.labels["log_prob"],
        **{name: means[groups[name]].mean() if name in groups else np.nan for name in (LATE, BUT_LAST)},
        GIVEN_TYPES: given_types,
        **dict(zip(trace.layers, means, strict=True)),
        "model": trace.provenance.model,
    }
