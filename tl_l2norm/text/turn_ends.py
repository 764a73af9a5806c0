"""Tokens at which a turn of the assistant ends, beside those that a model's files name: what its chat template says."""

from __future__ import annotations

from typing import Any

from tl_l2norm.core.protocols import Message, Tokenizer

_ASKED, _THOUGHT, _SAID, _GOES_ON = "Where is it?", "Somewhere north.", "It is over there.", "And then?"
_HARMONY_ENDS, _HARMONY_CLOSER = ("<|return|>", "<|call|>"), "<|end|>"


def turn_ends(tokenizer: Tokenizer | None, known: frozenset[int]) -> frozenset[int]:
    """Tokens at which a turn ends: those `known`, the tokenizer's eos, and what its chat template closes a turn with.

    In the harmony format `<|return|>` and `<|call|>` end a turn and `<|end|>` never does: it closes each channel, the first of
    which is the thought.

    Args:
        tokenizer: a Hugging Face tokenizer; without one nothing is added.
        known: from the model's generation config.
    """
    if tokenizer is None:
        return known
    eos = getattr(tokenizer, "eos_token_id", None)
    ends = known if eos is None else known | {int(eos)}
    harmony = [_token(tokenizer, text) for text in (*_HARMONY_ENDS, _HARMONY_CLOSER)]
    if None not in harmony:
        *stops, closer = harmony
        return frozenset(end for end in (*ends, *stops) if end is not None and end != closer)
    closer = _template_closer(tokenizer, ends)
    return ends if closer is None else ends | {closer}


def _template_closer(tokenizer: Tokenizer, ends: frozenset[int]) -> int | None:
    """The special token right behind what the assistant said; None where there is none or one of `ends` closes the turn."""
    user, assistant = {"role": "user"}, {"role": "assistant"}
    last = _behind(_render(tokenizer, (user, _ASKED), (assistant, _SAID)))
    earlier = _behind(_render(tokenizer, (user, _ASKED), (assistant, _SAID), (user, _GOES_ON))).partition(_GOES_ON)[0]
    # GLM closes nothing: what its template puts next, the user's header, is where such a model stops.
    closer = next((token for text in (last, earlier) if (token := _special_at_start(tokenizer, text)) is not None), None)
    if closer is None or ends & set(_encode(tokenizer, earlier)):
        return None  # the second: a part of the turn ends here, as with <|END_RESPONSE|>, and the turn at a token that is known
    thought = {**assistant, "thinking": _THOUGHT, "reasoning_content": _THOUGHT}
    inside = _render(tokenizer, (user, _ASKED), (thought, _SAID)).partition(_THOUGHT)[2].partition(_SAID)[0]
    return None if closer in _encode(tokenizer, inside) else closer  # what ends the thought as well doesn't end the turn


def _behind(text: str) -> str:
    return text.partition(_SAID)[2]


def _render(tokenizer: Tokenizer, *turns: tuple[Message, str]) -> str:
    """The chat as its template writes it; "" where the template is missing, fails, or loses what the assistant said."""
    if not getattr(tokenizer, "chat_template", None):
        return ""
    for content in (str, _as_parts):
        messages = [{**message, "content": content(text)} for message, text in turns]
        try:
            text = str(tokenizer.apply_chat_template(messages, tokenize=False))
        except Exception:  # a template is a program of somebody else's, and this chat may be none that it takes
            continue
        if _SAID in text:
            return text
    return ""


def _as_parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


def _special_at_start(tokenizer: Tokenizer, text: str) -> int | None:
    """The token that the text begins with, white space aside, if it is one that no plain text gives; BOS begins a text."""
    ids = _encode(tokenizer, text.lstrip())
    return ids[0] if ids and ids[0] in _special_ids(tokenizer) else None


def _special_ids(tokenizer: Any) -> set[int]:
    added = {*getattr(tokenizer, "all_special_ids", ()), *getattr(tokenizer, "added_tokens_decoder", ())}
    return added - {getattr(tokenizer, "bos_token_id", None)}


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _token(tokenizer: Tokenizer, text: str) -> int | None:
    """The id of a token by its text; None where the vocabulary lacks it."""
    token = tokenizer.convert_tokens_to_ids(text)
    return None if token is None or token == getattr(tokenizer, "unk_token_id", None) else int(token)
