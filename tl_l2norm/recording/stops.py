"""Where a response ends."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tl_l2norm.core.arguments import as_integer, check_text, one_or_several
from tl_l2norm.core.errors import InputError
from tl_l2norm.models.described import Described
from tl_l2norm.text.boundaries import Boundaries
from tl_l2norm.text.sequences import decode

_CONTEXT = 4
"""Tokens before others that decide how they are decoded: the rest of a character, a space that begins a text."""


@dataclass(frozen=True, slots=True)
class Stops:
    """What ends a response: token ids, and strings."""

    ids: frozenset[int]
    strings: tuple[str, ...]
    tokenizer: Any
    hidden: frozenset[int] = frozenset()
    """Tokens that a response's text leaves out."""

    @classmethod
    def of(cls, backend: Described, stop: Any, ignore_eos: bool) -> Stops:
        """Those that a user gives, and unless they are ignored the ends of the model's turn."""
        given = list(one_or_several(stop, str))
        strings = tuple(s for s in given if isinstance(s, str))
        check_text("stop", "".join(strings))
        if "" in strings:
            raise InputError("a stop string is empty: it would end every response at once")
        if strings and backend.tokenizer is None:
            raise InputError("stop strings need a tokenizer, and the model has none: give token ids")
        ids = frozenset(as_integer("stop: a token id", s, least=0) for s in given if not isinstance(s, str))
        if ids and max(ids) >= backend.d_vocab:
            raise InputError(f"stop has the token id {max(ids)}, the vocabulary runs from 0 to {backend.d_vocab - 1}")
        hidden = Boundaries(backend.tokenizer).hidden_ids if strings else frozenset()
        return cls(ids if ignore_eos else ids | backend.eos_token_ids(), strings, backend.tokenizer, hidden)

    def reached(self, prompt: Sequence[int], tokens: list[int]) -> bool:
        """Whether a response to this prompt ends with its last token."""
        if tokens[-1] in self.ids:
            return True
        if not self.strings:
            return False
        start = max(0, len(tokens) - 4 * max(map(len, self.strings)))  # a character has at most four tokens
        before = [*prompt[-_CONTEXT:], *tokens[max(0, start - _CONTEXT) : start]][-_CONTEXT:]
        return self.cut(self._shown(before, tokens[start:])) is not None

    def _shown(self, before: list[int], tokens: list[int]) -> str:
        """What tokens add to the text behind others, as a response shows it: without tokens that are no text."""
        text = ""
        for hidden, run in itertools.groupby(tokens, key=self.hidden.__contains__):
            whole = [*before, *run]
            if not hidden:
                text += decode(self.tokenizer, whole)[len(decode(self.tokenizer, before)) :]
            before = whole[-_CONTEXT:]
        return text

    def cut(self, text: str) -> int | None:
        """Where the first stop string begins."""
        return min((at for s in self.strings if (at := text.find(s)) >= 0), default=None)
