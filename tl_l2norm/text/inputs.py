"""What a user hands over where sequences go, taken apart: one text, chat or list of token ids for each sequence."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from tl_l2norm.core.arguments import as_integer
from tl_l2norm.core.errors import InputError, InputTypeError
from tl_l2norm.core.protocols import HasTokens, Message, Tokenizer

SequenceLike = str | Message | Sequence[Message] | Sequence[int] | Tensor | np.ndarray | HasTokens
"""A text, chat messages or one of them, token ids, a tokenizer's output (input_ids with their attention_mask), an entry of a
data set (messages, prompt or text), or anything with `.tokens` such as a `ChatPrompt`, a `Completion` or a `Trace`."""

EXPECTED = "a text, chat messages or token ids"

_RECORD_KEYS = ("messages", "prompt", "text")
_ASSISTANTS = frozenset({"assistant", "model", "bot", "chatbot", "gpt", "ai"})
"""What the assistant's role is called elsewhere: a template would take it for somebody else."""


def as_list(given: Any, tokenizer: Tokenizer | None = None) -> list[Any]:
    """Several sequences; one text, one chat, one message or one list of token ids counts as one.

    Padding goes where an attention mask says what it is.

    Raises:
        ValueError: nothing, rows of token ids that look padded, a mask that doesn't fit, a mapping that is no sequence.
        TypeError: something that holds no sequences.
    """
    if isinstance(given, Mapping):
        return _of_mapping(given, tokenizer)
    given = _own_trace(given)
    if isinstance(given, str | HasTokens):
        return [given]
    if isinstance(given, Tensor | np.ndarray) and _is_numeric(given):
        return _of_array(given, tokenizer)
    if reason := why_not(given):
        raise InputTypeError(reason)
    items = list(given)
    if not items:
        raise InputError("no sequences given")
    if all(map(_is_id, items)):
        return [[int(item) for item in items]]
    if all(map(_is_message, items)):
        return [items]
    if all(isinstance(item, list) and all(map(_is_id, item)) for item in items):
        _refuse_padded(items, tokenizer, certain=True)
    return [
        one for item in items for one in (_of_mapping(item, tokenizer) if isinstance(item, Mapping) else [_own_trace(item)])
    ]


def why_not(item: Any) -> str | None:
    """Why something can't be read as a sequence, or as several, and what to do; None if it may be one."""
    if isinstance(item, bytes | bytearray):
        return "bytes are no text: decode them, given.decode()"
    if isinstance(item, os.PathLike):
        return f"a path is no text: read the file, Path({os.fspath(item)!r}).read_text()"
    if isinstance(item, AbstractSet):
        return "a set has no order: give a list"
    if isinstance(item, pd.DataFrame):
        return f"a table holds more than sequences: give one column, such as table[{str(next(iter(item.columns), 'prompt'))!r}]"
    if hasattr(item, "question") and hasattr(item, "answer"):
        return "a problem is asked by a prompt: chat_prompt(model.tokenizer, problem.question), or run_modes(model, problems)"
    if _is_id(item):
        return f"token ids are a list, as in [{item}], got {item!r}"
    return None if isinstance(item, Iterable) else f"expected {EXPECTED}, got {item!r:.80}"


def ids_of(values: Iterable[Any]) -> list[int]:
    """Token ids as integers.

    Raises:
        TypeError: something else among them.
    """
    ids = values.tolist() if isinstance(values, Tensor | np.ndarray) else list(values)
    if not all(map(_is_id, ids)):
        odd = next(value for value in ids if not _is_id(value))
        raise InputTypeError(f"expected {EXPECTED}, got {ids!r:.80}: {odd!r:.40} is no token id")
    return [int(value) for value in ids]


def chat_messages(messages: Sequence[Any]) -> list[Message]:
    """Messages with a role and a text as content; parts of text are put together.

    Raises:
        ValueError: no role or no content; an image or another part that is no text.
    """
    return [_message(i, message) for i, message in enumerate(messages)]


def _message(index: int, message: Mapping[str, Any]) -> Message:
    if "role" not in message or not ("content" in message or message.get("tool_calls")):
        keys = ", ".join(map(repr, message)) or "nothing"
        raise InputError(f"message {index} needs 'role' and 'content', as in {{'role': 'user', 'content': ...}}, it has {keys}")
    role = message["role"]
    if not isinstance(role, str) or (role != "assistant" and role.casefold() in _ASSISTANTS):
        raise InputError(f"message {index} has the role {role!r}: a role is a text, that of the model 'assistant'")
    content = message.get("content")
    if isinstance(content, str) or (content is None and message.get("tool_calls")):
        return message
    if isinstance(content, Sequence) and content:
        return {**message, "content": "".join(_part(index, part) for part in content)}
    raise InputError(f"message {index}: its content is a text, or parts {{'type': 'text', 'text': ...}}, got {content!r:.80}")


