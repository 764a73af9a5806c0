"""Prompts for the two modes, thinking and direct, and whether a direct answer was direct.

>>> prompt = chat_prompt(tokenizer, "What is 17 + 25?", mode="direct")
>>> prompt.answer_prefix
'The answer is'
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from tl_l2norm.errors import InputError
from tl_l2norm.protocols import Message, Tokenizer

Mode = Literal["think", "direct"]

THINK_TAGS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<reasoning>", "</reasoning>"),
    ("<thought>", "</thought>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
)
"""The pairs of tags between which models think."""

_SWITCHES = ("enable_thinking", "thinking")  # Qwen3, GLM, SmolLM3, ...; Granite, DeepSeek-V3.1, Kimi
_INSTRUCTIONS: dict[Mode, str] = {
    "think": "Think step by step, then give the final answer after 'The answer is'.",
    "direct": "Answer at once, without any explanation.",
}
ANSWER_PREFIX = "The answer is"
"""Forced beginning of a direct answer where a template has no switch."""

_TAG = "|".join(re.escape(tag) for pair in THINK_TAGS for tag in pair)
_EMPTY_THOUGHT = "|".join(rf"{re.escape(start)}\s*{re.escape(end)}" for start, end in THINK_TAGS)
_WORKING = re.compile(
    rf"""{_TAG} | \n
    | \b (?:because|since|therefore|steps?|let's|let\ us|let\ me) \b | \bfirst,
    | \d \s* [-+*/×÷−] \s* \d""",
    re.IGNORECASE | re.VERBOSE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatPrompt:
    """A question as the model reads it, rendered by its chat template."""

    question: str
    mode: Mode
    text: str
    """The exact rendered text, with `answer_prefix` at its end."""
    tokens: tuple[int, ...]
    answer_prefix: str
    """The forced beginning of the answer, "" if there is none: the whole answer is this and the response."""


def chat_prompt(tokenizer: Tokenizer, question: str, *, mode: Mode = "think", system: str | None = None) -> ChatPrompt:
    """Renders a question so that the model thinks first, or answers directly.

    A template's own switch (`enable_thinking` or `thinking`) is used where it has one. Otherwise an instruction follows
    the question, and a direct answer has its beginning forced ("The answer is"), because small models explain
    themselves whatever they are told; if the template opens a think block by itself, direct mode closes it.

    Args:
        tokenizer: A Hugging Face tokenizer with a chat template.
        question: What the user asks.
        mode: "think" or "direct".
        system: A system message; None leaves it to the template.
    """
    if mode not in get_args(Mode):
        raise InputError(f"mode is 'think' or 'direct', not {mode!r}")
    if not question.strip():
        raise InputError("the question is empty")
    if not tokenizer.chat_template:
        raise InputError(
            "the tokenizer has no chat template: set `tokenizer.chat_template`, "
            'or pass plain text, as in `l2.generate(model, ["plain text ..."])`'
        )
    text, prefix = _render_mode(tokenizer, question, mode, system)
    text += prefix
    # The template has written BOS already.
    tokens = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    return ChatPrompt(question=question, mode=mode, text=text, tokens=tokens, answer_prefix=prefix)


def _render_mode(tokenizer: Tokenizer, question: str, mode: Mode, system: str | None) -> tuple[str, str]:
    """The rendered text and the forced beginning of the answer."""
    for switch in _SWITCHES:
        # What a switch does is seen by flipping it: a name in the template may concern earlier turns only.
        texts = {m: _render(tokenizer, question, system, {switch: m == "think"}) for m in get_args(Mode)}
        if texts["think"] != texts["direct"]:
            return texts[mode], ""
    text = _render(tokenizer, f"{question}\n{_INSTRUCTIONS[mode]}", system, {})
    if mode == "think":
        return text, ""
    return _close_thought(text), ANSWER_PREFIX


def _render(tokenizer: Tokenizer, question: str, system: str | None, switches: dict[str, bool]) -> str:
    messages: list[Message] = [{"role": "user", "content": question}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **switches)
    return str(text)


def _close_thought(text: str) -> str:
    for start, end in THINK_TAGS:
        if text.rstrip().endswith(start):
            return f"{text.rstrip()}\n\n{end}\n\n"
    return text


def think_tags(tokenizer: Tokenizer) -> tuple[str, str] | None:
    """The tags that open and close thinking, each one token of the vocabulary; None where it has no such pair."""
    return next((pair for pair in THINK_TAGS if _pair_ids(tokenizer, pair)), None)


def think_tag_ids(tokenizer: Tokenizer) -> tuple[int, int] | None:
    """The token ids of `think_tags`."""
    pair = think_tags(tokenizer)
    return _pair_ids(tokenizer, pair) if pair else None


def _pair_ids(tokenizer: Tokenizer, pair: tuple[str, str]) -> tuple[int, int] | None:
    start, end = (tokenizer.convert_tokens_to_ids(tag) for tag in pair)
    missing = getattr(tokenizer, "unk_token_id", None)
    return None if missing in (start, end) else (start, end)


def is_direct(response: str, *, max_words: int = 12) -> bool:
    """Whether a response to a direct prompt is an answer and nothing else.

    Empty think blocks and surrounding white space are left out. What remains is direct if it has no thinking tag, no
    line break, at most `max_words` words, no arithmetic between two numbers ("3 + 4"), and none of "because", "since",
    "therefore", "step", "let's", "let us", "let me", "first,". An empty response holds no working: it is direct.
    """
    answer = re.sub(_EMPTY_THOUGHT, "", response).strip()
    return len(answer.split()) <= max_words and not _WORKING.search(answer)


def share_not_direct(responses: Iterable[str], *, max_words: int = 12) -> float:
    """The share of responses that are not direct (`is_direct`)."""
    direct = [is_direct(response, max_words=max_words) for response in responses]
    if not direct:
        raise InputError("no responses: the share of none is not defined")
    return direct.count(False) / len(direct)
