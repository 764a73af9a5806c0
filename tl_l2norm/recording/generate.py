"""The decode loop: owner of the KV cache and of everything that belongs to a sequence while it grows."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, SupportsIndex, overload

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from tl_l2norm.core.arguments import OnePerRow, as_integer, as_integers, as_labels, check_flag, one_or_several
from tl_l2norm.core.errors import InputError, Unsupported
from tl_l2norm.core.features import FeatureActs
from tl_l2norm.core.layers import Layers, resolve_layers
from tl_l2norm.core.presets import batch_size_of, sink_ratio_of
from tl_l2norm.core.protocols import SparseAutoencoder, is_several
from tl_l2norm.core.random_draws import sequence_key
from tl_l2norm.core.trace import Label, Trace
from tl_l2norm.interventions.base import Intervention
from tl_l2norm.interventions.log import Log
from tl_l2norm.interventions.rows import Rows
from tl_l2norm.interventions.run import Batch, Run
from tl_l2norm.models.backend import Backend
from tl_l2norm.models.backend_of import backend_of
from tl_l2norm.models.cache_rows import Cache
from tl_l2norm.models.decode_check import check_decoding, decodes_rows_together, reads_rows_together, telling_tokens
from tl_l2norm.recording.features import FeatureRecorder, join_features
from tl_l2norm.recording.metrics import check_metrics
from tl_l2norm.recording.sampling import Sampling, choose, score
from tl_l2norm.recording.traces import NormRecorder, check_finite, make_trace
from tl_l2norm.text.boundaries import Boundaries
from tl_l2norm.text.inputs import SequenceLike
from tl_l2norm.text.sequences import TokenSequence, decode, pad_left, token_texts, tokenize

FinishReason = Literal["stop", "length"]

_FLUSH_EVERY = 128  # decode steps between copies of the recorded norms to the CPU


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Completion:
    """One response."""

    prompt: str
    text: str
    """The response: special tokens other than those that mark thoughts, and a stop string, are left out."""
    answer: str
    """What of it follows the thinking; "" where it ends inside a thought."""
    thinking: str = ""
    """What it thinks, tags left out."""
    prompt_tokens: tuple[int, ...]
    tokens: tuple[int, ...]
    """Of the response, all that were sampled, a stop token included."""
    finish_reason: FinishReason
    """"stop" at a stop token or string, "length" at `max_new_tokens`."""
    prompt_index: int
    sample: int
    """Which of the prompt's `n` responses."""
    seed: int
    """Given as `seed=[...]`, it draws this response again, whatever stands beside it."""
    logprobs: Float[Tensor, " token"] | None
    """Natural log-probability of each token of the response under the model's own distribution, at temperature 1."""
    self_certainty: Float[Tensor, " token"] | None
    """`KL(U || p) = -log V - mean_j log p_j` where each token was chosen: how far from uniform the model was (Kang et al.,
    arXiv 2502.18581)."""
    trace: Trace | None
    """Prompt and response as far as they were read back (all but the last token); None if nothing was recorded."""

    def __repr__(self) -> str:
        """One line."""
        return f"Completion({self.text!r:.60}, {len(self.tokens)} tokens, {self.finish_reason})"


