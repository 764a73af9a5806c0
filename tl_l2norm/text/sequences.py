"""What a user may hand over as a sequence, turned into tokens and segments."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from jinja2 import TemplateError
from torch import Tensor

from tl_l2norm.core.arguments import OnePerRow, as_integers, check_flag, check_text
from tl_l2norm.core.errors import InputError, InputTypeError
from tl_l2norm.core.protocols import HasTokens, Message, Tokenizer, TokenReader
from tl_l2norm.core.trace import SEGMENTS
from tl_l2norm.text.boundaries import Boundaries
from tl_l2norm.text.chat_template import render
from tl_l2norm.text.inputs import SequenceLike, as_list, chat_messages, ids_of, why_not
from tl_l2norm.text.thoughts import read, tags

_TO_COME = "What is to come."


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSequence:
    """One tokenised sequence."""

    tokens: tuple[int, ...]
    prompt_len: int
    segments: tuple[str, ...]
    texts: tuple[str, ...] | None = None
    """[pos] what each token adds to the text, where that was needed already."""
    seed: int | None = None
    """Key of its random draws, where the item that was given has one."""
    sink_ratio: float | None = None
    """Of the run that it comes from, where the item that was given says so."""

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.tokens)


def tokenize(
    reader: TokenReader,
    sequences: SequenceLike | Iterable[SequenceLike],
    *,
    prepend_bos: bool | None = None,
    prompt_lens: OnePerRow | None = None,
    segments: Sequence[Sequence[str]] | None = None,
    continues: bool = False,
) -> list[TokenSequence]:
    """Tokenise and check every sequence.

    A plain text gets the special tokens that the model's tokenizer adds to it (TransformerLens turns BOS on where the tokenizer
    can), or exactly BOS or none with `prepend_bos`; one that begins with BOS gets no second. Chat templates hold their own, and
    token ids are taken as they are.

    Args:
        reader: what the tokens are for, such as a model's backend.
        sequences: one or several.
        prepend_bos: for plain texts.
        prompt_lens: where each response begins, counted without padding.
        segments: of each position, instead of the former.
        continues: whether an assistant's last message is the beginning of what comes: it is left open, and all of it is prompt.

    Raises:
        ValueError: an empty sequence, one longer than the context, a token outside the vocabulary, lists of other lengths.
        TypeError: something that is not a sequence.
    """
    check_flag("prepend_bos", prepend_bos, optional=True)
    items = as_list(sequences, reader.tokenizer)
    starts = None if prompt_lens is None else as_integers("prompt_lens", prompt_lens)
    if segments is not None and not _is_nested(segments):
        raise InputTypeError("segments are given by position, one list for each sequence: [['prompt', 'answer'], ...]")
    for name, given in (("prompt_lens", starts), ("segments", segments)):
        if given is not None and len(given) != len(items):
            raise InputError(f"{name} has {len(given)} entries for {len(items)} sequences")
    boundaries, placed = Boundaries(reader.tokenizer), starts is not None or segments is not None
    tokenized = []
    for i, item in enumerate(items):
        try:
            tokens, prompt_len = _encode(reader.tokenizer, item, prepend_bos, continues, placed)
            _check_tokens(reader, tokens)
            if segments is not None:
                one = _given(tokens, tuple(segments[i]))
            else:
                one = _find(boundaries, tokens, starts[i] if starts is not None else prompt_len, _unread(item))
            tokenized.append(_with_origin(one, item))
        except InputError as error:
            raise type(error)(f"sequence {i}: {error}") from error
    return tokenized


def _unread(item: Any) -> list[int]:
    """The last token of a completion, which has no state and may yet be the tag that ends its thinking."""
    return ids_of(item.tokens)[-1:] if getattr(item, "prompt_tokens", None) is not None else []


def _with_origin(sequence: TokenSequence, item: Any) -> TokenSequence:
    """With seed and sink ratio of the trace, or of the completion with a trace, that it was read from."""
    source = getattr(item, "provenance", item)
    recorded = getattr(getattr(item, "trace", None), "provenance", source)
    seed, sink_ratio = getattr(source, "seed", None), getattr(recorded, "sink_ratio", None)
    return dataclasses.replace(sequence, seed=seed, sink_ratio=sink_ratio)


def token_texts(tokenizer: Tokenizer | None, tokens: Sequence[int]) -> tuple[str, ...]:
    """The text that each token adds. A token that leaves a character unfinished adds none: the last of its bytes shows it."""
    return tuple(map(TokenSpeller(tokenizer).add, tokens))


class TokenSpeller:
    """Says what each token adds to the text, one token after another."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer
        self._open: list[int] = []
        """Tokens that decide how the next are decoded: those of the last text, and those that end no character yet."""
        self._n_said = 0
        """Tokens of them whose text was given."""

    def add(self, token: int) -> str:
        """What this token adds, as `token_texts` has it."""
        if self._tokenizer is None:
            return str(token)
        self._open.append(token)
        before, after = decode(self._tokenizer, self._open[: self._n_said]), decode(self._tokenizer, self._open)
        if after.endswith("\ufffd"):
            return ""
        self._open = self._open[self._n_said :]
        self._n_said = len(self._open)
        return after[len(before) :]


