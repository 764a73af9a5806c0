"""The candidates of each prompt, of which one is selected."""

from __future__ import annotations

import itertools
import unicodedata
from dataclasses import dataclass
from typing import Any

from tl_l2norm.core.arguments import one_or_several
from tl_l2norm.core.errors import InputError, InputTypeError, Unmeasurable
from tl_l2norm.recording.completions import Completion
from tl_l2norm.tasks.problems import Problem, problems_of


class Unscorable(Unmeasurable):
    """The completions lack what a score is made of."""


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """The candidates of one prompt, by sample."""

    completions: tuple[Completion, ...]
    problem: Problem | None


def candidates_of(given: Any, asked: Any) -> list[Candidates]:
    """Completions by prompt, each with its problem where there are problems."""
    completions: tuple[Any, ...] = one_or_several(given, Completion)
    if not completions:
        raise InputError("no completions given")
    if odd := [one for one in completions if not isinstance(one, Completion)]:
        raise InputTypeError(f"selection is among completions, as generate returns them, got {odd[0]!r:.80}")
    problems: tuple[Problem, ...] | None = None if asked is None else problems_of(asked)
    ordered = sorted(completions, key=_place)
    for one, other in itertools.pairwise(ordered):
        if _place(one) == _place(other):
            raise InputError(
                f"two completions are {named(one)}: if they come from several calls of generate, select from each call's own"
            )
    prompts = [tuple(group) for _, group in itertools.groupby(ordered, key=lambda completion: completion.prompt_index)]
    if problems is not None and len(problems) != len(prompts):
        raise InputError(f"{len(problems)} problems for {len(prompts)} prompts: give one for each, in their order")
    groups = [Candidates(of_prompt, problems[i] if problems is not None else None) for i, of_prompt in enumerate(prompts)]
    for group in groups:
        _require_asked(group)
    return groups


def _require_asked(group: Candidates) -> None:
    """Refuse a problem whose question its prompt doesn't hold, as in problems of another order; a prompt without text may."""
    prompt = group.completions[0].prompt
    if group.problem is not None and prompt and _bare(group.problem.question) not in _bare(prompt):
        number = group.completions[0].prompt_index
        raise InputError(
            f"the question {group.problem.question!r:.80} is not in prompt {number}, {prompt!r:.80}: give problems in the "
            "order of the prompts"
        )


def _bare(text: str) -> str:
    """What templates and tokenizers leave of a text: no white space, one form and one case of each letter."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def _place(completion: Completion) -> tuple[int, int]:
    return completion.prompt_index, completion.sample


def named(completion: Completion) -> str:
    """A completion, for messages."""
    return f"prompt {completion.prompt_index}, sample {completion.sample}"
