"""Interventions under somebody else's forward passes: `model.generate`, `model.run_with_hooks`, `model(...)`."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformer_lens.hook_points import HookPoint

from tl_l2norm.core.arguments import OnePerRow, as_integers
from tl_l2norm.core.batch import Batch, Rows
from tl_l2norm.core.errors import InputError, Unsupported
from tl_l2norm.core.random_draws import sequence_key
from tl_l2norm.interventions.intervener import UNSEEN, Intervener
from tl_l2norm.interventions.log import Log
from tl_l2norm.interventions.rule import Rule
from tl_l2norm.models.backends import backend_of
from tl_l2norm.models.block_calls import BlockCall
from tl_l2norm.models.cache import handed_over, known_versions, positions_held, put_on
from tl_l2norm.models.hooks import HookFn


@contextmanager
def hooks(
    model: Any,
    interventions: Sequence[Rule],
    *,
    prompt_lens: OnePerRow | None = None,
    seeds: OnePerRow | None = None,
    stop_ids: OnePerRow | None = None,
) -> Iterator[Log]:
    """Let interventions act, in this order, on everything that the model does inside the context. See `Intervention.hooks`."""
    backend = backend_of(model)
    intervener = Intervener(backend, interventions)
    stops = backend.eos_token_ids() if stop_ids is None else frozenset(as_integers("stop_ids", stop_ids))
    watcher = _Watcher(intervener, prompt_lens, seeds, stops)
    with ExitStack() as stack:
        stack.enter_context(handed_over(backend.cache_renamings))  # for blocks that are run again
        stack.callback(model.embed.register_forward_pre_hook(watcher.note_tokens).remove)
        stack.callback(model.blocks[0].register_forward_pre_hook(watcher.start, with_kwargs=True).remove)
        stack.callback(model.blocks[-1].register_forward_hook(watcher.end).remove)
        yield stack.enter_context(intervener.attached())
        watcher.leave()


class FwdHooks(list[tuple[str, HookFn]]):
    """What `run_with_hooks(fwd_hooks=...)` takes, with the log of what they do."""

    def __init__(self, pairs: Sequence[tuple[str, HookFn]], log: Log) -> None:
        super().__init__(pairs)
        self.log = log


def fwd_hooks(
    model: Any,
    interventions: Sequence[Rule],
    *,
    prompt_lens: OnePerRow | None = None,
    seeds: OnePerRow | None = None,
) -> FwdHooks:
    """Hooks for one pass over whole sequences, by `model.run_with_hooks`. See `Intervention.fwd_hooks`."""
    backend = backend_of(model)
    intervener = Intervener(backend, interventions)
    if prompt_lens is None and not intervener.acts_on_prompts:
        raise InputError(
            "positions='decode' means the tokens after the prompt, and one pass over a whole sequence doesn't show where "
            "that is: give prompt_lens=[...], one for each row, or an intervention with positions='all'; for model.generate "
            "use `with x.hooks(model)`"
        )
    watcher = _Watcher(intervener, prompt_lens, seeds, frozenset())
    last = max(intervener.sites)
    pairs: list[tuple[str, HookFn]] = [(backend.token_embeddings().name, watcher.start_soon)]
    for point, fn in intervener.hooks():
        pairs.append((point.name, fn))
    for layer in intervener.blocks.blocks:  # its call is noted when the block before it has ended
        if layer:
            pairs.append((backend.resid_post(layer - 1).name, partial(_note_next, intervener, layer)))
    pairs.append((backend.resid_post(last).name, lambda stream, hook: watcher.finish()))
    return FwdHooks(pairs, intervener.log)


def _note_next(intervener: Intervener, layer: int, stream: Tensor, hook: HookPoint) -> None:
    _remove_with(hook, intervener.blocks.record_next(layer))


def _remove_with(point: HookPoint, handle: RemovableHandle) -> None:
    """Remove a hook at the latest together with the hooks of the innermost context here: the pass may fail before it fires."""
    ours = max(point.fwd_hooks, key=lambda lens_handle: lens_handle.context_level or 0)
    weakref.finalize(ours, handle.remove).atexit = False


class _Watcher:
    """Tells from what the first block gets which tokens a pass reads."""

    def __init__(
        self, intervener: Intervener, prompt_lens: OnePerRow | None, seeds: OnePerRow | None, stop_ids: frozenset[int]
    ) -> None:
        self.intervener, self.stop_ids = intervener, stop_ids
        self.prompt_lens = None if prompt_lens is None else as_integers("prompt_lens", prompt_lens)
        self.seeds = None if seeds is None else as_integers("seeds", seeds)
        self.tokens: Int[Tensor, "batch pos"] | None = None
        self.seen: Int[Tensor, "batch pos"] | None = None
        self.n_sequences = 0
        self.batch: Batch | None = None
        self.cache: Any = None
        self.unfilled: Any = None
        self.handles: list[RemovableHandle] = []

    def note_tokens(self, embed: nn.Module, args: tuple[Any, ...]) -> None:
        """Before the embedding: what it is given. `HookedTransformer.generate` embeds outside of the forward pass."""
        if args and isinstance(args[0], Tensor) and not args[0].is_floating_point():
            self.tokens = args[0].detach()

    def start_soon(self, stream: Tensor, hook: HookPoint) -> None:
        """From a hook on the embedding: the next call of the first block starts the pass."""
        blocks, first = self.intervener.blocks, self.intervener.here.model.blocks[0]

        def once(*call: Any) -> None:
            handle.remove()
            self.start(*call)

        handle = first.register_forward_pre_hook(once, with_kwargs=True)
        _remove_with(hook, handle)
        self._hand_over_with(hook)
        if 0 in blocks.blocks:
            _remove_with(hook, blocks.record_next(0))

    def start(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the first block: a batch begins or goes on."""
        call = BlockCall(block, args, kwargs)
        self._refuse_unseen(call)
        n_rows, n_pos = call.stream.shape[:2]
        tokens, self.tokens = self.tokens, None
        told = tokens if tokens is not None and tokens.shape == (n_rows, n_pos) else None
        if call.offset == 0:
            real = call.is_real
            if real is None:
                real = torch.ones(1, n_pos, dtype=torch.bool, device=call.stream.device)
            real = real.expand(n_rows, n_pos)
            self._refuse_again(tokens, n_pos)
            self.leave()
            self.batch = Batch(self._rows(real))
            self.intervener.begin(self.batch)
            self.intervener.next_pass(self.batch.next_pass(n_pos, real, tokens=told))
        else:
            if self.batch is None:
                raise RuntimeError(UNSEEN)
            rows = self.batch.rows
            if len(rows) != n_rows:
                raise InputError(f"the batch went from {len(rows)} to {n_rows} rows: beam search can't be followed")
            if tokens is not None and n_pos == 1 and self.stop_ids:
                stops = torch.tensor(sorted(self.stop_ids), device=tokens.device)
                rows.finished = rows.finished | torch.isin(tokens[:, 0], stops).to(rows.device)
            self.intervener.next_pass(self.batch.next_pass(n_pos, tokens=told))
        self.seen = tokens if call.offset == 0 or self.seen is None or tokens is None else torch.cat([self.seen, tokens], 1)

    def end(self, block: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        """After the last block: the cache holds what was read, or is one that nobody fills."""
        cache, self.cache = self.cache, None
        self.unfilled = cache if positions_held(cache) == 0 else None

    def leave(self) -> None:
        """The batch that was read last has ended."""
        if self.batch is not None:
            self.intervener.leave(self.batch)
        self.batch = None

    def finish(self) -> None:
        """The run is over."""
        self.leave()
        self.intervener.finish()

    def _hand_over_with(self, point: HookPoint) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles = [put_on(module, hook) for module, hook in self.intervener.here.cache_renamings]
        for handle in self.handles:
            _remove_with(point, handle)

    def _refuse_unseen(self, call: BlockCall) -> None:
        """Refuse to act on steps of a model that outside of this context decodes without what it has read, or inside too."""
        unfilled = call.cache is not None and call.cache is self.unfilled
        if unfilled or (call.offset and not self.intervener.here.decodes_without_us):
            raise Unsupported(
                "the model's own generate gives its blocks a KV cache that they don't look into: it decodes without having "
                f"read what stands before. Use tl_l2norm.generate, or other versions. {known_versions()}"
            )
        self.cache = call.cache

    def _rows(self, real: Bool[Tensor, "batch pos"]) -> Rows:
        n_rows, device = len(real), real.device
        for name, given in (("prompt_lens", self.prompt_lens), ("seeds", self.seeds)):
            if given is not None and len(given) != n_rows:
                raise InputError(f"{name} has {len(given)} entries for {n_rows} rows")
        start = self.n_sequences
        self.n_sequences += n_rows
        keys = self.seeds or [sequence_key(0, start + row, 0) for row in range(n_rows)]
        lengths = real.sum(1) if self.prompt_lens is None else torch.tensor(self.prompt_lens, device=device)
        return Rows.of(
            number=torch.arange(start, start + n_rows, device=device),
            key=torch.tensor(keys, device=device),
            prompt_len=lengths,
            padding=real.to(torch.int8).argmax(1),
        )

    def _refuse_again(self, tokens: Int[Tensor, "batch new"] | None, n_pos: int) -> None:
        if tokens is None or self.seen is None:
            return
        embedded_before = tokens.shape[1] < n_pos
        same = tokens.shape == (len(self.seen), self.seen.shape[1] + 1) and torch.equal(tokens[:, :-1], self.seen)
        if embedded_before or same:
            raise InputError(
                "the model reads the whole sequence again for one more token: with use_past_kv_cache=False or "
                "return_cache=True every token would count twice; generate with use_past_kv_cache=True and return_cache=False"
            )
