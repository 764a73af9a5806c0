"""Interventions on a model: by hooks, for a context or one pass."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from tl_l2norm.core.arguments import OnePerRow
from tl_l2norm.interventions.log import Log
from tl_l2norm.interventions.observing import FwdHooks, fwd_hooks, hooks
from tl_l2norm.interventions.rule import Rule


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Intervention(Rule):
    """A change of the residual stream after some blocks, decided by its norm.

    `hooks`, `fwd_hooks`, `tl_l2norm.generate(..., interventions=[...])` and `tl_l2norm.collect(..., interventions=[...])` each
    begin a run of their own.
    """

    def hooks(
        self,
        model: Any,
        *,
        prompt_lens: OnePerRow | None = None,
        seeds: OnePerRow | None = None,
        stop_ids: OnePerRow | None = None,
    ) -> AbstractContextManager[Log]:
        """Act on everything that the model does inside the context; yields the log.

        A batch starts with a pass that finds no cache: its tokens are the prompts. Passes that go on from it are decode steps.
        Rows that have finished keep flowing through `model.generate`: from the first stop token that it reads back on, a row is
        left alone. Contexts nest: what is entered first acts first.

        Args:
            model: a `HookedTransformer` or `TransformerBridge`.
            prompt_lens: for each row where its response begins, if the first pass holds more than the prompt.
            seeds: for each row the key of its random draws, such as `Completion.seed`.
            stop_ids: tokens after which a row counts as finished: by default the model's own; () for none.
        """
        return hooks(model, [self], prompt_lens=prompt_lens, seeds=seeds, stop_ids=stop_ids)

    def fwd_hooks(self, model: Any, *, prompt_lens: OnePerRow | None = None, seeds: OnePerRow | None = None) -> FwdHooks:
        """Hooks for `model.run_with_hooks(tokens, fwd_hooks=...)`: pairs of name and function, with the log as `.log`.

        Args:
            model: a `HookedTransformer` or `TransformerBridge`.
            prompt_lens: for each row where its response begins; needed with positions="decode".
            seeds: for each row the key of its random draws, such as `Completion.seed`.
        """
        return fwd_hooks(model, [self], prompt_lens=prompt_lens, seeds=seeds)
