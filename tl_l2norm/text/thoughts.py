"""Thoughts in the text of a response: the tags and channels that mark them, and what stands outside.

A thought stands between two tags (`THINK_TAGS`) or in a channel of its own (gpt-oss, Gemma 4). Its beginning may be the
prompt's: templates of models that always think open it there, and a response that is cut off inside it holds no tag at all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

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


class Kind(NamedTuple):
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


def _tagged(opening: str, closing: str) -> Kind:
    if opening == "<think>":  # as Qwen3's template writes it
        ends = f"\n\n{closing}\n\n"
    else:
        ends = closing if opening.startswith(("[", "<|")) else f"\n{closing}\n"
    return Kind(re.escape(opening), re.escape(closing), (opening, closing), ends, opening + ends)


_HEADER = r"(?:<\|end\|>)?(?:<\|start\|>assistant[^<]*)?<\|channel\|>\s*"
KINDS = (
    *(_tagged(*pair) for pair in THINK_TAGS),
    Kind(  # gpt-oss: every channel but "final" comes before the answer
        opens=rf"{_HEADER}(?!final\b)[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>",
        closes=rf"{_HEADER}final[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>",
        marks=("<|channel|>", "<|message|>", "<|start|>", "<|end|>"),
        closing="<|end|><|start|>assistant<|channel|>final<|message|>",
        empty="<|channel|>final<|message|>",
    ),
    Kind(  # Gemma 4
        opens=r"<\|channel>(?:thought|analysis)?\n?",
        closes=r"<channel\|>",
        marks=("<|channel>", "<channel|>"),
        closing="<channel|>",
        empty="<|channel>thought\n<channel|>",
    ),
)
_CHANNELS = len(THINK_TAGS)
"""The kind whose thoughts are of several messages."""
OTHER_SPEAKER = re.compile(r"<\|start\|>(?!assistant)")
"""Where a message begins that isn't the assistant's, in the format with channels."""
_TAG = re.compile("|".join(f"(?P<o{i}>{kind.opens})|(?P<c{i}>{kind.closes})" for i, kind in enumerate(KINDS)))
_QUOTES = "`\"'“”‘’"
_BEFORE_A_QUOTE = " \t\n([{"
_IN_BRACKETS = " \t,.;:?!)"
_NAMED_BEFORE = re.compile(
    r"\b(?:the|not|tags?|tokens?|called|named|and|or|of|into?|inside|with(?:in)?|between|by|us(?:e|es|ing)|writ(?:e|es|ing))\s+$",
    re.IGNORECASE,
)
_NAMED_BEHIND = re.compile(
    rf"[,.;:?!)](?:\s|$)|\s+(?:tags?|tokens?|blocks?|sections?|elements?|markers?)\b|\s+(?:and|or|to)\s+[`\"'“‘]?(?:{_TAG.pattern})",
    re.IGNORECASE,
)


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
        """The reading of the text's first `end` characters."""
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
            elif tag.kind == kind == _CHANNELS and (certain or not _is_quoted(text, tag)):  # a further message
                thoughts.append(Thought(kind, start, inner, tag.start, tag.start))
                start, inner = tag.start, tag.end
        elif not certain and _is_mentioned(text, tag):
            continue
        elif tag.opens:
            kind, start, inner = tag.kind, tag.start, tag.end
        elif not thoughts or thoughts[-1].kind == tag.kind:  # a stray one of another kind ends nothing
            thoughts = [Thought(tag.kind, 0, 0, tag.start, tag.end)]
    if kind is not None:
        ends = len(text.removesuffix("<|end|>")) if kind == _CHANNELS else len(text)
        thoughts.append(Thought(kind, start, inner, max(inner, ends), len(text)))
    return Reading(text, tuple(thoughts), kind)


def tags(text: str) -> Iterator[Tag]:
    """Everything in a text that looks like a tag."""
    for match in _TAG.finditer(text):
        group = str(match.lastgroup)
        yield Tag(int(group[1:]), group[0] == "o", *match.span())


def close(text: str, kind: int) -> str:
    """A text that ends inside a thought of this kind, with the thought closed."""
    return text.rstrip() + KINDS[kind].closing


def empty_thought(kind: int) -> str:
    """A thought of this kind in which nothing is thought."""
    return KINDS[kind].empty


def _is_quoted(text: str, tag: Tag) -> bool:
    """Whether quotation marks open before a tag and close behind it; a quotation that ends before it doesn't count."""
    before, after = text[: tag.start][-2:], text[tag.end : tag.end + 1]
    return bool(before and after) and before[-1] in _QUOTES and after in _QUOTES and before[:-1].strip(_BEFORE_A_QUOTE) == ""


def _is_mentioned(text: str, tag: Tag) -> bool:
    """Whether a sentence speaks of a tag: in a quotation or brackets, before punctuation or "tag", behind a word that ends no
    sentence, or joined to another tag. Where none of these says so, it is real: no answer is better than a wrong one.
    """
    before, behind = text[: tag.start], text[tag.end :]
    if not before.strip():
        return False
    if {before[-1], behind[:1]} & set(_QUOTES) and _in_quotation(before, behind):
        return True
    if before[-1] == "(":
        return behind == "" or behind[0] in _IN_BRACKETS
    if before[-1] not in " \t" or behind.startswith("\n"):
        return False
    return bool(_NAMED_BEFORE.search(before[-60:]) or _NAMED_BEHIND.match(behind[:60]))


def _in_quotation(before: str, behind: str) -> bool:
    """Whether a quotation that begins on this line is open between the two."""
    line = before.rpartition("\n")[2]
    mark = line[-1] if line and line[-1] in _QUOTES else behind[:1]
    pair = {"“": "“”", "”": "“”", "‘": "‘’", "’": "‘’"}.get(mark)
    return line.count(pair[0]) > line.count(pair[1]) if pair else line.count(mark) % 2 == 1


def segments_of(reading: Reading, texts: Sequence[str]) -> tuple[str, ...]:
    """Segment of each token of a response: "think" where it reaches into a thought, else "answer"."""
    spans = [(thought.start, thought.end) for thought in reading.thoughts]
    if reading.unclosed is not None:
        spans[-1] = (spans[-1][0], len(reading.text) + 1)  # tokens without text at the end belong to it
    segments, start, at = [], 0, 0
    for text in texts:
        end = start + len(text)
        while at < len(spans) and spans[at][1] <= start:
            at += 1
        inside = at < len(spans) and (end > spans[at][0] or start == end == spans[at][0])
        segments.append("think" if inside else "answer")
        start = end
    return tuple(segments)