@dataclass(frozen=True, slots=True, eq=False)
class Generations(Sequence[Completion]):
    """Responses in the order of their prompts, the `n` samples of a prompt together."""

    completions: tuple[Completion, ...]
    log: Log | None = None
    """What the interventions decided; None without interventions."""

    @overload
    def __getitem__(self, index: int) -> Completion: ...
    @overload
    def __getitem__(self, index: slice) -> Generations: ...
    def __getitem__(self, index: int | slice) -> Completion | Generations:
        """One response, or several."""
        found = self.completions[index]
        return Generations(found, self.log) if isinstance(found, tuple) else found

    def __len__(self) -> int:
        """Number of responses."""
        return len(self.completions)

    @property
    def texts(self) -> tuple[str, ...]:
        """The responses' texts."""
        return tuple(completion.text for completion in self.completions)

    @property
    def traces(self) -> tuple[Trace, ...]:
        """The responses' traces; empty if nothing was recorded."""
        return tuple(completion.trace for completion in self.completions if completion.trace is not None)

    def events(self) -> pd.DataFrame:
        """One row for each decision of an intervention, see `Log.events`; `sequence` is a response's place in the whole run.

        Raises:
            ValueError: there was no intervention.
        """
        if self.log is None:
            raise InputError("nothing intervened: generate(..., interventions=[...])")
        return self.log.events()

    def to_frame(self) -> pd.DataFrame:
        """One row per response: prompt_index, sample, prompt, text, n_prompt_tokens, n_tokens, finish_reason, seed."""
        names = ("prompt_index", "sample", "prompt", "text", "finish_reason", "seed")
        rows = [
            {name: getattr(c, name) for name in names} | {"n_prompt_tokens": len(c.prompt_tokens), "n_tokens": len(c.tokens)}
            for c in self.completions
        ]
        return pd.DataFrame(rows)


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
    metrics: Sequence[str] = ("l2_norm",),
    layers: Layers = None,
    labels: Mapping[str, Label] | Sequence[Mapping[str, Label]] | None = None,
    batch_size: int | None = None,
    prepend_bos: bool | None = None,
    sink_ratio: float | None = None,
    on_finish: Callable[[Generations], None] | None = None,
    progress: bool | str = True,
) -> Generations:
    """Generate responses and record the norm of every token as it is read back, after all interventions.

    A response doesn't depend on what is generated beside it: finished rows leave the batch, and waiting prompts take their
    places. Repetition penalties and the like that a model's generation config asks for are not applied.

    Args:
        model: a `HookedTransformer` or `TransformerBridge`.
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
        metrics: what to record, ("l2_norm",), with the tokens' probabilities beside it; or nothing, (). The other metrics are
            recorded by `collect(model, out, metrics=...)`, in one pass over the responses.
        layers: which blocks to record; all by default.
        labels: for each prompt, what to keep with its traces.
        batch_size: responses that are decoded at once, 8 by default (100 for tiny-reasoner); 1 for a model whose recurrent
            layers read padding.
        prepend_bos: for plain texts: BOS or none; by default what the model's tokenizer adds.
        sink_ratio: a norm over this many times its layer's median over the prompt is marked as an attention sink, and
            interventions leave it alone; 5 by default (20 for tiny-reasoner).
        on_finish: called with responses as they end, those that end at one step together, and the log so far; what it raises
            ends the run.
        progress: show a progress bar, under this name if it is one.

    Raises:
        ValueError: bad input; the message says what to do.
        NotImplementedError: the model doesn't see what its KV cache holds, with the versions that work together; or a response
            would cross the length at which LongRoPE changes its factors.
        FloatingPointError: a norm is NaN or infinite; with layer, sequence and position.
    """
    backend = backend_of(model)
    identity = backend.identity()
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    max_new_tokens, n = as_integer("max_new_tokens", max_new_tokens, least=1), as_integer("n", n, least=1)
    batch_size, sink_ratio = batch_size_of(model, batch_size), sink_ratio_of(model, sink_ratio)
    check_flag("ignore_eos", ignore_eos)
    if others := [name for name in check_metrics(metrics) if name != "l2_norm"]:
        raise InputError(
            f"generate records 'l2_norm' alone: collect(model, out, metrics={others}) records {', '.join(others)} in one pass "
            "over the responses"
        )
    if saes is not None and not metrics:
        raise InputError("features are recorded beside the norms: with saes= leave metrics as it is")
    chosen = resolve_layers(layers, backend.n_layers)
    items = tokenize(backend, prompts, prepend_bos=prepend_bos, continues=True)
    stops = _Stops.of(backend, stop, ignore_eos)
    rows = _make_rows(items, n, _seeds(seed, len(items), n))
    _check_context(backend, items, max_new_tokens)
    _check_longrope(backend, items, max_new_tokens)
    own_labels = as_labels(labels, len(items), "prompts")
    recorder = NormRecorder(backend, chosen) if metrics else None
    features = FeatureRecorder(backend, saes) if saes is not None else None
    interventions = one_or_several(interventions, Intervention)
    run = Run(backend, interventions, sink_ratio=sink_ratio) if interventions else None
    batch_size = _rows_at_once(backend, items, n, batch_size, max_new_tokens)
    decoder = _Decoder(backend, recorder, features, run, sampling, stops, max_new_tokens)

    boundaries = Boundaries(backend.tokenizer)

    def complete(row: _Row) -> Completion:
        trace = partial(
            make_trace,
            backend,
            identity=identity,
            layers=chosen,
            sink_ratio=sink_ratio,
            seed=row.seed,
            temperature=float(temperature),
            interventions=interventions,
            labels=own_labels[row.prompt] if own_labels else {},
        )
        return _complete(boundaries, row, stops, trace)

    completions: dict[int, Completion] = {}
    with (
        torch.inference_mode(),
        run.attached() if run else nullcontext(),
        recorder.attached() if recorder else nullcontext(),  # these two last: they see what the next block reads
        features.attached() if features else nullcontext(),
    ):
        for finished in decoder.run(rows, n, batch_size, progress):
            with torch.inference_mode(False):
                completions.update({row.number: complete(row) for row in finished})
                if on_finish:
                    on_finish(Generations(tuple(completions[row.number] for row in finished), log=run.log if run else None))
    return Generations(tuple(completions[row.number] for row in rows), log=run.log if run else None)


