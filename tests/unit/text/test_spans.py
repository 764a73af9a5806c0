"""Where the chain of thought stands."""

from __future__ import annotations

import pytest

from tests.builders import make_trace
from tl_l2norm.text.spans import answer_start, thought_span


@pytest.mark.parametrize(
    ("tokens", "think", "answer_at", "thought"),
    [
        (["<think>", "\n", "1", "+1", "\n", "</think>", "\n", "2"], 6, 7, ["\n", "1", "+1", "\n"]),
        (["1", "+1", "</think>", "2"], 3, 3, ["1", "+1"]),  # the prompt opened it
        (["<th", "ink>", "1", "+1", "</", "think>", "2"], 6, 6, ["1", "+1"]),
        (["<think>", "1", "+1"], 3, None, ["1", "+1"]),  # cut off
        (["<think>", "</think>", "2"], 2, 2, []),
        (["One", " and", " one", ".", " The", " answer", " is", " 2"], 0, 7, ["One", " and", " one", "."]),
        (["One", " and", " one", "\n", "2"], 0, 4, ["One", " and", " one", "\n"]),
        (["The", " answer", " is", " 2"], 0, 3, []),
    ],
)
def test_it_stands_between_tags_or_before_the_answers_sentence(
    tokens: list[str], think: int, answer_at: int | None, thought: list[str]
) -> None:
    labels = {} if answer_at is None else {"answer_at": 1 + answer_at}
    trace = make_trace(["ask", *tokens], think=think, labels=labels)
    assert [trace.str_tokens[i] for i in thought_span(trace)] == thought
    assert answer_start(trace) == (None if answer_at is None else 1 + answer_at)
