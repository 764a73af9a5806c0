"""Render messages by a tokenizer's chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from tl_l2norm.core.errors import InputError
from tl_l2norm.core.protocols import Message, Tokenizer


def render(tokenizer: Tokenizer, messages: Sequence[Message], **options: Any) -> str:
    """The text of these messages. Templates that read content in parts alone get it in parts.

    Raises:
        ValueError: the template refuses the messages, or leaves out what the user says.
    """
    text = _apply(tokenizer, messages, options)
    if not _holds(text, messages):
        parts = [_in_parts(message) for message in messages]
        text = _apply(tokenizer, parts, options)
        if not _holds(text, messages):
            raise InputError("the chat template leaves out what the user says: render the prompt yourself and give it as text")
    return text


def _apply(tokenizer: Tokenizer, messages: Sequence[Message], options: dict[str, Any]) -> str:
    try:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, **options))
    except TemplateError as error:
        raise InputError(
            f"the chat template refuses these messages: {error}. Some want a system message (system=...), or user and "
            "assistant in turn"
        ) from error
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"the chat template can't render these messages: {error}") from error


def _holds(text: str, messages: Sequence[Message]) -> bool:
    """Whether the beginning of the last thing that the user says is there; templates trim it and take switches out of it."""
    said = [m["content"] for m in messages if m.get("role") == "user" and isinstance(m.get("content"), str)]
    return not said or "".join(said[-1].split())[:12] in "".join(text.split())


def _in_parts(message: Message) -> Message:
    content = message.get("content")
    return {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else message