def restore(
    model: Any,
    prompt: SequenceLike,
    tokens: Sequence[int],
    *,
    finish_reason: FinishReason,
    seed: int,
    stop: Sequence[str | int] | str = (),
) -> Completion:
    """A response of an earlier run from its tokens, without what was recorded."""
    backend = backend_of(model)
    row = _make_rows(tokenize(backend, [prompt]), 1, [seed])[0]
    row.new, row.finish_reason = list(tokens), finish_reason
    return _complete(Boundaries(backend.tokenizer), row, _Stops.of(backend, stop, False), make_trace)


@dataclass(slots=True, eq=False)
class _Row:
    """A sequence while it grows."""

    number: int
    item: TokenSequence
    prompt: int
    sample: int
    seed: int
    new: list[int] = field(default_factory=list)
    norms: list[Float[Tensor, "row pos"]] = field(default_factory=list)
    features: list[dict[int, FeatureActs]] = field(default_factory=list)
    scores: list[Float[Tensor, "2 token"]] = field(default_factory=list)
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class _Stops:
    ids: frozenset[int]
    strings: tuple[str, ...]
    tokenizer: Any

    @classmethod
    def of(cls, backend: Backend, stop: Any, ignore_eos: bool) -> _Stops:
        given = list(one_or_several(stop, str))
        strings = tuple(s for s in given if isinstance(s, str))
        if "" in strings:
            raise InputError("a stop string is empty: it would end every response at once")
        if strings and backend.tokenizer is None:
            raise InputError("stop strings need a tokenizer, and the model has none: give token ids")
        ids = frozenset(as_integer("stop: a token id", s, least=0) for s in given if not isinstance(s, str))
        if ids and max(ids) >= backend.d_vocab:
            raise InputError(f"stop has the token id {max(ids)}, the vocabulary runs from 0 to {backend.d_vocab - 1}")
        return cls(ids if ignore_eos else ids | backend.eos_token_ids(), strings, backend.tokenizer)

    def reached(self, tokens: list[int]) -> bool:
        if tokens[-1] in self.ids:
            return True
        window = tokens[-4 * max(map(len, self.strings), default=0) :]  # a character has at most four tokens
        return bool(self.strings) and self.cut(decode(self.tokenizer, window)) is not None

    def cut(self, text: str) -> int | None:
        """Where the first stop string begins."""
        return min((at for s in self.strings if (at := text.find(s)) >= 0), default=None)


