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

        Examples:
            >>> prompt = think[0].tokens[None, : think[0].prompt_len]
            >>> with l2.Suppression(l2.quantile_thresholds(think, 0.9), layers=[9]).hooks(model) as log:
            ...     _ = model.generate(prompt, max_new_tokens=8, do_sample=False, verbose=False)
            >>> log.events()[["position", "layer", "decision"]]
               position  layer    decision
            0        18      9  suppressed
        """
        return hooks(model, [self], prompt_lens=prompt_lens, seeds=seeds, stop_ids=stop_ids)

    def fwd_hooks(self, model: Any, *, prompt_lens: OnePerRow | None = None, seeds: OnePerRow | None = None) -> FwdHooks:
        """Hooks for `model.run_with_hooks(tokens, fwd_hooks=...)`: pairs of name and function, with the log as `.log`.

        Args:
            model: a `HookedTransformer` or `TransformerBridge`.
            prompt_lens: for each row where its response begins; needed with positions="decode".
            seeds: for each row the key of its random draws, such as `Completion.seed`.

        Examples:
            >>> high = l2.Suppression(l2.quantile_thresholds(think, 0.9), layers=[9])
            >>> pairs = high.fwd_hooks(model, prompt_lens=[think[0].prompt_len])
            >>> logits = model.run_with_hooks(think[0].tokens[None], fwd_hooks=pairs)
            >>> pairs.log.events()[["position", "layer", "decision"]]
               position  layer    decision
            0        18      9  suppressed
            1        27      9  suppressed
            2        29      9  suppressed
        """
        return fwd_hooks(model, [self], prompt_lens=prompt_lens, seeds=seeds)
