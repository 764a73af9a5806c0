"""What the library asks of the things that a user hands it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that is used."""

    bos_token_id: int | None
    eos_token_id: int | None
    chat_template: Any

    def __call__(self, text: str, *, add_special_tokens: bool = ...) -> Any: ...
    def decode(self, token_ids: Any, *, skip_special_tokens: bool = ..., clean_up_tokenization_spaces: bool = ...) -> str: ...
    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any: ...
    def convert_tokens_to_ids(self, tokens: Any) -> Any: ...


@runtime_checkable
class HasTokens(Protocol):
    """A prompt that is tokenised already, such as what `chat_prompt` returns."""

    @property
    def tokens(self) -> Sequence[int]: ...


Message = Mapping[str, Any]
"""One chat message: `{"role": "user", "content": "..."}`."""
