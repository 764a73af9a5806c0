"""Read a response while it is written: what each token adds to the text, and whether it thinks."""

from __future__ import annotations

from collections.abc import Sequence

from tl_l2norm.text.boundaries import Boundaries
from tl_l2norm.text.sequences import TokenSpeller, decode
from tl_l2norm.text.thoughts import segments_of

_CONTEXT = 16
"""Tokens of the prompt that decide how the first of the response are decoded."""
_WITHIN = 160
"""Characters from the end within which a tag may still come to be one, or turn out to be none: a sentence may speak of it."""
_ENDS = frozenset(">]▷:")
"""Characters of which each tag has one at or near its end."""


class TokenReader:
    """What the tokens of one response say, one after another."""

    def __init__(self, boundaries: Boundaries, prompt: Sequence[int]) -> None:
        self.text = ""
        """Of the response so far, without tokens that are no text."""
        self._boundaries, self._position = boundaries, len(prompt) - 1
        self._speller = TokenSpeller(boundaries.tokenizer)
        for token in prompt[-_CONTEXT:]:
            self._speller.add(token)
        tokenizer = boundaries.tokenizer
        self.prompt = "" if tokenizer is None else decode(tokenizer, prompt)
        self._opened = None if tokenizer is None else boundaries.opened(self.prompt)
        self.said: list[str] = []
        """What each token adds to the text."""
        self._starts: dict[int, int] = {}
        """Which token begins at a character of the text."""
        self._segment = "answer" if self._opened is None else "think"

    def add(self, token: int) -> tuple[str, str, int]:
        """What the next token adds to the text, its segment, and its position in the sequence."""
        added = self._speller.add(token)
        self._position += 1
        self.said.append(added)
        start = len(self.text)
        self._starts[start] = token
        hidden = self._boundaries.tokenizer is None or token in self._boundaries.hidden_ids
        self.text += "" if hidden else added
        if not _ENDS.isdisjoint(self.text[-_WITHIN:]):
            reading = self._boundaries.read_text(self.text, self._starts, opened=self._opened)
            self._segment = segments_of(reading, (self.text[:start], self.text[start:]))[-1]
        return added, self._segment, self._position