class _Decoder:
    """A batch of sequences, their cache and their mask. Tensors have one row per sequence in `rows`, in this order."""

    def __init__(
        self,
        backend: Backend,
        recorder: NormRecorder | None,
        features: FeatureRecorder | None,
        interventions: Run | None,
        sampling: Sampling,
        stops: _Stops,
        max_new_tokens: int,
    ) -> None:
        self.backend, self.recorder, self.features, self.interventions = backend, recorder, features, interventions
        self.stops, self.max_new_tokens = stops, max_new_tokens
        self.warpers = sampling.warpers()
        self.rows: list[_Row] = []
        self.cache: Cache = None
        self.mask = self.tokens = self.seeds = torch.empty(0)
        self.steps: list[Float[Tensor, "row batch 1"]] = []
        self.scores: list[Float[Tensor, "2 batch"]] = []

    def run(self, rows: Sequence[_Row], n: int, batch_size: int, progress: bool | str) -> Iterator[list[_Row]]:
        """Decode every row to its end; yields rows as they finish, those of one step together."""
        shared = 1 if self.interventions and self.interventions.acts_on_prompts else min(n, batch_size)
        queue = deque(_groups(rows, shared))
        name = progress if isinstance(progress, str) else "generate"
        with tqdm(total=len(rows), desc=name, unit="seq", disable=not progress, delay=2) as bar:
            read = 0
            while queue or self.rows:
                if admitted := list(self._admissible(queue, batch_size)):
                    self._admit(admitted)
                else:
                    self._step()
                finished = self._retire()
                bar.update(len(finished))
                read += max(1, len(self.rows))
                bar.set_postfix(tokens=read, refresh=False)
                if finished:
                    yield finished

    def _admissible(self, queue: deque[list[_Row]], batch_size: int) -> Iterator[list[_Row]]:
        """Groups that fit: into an empty batch, or into one that is half empty, so that prompts are read together."""
        free = batch_size - len(self.rows)
        if self.rows and (2 * free < batch_size or not self.backend.cache_rows.can_join(self.cache)):
            return
        rows = [*self.rows, *(queue[0] if queue else ())]
        while queue and len(queue[0]) <= free and self._is_far(queue[0][0]) == self._is_far(rows[0]):
            free -= len(queue[0])
            yield queue.popleft()

    def _is_far(self, row: _Row) -> bool:
        """On which side of LongRoPE's boundary a row is, from its prompt to its end: a batch has one set of factors."""
        boundary = self.backend.longrope_boundary
        return boundary is not None and len(row.item) > boundary

    def _admit(self, groups: list[list[_Row]]) -> None:
        """Read the prompts of new rows, one pass for the samples of a prompt, and put them beside the others."""
        self._flush()
        tokens, mask = pad_left([group[0].item.tokens for group in groups], self.backend.device)
        waiting = self._begin([group[0] for group in groups], mask)
        if self.features:
            self.features.next_pass(mask.bool())
        logits, cache = self.backend.forward(tokens, mask, keep_cache=True, logits="last")
        assert logits is not None
        if self.recorder:
            recorded = self.recorder.take().cpu()
            for index, group in enumerate(groups):
                norms = recorded[:, index, -len(group[0].item) :]
                check_finite(norms, self.recorder.layers, group[0].prompt)
                for row in group:
                    row.norms.append(norms)
        if self.features:
            for group, acts in zip(groups, self.features.take(len(groups)), strict=True):
                for row in group:
                    row.features.append(acts)
        owner = torch.tensor([i for i, group in enumerate(groups) for _ in group], device=mask.device)
        rows = [row for group in groups for row in group]
        if len(rows) > len(groups):
            cache, logits, mask = self.backend.cache_rows.select(cache, owner), logits[owner], mask[owner]
            if self.interventions:
                self.interventions.renumber(owner, _intervention_rows(rows, mask))
        if self.interventions and waiting:
            self.interventions.join(waiting)
        seeds = torch.tensor([row.seed for row in rows], device=mask.device)
        tokens = self._choose(rows, logits[:, -1], seeds)
        self._hand_out_scores(rows)
        if self.rows:
            width = max(self.mask.shape[1], mask.shape[1])
            mask = torch.cat([_widen(self.mask, width), _widen(mask, width)])
            cache = self.backend.cache_rows.join(self.cache, cache)
            tokens, seeds = torch.cat([self.tokens, tokens]), torch.cat([self.seeds, seeds])
        self.rows, self.cache, self.mask, self.tokens, self.seeds = [*self.rows, *rows], cache, mask, tokens, seeds

    def _begin(self, rows: list[_Row], mask: Tensor) -> Batch | None:
        """Tell the interventions whose prompts are read now; returns what they remember of the rows that wait meanwhile."""
        if not self.interventions:
            return None
        waiting = self.interventions.begin(_intervention_rows(rows, mask))
        self.interventions.next_pass(mask.shape[1])
        return waiting

    def _step(self) -> None:
        """Read every row's last token back and choose its next."""
        if self.interventions:
            self.interventions.next_pass(1)
        if self.features:
            self.features.next_pass(torch.ones(len(self.rows), 1, dtype=torch.bool, device=self.mask.device))
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.rows), 1)], dim=1)
        logits, self.cache = self.backend.forward(self.tokens[:, None], self.mask, cache=self.cache, logits="last")
        assert logits is not None
        if self.recorder:
            self.steps.append(self.recorder.take())
            if len(self.steps) >= _FLUSH_EVERY:
                self._flush()
        self.tokens = self._choose(self.rows, logits[:, -1], self.seeds)

    def _choose(self, rows: list[_Row], logits: Tensor, seeds: Tensor) -> Int[Tensor, " rows"]:
        counts = torch.tensor([len(row.new) for row in rows], device=logits.device) if self.warpers else seeds
        tokens = choose(logits, self.warpers, seeds, counts)
        if self.recorder:
            self.scores.append(score(logits, tokens))
        for row, token in zip(rows, tokens.tolist(), strict=True):
            row.new.append(token)
            if self.stops.reached(row.new):
                row.finish_reason = "stop"
            elif len(row.new) == self.max_new_tokens:
                row.finish_reason = "length"
        return tokens

    def _retire(self) -> list[_Row]:
        """Let finished rows leave, and padding that no row needs any longer; returns those that left."""
        alive = [i for i, row in enumerate(self.rows) if row.finish_reason is None]
        left = [row for row in self.rows if row.finish_reason is not None]
        if not left:
            return []
        self._flush()
        self.rows = [self.rows[i] for i in alive]
        if not alive:
            self.cache = None
            if self.interventions:
                self.interventions.finish_batch()
            return left
        keep = torch.tensor(alive, device=self.mask.device)
        self.cache = self.backend.cache_rows.select(self.cache, keep)
        if self.interventions:
            self.interventions.select(keep)
        self.mask, self.tokens, self.seeds = self.mask[keep], self.tokens[keep], self.seeds[keep]
        padding = int(self.mask.argmax(1).min())
        if padding and self.backend.cache_rows.can_join(self.cache):
            self.cache, self.mask = self.backend.cache_rows.trim_left(self.cache, padding), self.mask[:, padding:]
        return left

    def _flush(self) -> None:
        """Hand the recorded steps to their rows; before the batch changes, and now and then."""
        if not self.steps or self.recorder is None:
            return
        recorded = torch.cat(self.steps, dim=2).cpu()
        self.steps = []
        for index, row in enumerate(self.rows):
            norms = recorded[:, index]
            check_finite(norms, self.recorder.layers, row.prompt, first=sum(part.shape[1] for part in row.norms))
            row.norms.append(norms)
        if self.features:
            for row, acts in zip(self.rows, self.features.take(len(self.rows)), strict=True):
                row.features.append(acts)
        self._hand_out_scores(self.rows)

    def _hand_out_scores(self, rows: Sequence[_Row]) -> None:
        if not self.scores:
            return
        scores = torch.stack(self.scores, dim=2).cpu()
        self.scores = []
        for index, row in enumerate(rows):
            row.scores.append(scores[:, index])


