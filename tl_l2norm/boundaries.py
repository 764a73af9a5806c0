"""Where a response thinks and where it answers: the one reader of boundaries, for segments, verifiers and direct mode.

A thought stands between two tags (`THINK_TAGS`) or in a channel of its own (gpt-oss, Gemma 4). Its beginning may be the
prompt's: templates of models that always think open it there, and a response that is cut off inside it holds no tag at all.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from tl_l2norm.chat_template import render
from tl_l2norm.errors import InputError
from tl_l2norm.protocols import Message, Tokenizer

THINK_TAGS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<reasoning>", "</reasoning>"),
    ("<thought>", "</thought>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("◁think▷", "◁/think▷"),
    ("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"),
)
"""The pairs of tags between which models think."""


class _Kind(NamedTuple):
    """One way of marking a thought."""

    opens: str
    closes: str
    """Patterns of its beginning and its end."""
    marks: tuple[str, ...]
    """Tokens that these are made of, where the vocabulary has them."""
    closing: str
    """What is written to end a thought."""
    empty: str
    """A thought in which nothing is thought."""


def _tagged(opening: str, closing: str) -> _Kind:
    if opening == "<think>":  # as Qwen3's template writes it
        ends = f"\n\n{closing}\n\n"
    else:
        ends = closing if opening.startswith(("[", "<|")) else f"\n{closing}\n"
    return _Kind(re.escape(opening), re.escape(closing), (opening, closing), ends, opening + ends)


_HEADER = r"(?:<\|end\|>)?(?:<\|start\|>assistant[^<]*)?<\|channel\|>\s*"
_KINDS = (
    *(_tagged(*pair) for pair in THINK_TAGS),
    _Kind(  # gpt-oss: every channel but "final" comes before the answer
        opens=rf"{_HEADER}(?!final\b)[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>",
        closes=rf"{_HEADER}final[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>",
        marks=("<|channel|>", "<|message|>", "<|start|>", "<|end|>"),
        closing="<|end|><|start|>assistant<|channel|>final<|message|>",
        empty="<|channel|>final<|message|>",
    ),
    _Kind(  # Gemma 4
        opens=r"<\|channel>(?:thought|analysis)?\n?",
        closes=r"<channel\|>",
        marks=("<|channel>", "<channel|>"),
        closing="<channel|>",
        empty="<|channel>thought\n<channel|>",
    ),
)
_TAG = re.compile("|".join(f"(?P<o{i}>{kind.opens})|(?P<c{i}>{kind.closes})" for i, kind in enumerate(_KINDS)))
_QUOTES = "`\"'“”‘’"
_BEFORE_A_QUOTE = " \t\n([{"
_AROUND_A_MENTION = " \t,.;:?!)"


class Tag(NamedTuple):
    """A tag in a text."""

    kind: int
    opens: bool
    start: int
    end: int


class Thought(NamedTuple):
    """A thought in a text: from its opening tag through its closing one, and what stands between them."""

    kind: int
    start: int
    inner_start: int
    inner_end: int
    end: int


@dataclass(frozen=True, slots=True)
class Reading:
    """A response's text, and where it thinks."""

    text: str
    thoughts: tuple[Thought, ...]
    unclosed: int | None
    """The kind of the thought in which the text ends; None where it ends outside."""

    @property
    def answer(self) -> str:
        """What follows the last thought; "" where the text ends inside one."""
        if self.unclosed is not None:
            return ""
        return self.text[self.thoughts[-1].end if self.thoughts else 0 :]

    @property
    def thinking(self) -> str:
        """What was thought, tags left out."""
        return "\n".join(self.text[t.inner_start : t.inner_end] for t in self.thoughts)

    def up_to(self, end: int) -> Reading:
        """The same of the text's beginning."""
        kept = [thought for thought in self.thoughts if thought.start < end]
        ends_inside = kept and (kept[-1].end > end or (kept[-1] is self.thoughts[-1] and self.unclosed is not None))
        thoughts = tuple(t._replace(inner_end=min(t.inner_end, end), end=min(t.end, end)) for t in kept)
        return Reading(self.text[:end], thoughts, kept[-1].kind if ends_inside else None)


