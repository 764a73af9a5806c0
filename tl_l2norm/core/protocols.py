"""What the library asks of the things that a user hands it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol, TypeGuard, runtime_checkable

import torch


@runtime_checkable
class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that is used."""

    bos_token_id: int | None
    eos_token_id: int | None
    chat_template: Any

    def __call__(self, text: str, *, add_special_tokens: bool = ...) -> Any:
        """Encode a text."""

    def decode(self, token_ids: Any, *, skip_special_tokens: bool = ..., clean_up_tokenization_spaces: bool = ...) -> str:
        """Text of token ids."""

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any:
        """Render chat messages."""

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """Ids of tokens named by their text."""


@runtime_checkable
class TokenReader(Protocol):
    """What is known of a model before any token is read."""

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The model's tokenizer, if it has one."""

    @property
    def n_ctx(self) -> int:
        """Longest sequence that the model takes."""

    @property
    def d_vocab(self) -> int:
        """Number of tokens that it tells apart."""


@runtime_checkable
class HasTokens(Protocol):
    """A prompt that is tokenised already, such as what `chat_prompt` returns."""

    @property
    def tokens(self) -> Any:
        """Token ids, as integers or a one-dimensional tensor."""


def is_several(given: object) -> TypeGuard[Iterable[Any]]:
    """Whether there are values in it to go through; an array or tensor of no dimension says that it iterates, and doesn't."""
    return isinstance(given, Iterable) and getattr(given, "ndim", None) != 0


Message = Mapping[str, Any]
"""One chat message: `{"role": "user", "content": "..."}`."""


@runtime_checkable
class SparseAutoencoder(Protocol):
    """The part of an SAE that is used: of one that `load_saes` read, or of SAELens' own."""

    cfg: Any

    @property
    def device(self) -> torch.device:
        """Where its weights are."""

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Feature activations [..., d_sae] of states [..., d_in]."""
