"""Read finished responses for what others select by; see `tl_l2norm.recording.signals`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from tl_l2norm.core.arguments import as_integer, check_flag, check_progress, one_or_several
from tl_l2norm.core.errors import InputError, InputTypeError
from tl_l2norm.core.identity import UNKNOWN, same_weights
from tl_l2norm.core.layers import Layers, resolve_layers
from tl_l2norm.core.presets import batch_size_of
from tl_l2norm.core.provenance import Provenance
from tl_l2norm.models.backend import Backend
from tl_l2norm.models.backends import backend_of
from tl_l2norm.models.decode_check import batches
from tl_l2norm.models.hooks import attached
from tl_l2norm.models.lens_check import require_lens
from tl_l2norm.recording.completions import Completion, Generations
from tl_l2norm.recording.signals import SEGMENT_TOKENS, Signals, changes, js_divergence
from tl_l2norm.text.sequences import TokenSequence, pad_left, tokenize

_AT_ONCE = 1 << 22  # logits, of each of the two distributions that are compared


def read_signals(
    model: Any,
    completions: Completion | Iterable[Completion],
    *,
    layers: Layers = None,
    state_layers: Layers = "late",
    segment_tokens: int = SEGMENT_TOKENS,
    divergence: bool = True,
    batch_size: int | None = None,
    progress: bool = True,
) -> Generations:
    """The same completions with `signals`, of which scores such as `deep_thinking_ratio`, `net_change` and `probe` are made.

    Responses are read again in one pass, or in two where the divergence is wanted: it compares each layer with the last, whose
    states of one batch are kept from the first pass to the second. All else is reduced inside the hooks.

    Args:
        model: a `HookedTransformer` or `TransformerBridge`, the one that wrote them, or whose weights an engine ran.
        completions: what `generate` returned.
        layers: whose states' change over the thinking is measured; all by default. Where a response has no thought, it is over
            all of the response.
        state_layers: whose mean state is kept, [d_model] for each.
        segment_tokens: length of a segment; the authors' 500 by default. Thoughts under two segments have no change.
        divergence: whether to compare all layers' logit lenses, which costs two unembeddings of every token at every layer.
        batch_size: as in `collect`.
        progress: show a progress bar.

    Raises:
        ValueError: bad input, or responses that were written under interventions.
        NotImplementedError: a model that has no logit lens.

    Examples:
        >>> prompt = l2.chat_prompt(model.tokenizer, "mod 10: 7A-3", mode="think")
        >>> out = l2.generate(model, prompt, max_new_tokens=64, progress=False)
        >>> (read,) = l2.recording.read_signals(model, out, segment_tokens=2, progress=False)
        >>> read.signals.divergence.shape, read.signals.net_change.shape, read.signals.mean_state.shape
        (torch.Size([12, 13]), torch.Size([12]), torch.Size([3, 128]))
    """
    given: tuple[Any, ...] = one_or_several(completions, Completion)
    check_progress(progress)
    check_flag("divergence", divergence)
    backend = backend_of(model)
    _check(given, backend)
    if divergence:
        require_lens(backend)
    items = tokenize(backend, given)
    reader = _Reader(
        backend,
        resolve_layers(layers, backend.n_layers),
        resolve_layers(state_layers, backend.n_layers),
        as_integer("segment_tokens", segment_tokens, least=1),
        divergence,
    )
    planned = batches(backend, items, batch_size_of(model, batch_size))
    found: dict[int, Signals] = {}
    with torch.no_grad(), tqdm(total=len(items), desc="signals", unit="seq", disable=not progress, delay=2) as bar:
        for numbers in planned:
            found.update(zip(numbers, reader.read([items[i] for i in numbers]), strict=True))
            bar.update(len(numbers))
    log = completions.log if isinstance(completions, Generations) else None
    return Generations(tuple(dataclasses.replace(one, signals=found[i]) for i, one in enumerate(given)), log)


def _check(given: Sequence[Any], backend: Backend) -> None:
    if not given:
        raise InputError("no completions given")
    for one in given:
        if not isinstance(one, Completion):
            raise InputTypeError(f"signals are read of completions, as generate returns them, got {one!r:.80}")
        if one.trace is not None:
            _check_written(f"prompt {one.prompt_index}, sample {one.sample} was written", one.trace.provenance, backend)


def _check_written(which: str, wrote: Provenance, backend: Backend) -> None:
    if wrote.interventions:
        raise InputError(f"{which} under interventions: read again without them, its states are others")
    known = UNKNOWN not in (wrote.fingerprint, backend.fingerprint)
    if known and not same_weights(wrote.fingerprint, backend.fingerprint, same_kind=wrote.backend == backend.name):
        raise InputError(f"{which} by {wrote.describe()}: give that model, not {backend.model_name} with other weights")


class _Reader:
    """Reads one batch at a time."""

    def __init__(
        self, backend: Backend, layers: Sequence[int], state_layers: Sequence[int], segment_tokens: int, divergence: bool
    ) -> None:
        self.backend, self.layers, self.state_layers = backend, tuple(layers), tuple(state_layers)
        self.segment_tokens, self.divergence = segment_tokens, divergence
        before_last = range(backend.n_layers - 1) if divergence else ()
        self.watched = sorted({*self.layers, *self.state_layers, *before_last})

    def read(self, items: Sequence[TokenSequence]) -> list[Signals]:
        """Signals of each of these responses."""
        tokens, mask = pad_left([item.tokens for item in items], self.backend.device)
        width = tokens.shape[1]
        self.chosen_at = [slice(width - len(item) + item.prompt_len - 1, width) for item in items]
        self.thought_at = [_thought(item) + width - len(item) for item in items]
        self.last = self._last_states(tokens, mask) if self.divergence else None
        self.rows: list[dict[tuple[str, int], Tensor]] = [{} for _ in items]
        hooks = [(self.backend.resid_post(layer), partial(self._visit, layer)) for layer in self.watched]
        with attached(hooks):
            self.backend.forward(tokens, mask, logits="none")
        self.last = None
        return [self._signals(row, at.stop - at.start) for row, at in zip(self.rows, self.chosen_at, strict=True)]

    def _last_states(self, tokens: Tensor, mask: Tensor) -> list[Tensor]:
        with ExitStack() as stack:
            streams = stack.enter_context(self.backend.capture_stream(self.backend.n_layers - 1))
            self.backend.forward(tokens, mask, logits="none")
        return [streams[0][row, at].clone() for row, at in enumerate(self.chosen_at)]

    def _visit(self, layer: int, stream: Float[Tensor, "batch pos d_model"], hook: Any) -> None:
        """Reduce a layer's states."""
        stream = stream.detach()
        for row, (chosen_at, thought_at) in enumerate(zip(self.chosen_at, self.thought_at, strict=True)):
            own, states = self.rows[row], stream[row]
            if layer in self.layers:
                own["changes", layer] = changes(states[thought_at.to(states.device)], self.segment_tokens).cpu()
            if layer in self.state_layers:
                own["state", layer] = states[chosen_at].mean(0, dtype=torch.float32).cpu()
            if self.last is not None and layer < self.backend.n_layers - 1:
                own["divergence", layer] = self._divergence(states[chosen_at], self.last[row].to(states.device)).cpu()

    def _divergence(
        self, states: Float[Tensor, "token d_model"], last: Float[Tensor, "token d_model"]
    ) -> Float[Tensor, " token"]:
        size = max(1, _AT_ONCE // self.backend.d_vocab)
        pairs = zip(torch.split(states, size), torch.split(last, size), strict=True)
        return torch.cat([js_divergence(self.backend.unembed(one), self.backend.unembed(other)) for one, other in pairs])

    def _signals(self, row: dict[tuple[str, int], Tensor], n_tokens: int) -> Signals:
        net, cumulative, aligned = torch.stack([row["changes", layer] for layer in self.layers], dim=1)
        divergence = None
        if self.divergence:
            parts = [row["divergence", layer] for layer in range(self.backend.n_layers - 1)]
            divergence = torch.stack([*parts, torch.zeros(n_tokens)])
        return Signals(
            divergence=divergence,
            layers=self.layers,
            net_change=net,
            cumulative_change=cumulative,
            aligned_change=aligned,
            segment_tokens=self.segment_tokens,
            state_layers=self.state_layers,
            mean_state=torch.stack([row["state", layer] for layer in self.state_layers]),
        )


def _thought(item: TokenSequence) -> Tensor:
    """Positions of the response's thinking, or of all of it where it has none."""
    response = range(item.prompt_len, len(item))
    thought = [position for position in response if item.segments[position] == "think"]
    return torch.tensor(thought or list(response), dtype=torch.int64)