def read(text: str, *, opened: int | None = None, is_tag: Callable[[Tag], bool | None] = lambda tag: None) -> Reading:
    """Read a response.

    A closing tag that nothing opened ends a thought that began with the text: so write models whose prompt should have opened
    it. A tag that is quoted, or named in a sentence ("the <think> tag"), is none.

    Args:
        text: of the response.
        opened: the kind of thought that the prompt opened.
        is_tag: whether what looks like a tag is one; None where the text around it decides.
    """
    thoughts: list[Thought] = []
    kind, start, inner = opened, 0, 0
    for tag in tags(text):
        certain = is_tag(tag)
        if certain is False:
            continue
        if kind is not None:
            if tag.kind == kind and not tag.opens and (certain or not _is_quoted(text, tag)):
                thoughts.append(Thought(kind, start, inner, tag.start, tag.end))
                kind = None
        elif not certain and _is_mentioned(text, tag):
            continue
        elif tag.opens:
            kind, start, inner = tag.kind, tag.start, tag.end
        elif _ends_what_came_before(text, tag, thoughts):
            thoughts = [Thought(tag.kind, 0, 0, tag.start, tag.end)]
    if kind is not None:
        thoughts.append(Thought(kind, start, inner, len(text), len(text)))
    return Reading(text, tuple(thoughts), kind)


def _ends_what_came_before(text: str, tag: Tag, thoughts: Sequence[Thought]) -> bool:
    """Whether a closing tag that nothing opened is one: not a stray one of another kind, or at the very end."""
    return bool(text[tag.end :].strip()) and (not thoughts or thoughts[-1].kind == tag.kind)


def tags(text: str) -> Iterator[Tag]:
    """Everything in a text that looks like a tag."""
    for match in _TAG.finditer(text):
        group = str(match.lastgroup)
        yield Tag(int(group[1:]), group[0] == "o", *match.span())


def close(text: str, kind: int) -> str:
    """A text that ends inside a thought of this kind, with the thought closed."""
    return text.rstrip() + _KINDS[kind].closing


def empty_thought(kind: int) -> str:
    """A thought of this kind in which nothing is thought."""
    return _KINDS[kind].empty


def _is_quoted(text: str, tag: Tag) -> bool:
    """Whether quotation marks open before a tag and close behind it; a quotation that ends before it doesn't count."""
    before, after = text[: tag.start][-2:], text[tag.end : tag.end + 1]
    return bool(before and after) and before[-1] in _QUOTES and after in _QUOTES and before[:-1].strip(_BEFORE_A_QUOTE) == ""


def _is_mentioned(text: str, tag: Tag) -> bool:
    if not text[: tag.start].strip():
        return False
    before, after = text[tag.start - 1], text[tag.end : tag.end + 1]
    if before in _QUOTES or (after and after in _QUOTES and before != "\n"):
        return True
    return before in (" ", "\t", "(") and (after == "" or after in _AROUND_A_MENTION)