def _intervention_rows(rows: Sequence[_Row], mask: Int[Tensor, "rows total"]) -> Rows:
    device = mask.device
    return Rows.of(
        number=torch.tensor([row.number for row in rows], device=device),
        key=torch.tensor([row.seed for row in rows], device=device),
        prompt_len=torch.tensor([len(row.item) for row in rows], device=device),
        padding=mask.argmax(1),
    )


def _make_rows(items: Sequence[TokenSequence], n: int, seeds: Sequence[int]) -> list[_Row]:
    owners = [(prompt, item, sample) for prompt, item in enumerate(items) for sample in range(n)]
    return [_Row(i, item, prompt, sample, seeds[i]) for i, (prompt, item, sample) in enumerate(owners)]


def _groups(rows: Sequence[_Row], size: int) -> list[list[_Row]]:
    """Samples that share a pass over their prompt, those of the longest prompts first: a lack of memory shows at once."""
    by_prompt: dict[int, list[_Row]] = {}
    for row in rows:
        by_prompt.setdefault(row.prompt, []).append(row)
    order = sorted(by_prompt.values(), key=lambda group: -len(group[0].item))
    return [group[start : start + size] for group in order for start in range(0, len(group), size)]


def _seeds(seed: OnePerRow, prompts: int, n: int) -> list[int]:
    found = as_integers("seed", seed)
    if not is_several(seed):
        return [sequence_key(found[0], i, j) for i in range(prompts) for j in range(n)]
    if len(found) != prompts * n:
        raise InputError(
            f"seed has {len(found)} entries for {prompts} prompts with n = {n}: give {prompts * n}, or one integer"
        )
    return found


