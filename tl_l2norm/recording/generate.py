"""Generate responses and watch the stream meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any, SupportsIndex

import torch

from tl_l2norm.core.arguments import (
    OnePerRow,
    as_integer,
    as_integers,
    as_labels,
    check_callable,
    check_flag,
    check_listed,
    check_progress,
    one_or_several,
)
from tl_l2norm.core.errors import InputError, Unsupported
from tl_l2norm.core.layers import Layers, resolve_layers
from tl_l2norm.core.presets import batch_size_of, sink_ratio_of
from tl_l2norm.core.protocols import SparseAutoencoder, is_several
from tl_l2norm.core.random_draws import sequence_key
from tl_l2norm.core.trace import Label, Trace
from tl_l2norm.interventions.base import Intervention
from tl_l2norm.models.backend import Backend
from tl_l2norm.models.decode_check import check_decoding, decodes_rows_together, reads_rows_together, telling_tokens
from tl_l2norm.models.described import Described
from tl_l2norm.models.generation_config import warn_of_ignored
from tl_l2norm.models.observer import joined
from tl_l2norm.recording.completions import Completion, FinishReason, Generations
from tl_l2norm.recording.decoder import Decoder, Growing
from tl_l2norm.recording.engine import Decoding, Engine, generator_of
from tl_l2norm.recording.metrics import METRICS, check_metrics
from tl_l2norm.recording.sampling import Sampling
from tl_l2norm.recording.steps import Steps, check_steps
from tl_l2norm.recording.stops import Stops
from tl_l2norm.recording.stream import NORM, StreamObserver, check_observers
from tl_l2norm.recording.think_on import ThinkOn
from tl_l2norm.recording.traces import Recording
from tl_l2norm.text.boundaries import Boundaries
from tl_l2norm.text.inputs import SequenceLike
from tl_l2norm.text.sequences import TokenSequence, token_texts, tokenize

_MOST_SAMPLES = 1_000_000  # of a prompt


def generate(
    model: Any,
    prompts: SequenceLike | Iterable[SequenceLike],
    *,
    max_new_tokens: int = 256,
    n: int = 1,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: Iterable[str | SupportsIndex] | str | SupportsIndex | None = (),
    ignore_eos: bool = False,
    seed: OnePerRow = 0,
    interventions: Intervention | Sequence[Intervention] | None = (),
    saes: Mapping[int, SparseAutoencoder] | None = None,
    record: bool = True,
    observers: StreamObserver | Sequence[StreamObserver] = (),
    layers: Layers = None,
    labels: Mapping[str, Label] | Sequence[Mapping[str, Label]] | None = None,
    batch_size: int | None = None,
    prepend_bos: bool | None = None,
    sink_ratio: float | None = None,
    think_on: ThinkOn | None = None,
    steps: Steps = "eager",
    on_finish: Callable[[Generations], None] | None = None,
    progress: bool | str = True,
    metrics: Any = None,
) -> Generations:
    r"""Generate responses and record the norm of every token as it is read back, after all interventions.

    A response doesn't depend on what is generated beside it: finished rows leave the batch, and waiting prompts take their
    places. Repetition penalties and the like that a model's generation config asks for are not applied.

    Args:
        model: a `HookedTransformer` or `TransformerBridge`, or an engine of `load_engine`.
        prompts: texts, chats (lists of messages), token ids, or values with `.tokens` such as a `ChatPrompt`; as in `collect`,
            but that a chat which ends with an assistant's message is continued there.
        max_new_tokens: tokens per response at the most.
        n: responses per prompt; they share one pass over the prompt.
        temperature: 0 is greedy.
        top_k: sample among the k most likely tokens.
        top_p: sample among the likeliest tokens that hold this much probability.
        stop: strings or token ids that end a response, beside those at which the model ends its turn.
        ignore_eos: go on past those at which the model ends its turn.
        seed: one for the run, from which each response gets its own, or a list with one for each response.
        interventions: what acts on the residual stream, in this order.
        saes: SAEs by layer, whose feature activations are recorded beside the norms, as in `collect`.
        record: whether to record the norms, and the tokens' probabilities beside them; without, completions have no traces.
        observers: what else to record of the stream, each a `StreamObserver`, as in `collect`.
        layers: which blocks to record; all by default.
        labels: for each prompt, what to keep with its traces.
        batch_size: responses that are decoded at once, 8 by default (100 for tiny-reasoner); 1 for a model whose recurrent
            layers read padding. An engine has its own.
        prepend_bos: for plain texts: BOS or none; by default what the model's tokenizer adds.
        sink_ratio: a norm over this many times its layer's median over the prompt is marked as an attention sink, and
            interventions leave it alone; 5 by default (20 for tiny-reasoner).
        think_on: what is written where a response would end, so that it goes on.
        steps: how a step of decoding runs: "eager"; "static", keys and values in tensors that keep their places; "graph",
            replayed as a CUDA graph, norms with it; "compiled" by torch, and replayed where there is CUDA. The last two are
            for norms alone, all but the first for bridges whose layers attend to all positions.
        on_finish: called with responses as they end, those that end at one step together, and the log so far; what it raises
            ends the run.
        progress: show a progress bar, under this name if it is one.
        metrics: refused here: `collect(model, out, metrics=[...])` records them, in one pass over the responses.

    Returns:
        `n` completions per prompt, in the order of the prompts.

    Raises:
        ValueError: bad input; the message says what to do.
        NotImplementedError: the model doesn't see what its KV cache holds, with the versions that work together; or a response
            would cross the length at which LongRoPE changes its factors.
        FloatingPointError: a norm, or what an observer measures, is NaN or infinite; with layer, sequence and position.

    Examples:
        >>> prompt = l2.chat_prompt(model.tokenizer, "mod 10: 7A-3", mode="think")
        >>> out = l2.generate(model, prompt, max_new_tokens=64, progress=False)
        >>> out[0]
        Completion('<think>\n7A-3=4\n</think>\n\n4', 13 tokens, stop)
        >>> out[0].trace.l2_norms.shape  # [layer, pos]; the last token is never read back
        torch.Size([12, 30])

        With an intervention, the run says what it did:

        >>> tau = l2.quantile_thresholds(think, q=0.95)
        >>> out = l2.generate(model, prompt, max_new_tokens=3, interventions=l2.Suppression(tau), progress=False)
        >>> out.events()[["position", "layer", "fired"]].head(1)
           position  layer  fired
        0        18      1   True
    """
    backend = generator_of(model)
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, think_on=think_on)
    max_new_tokens, n = as_integer("max_new_tokens", max_new_tokens, least=1), as_integer("n", n, least=1, most=_MOST_SAMPLES)
    _check_options(record, metrics, ignore_eos, progress, stop, on_finish)
    recording = Recording.of(
        backend,
        layers=resolve_layers(layers, backend.n_layers),
        sink_ratio=sink_ratio_of(model, sink_ratio),
        records=bool(record),
        observers=check_observers(observers, METRICS),
        saes=saes,
        interventions=one_or_several(interventions, Intervention),
    )
    check_steps(steps, recording.backend, acts=bool(recording.interventions), watches=saes is not None or bool(observers))
    stops = Stops.of(backend, stop, ignore_eos)
    if think_on is not None:
        think_on.check(stops.ids, backend.d_vocab)
    if isinstance(backend, Engine):
        decoding = backend.decoding(recording, sampling, stops, max_new_tokens)
    else:
        decoding = Decoder(recording, recording.run(), sampling, stops, max_new_tokens, steps)
    items = tokenize(backend, prompts, prepend_bos=prepend_bos, continues=True)
    warn_of_ignored(model, backend.generation_config)
    rows = _make_rows(items, n, _seeds(seed, len(items), n))
    _check_lengths(backend, items, max_new_tokens)
    own_labels = as_labels(labels, len(items), "prompts")
    ending = _Ending(Boundaries(backend.tokenizer), stops, recording, float(temperature), own_labels)
    if isinstance(backend, Engine):
        rows_at_once = backend.rows_at_once(batch_size)
    else:
        rows_at_once = _rows_at_once(recording.here, items, n, batch_size_of(model, batch_size), max_new_tokens)
    return _decode(decoding, rows, rows_at_once, ending, on_finish, progress)


def _decode(
    decoding: Decoding,
    rows: Sequence[Growing],
    batch_size: int,
    ending: _Ending,
    on_finish: Callable[[Generations], None] | None,
    progress: bool | str,
) -> Generations:
    completions: dict[int, Completion] = {}
    log = decoding.log
    with torch.inference_mode(), decoding.attached():
        for finished in decoding.run(rows, batch_size, progress):
            with torch.inference_mode(False):
                completions.update({row.number: ending.complete(row) for row in finished})
                if on_finish:
                    on_finish(Generations(tuple(completions[row.number] for row in finished), log))
    return Generations(tuple(completions[row.number] for row in rows), log)


def restore(
    backend: Backend | Engine,
    prompt: SequenceLike,
    tokens: Sequence[int],
    *,
    finish_reason: FinishReason,
    seed: int,
    stop: Sequence[str | int] | str = (),
) -> Completion:
    """A response of an earlier run from its tokens, without what was recorded."""
    row = _make_rows(tokenize(backend, [prompt], continues=True), 1, [seed])[0]
    row.new, row.finish_reason = list(tokens), finish_reason
    return _Ending(Boundaries(backend.tokenizer), Stops.of(backend, stop, False)).complete(row)


def _make_rows(items: Sequence[TokenSequence], n: int, seeds: Sequence[int]) -> list[Growing]:
    owners = [(prompt, item, sample) for prompt, item in enumerate(items) for sample in range(n)]
    return [Growing(i, item, prompt, sample, seeds[i]) for i, (prompt, item, sample) in enumerate(owners)]


def _seeds(seed: OnePerRow, prompts: int, n: int) -> list[int]:
    seeds = as_integers("seed", seed)
    if not is_several(seed):
        return [sequence_key(seeds[0], i, j) for i in range(prompts) for j in range(n)]
    if len(seeds) != prompts * n:
        raise InputError(
            f"seed has {len(seeds)} entries for {prompts} prompts with n = {n}: give {prompts * n}, or one integer"
        )
    return seeds


def _check_lengths(backend: Described, items: Sequence[TokenSequence], max_new_tokens: int) -> None:
    """Refuse responses that the model can't write to their end."""
    check_context(backend, items, max_new_tokens)
    if isinstance(backend, Backend):
        _check_longrope(backend, items, max_new_tokens)