def _part(index: int, part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and part.get("type", "text") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise InputError(f"message {index} holds a part of type {kind!r} (an image, say): only text is read, leave it out")


def _own_trace(item: Any) -> Any:
    """A result's trace; other things as they are."""
    trace = None if isinstance(item, HasTokens | Tensor | np.ndarray) else getattr(item, "trace", None)
    return trace if isinstance(trace, HasTokens) else item


def _of_mapping(given: Mapping[str, Any], tokenizer: Tokenizer | None) -> list[Any]:
    if "input_ids" in given:
        return _of_encoding(given, tokenizer)
    if _is_message(given):
        return [[given]]
    key = next((name for name in _RECORD_KEYS if name in given), None)
    if key is None:
        raise InputError(
            f"a mapping is a chat message (role, content), a tokenizer's output (input_ids, attention_mask) or a row with "
            f"{', '.join(map(repr, _RECORD_KEYS))}; this one has {', '.join(map(repr, given)) or 'nothing'}"
        )
    value = given[key]
    if isinstance(value, str):
        return [value]
    messages = list(value) if isinstance(value, Sequence | np.ndarray) else []
    if messages and all(map(_is_message, messages)):
        return [messages]
    raise InputError(
        f"{key!r} of a row is a text or chat messages, got {value!r:.80}: of a dict of columns give one, d[{key!r}]"
    )


def _of_encoding(given: Mapping[str, Any], tokenizer: Tokenizer | None) -> list[Any]:
    """Rows of a tokenizer's output without what its mask leaves out."""
    if given.get("attention_mask") is None:
        ids = given["input_ids"]
        return as_list(_lists(ids) if isinstance(ids, list) else ids, tokenizer)
    ids, mask = (_rows(given[name]) for name in ("input_ids", "attention_mask"))
    shapes = [list(map(len, rows)) for rows in (ids, mask)]
    if shapes[0] != shapes[1]:
        raise InputError(f"attention_mask has rows of {shapes[1]} entries, input_ids of {shapes[0]}: they belong together")
    return [_real(i, *pair) for i, pair in enumerate(zip(ids, mask, strict=True))]


def _real(index: int, row: list[Any], mask: list[Any]) -> list[Any]:
    kept = [i for i, real in enumerate(mask) if real]
    if kept and kept[-1] - kept[0] >= len(kept):
        raise InputError(f"attention_mask leaves out tokens within row {index}: only padding at its ends can be left out")
    return [row[i] for i in kept]


def _lists(values: Any) -> Any:
    """Arrays and tensors as lists, those inside a list too."""
    if isinstance(values, Tensor | np.ndarray):
        return values.tolist()
    return [_lists(value) for value in values] if isinstance(values, list | tuple) else values


def _rows(values: Any) -> list[list[Any]]:
    rows = _lists(values)
    return rows if rows and isinstance(rows[0], list) else [rows]


def _of_array(given: Tensor | np.ndarray, tokenizer: Tokenizer | None) -> list[Any]:
    if not _is_integer(given):
        raise InputTypeError(f"a tensor of token ids is integer, got {given.dtype} of shape {tuple(given.shape)}")
    if given.ndim not in (1, 2):
        raise InputTypeError(f"token ids are [pos] or [batch, pos], got a tensor of {given.ndim} dimensions")
    if given.ndim == 1:
        return [given.tolist()]
    rows: list[Any] = given.tolist()
    if not rows:
        raise InputError("no sequences given")
    _refuse_padded(rows, tokenizer, certain=False)
    return rows


def _is_numeric(values: Tensor | np.ndarray) -> bool:
    return isinstance(values, Tensor) or values.dtype.kind in "biufc"


def _is_integer(values: Tensor | np.ndarray) -> bool:
    if isinstance(values, np.ndarray):
        return values.dtype.kind in "iu"
    return not (values.is_floating_point() or values.is_complex() or values.dtype == torch.bool)


def _is_id(item: Any) -> bool:
    if type(item) is int:
        return True
    try:
        as_integer("", item)
    except InputTypeError:
        return False
    return True


def _is_message(item: Any) -> bool:
    """A chat message, or what should be one."""
    return isinstance(item, Mapping) and "input_ids" not in item and bool({"role", "content", "from"} & set(item))


def _refuse_padded(rows: Sequence[Sequence[int]], tokenizer: Tokenizer | None, *, certain: bool) -> None:
    """Refuse rows of one length that begin or end as padded ones do; only where it is certain, if the caller says so."""
    if len(set(map(len, rows))) > 1 or (certain and len(rows) == 1):
        return
    pad, bos, eos = (getattr(tokenizer, f"{name}_token_id", None) for name in ("pad", "bos", "eos"))
    for end, step, real in (("begins", 1, bos), ("ends", -1, eos)):
        by_pad = [_run(row[::step], pad) for row in rows] if pad is not None else [0] * len(rows)
        by_any = [_run(row[::step], row[::step][0]) if len(row) else 0 for row in rows]
        usual = 1 if pad == real else 0  # a sequence's own token that happens to be the padding's
        longest = max(range(len(rows)), key=by_pad.__getitem__)
        is_padded = by_pad[longest] > usual or (not certain and len(set(by_pad)) > 1)
        if not is_padded and not certain and max(by_any) > 1 and len(set(by_any)) > 1:
            longest, is_padded = max(range(len(rows)), key=by_any.__getitem__), True
        if is_padded:
            raise InputError(
                f"row {longest} {end} with {by_any[longest]} x token {rows[longest][::step][0]}, which looks like padding, and "
                "token ids alone don't say: give the texts, or input_ids with their attention_mask (all that the tokenizer "
                "returns), or a list of rows without padding"
            )


def _run(row: Sequence[int], token: int) -> int:
    """How often a row begins with a token."""
    return next((i for i, other in enumerate(row) if other != token), len(row))
