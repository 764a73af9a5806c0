"""What a user may hand over as a sequence, turned into tokens and segments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from tl_l2norm.errors import InputError, InputTypeError
from tl_l2norm.prompts import think_tag_ids
from tl_l2norm.protocols import HasTokens, Message, Tokenizer
from tl_l2norm.trace import SEGMENTS

if TYPE_CHECKING:
    from tl_l2norm.backends import Backend

SequenceLike = str | Sequence[Message] | Sequence[int] | Tensor | HasTokens
"""A text, chat messages, token ids, or anything with `.tokens` such as a `ChatPrompt`, a `Completion` or a `Trace`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSequence:
    """One tokenised sequence."""

    tokens: tuple[int, ...]
    prompt_len: int
    segments: tuple[str, ...]

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.tokens)


def as_list(sequences: SequenceLike | Sequence[SequenceLike]) -> list[SequenceLike]:
    """Several sequences; one text, one chat or one list of token ids counts as one."""
    if isinstance(sequences, str | HasTokens):
        return [sequences]
    if isinstance(sequences, Tensor):
        return [sequences] if sequences.ndim == 1 else list(sequences)
    items: list[Any] = list(sequences)
    if items and all(isinstance(item, int | Mapping) and not isinstance(item, bool) for item in items):
        return [items]
    if not items:
        raise InputError("no sequences given")
    return items


def tokenize(
    backend: Backend,
    sequences: SequenceLike | Sequence[SequenceLike],
    *,
    prepend_bos: bool | None = None,
    prompt_lens: Sequence[int] | None = None,
    segments: Sequence[Sequence[str]] | None = None,
) -> list[TokenSequence]:
    """Tokenise and check every sequence.

    A plain text gets the special tokens that the model's tokenizer adds to it (TransformerLens turns BOS on where the tokenizer
    can), or exactly BOS or none with `prepend_bos`. Chat templates hold their own, and token ids are taken as they are.

    Raises:
        ValueError: an empty sequence, one longer than the context, a token outside the vocabulary, lists of other lengths.
        TypeError: something that is not a sequence.
    """
    items = as_list(sequences)
    for name, given in (("prompt_lens", prompt_lens), ("segments", segments)):
        if given is not None and len(given) != len(items):
            raise InputError(f"{name} has {len(given)} entries for {len(items)} sequences")
    tags = think_tag_ids(backend.tokenizer) if backend.tokenizer is not None else None
    found = []
    for i, item in enumerate(items):
        try:
            tokens, prompt_len = _encode(backend.tokenizer, item, prepend_bos)
            _check_tokens(backend, tokens)
            if segments is not None:
                found.append(_given(tokens, tuple(segments[i])))
            else:
                prompt_len = prompt_lens[i] if prompt_lens is not None else prompt_len
                found.append(_find(tokens, prompt_len, tags))
        except (ValueError, TypeError) as error:
            raise type(error)(f"sequence {i}: {error}") from error
    return found


def find_segments(tokens: Sequence[int], prompt_len: int, tags: tuple[int, int] | None) -> tuple[str, ...]:
    """Segment of each position.

    After the prompt, thinking runs from the opening tag, or the prompt's unclosed one, through the closing tag; the rest is
    the answer.
    """
    thinking = False
    found = []
    for position, token in enumerate(tokens):
        opens, closes = tags is not None and token == tags[0], tags is not None and token == tags[1]
        thinking = thinking or opens
        found.append("prompt" if position < prompt_len else "think" if thinking else "answer")
        thinking = thinking and not closes
    return tuple(found)


def token_texts(tokenizer: Tokenizer | None, tokens: Sequence[int]) -> tuple[str, ...]:
    """The text that each token adds. A token that leaves a character unfinished adds none: the last of its bytes shows it."""
    if tokenizer is None:
        return tuple(map(str, tokens))
    texts, start, read = [], 0, 0
    for end in range(1, len(tokens) + 1):
        before, after = decode(tokenizer, tokens[start:read]), decode(tokenizer, tokens[start:end])
        if after.endswith("\ufffd"):
            texts.append("")
            continue
        texts.append(after[len(before) :])
        start, read = read, end
    return tuple(texts)


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