def decode(tokenizer: Tokenizer, tokens: Sequence[int], *, skip_special_tokens: bool = False) -> str:
    """Text of tokens, exactly: no cleaning of spaces."""
    return tokenizer.decode(list(tokens), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False)


def batches_by_length(items: Sequence[TokenSequence], batch_size: int) -> list[list[int]]:
    """Batches of indices of like length, the longest first: a lack of memory shows at once."""
    order = sorted(range(len(items)), key=lambda i: -len(items[i]))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def pad_left(
    sequences: Sequence[Sequence[int]], device: torch.device
) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
    """Tokens and mask of a left-padded batch; the padding token is a repeat of a real one and masked."""
    width = max(map(len, sequences))
    tokens = torch.tensor([[s[0]] * (width - len(s)) + list(s) for s in sequences], device=device)
    mask = torch.tensor([[0] * (width - len(s)) + [1] * len(s) for s in sequences], device=device)
    return tokens, mask


def _encode(
    tokenizer: Tokenizer | None, item: SequenceLike, prepend_bos: bool | None, continues: bool, placed: bool
) -> tuple[list[int], int | None]:
    """Token ids, and where the prompt ends if the item itself says so."""
    if isinstance(item, str):
        if tokenizer is None:
            raise InputError("the model has no tokenizer: give token ids instead of text")
        return _encode_text(tokenizer, item, prepend_bos), None
    if isinstance(item, HasTokens):
        tokens = ids_of(item.tokens)
        prompt = getattr(item, "prompt_tokens", None)  # a Completion's tokens are those of the response, the last never read
        return (tokens, getattr(item, "prompt_len", None)) if prompt is None else ([*prompt, *tokens[:-1]], len(prompt))
    if isinstance(item, Tensor | np.ndarray):
        ids = item[0] if item.ndim == 2 and len(item) == 1 else item
        if ids.ndim != 1 or (isinstance(ids, Tensor) and ids.is_floating_point()):
            raise InputTypeError(
                f"a tensor of token ids is one-dimensional and integer, got {item.dtype} of shape {tuple(item.shape)}"
            )
        return ids_of(ids), None
    if reason := why_not(item):
        raise InputTypeError(reason)
    values: list[Any] = list(item)
    if values and all(isinstance(value, Mapping) for value in values):
        if tokenizer is None:
            raise InputError("the model has no tokenizer: give token ids instead of chat messages")
        return _encode_chat(tokenizer, chat_messages(values), continues, placed)
    return ids_of(values), None


