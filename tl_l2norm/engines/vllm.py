"""vLLM in a model's place."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from tqdm.auto import tqdm
from typing_extensions import override

from tl_l2norm.core.errors import InputError
from tl_l2norm.core.identity import Identity
from tl_l2norm.core.protocols import Tokenizer
from tl_l2norm.engines.acting import Acting
from tl_l2norm.engines.again import Reruns
from tl_l2norm.engines.files import ModelFiles
from tl_l2norm.engines.recorder import Recorder
from tl_l2norm.engines.vllm_worker import Vllm, begin_run, end_run, take_response
from tl_l2norm.interventions.log import Log
from tl_l2norm.models.block_calls import BlockRuns
from tl_l2norm.models.fingerprint import template_fingerprint, tokenizer_fingerprint
from tl_l2norm.recording.decoder import Growing
from tl_l2norm.recording.engine import Engine
from tl_l2norm.recording.sampling import Sampling
from tl_l2norm.recording.stops import Stops
from tl_l2norm.recording.traces import Recording
from tl_l2norm.saes.checks import check_saes
from tl_l2norm.text.turn_ends import turn_ends


class VLLMEngine(Engine):
    """A model that vLLM runs, made by `load_engine`. `generate` takes it in a model's place; `close` frees it."""

    name = "vllm"

    def __init__(self, files: ModelFiles, vllm: Vllm, options: Mapping[str, str]) -> None:
        self._files, self._vllm, self._options = files, vllm, dict(options)
        self._lost: str | None = None
        """Why it can't be used any longer."""
        self._running = threading.Lock()

    def __repr__(self) -> str:
        """One line."""
        return f"VLLMEngine({self.model_name}, {self._lost or 'vLLM ' + self._vllm.version})"

    def __enter__(self) -> VLLMEngine:
        """Itself; it is closed at the end of the context."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Free the model and its cache. What was generated stays; a second call does nothing."""
        if self._lost != _CLOSED:
            self._lost = _CLOSED
            self._vllm.close()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._lost == _CLOSED

    @property
    @override
    def tokenizer(self) -> Tokenizer:
        return self._files.tokenizer  # type: ignore[no-any-return]

    @property
    @override
    def n_layers(self) -> int:
        return int(self._files.config.num_hidden_layers)

    @property
    @override
    def d_model(self) -> int:
        return int(self._files.config.hidden_size)

    @property
    @override
    def d_vocab(self) -> int:
        return int(self._files.config.vocab_size)

    @property
    @override
    def n_ctx(self) -> int:
        return self._vllm.max_model_len - 1  # it counts the last token, which is never read back

    @property
    @override
    def model_name(self) -> str:
        return self._files.name

    @property
    @override
    def dtype(self) -> torch.dtype:
        return self._files.dtype

    @property
    @override
    def device(self) -> torch.device:
        return self._vllm.device

    @property
    @override
    def centred(self) -> bool:
        return self._files.centred

    @property
    @override
    def generation_config(self) -> Any:
        return self._files.generation_config

    @property
    @override
    def versions(self) -> Mapping[str, str]:
        return {"vllm": self._vllm.version}

    @property
    @override
    def options(self) -> Mapping[str, str]:
        return self._options

    @property
    @override
    def fingerprint(self) -> str:
        return self._files.fingerprint

    @override
    def identity(self) -> Identity:
        self._require_open()
        return Identity(
            weights=self._files.fingerprint,
            tokenizer=tokenizer_fingerprint(self.tokenizer),
            chat_template=template_fingerprint(self.tokenizer),
            foreign_hooks=self._vllm.foreign_hooks(),
        )

    def _require_open(self) -> None:
        if self._lost is not None:
            raise InputError(f"this engine {self._lost}: load another with load_engine(...)")

    @override
    def eos_token_ids(self) -> frozenset[int]:
        ends = turn_ends(self.tokenizer, self._files.eos_token_ids)
        return frozenset(end for end in ends if 0 <= end < self.d_vocab)

    @override
    def block_runs(self, layers: tuple[int, ...]) -> BlockRuns:
        return Reruns(layers)

    @override
    def rows_at_once(self, batch_size: int | None) -> int:
        if batch_size not in (None, self._vllm.max_num_seqs):
            raise InputError(
                f"batch_size is the engine's own, {self._vllm.max_num_seqs} here: leave it out, and load the engine with "
                f"max_num_seqs={batch_size} for another"
            )
        return self._vllm.max_num_seqs

    @override
    def decoding(self, recording: Recording, sampling: Sampling, stops: Stops, max_new_tokens: int) -> Requests:
        self._require_open()
        return Requests(self, recording, sampling, stops, max_new_tokens)


