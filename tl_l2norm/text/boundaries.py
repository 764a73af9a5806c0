"""Where a response thinks and where it answers, from its tokens: the one reader of boundaries, for segments, verifiers, the
answer's place and direct mode.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from functools import cached_property

from tl_l2norm.core.errors import InputError
from tl_l2norm.core.protocols import Message, Tokenizer
from tl_l2norm.text.chat_template import render
from tl_l2norm.text.thoughts import KINDS, OTHER_SPEAKER, Reading, Tag, read, segments_of, tags

_SYSTEM, _ASKED, _ANSWERED, _ASKED_NEXT = "You answer.", "What is asked here?", "That is answered.", "And what else?"


class Boundaries:
    """Where thoughts, answers and turns begin and end, as a tokenizer and its chat template mark them."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self.tokenizer = tokenizer

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Tokens that are no text."""
        added = getattr(self.tokenizer, "added_tokens_decoder", None) or {}
        own = getattr(self.tokenizer, "all_special_ids", None) or ()
        return frozenset(own) | {token for token, named in added.items() if getattr(named, "special", False)}

    @cached_property
    def _marks(self) -> dict[str, int]:
        """Special tokens that tags of the vocabulary are made of."""
        if self.tokenizer is None:
            return {}
        marks: dict[str, int] = {}
        for kind in KINDS:
            ids = {mark: self._token(mark) for mark in kind.marks}
            if ids[kind.marks[0]] in self.special_ids:
                marks |= {mark: token for mark, token in ids.items() if token is not None and token in self.special_ids}
        return marks

    def _token(self, text: str) -> int | None:
        """The token of this name; None where the vocabulary has none."""
        assert self.tokenizer is not None
        token = self.tokenizer.convert_tokens_to_ids(text)
        return None if token is None or token == getattr(self.tokenizer, "unk_token_id", None) else int(token)

    @cached_property
    def hidden_ids(self) -> frozenset[int]:
        """Tokens that are left out of a response's text: special ones, unless they mark a thought."""
        return self.special_ids - set(self._marks.values())

    def thinks(self) -> int | None:
        """The kind of thought that the model writes, as far as tokenizer and template tell; None where they tell of none.

        Tags in a template count, and tags that are special tokens: a vocabulary is often shared with models that don't think.
        """
        template = str(getattr(self.tokenizer, "chat_template", None) or "")
        for i, kind in enumerate(KINDS):
            if kind.marks[0] in self._marks or any(mark in template for mark in kind.marks[:2]):
                return i
        return None

    @cached_property
    def header(self) -> str:
        """What the chat template writes before an assistant's turn, without a thought that it opens; "" if that isn't known."""
        user: list[Message] = [{"role": "user", "content": _ASKED}]
        bare, prompt = self._render(user, False), self._render(user, True)
        if prompt is None or _ASKED not in prompt:
            return ""
        header = prompt[len(bare) :] if bare is not None and prompt.startswith(bare) else ""
        if not header.strip():  # some templates end every chat with it, or with the user's turn
            header = prompt.rpartition(_ASKED)[2]
        first = next(tags(header), None)
        return (header if first is None else header[: first.start]).strip()

    @cached_property
    def answer_opening(self) -> str:
        """What the template writes between header and thought on the one side and an answer on the other, such as
        "<|START_RESPONSE|>".
        """
        messages: list[Message] = [{"role": "user", "content": _ASKED}, {"role": "assistant", "content": _ANSWERED}]
        chat = self._render(messages, False) or ""
        before, answered, _ = chat.rpartition(_ASKED)[2].partition(_ANSWERED)
        start = self.turn_start(before)
        if not answered or start is None:
            return ""
        opening = before[start:]
        return opening[max((tag.end for tag in tags(opening)), default=0) :].strip()

    @cached_property
    def next_turn(self) -> str:
        """What the template writes between an answer and what the user says next; "" if that isn't known."""
        messages: list[Message] = [{"role": "user", "content": _ASKED}, {"role": "assistant", "content": _ANSWERED}]
        chat = self._render([*messages, {"role": "user", "content": _ASKED_NEXT}], False) or ""
        return chat.partition(_ANSWERED)[2].rpartition(_ASKED_NEXT)[0].strip()

    def _render(self, messages: list[Message], prompt: bool) -> str | None:
        """None where the template has no such chat; some want a system message."""
        if self.tokenizer is None or not getattr(self.tokenizer, "chat_template", None):
            return None
        for chat in (messages, [{"role": "system", "content": _SYSTEM}, *messages]):
            try:
                return render(self.tokenizer, chat, prompt=prompt)
            except InputError:
                continue
        return None

    def turn_start(self, text: str) -> int | None:
        """Where the last assistant's turn begins in a rendered text; None where its header isn't there."""
        headers = _places(self.header, text)
        while len(headers) > 1 and self._goes_on(text, *headers[-2:]):
            headers.pop()
        return headers[-1][1] if headers else None

    def _goes_on(self, text: str, before: tuple[int, int], at: tuple[int, int]) -> bool:
        """Whether a header is of a further message of the same turn: gpt-oss thinks in one and answers in another."""
        is_channel = any(tag.start <= at[0] < tag.end for tag in tags(text))
        between = text[before[1] : at[0]]
        return is_channel and not OTHER_SPEAKER.search(between) and read(between).unclosed is not None

    def response_starts_at(self, chat: str, prompt: str) -> int | None:
        """Where the last assistant's turn begins in a rendered chat whose prompt alone is rendered as `prompt`; None where the
        one doesn't go on from the other. A thought that only the prompt opens (R1's) is no part of the chat.
        """
        if chat.startswith(prompt) and len(chat) > len(prompt):
            return len(prompt)
        first = next((tag for tag in tags(prompt[self.turn_start(prompt) or 0 :])), None)
        if first is None:
            return None
        bare = prompt[: (self.turn_start(prompt) or 0) + first.start]
        return len(bare) if chat.startswith(bare.rstrip()) and len(chat) > len(bare) else None

    def opened(self, prompt: str) -> int | None:
        """The kind of thought that a prompt leaves open in the assistant's turn; None where it opens none.

        Where a template's header isn't found, the turn can't be told from what the user says: only a tag at the end counts.
        """
        start = self.turn_start(prompt)
        if start is None and getattr(self.tokenizer, "chat_template", None):
            last = max(tags(prompt), key=lambda tag: tag.end, default=None)
            return last.kind if last is not None and last.opens and not prompt[last.end :].strip() else None
        return read(prompt[start or 0 :]).unclosed

    def visible(self, tokens: Sequence[int], texts: Sequence[str]) -> list[str]:
        """Texts of tokens, those that are no text left empty."""
        return ["" if token in self.hidden_ids else text for token, text in zip(tokens, texts, strict=True)]

    def read_tokens(self, tokens: Sequence[int], texts: Sequence[str], *, opened: int | None = None) -> Reading:
        """Read a response's tokens: a tag that is a special token counts as that alone, not where its letters are spelled."""
        shown = self.visible(tokens, texts)
        starts = dict(zip(itertools.accumulate(map(len, shown), initial=0), tokens, strict=False))
        return self.read_text("".join(shown), starts, opened=opened)

    def read_text(self, text: str, starts: Mapping[int, int], *, opened: int | None = None) -> Reading:
        """Read a response's text; `starts`: at which characters which tokens begin."""

        def is_tag(tag: Tag) -> bool | None:
            marks = [mark for mark in KINDS[tag.kind].marks if mark in self._marks]
            at = [(place, mark) for mark in marks if (place := text.find(mark, tag.start, tag.end)) >= 0]
            return all(starts.get(place) == self._marks[mark] for place, mark in at) if at else None

        return read(text, opened=opened, is_tag=is_tag)

    def read_response(self, tokens: Sequence[int], texts: Sequence[str], prompt_len: int) -> tuple[Reading, tuple[str, ...]]:
        """The response of a sequence, and each position's segment: prompt, thoughts with their tags, or answer."""
        opened = self.opened("".join(texts[:prompt_len]))
        own, own_texts = tokens[prompt_len:], texts[prompt_len:]
        reading = self.read_tokens(own, own_texts, opened=opened)
        return reading, ("prompt",) * prompt_len + segments_of(reading, self.visible(own, own_texts))

    def response_start(self, tokens: Sequence[int], texts: Sequence[str]) -> int | None:
        """Position at which the last assistant's turn begins to think; None where it does not, nothing comes before, or
        somebody else speaks after it.
        """
        text = "".join(texts)
        first = self.turn_start(text) or 0
        if OTHER_SPEAKER.search(text, first) or _places(self.next_turn, text[first:]):
            return None
        ends = list(itertools.accumulate(map(len, texts)))
        turn = next((i for i, end in enumerate(ends) if end > first), len(texts))
        reading = self.read_tokens(tokens[turn:], texts[turn:])
        if not reading.thinking.strip():
            return None
        shown = list(itertools.accumulate(map(len, self.visible(tokens[turn:], texts[turn:]))))
        return turn + next(i for i, end in enumerate(shown) if end > reading.thoughts[0].start) or None


def _places(header: str, text: str) -> list[tuple[int, int]]:
    """Where a header stands; tokenizers may swallow white space beside special tokens."""
    pattern = r"\s*".join(map(re.escape, header.split()))
    return [match.span() for match in re.finditer(pattern, text)] if pattern else []