def _encode_text(tokenizer: Tokenizer, text: str, prepend_bos: bool | None) -> list[int]:
    if not text:
        raise InputError("the prompt is empty")
    check_text("the text", text)
    ids = list(tokenizer(text, add_special_tokens=False).input_ids)
    bos = tokenizer.bos_token_id
    begun = bos is not None and ids[:1] == [bos]  # a rendered chat begins with it: no second one
    if prepend_bos is None:
        whole = list(tokenizer(text).input_ids)
        return whole[1:] if begun and whole[: len(ids) + 1] == [bos, *ids] else whole
    if prepend_bos and bos is None:
        raise InputError("prepend_bos=True, but the tokenizer has no BOS token")
    return [int(bos), *ids] if prepend_bos and not begun else ids  # type: ignore[arg-type]


def _encode_chat(tokenizer: Tokenizer, messages: list[Message], continues: bool, placed: bool) -> tuple[list[int], int | None]:
    if getattr(tokenizer, "chat_template", None) is None:
        raise InputError(
            "the tokenizer has no chat template: give the prompt as plain text, or set model.tokenizer.chat_template"
        )

    def encode(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False).input_ids)

    last = messages[-1]
    if last.get("role") != "assistant":
        return encode(render(tokenizer, messages, prompt=True)), None
    whole = _continued(tokenizer, messages) if continues else render(tokenizer, messages)
    _refuse_lost_thought(last, whole)
    tokens = encode(whole)
    if continues or placed:
        return tokens, None
    start = _response_starts_at(tokenizer, messages, whole)
    if start is None:
        raise InputError(
            "the chat template doesn't show where the last assistant's message begins: say it in tokens, prompt_lens=[...], or "
            "give the segments of each position, segments=[[...]]"
        )
    return tokens, _position(token_texts(tokenizer, tokens), start)


def _response_starts_at(tokenizer: Tokenizer, messages: list[Message], whole: str) -> int | None:
    """Where the last message's turn begins in the rendered chat: behind the prompt, else where other words change the chat."""
    *before, last = messages
    if not before:
        raise InputError("a chat of an assistant's message alone has no prompt: begin it with what the user says")
    prompt = render(tokenizer, before, prompt=True)
    if (start := Boundaries(tokenizer).response_starts_at(whole, prompt)) is not None:
        return start
    words = ("Apples.", "Zebras.")
    others = [[*before, {"role": last["role"], "content": word}] for word in words]
    texts = [whole, *(render(tokenizer, chat) for chat in others)]
    start = next((i for i, characters in enumerate(zip(*texts, strict=False)) if len(set(characters)) > 1), len(whole))
    behind = squeezed(whole[start:])
    said = [squeezed(text) for text in (*_thoughts(last), str(last.get("content") or ""))]
    begins = any(text and behind.startswith(text) for text in said) or any(tag.start == 0 for tag in tags(behind))
    once = all(text.count(word) == 1 for word, text in zip(words, texts[1:], strict=True))
    return start if begins and once else None  # else the template changes more than this message


def squeezed(text: str) -> str:
    """Without white space: templates may trim and wrap what is said."""
    return "".join(text.split())


def _thoughts(message: Message) -> list[str]:
    """What a message thinks: under the names that templates have for it, and within its content."""
    thoughts = [str(message.get(name) or "") for name in ("reasoning_content", "reasoning", "thinking")]
    if isinstance(content := message.get("content"), str):
        thoughts += [content[thought.inner_start : thought.inner_end] for thought in read(content).thoughts]
    return [thought.strip() for thought in thoughts if thought.strip()]


def _refuse_lost_thought(message: Message, rendered: str) -> None:
    """Templates drop the thoughts of earlier turns, some of the last one too: its norms would be of another text."""
    if lost := [thought for thought in _thoughts(message) if thought not in rendered]:
        raise InputError(
            f"the chat template leaves out what the last assistant's message thinks ({lost[0]!r:.60}): give the rendered text "
            "or its token ids, with prompt_lens where they hold a response, or the message without its thought"
        )


def _position(texts: Sequence[str], character: int) -> int:
    """Position of the token that a character of the text belongs to."""
    ends = itertools.accumulate(map(len, texts))
    return next((i for i, end in enumerate(ends) if end > character), len(texts))