_CLOSED = "is closed"
_FAILED = "failed or was interrupted in an earlier run"


class Requests:
    """Responses that vLLM writes, each a request of its own, so that samples of a prompt have their own seeds."""

    def __init__(self, engine: VLLMEngine, recording: Recording, sampling: Sampling, stops: Stops, max_new_tokens: int) -> None:
        self.engine, self.recording, self.sampling, self.stops = engine, recording, sampling, stops
        self.max_new_tokens, self.forcing = max_new_tokens, sampling.forcing(stops.ids, max_new_tokens)
        self.vllm = engine._vllm
        acts, ratio = recording.interventions, recording.sink_ratio
        whole = self.vllm.reads_whole_prompts
        self.acting = Acting(engine, acts, sink_ratio=ratio, whole_prompts=whole) if acts else None
        saes = {} if recording.saes is None else check_saes(engine, recording.saes)
        self.recorder = Recorder(recording.layers, recording.observers, saes) if recording.records else None
        self.rows: dict[int, Growing] = {}
        """On their way, by number."""
        self.names: dict[int, str] = {}
        """What the worker calls them."""

    @property
    def log(self) -> Log | None:
        """What the interventions decide; None without any."""
        return None if self.acting is None else self.acting.first.log

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Keep hooks on vLLM's model inside the context; what is not written to its end by then is given up."""
        if not self.engine._running.acquire(blocking=False):
            raise InputError("this engine is writing responses: call it when they are there, not from on_finish or a thread")
        try:
            self.vllm.call(begin_run, self.vllm.carried, self.sampling, self.forcing, self.acting, self.recorder)
            yield
        finally:
            try:
                self.vllm.abort(list(self.rows))
                self.vllm.call(end_run)
            finally:
                self.engine._running.release()
        if self.acting is not None:
            self.acting.first.finish()

    def run(self, rows: Sequence[Growing], batch_size: int, progress: bool | str) -> Iterator[list[Growing]]:
        """Write every row to its end; yields those that end together. vLLM itself knows how many it takes at once."""
        name = progress if isinstance(progress, str) else "generate"
        for row in rows:
            self._add(row)
        with tqdm(total=len(rows), desc=name, unit="seq", disable=not progress, delay=2) as bar:
            while self.rows:
                if finished := self._step():
                    bar.update(len(finished))
                    yield finished

    def _add(self, row: Growing) -> None:
        stops, step_by_step = sorted(self.stops.ids), bool(self.stops.strings)
        self.names[row.number] = name = self.vllm.add(
            row.item.tokens, row.number, row.seed, self.max_new_tokens, stops, step_by_step
        )
        self.rows[row.number] = row
        if self.acting is not None:
            self.acting.expect(name, row.number, row.seed, len(row.item))

    def _step(self) -> list[Growing]:
        """Those that end with this pass."""
        try:
            written = self.vllm.step()
        except BaseException:
            self.engine._lost = _FAILED  # its scheduler and its worker may not agree any longer
            raise
        if self.recorder is not None and self.recorder.failure is not None:
            raise self.recorder.failure  # the pass went on without it, so that the engine is as it should be
        finished = []
        for number, tokens, ended in written:
            row = self.rows[number]
            self._extend(row, tokens)
            if row.finish_reason is not None:
                finished.append(row)
                if not ended:
                    self.vllm.abort([number])
                self._hand_over(self.rows.pop(number))
            elif ended:
                raise RuntimeError(f"vLLM ended response {number} after {len(row.new)} of {self.max_new_tokens} tokens")
        return finished

    def _extend(self, row: Growing, tokens: Sequence[int]) -> None:
        for token in tokens:
            row.new.append(token)
            if self.stops.reached(row.item.tokens, row.new):
                row.finish_reason = "stop"
                return
            if len(row.new) == self.max_new_tokens:
                row.finish_reason = "length"

    def _hand_over(self, row: Growing) -> None:
        """Give a response what was recorded of it."""
        name = self.names.pop(row.number)
        if self.forcing is not None:
            row.forced = self.forcing.places.pop(row.number)
        if self.acting is not None:
            self.acting.leave(name)
        if self.recorder is None:
            return
        n_read = len(row.item) + len(row.new) - 1
        recorded, scores = self.vllm.call(take_response, name, row.number, n_read, len(row.new))
        self.recording.check(recorded, row.prompt)
        row.recorded, row.scores = [recorded], [scores]
