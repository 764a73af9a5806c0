"""Where in a finished response the chain of thought stands, tags and the sentence of the answer left out."""

from __future__ import annotations

import itertools
import re

from tl_l2norm.core.errors import InputError
from tl_l2norm.core.trace import Trace
from tl_l2norm.text.thoughts import tags

_SENTENCE_END = re.compile(r"[.!?]\s+|\n")


def answer_start(trace: Trace) -> int | None:
    """Position of the answer's first token, by the label "answer_at"; None where it isn't known.

    Raises:
        ValueError: a label that is no position of the response.
    """
    if "answer_at" not in trace.labels:
        return None
    at = int(trace.labels["answer_at"])
    if not trace.prompt_len <= at < len(trace):
        raise InputError(f"answer_at is {at}, the response has positions {trace.prompt_len} to {len(trace) - 1}")
    return at


def thought_span(trace: Trace) -> range:
    """Positions of the chain of thought: what stands between the tags, several thoughts with what is between them.

    Without tags, what stands before the sentence that states the answer (before the answer where its place isn't known).
    Empty where nothing is thought.
    """
    thinking = [i for i, segment in enumerate(trace.segments) if segment == "think"]
    at = answer_start(trace)
    if thinking:
        first, stop = thinking[0], thinking[-1] + 1
        inside = list(tags("".join(trace.str_tokens[first:stop])))
        opening = max((tag.end for tag in inside[:1] if tag.opens), default=0)
        closing = min((tag.start for tag in inside[-1:] if not tag.opens), default=None)
        return _between(trace, first, stop, opening, closing)
    end = len(trace) if at is None else at
    text = "".join(trace.str_tokens[trace.prompt_len : end])
    sentences = [match.end() for match in _SENTENCE_END.finditer(text)]
    return _between(trace, trace.prompt_len, end, 0, sentences[-1] if sentences else 0)


def _between(trace: Trace, first: int, stop: int, begin: int, end: int | None) -> range:
    """Tokens of [first, stop) that lie wholly between two characters of their text."""
    texts = trace.str_tokens[first:stop]
    bounds = list(itertools.accumulate(map(len, texts), initial=0))
    limit = bounds[-1] if end is None else end
    inside = [i for i in range(len(texts)) if bounds[i] >= begin and bounds[i + 1] <= limit]
    return range(first + inside[0], first + inside[-1] + 1) if inside else range(first, first)
