"""Thinking longer: a token in place of a response's end."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor

from tl_l2norm.core.arguments import Integer, as_integer, as_integers
from tl_l2norm.core.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinkOn:
    r"""Thinking-token-based test-time scaling (TTTS): where a response is about to end and may be longer, it gets these tokens
    instead and goes on.

    "We append one of these thinking tokens to the end of the model's initial output and allow it to continue" (Qian et al.,
    "Demystifying Reasoning Dynamics with Mutual Information", arXiv 2506.02867, section 4.2). With the tag that closes a
    thought as `ends` it is the budget forcing of Muennighoff et al. (s1, arXiv 2501.19393). The token that would have ended the
    response isn't written. What is written in its place counts into `max_new_tokens` and, with its log-probability, into every
    score of the response; it is read back and acted on as any other.

    Attributes:
        tokens: what is written, ids: one, such as one of `thinking_tokens(model.tokenizer)`, or several, one after the other.
        ends: ids in whose place; by default all that end the response. Stop strings end it nevertheless.
        times: how often in a response at the most.

    Examples:
        >>> prompt = l2.chat_prompt(model.tokenizer, "mod 10: 7A-3", mode="think")
        >>> again = model.tokenizer("7A", add_special_tokens=False).input_ids
        >>> longer = l2.recording.ThinkOn(tokens=again)
        >>> out = l2.generate(model, prompt, max_new_tokens=32, think_on=longer, progress=False)
        >>> out[0].text, out[0].forced
        ('<think>\n7A-3=4\n</think>\n\n47A-3=4', (12, 13))
    """

    tokens: Sequence[Integer]
    ends: Sequence[Integer] | None = None
    times: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", tuple(as_integers("tokens", self.tokens)))
        if self.ends is not None:
            object.__setattr__(self, "ends", tuple(as_integers("ends", self.ends)))
        as_integer("times", self.times, least=1)
        if not self.tokens or self.ends == ():
            raise InputError("tokens and ends are ids, at least one of each: give ends=None for all that end a response")

    def check(self, ends: Collection[int], d_vocab: int) -> None:
        """Refuse tokens that would end the response themselves, and ids that there are not.

        Raises:
            InputError: with the id.
        """
        if closing := [token for token in self.tokens if token in ends]:
            raise InputError(f"think_on: the token {closing[0]} ends a response itself: give one that goes on")
        if odd := [i for i in (*self.tokens, *(self.ends or ())) if not 0 <= int(i) < d_vocab]:
            raise InputError(f"think_on has the token id {odd[0]}, the vocabulary runs from 0 to {d_vocab - 1}")

    def instead(self, token: int, ends: Collection[int], *, n_written: int, n_forced: int, most: int) -> int | None:
        """What is written in the place of a token that was chosen; None for the token itself.

        Args:
            token: the chosen one.
            ends: that end the response.
            n_written: tokens of the response so far.
            n_forced: those of them that were written in the place of others.
            most: tokens of a response.
        """
        done, at = divmod(n_forced, len(self.tokens))
        begins = token in (ends if self.ends is None else self.ends) and done < self.times
        if at or (begins and n_written + len(self.tokens) < most):
            return int(self.tokens[at])
        return None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Forcing:
    """`ThinkOn` at work on the responses of a run."""

    think_on: ThinkOn
    ends: Collection[int]
    """That end a response."""
    most: int
    """Tokens of a response."""
    places: dict[int, list[int]] = field(default_factory=dict)
    """By a response's number, where in it something was written in the place of what was chosen."""

    def over(self, tokens: Int[Tensor, " batch"], numbers: Sequence[int], written: Sequence[int]) -> Int[Tensor, " batch"]:
        """What is written of the chosen tokens; the same again where a token is chosen a second time.

        Args:
            tokens: the chosen ones.
            numbers: of their responses.
            written: tokens that each has so far.
        """
        chosen = tokens.tolist()
        for i, (number, n_written) in enumerate(zip(numbers, written, strict=True)):
            places = self.places.setdefault(number, [])
            n_forced = sum(place < n_written for place in places)
            other = self.think_on.instead(chosen[i], self.ends, n_written=n_written, n_forced=n_forced, most=self.most)
            if other is not None:
                chosen[i] = other
                places[n_forced:] = [n_written]
        return torch.tensor(chosen, dtype=tokens.dtype, device=tokens.device)
