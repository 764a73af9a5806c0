"""Where a response ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tl_l2norm.core.arguments import as_integer, one_or_several
from tl_l2norm.core.errors import InputError
from tl_l2norm.models.backend import Backend
from tl_l2norm.text.sequences import decode


@dataclass(frozen=True, slots=True)
class Stops:
    """What ends a response: token ids, and strings."""

    ids: frozenset[int]
    strings: tuple[str, ...]
    tokenizer: Any

    @classmethod
    def of(cls, backend: Backend, stop: Any, ignore_eos: bool) -> Stops:
        """Those that a user gives, and unless they are ignored the ends of the model's turn."""
        given = list(one_or_several(stop, str))
        strings = tuple(s for s in given if isinstance(s, str))
        if "" in strings:
            raise InputError("a stop string is empty: it would end every response at once")
        if strings and backend.tokenizer is None:
            raise InputError("stop strings need a tokenizer, and the model has none: give token ids")
        ids = frozenset(as_integer("stop: a token id", s, least=0) for s in given if not isinstance(s, str))
        if ids and max(ids) >= backend.d_vocab:
            raise InputError(f"stop has the token id {max(ids)}, the vocabulary runs from 0 to {backend.d_vocab - 1}")
        return cls(ids if ignore_eos else ids | backend.eos_token_ids(), strings, backend.tokenizer)

    def reached(self, tokens: list[int]) -> bool:
        """Whether a response ends with its last token."""
        if tokens[-1] in self.ids:
            return True
        window = tokens[-4 * max(map(len, self.strings), default=0) :]  # a character has at most four tokens
        return bool(self.strings) and self.cut(decode(self.tokenizer, window)) is not None

    def cut(self, text: str) -> int | None:
        """Where the first stop string begins."""
        return min((at for s in self.strings if (at := text.find(s)) >= 0), default=None)