class Boundaries:
    """What a tokenizer and its chat template say of boundaries."""

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
        found: dict[str, int] = {}
        for kind in _KINDS:
            ids = {mark: self._token(mark) for mark in kind.marks}
            if ids[kind.marks[0]] in self.special_ids:
                found |= {mark: token for mark, token in ids.items() if token is not None and token in self.special_ids}
        return found

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
        for i, kind in enumerate(_KINDS):
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
        before, found, _ = chat.rpartition(_ASKED)[2].partition(_ANSWERED)
        start = self.turn_start(before)
        if not found or start is None:
            return ""
        opening = before[start:]
        return opening[max((tag.end for tag in tags(opening)), default=0) :].strip()

    def _render(self, messages: list[Message], prompt: bool) -> str | None:
        """None where the template has no such chat; some want a system message."""
        if self.tokenizer is None or not getattr(self.tokenizer, "chat_template", None):
            return None
        for chat in (messages, [{"role": "system", "content": _SYSTEM}, *messages]):
            try:
                return render(self.tokenizer, chat, add_generation_prompt=prompt)
            except InputError:
                continue
        return None

    def turn_start(self, text: str) -> int | None:
        """Where the last assistant's turn begins in a rendered text; None where its header isn't there."""
        headers = self._headers(text)
        while len(headers) > 1 and self._goes_on(text, *headers[-2:]):
            headers.pop()
        return headers[-1][1] if headers else None

    def _headers(self, text: str) -> list[tuple[int, int]]:
        """Where the header stands; tokenizers may swallow white space beside special tokens."""
        pattern = r"\s*".join(map(re.escape, self.header.split()))
        return [match.span() for match in re.finditer(pattern, text)] if pattern else []

    def _goes_on(self, text: str, before: tuple[int, int], at: tuple[int, int]) -> bool:
        """Whether a header is of a further message of the same turn: gpt-oss thinks in one and answers in another."""
        is_channel = any(tag.start <= at[0] < tag.end for tag in tags(text))
        return is_channel and read(text[before[1] : at[0]]).unclosed is not None

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

        def is_tag(tag: Tag) -> bool | None:
            marks = [mark for mark in _KINDS[tag.kind].marks if mark in self._marks]
            at = [(place, mark) for mark in marks if (place := text.find(mark, tag.start, tag.end)) >= 0]
            return all(starts.get(place) == self._marks[mark] for place, mark in at) if at else None

        text = "".join(shown)
        return read(text, opened=opened, is_tag=is_tag)

    def read_response(self, tokens: Sequence[int], texts: Sequence[str], prompt_len: int) -> tuple[Reading, tuple[str, ...]]:
        """The response of a sequence, and each position's segment: prompt, thoughts with their tags, or answer."""
        opened = self.opened("".join(texts[:prompt_len]))
        own, own_texts = tokens[prompt_len:], texts[prompt_len:]
        reading = self.read_tokens(own, own_texts, opened=opened)
        return reading, ("prompt",) * prompt_len + segments_of(reading, self.visible(own, own_texts))

    def response_start(self, tokens: Sequence[int], texts: Sequence[str]) -> int | None:
        """Position at which the last assistant's turn begins to think; None where it does not, or nothing comes before."""
        text = "".join(texts)
        first = self.turn_start(text) or 0
        ends = list(itertools.accumulate(map(len, texts)))
        turn = next((i for i, end in enumerate(ends) if end > first), len(texts))
        reading = self.read_tokens(tokens[turn:], texts[turn:])
        if not reading.thinking.strip():
            return None
        shown = list(itertools.accumulate(map(len, self.visible(tokens[turn:], texts[turn:]))))
        return turn + next(i for i, end in enumerate(shown) if end > reading.thoughts[0].start) or None


_SYSTEM, _ASKED, _ANSWERED = "You answer.", "What is asked here?", "That is answered."


def segments_of(reading: Reading, texts: Sequence[str]) -> tuple[str, ...]:
    """Segment of each token of a response: "think" where it reaches into a thought, else "answer"."""
    spans = [(thought.start, thought.end) for thought in reading.thoughts]
    if reading.unclosed is not None:
        spans[-1] = (spans[-1][0], len(reading.text) + 1)  # tokens without text at the end belong to it
    found, start, at = [], 0, 0
    for text in texts:
        end = start + len(text)
        while at < len(spans) and spans[at][1] <= start:
            at += 1
        inside = at < len(spans) and (end > spans[at][0] or start == end == spans[at][0])
        found.append("think" if inside else "answer")
        start = end
    return tuple(found)
