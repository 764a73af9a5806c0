"""Render messages by a tokenizer's chat template, and see that it leaves none of them out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from jinja2 import TemplateError

from tl_l2norm.core.arguments import check_text
from tl_l2norm.core.errors import InputError
from tl_l2norm.core.protocols import Message, Tokenizer
from tl_l2norm.text.thoughts import read

_SWITCHES = re.compile(r"/(?:no_?think|think|system_override)\b")
"""Words that templates take out of what is said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rendering:
    """How a template is asked for a chat."""

    prompt: bool
    is_open: bool
    variables: Mapping[str, object]


def render(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    prompt: bool = False,
    is_open: bool = False,
    variables: Mapping[str, object] = MappingProxyType({}),
) -> str:
    """The text of these messages. Those whose content the template reads in parts alone get it in parts.

    Args:
        tokenizer: with a chat template.
        messages: of one chat.
        prompt: whether the header of the assistant's next turn follows.
        is_open: whether the last message goes on, so that nothing ends it.
        variables: what else the template is told, such as {"enable_thinking": False}.

    Raises:
        ValueError: the template refuses the messages, or leaves out what one of them says.
    """
    how = _Rendering(prompt=prompt, is_open=is_open, variables=variables)
    text = _apply(tokenizer, messages, how)
    lost = _left_out(tokenizer, messages, how)
    if not lost:
        return text
    first = min(lost)
    role, said = messages[first].get("role"), messages[first].get("content") or _called(messages[first])
    refusal = InputError(
        f"the chat template leaves out what the {role} says (message {first}, {said!r:.60}): render the prompt yourself and "
        f"give it as text{', or say it in a message that the template has' if role != 'user' else ''}"
    )
    parts = [_in_parts(message) if i in lost else message for i, message in enumerate(messages)]
    try:
        text, lost = _apply(tokenizer, parts, how), _left_out(tokenizer, parts, how)
    except InputError:
        raise refusal from None
    if lost:
        raise refusal
    return text


def _apply(tokenizer: Tokenizer, messages: Sequence[Message], how: _Rendering) -> str:
    try:
        ends = {"continue_final_message": True} if how.is_open else {"add_generation_prompt": how.prompt}
        text = str(tokenizer.apply_chat_template(list(messages), tokenize=False, **ends, **how.variables))
    except TemplateError as error:
        raise InputError(
            f"the chat template refuses these messages: {error}. Some want a system message (system=...), or user and "
            "assistant in turn"
        ) from error
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"the chat template can't render these messages: {error}") from error
    check_text("the chat", text)
    return text


def _left_out(tokenizer: Tokenizer, messages: Sequence[Message], how: _Rendering) -> set[int]:
    """Which messages the template leaves out, or an end of which. Marks around what is said show it, however the template
    escapes, trims or orders it. Thoughts are the template's own matter: those of earlier turns are dropped on purpose.
    """
    marks = [_marks(i, message) for i, message in enumerate(messages)]
    probe = [_marked(message, *own) if own else message for message, own in zip(messages, marks, strict=True)]
    text = _apply(tokenizer, probe, how).casefold()
    return {i for i, own in enumerate(marks) if not _holds(text, messages[i], own)}


def _holds(text: str, message: Message, marks: Sequence[str]) -> bool:
    if not all(mark in text for mark in (*marks, *map(str.casefold, _called(message)))):
        return False
    in_parts = bool(marks) and not isinstance(message["content"], str)
    return not (in_parts and re.search(rf"{marks[-1]}['\"]\s*\}}", text))  # printed as the list that they are


def _marks(index: int, message: Message) -> tuple[str, str] | tuple[()]:
    """Words to stand before and behind what a message says; the first is "" where a thought comes before it."""
    said = _text(message)
    if not _SWITCHES.sub("", said).strip():
        return ()
    thinks = message.get("role") == "assistant" and bool(read(said).thoughts)
    return "" if thinks else f"zqb{index}x", f"zqe{index}x"


def _marked(message: Message, before: str, behind: str) -> Message:
    said = f"{before} {_text(message)} {behind}".strip()
    return {**message, "content": said if isinstance(message["content"], str) else [{"type": "text", "text": said}]}


def _text(message: Message) -> str:
    content = message.get("content")
    return content if isinstance(content, str) else "".join(part["text"] for part in content or ())


def _called(message: Message) -> list[str]:
    """Names of the tools that a message calls."""
    calls = [call.get("function", call) for call in message.get("tool_calls") or () if isinstance(call, Mapping)]
    return [str(call["name"]) for call in calls if isinstance(call, Mapping) and "name" in call]


def _in_parts(message: Message) -> Message:
    content = message.get("content")
    return {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else message