def check_context(backend: Described, items: Sequence[Sized], max_new_tokens: int) -> None:
    """Refuse responses that are longer than the model's context has room for, each prompt by its number of tokens."""
    for i, item in enumerate(items):
        if len(item) + max_new_tokens - 1 > backend.n_ctx:
            raise InputError(
                f"prompt {i} has {len(item)} tokens: with max_new_tokens={max_new_tokens} it runs past the model's context of "
                f"{backend.n_ctx}; shorten it or generate at most {max(0, backend.n_ctx - len(item) + 1)}"
            )


def _check_longrope(backend: Backend, items: Sequence[TokenSequence], max_new_tokens: int) -> None:
    boundary = backend.longrope_boundary
    for i, item in enumerate(items):
        if boundary is not None and len(item) <= boundary < len(item) + max_new_tokens - 1:
            raise Unsupported(
                f"prompt {i} ({len(item)} tokens) with max_new_tokens={max_new_tokens} runs past position {boundary}, where "
                "this model's LongRoPE changes its factors while keys in the cache keep the old: what follows would not be "
                f"what one pass gives; generate at most {boundary - len(item) + 1}, or begin with more than {boundary} tokens"
            )


def _rows_at_once(backend: Backend, items: Sequence[TokenSequence], n: int, batch_size: int, max_new_tokens: int) -> int:
    """`batch_size`, or 1 where rows of a batch would not be what they are alone. Refuses a model that doesn't decode."""
    if not items:
        return batch_size
    tokens = telling_tokens(items)
    several = min(len(items) * n, batch_size) > 1
    if max_new_tokens > 1:
        check_decoding(backend, tokens)
        return batch_size if not several or decodes_rows_together(backend, tokens) else 1
    return batch_size if not several or reads_rows_together(backend, tokens) else 1