def _continued(tokenizer: Tokenizer, messages: list[Message]) -> str:
    """A chat whose last message, the assistant's, is left open."""
    *before, last = messages
    if last.get("tool_calls"):
        raise InputError("the assistant's last message calls a tool, which ends its turn: put the tool's result behind it")
    says = bool(str(last.get("content") or "").strip())
    if not says and not _thoughts(last):
        if not before:
            raise InputError("the prompt is empty: a chat begins with what the user says")
        return render(tokenizer, before, prompt=True)
    try:
        if says:
            return render(tokenizer, messages, is_open=True)
        chat = render(tokenizer, [*before, {**last, "content": _TO_COME}])
    except InputError as error:
        if error.__cause__ is None or isinstance(error.__cause__, TemplateError):
            raise
        raise InputError(
            f"the assistant's last message can't be continued, as the chat template changes it ({error}): give the rendered "
            "prompt as text, or leave the message out"
        ) from error
    before_it, to_come, _ = chat.rpartition(_TO_COME)
    if not to_come:
        raise InputError("the chat template changes what the assistant says, whose thought can't be continued: give it as text")
    return before_it


def _check_tokens(reader: TokenReader, tokens: Sequence[int]) -> None:
    if not tokens:
        raise InputError("the prompt is empty")
    if len(tokens) > reader.n_ctx:
        raise InputError(f"{len(tokens)} tokens are longer than the model's context of {reader.n_ctx}: shorten it")
    if min(tokens) < 0 or max(tokens) >= reader.d_vocab:
        raise InputError(f"token ids run from {min(tokens)} to {max(tokens)}, the vocabulary from 0 to {reader.d_vocab - 1}")


def _is_nested(segments: object) -> bool:
    """Whether they are lists of lists."""
    lists = [segments, *segments] if isinstance(segments, Collection) else [segments]
    return all(isinstance(own, Collection) and not isinstance(own, str) for own in lists)


def _given(tokens: list[int], segments: tuple[str, ...]) -> TokenSequence:
    if len(segments) != len(tokens):
        raise InputError(f"{len(segments)} segments for {len(tokens)} tokens")
    if unknown := set(segments) - set(SEGMENTS):
        raise InputError(f"unknown segments {sorted(unknown)}: expected {SEGMENTS}")
    prompt_len = next((i for i, segment in enumerate(segments) if segment != "prompt"), len(segments))
    if prompt_len == 0 or "prompt" in segments[prompt_len:]:
        raise InputError("the prompt is one stretch at the beginning, of at least one token")
    return TokenSequence(tokens=tuple(tokens), prompt_len=prompt_len, segments=segments)


def _find(boundaries: Boundaries, tokens: list[int], prompt_len: int | None, unread: list[int]) -> TokenSequence:
    """Where nobody says it, a response begins where the last assistant's turn begins to think; else all is prompt. What is
    thinking is told from the tokens and, behind them, those that were never read back.
    """
    if prompt_len is not None and not 1 <= prompt_len <= len(tokens):
        raise InputError(f"prompt_len is {prompt_len}, expected 1 to {len(tokens)}")
    tokenizer = boundaries.tokenizer
    if prompt_len is None and (tokenizer is None or not any(tags(decode(tokenizer, tokens)))):
        prompt_len = len(tokens)
    if prompt_len == len(tokens):
        return TokenSequence(tokens=tuple(tokens), prompt_len=prompt_len, segments=("prompt",) * prompt_len)
    n, whole = len(tokens), [*tokens, *unread]
    texts = token_texts(tokenizer, whole)
    prompt_len = prompt_len or boundaries.response_start(tokens, texts[:n]) or n
    _, segments = boundaries.read_response(whole, texts, prompt_len)
    return TokenSequence(tokens=tuple(tokens), prompt_len=prompt_len, segments=segments[:n], texts=texts[:n])