def _encode(tokenizer: Tokenizer | None, item: SequenceLike, prepend_bos: bool | None) -> tuple[list[int], int | None]:
    """Token ids, and where the prompt ends if the item itself says so."""
    if isinstance(item, str):
        if tokenizer is None:
            raise InputError("the model has no tokenizer: give token ids instead of text")
        return _encode_text(tokenizer, item, prepend_bos), None
    if isinstance(item, HasTokens):
        tokens = [int(token) for token in item.tokens]
        prompt = getattr(item, "prompt_tokens", None)  # a Completion's tokens are those of the response, the last never read
        return (tokens, getattr(item, "prompt_len", None)) if prompt is None else ([*prompt, *tokens[:-1]], len(prompt))
    if isinstance(item, Tensor):
        if item.ndim != 1 or item.is_floating_point():
            raise InputTypeError(
                f"a tensor of token ids is one-dimensional and integer, got {item.dtype} of shape {tuple(item.shape)}"
            )
        return item.tolist(), None
    values: list[Any] = list(item) if isinstance(item, Iterable) else [item]
    if values and all(isinstance(value, Mapping) for value in values):
        if tokenizer is None:
            raise InputError("the model has no tokenizer: give token ids instead of chat messages")
        return _encode_chat(tokenizer, values)
    if not all(hasattr(value, "__index__") and not isinstance(value, bool) for value in values):
        raise InputTypeError(f"expected a text, chat messages or token ids, got {item!r:.80}")
    return [int(value) for value in values], None


def _encode_text(tokenizer: Tokenizer, text: str, prepend_bos: bool | None) -> list[int]:
    if not text:
        raise InputError("the prompt is empty")
    if prepend_bos is None:
        return list(tokenizer(text).input_ids)
    ids = list(tokenizer(text, add_special_tokens=False).input_ids)
    if prepend_bos and tokenizer.bos_token_id is None:
        raise InputError("prepend_bos=True, but the tokenizer has no BOS token")
    return [int(tokenizer.bos_token_id), *ids] if prepend_bos else ids  # type: ignore[arg-type]


def _encode_chat(tokenizer: Tokenizer, messages: list[Message]) -> tuple[list[int], int | None]:
    if getattr(tokenizer, "chat_template", None) is None:
        raise InputError(
            "the tokenizer has no chat template: give the prompt as plain text, or set model.tokenizer.chat_template"
        )

    def render(turns: list[Message], *, prompt: bool) -> list[int]:
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt)
        return list(tokenizer(text, add_special_tokens=False).input_ids)

    if messages[-1].get("role") != "assistant":
        return render(messages, prompt=True), None
    whole, start = render(messages, prompt=False), render(messages[:-1], prompt=True)
    return whole, len(start) if whole[: len(start)] == start and len(start) < len(whole) else None


def _check_tokens(backend: Backend, tokens: Sequence[int]) -> None:
    if not tokens:
        raise InputError("the prompt is empty")
    if len(tokens) > backend.n_ctx:
        raise InputError(f"{len(tokens)} tokens are longer than the model's context of {backend.n_ctx}: shorten it")
    vocabulary = int(backend.model.cfg.d_vocab)
    if min(tokens) < 0 or max(tokens) >= vocabulary:
        raise InputError(f"token ids run from {min(tokens)} to {max(tokens)}, the vocabulary from 0 to {vocabulary - 1}")


def _given(tokens: list[int], segments: tuple[str, ...]) -> TokenSequence:
    if len(segments) != len(tokens):
        raise InputError(f"{len(segments)} segments for {len(tokens)} tokens")
    if unknown := set(segments) - set(SEGMENTS):
        raise InputError(f"unknown segments {sorted(unknown)}: expected {SEGMENTS}")
    prompt_len = next((i for i, segment in enumerate(segments) if segment != "prompt"), len(segments))
    if prompt_len == 0 or "prompt" in segments[prompt_len:]:
        raise InputError("the prompt is one stretch at the beginning, of at least one token")
    return TokenSequence(tokens=tuple(tokens), prompt_len=prompt_len, segments=segments)


def _find(tokens: list[int], prompt_len: int | None, tags: tuple[int, int] | None) -> TokenSequence:
    if prompt_len is None:  # nobody says: everything before thinking begins
        opening = tokens.index(tags[0]) if tags is not None and tags[0] in tokens else 0
        prompt_len = opening or len(tokens)
    if not 1 <= prompt_len <= len(tokens):
        raise InputError(f"prompt_len is {prompt_len}, expected 1 to {len(tokens)}")
    return TokenSequence(tokens=tuple(tokens), prompt_len=prompt_len, segments=find_segments(tokens, prompt_len, tags))