def _check_context(backend: Backend, items: Sequence[TokenSequence], max_new_tokens: int) -> None:
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


def _widen(mask: Int[Tensor, "rows total"], width: int) -> Int[Tensor, "rows width"]:
    return torch.nn.functional.pad(mask, (width - mask.shape[1], 0))


def _complete(boundaries: Boundaries, row: _Row, stops: _Stops, trace: Callable[..., Trace]) -> Completion:
    assert row.finish_reason is not None
    tokens, start = (*row.item.tokens, *row.new), len(row.item)
    texts = token_texts(boundaries.tokenizer, tokens)
    reading, segments = boundaries.read_response(tokens, texts, start)
    if row.finish_reason == "stop" and (cut := stops.cut(reading.text)) is not None:
        reading = reading.up_to(cut)
    read_back = TokenSequence(tokens=tokens[:-1], prompt_len=start, segments=segments[:-1], texts=texts[:-1])
    logprobs, self_certainty = torch.cat(row.scores, dim=1) if row.scores else (None, None)
    return Completion(
        prompt="".join(texts[:start]) if boundaries.tokenizer else "",
        text=reading.text if boundaries.tokenizer else "",
        answer=reading.answer if boundaries.tokenizer else "",
        thinking=reading.thinking if boundaries.tokenizer else "",
        prompt_tokens=row.item.tokens,
        tokens=tuple(row.new),
        finish_reason=row.finish_reason,
        prompt_index=row.prompt,
        sample=row.sample,
        seed=row.seed,
        logprobs=logprobs,
        self_certainty=self_certainty,
        trace=trace(read_back, torch.cat(row.norms, dim=1), features=join_features(row.features)) if row.norms else None,
    )