@dataclass(frozen=True)
class _Ending:
    """What makes a response of a sequence that has ended."""

    boundaries: Boundaries
    stops: Stops
    recording: Recording | None = None
    """None, as where it records nothing, for responses without traces."""
    temperature: float | None = None
    labels: Sequence[Mapping[str, Label]] | None = None
    """By prompt."""

    def complete(self, row: Growing) -> Completion:
        assert row.finish_reason is not None
        tokens, start = (*row.item.tokens, *row.new), len(row.item)
        texts = token_texts(self.boundaries.tokenizer, tokens)
        reading, segments = self.boundaries.read_response(tokens, texts, start)
        if row.finish_reason == "stop" and (cut := self.stops.cut(reading.text)) is not None:
            reading = reading.up_to(cut)
        read_back = TokenSequence(tokens=tokens[:-1], prompt_len=start, segments=segments[:-1], texts=texts[:-1])
        logprobs, self_certainty, confidence = torch.cat(row.scores, dim=1) if row.scores else (None, None, None)
        return Completion(
            prompt="".join(texts[:start]) if self.boundaries.tokenizer else "",
            text=reading.text if self.boundaries.tokenizer else "",
            answer=reading.answer if self.boundaries.tokenizer else "",
            thinking=reading.thinking if self.boundaries.tokenizer else "",
            prompt_tokens=row.item.tokens,
            tokens=tuple(row.new),
            finish_reason=row.finish_reason,
            forced=tuple(row.forced),
            prompt_index=row.prompt,
            sample=row.sample,
            seed=row.seed,
            logprobs=logprobs,
            self_certainty=self_certainty,
            token_confidence=confidence,
            trace=self._trace(row, read_back),
        )

    def _trace(self, row: Growing, read_back: TokenSequence) -> Trace | None:
        if self.recording is None or not self.recording.records:
            return None
        own = {} if self.labels is None else self.labels[row.prompt]
        recorded = joined(row.recorded)
        return self.recording.trace(read_back, recorded, seed=row.seed, temperature=self.temperature, labels=own)


def _check_options(record: Any, metrics: Any, ignore_eos: Any, progress: Any, stop: Any, on_finish: Any) -> None:
    check_flag("record", record)
    _refuse_metrics(metrics)
    check_flag("ignore_eos", ignore_eos)
    check_progress(progress)
    check_listed("stop", stop, "texts or token ids")
    if on_finish is not None:
        check_callable("on_finish", on_finish)


def _refuse_metrics(metrics: Any) -> None:
    """Say where metrics are recorded, to who looks for them here."""
    if metrics is None:
        return
    if isinstance(metrics, str | bool | Sequence) and metrics in ("none", False, [], ()):
        raise InputError("generate takes no metrics: it records the norm; record=False records nothing")
    others = [name for name in check_metrics(metrics) if name != NORM] or ["hidden_entropy"]
    raise InputError(
        f"generate takes no metrics: it records the norm, with record=False nothing; collect(model, out, metrics={others}) "
        f"records {', '.join(others)} in one pass over the responses"
    )
