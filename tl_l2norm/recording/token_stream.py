"""A response token by token, while it is written."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any, SupportsIndex

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tl_l2norm.core.arguments import OnePerRow
from tl_l2norm.core.errors import InputError, Unsupported
from tl_l2norm.core.layers import Layers, late_layers
from tl_l2norm.core.norms import sink_bounds
from tl_l2norm.core.protocols import SparseAutoencoder
from tl_l2norm.core.trace import Label, Trace
from tl_l2norm.interventions.base import Intervention
from tl_l2norm.interventions.heard import events_at
from tl_l2norm.interventions.log import Log
from tl_l2norm.models.observer import Recorded
from tl_l2norm.recording.completions import Completion, FinishReason
from tl_l2norm.recording.decoder import Decoder
from tl_l2norm.recording.engine import Engine
from tl_l2norm.recording.plan import Plan
from tl_l2norm.recording.sampling import Sampling
from tl_l2norm.recording.steps import Steps
from tl_l2norm.recording.stream import EMBED_INDEX, NORM, StreamObserver
from tl_l2norm.recording.think_on import ThinkOn
from tl_l2norm.recording.token_reader import TokenReader
from tl_l2norm.text.inputs import SequenceLike


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenStep:
    r"""One token of a response, with what was recorded as the model read it back.

    Attributes:
        token: its id.
        token_text: what it adds to the text; "" while a character lacks further tokens.
        text: of the response so far, without special tokens; of the last step as in `Completion.text`, without stop string.
        position: in the whole sequence, the prompt's first token at 0.
        segment: "think" or "answer", as far as the text goes: half a tag is none yet.
        l2_norms: [layer] `||resid_post||`, float32; None of the last token, which is never read back.
        is_sink: [layer] whether it is an attention sink there; None of the last token.
        late_l2_norm: mean norm over the recorded late layers, sinks left out; NaN where there is none.
        events: what interventions decided at it, entries of the table of `TokenStream.events`.
        finish_reason: None but for the last token: "stop" or "length".

    Examples:
        >>> prompt = l2.chat_prompt(model.tokenizer, "mod 10: 7A-3", mode="think")
        >>> step = next(l2.stream(model, prompt, max_new_tokens=64))
        >>> step.position, step.token_text, step.segment, step.l2_norms.shape
        (18, '<think>', 'think', torch.Size([12]))
    """

    token: int
    token_text: str
    text: str
    position: int
    segment: str
    l2_norms: Float[Tensor, " layer"] | None
    is_sink: Bool[Tensor, " layer"] | None
    late_l2_norm: float
    events: tuple[Mapping[str, Any], ...]
    finish_reason: FinishReason | None

    def __repr__(self) -> str:
        """One line."""
        end = f", {self.finish_reason}" if self.finish_reason else ""
        return f"TokenStep({self.token_text!r}, position {self.position}, {self.segment}, {self.late_l2_norm:.4g}{end})"


class TokenStream:
    r"""A response that is written as its steps are asked for; a step comes when its token was read back.

    Between steps no hook of ours is on the model, and others may use it. A loop over it that is left, by `break` or by an
    error, ends it and frees its cache; `next(stream)` takes a single step, after which it goes on. Also a context manager.

    Attributes:
        prompt: its text.
        prompt_tokens: their ids.
        layers: [layer] those that are recorded.
        late_layers: those of them that `TokenStep.late_l2_norm` is a mean over.
        completion: the response as `generate` gives it; None unless it was written to its end.
        log: what the interventions decided; None without.
        text: of the response so far.

    Examples:
        >>> prompt = l2.chat_prompt(model.tokenizer, "mod 10: 7A-3", mode="think")
        >>> with l2.stream(model, prompt, max_new_tokens=64) as stream:
        ...     print([next(stream).token_text for _ in range(3)], stream.completion)
        ['<think>', '\n', '7'] None
        >>> stream.trace.l2_norms.shape  # of what was written until then
        torch.Size([12, 21])
    """

    def __init__(self, plan: Plan) -> None:
        decoder = plan.decoding
        assert isinstance(decoder, Decoder)
        (self._row,) = plan.rows
        self._ending, self._recording = plan.ending, decoder.recording
        self.prompt_tokens = self._row.item.tokens
        self.layers = decoder.recording.layers
        late = late_layers(decoder.backend.n_layers)
        self._late = [i for i, layer in enumerate(self.layers) if layer in late]
        self.late_layers = tuple(self.layers[i] for i in self._late)
        self.completion: Completion | None = None
        self.log: Log | None = decoder.log
        self._decoder: Decoder | None = decoder
        """None once it has ended or was left."""
        self._passes = decoder.passes(plan.rows, 1)
        self._kept = ExitStack()
        """Hooks that stay between steps: where no model of the user's has them."""
        self._reader = TokenReader(plan.ending.boundaries, self.prompt_tokens)
        self.prompt = self._reader.prompt
        self._ready: deque[TokenStep] = deque()
        self._bounds: Float[Tensor, " layer"] | None = None
        if self.log is not None:
            self.log.heard = []

    @property
    def text(self) -> str:
        """Of the response so far; once it has ended, `Completion.text`."""
        return self._reader.text if self.completion is None else self.completion.text

    @property
    def trace(self) -> Trace | None:
        """Of prompt and response as far as they were read back; None before the prompt was."""
        return self._ending.so_far(self._row) if self.completion is None else self.completion.trace

    def events(self) -> pd.DataFrame:
        """What interventions decided so far, as `Generations.events` has it; on the prompt too, where they act there.

        Raises:
            ValueError: there was no intervention.
        """
        if self.log is None:
            raise InputError("nothing intervened: stream(..., interventions=[...])")
        events = self.log.events()  # of a pass that was interrupted, some may be there
        return events[events["position"] < self._row.n_recorded].reset_index(drop=True)

    def __iter__(self) -> Iterator[TokenStep]:
        """Steps to the end; whoever leaves the loop closes the stream."""
        try:
            while (step := next(self, None)) is not None:
                yield step
        finally:
            self.close()

    def __next__(self) -> TokenStep:
        """The next step.

        Raises:
            StopIteration: the response has ended, or the stream was closed.
            FloatingPointError: a norm, or what an observer measures, is NaN or infinite.
        """
        while not self._ready:
            if self._decoder is None:
                raise StopIteration
            self._advance(self._decoder)
        return self._ready.popleft()

    def __enter__(self) -> TokenStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it where it is and free the cache; what was written and recorded stays."""
        decoder, self._decoder = self._decoder, None
        self._ready.clear()
        if decoder is not None:
            self._kept.close()
            self._passes.close()  # type: ignore[attr-defined]
            decoder.abandon()

    def _hooked(self, decoder: Decoder) -> AbstractContextManager[object]:
        if not decoder.backend.is_ours:
            return decoder.watching.resumed()
        if not self._row.new:
            self._kept.enter_context(decoder.watching.resumed())
        return nullcontext()

    def _advance(self, decoder: Decoder) -> None:
        """One forward pass, and the steps that it completes."""
        n_seen = len(self._row.recorded)
        try:
            with torch.inference_mode(), self._hooked(decoder):
                next(self._passes)
                decoder.hand_out()
        except BaseException:
            self.close()
            raise
        (recorded,) = self._row.recorded[n_seen:]
        read = self._row.new[-2:-1]  # nothing in the first pass, which reads the prompt
        if read:
            self._ready.append(self._step(read[0], recorded))
        else:
            self._bounds = self._prompt_bounds(recorded)
        if self.log is not None:
            self.log.heard = []
        if self._row.finish_reason is not None:
            self._decoder = None
            self._kept.close()
            decoder.watching.finish()
            last = self._reader.add(self._row.new[-1])
            self.completion = self._ending.complete(self._row, self._reader.said)
            self._ready.append(self._unread(*last, self.completion))

    def _prompt_bounds(self, recorded: Recorded) -> Float[Tensor, " layer"]:
        judged = self._recording.judged(recorded)
        return sink_bounds(judged, prompt_len=len(self.prompt_tokens), ratio=self._recording.sink_ratio)

    def _step(self, token: int, recorded: Recorded) -> TokenStep:
        assert self._bounds is not None
        token_text, segment, position = self._reader.add(token)
        norms = recorded[NORM][EMBED_INDEX + 1 :, 0].clone()  # type: ignore[index]
        is_sink = self._recording.judged(recorded)[:, 0] > self._bounds
        heard = () if self.log is None or not self.log.heard else events_at(self.log, self.log.heard)
        late = [float(norms[i]) for i in self._late if not is_sink[i]]
        return TokenStep(
            token=token,
            token_text=token_text,
            text=self._reader.text,
            position=position,
            segment=segment,
            l2_norms=norms,
            is_sink=is_sink,
            late_l2_norm=sum(late) / len(late) if late else math.nan,
            events=heard,
            finish_reason=None,
        )

    def _unread(self, token_text: str, segment: str, position: int, completion: Completion) -> TokenStep:
        return TokenStep(
            token=completion.tokens[-1],
            token_text=token_text,
            text=completion.text,
            position=position,
            segment=segment,
            l2_norms=None,
            is_sink=None,
            late_l2_norm=math.nan,
            events=(),
            finish_reason=completion.finish_reason,
        )

    def __repr__(self) -> str:
        """One line."""
        state = "being written" if self._decoder is not None else "left" if self.completion is None else "ended"
        return f"TokenStream({self.text!r:.60}, {len(self._row.new)} tokens, {state})"


def stream(
    model: Any,
    prompt: SequenceLike | Iterable[SequenceLike],
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: Iterable[str | SupportsIndex] | str | SupportsIndex | None = (),
    ignore_eos: bool = False,
    seed: OnePerRow = 0,
    interventions: Intervention | Sequence[Intervention] | None = (),
    saes: Mapping[int, SparseAutoencoder] | None = None,
    observers: StreamObserver | Sequence[StreamObserver] = (),
    layers: Layers = None,
    labels: Mapping[str, Label] | None = None,
    prepend_bos: bool | None = None,
    sink_ratio: float | None = None,
    think_on: ThinkOn | None = None,
    steps: Steps = "eager",
) -> TokenStream:
    r"""Write a response token by token: each with its norms, once it was read back, and with what interventions decided.

    It is the response that `generate` gives with the same options: same tokens, norms and events.

    Args:
        model: a `HookedTransformer` or `TransformerBridge`.
        prompt: one, as in `generate`: a text, a chat, token ids or a value with `.tokens`.
        max_new_tokens: tokens at the most.
        temperature: 0 is greedy.
        top_k: sample among the k most likely tokens.
        top_p: sample among the likeliest tokens that hold this much probability.
        stop: strings or token ids that end the response, beside those at which the model ends its turn.
        ignore_eos: go on past those at which the model ends its turn.
        seed: of the draws.
        interventions: what acts on the residual stream, in this order.
        saes: SAEs by layer, whose feature activations the trace has.
        observers: what else the trace has, each a `StreamObserver`.
        layers: which blocks to record; all by default.
        labels: what to keep with the trace.
        prepend_bos: for a plain text: BOS or none; by default what the model's tokenizer adds.
        sink_ratio: a norm over this many times its layer's median over the prompt is a sink's, as in `generate`.
        think_on: what is written where the response would end, so that it goes on.
        steps: how a step of decoding runs, as in `generate`.

    Raises:
        ValueError: bad input, or several prompts.
        NotImplementedError: an engine, which writes whole responses; or what `generate` refuses.

    Examples:
        >>> prompt = l2.chat_prompt(model.tokenizer, "mod 10: 7A-3", mode="think")
        >>> for step in l2.stream(model, prompt, max_new_tokens=64):
        ...     if step.segment == "answer":
        ...         break
        >>> step.text
        '<think>\n7A-3=4\n</think>\n\n'
    """
    if isinstance(model, Engine):
        raise Unsupported("an engine writes whole responses: generate(...) takes one, stream a model of load_model")
    plan = Plan.of(
        model,
        prompt,
        sampling=Sampling(temperature=temperature, top_k=top_k, top_p=top_p, think_on=think_on),
        max_new_tokens=max_new_tokens,
        n=1,
        stop=stop,
        ignore_eos=ignore_eos,
        seed=seed,
        interventions=interventions,
        saes=saes,
        record=True,
        observers=observers,
        layers=layers,
        labels=labels,
        batch_size=1,
        prepend_bos=prepend_bos,
        sink_ratio=sink_ratio,
        steps=steps,
    )
    if len(plan.rows) != 1:
        raise InputError(f"stream writes one response, got {len(plan.rows)} prompts: generate(...) writes several")
    return TokenStream(plan)
