"""All that touches vLLM: how it is started and stepped, and what runs on its worker, hooks and sampling.

vLLM moves its inside every few weeks; those that the tests ran with are in `tl_l2norm.engines.vllm_versions`. The functions at
the end run in the worker, to which `collective_rpc` carries them: nothing is patched, and the hooks are there only while
responses are generated.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from tl_l2norm.core.errors import InputError, Unsupported
from tl_l2norm.engines.acting import Acting
from tl_l2norm.engines.again import BlockAgain, Reruns
from tl_l2norm.engines.by_request import Read
from tl_l2norm.engines.process import environment, generators_kept, replaced_by_vllm, require_own_code
from tl_l2norm.engines.recorder import Recorder
from tl_l2norm.engines.stream import Carried, StreamProbe, stream_of, with_stream
from tl_l2norm.models.observer import Recorded
from tl_l2norm.recording.sampling import Sampling, Warper, choose, score
from tl_l2norm.recording.think_on import Forcing

try:
    from vllm.v1.sample.logits_processor import LogitsProcessor
    from vllm.v1.sample.logits_processor.builtin import process_dict_updates
except ImportError:  # `load_engine` says so
    LogitsProcessor = object

_KEY = "tl_l2norm"
_FORCED = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_USE_V2_MODEL_RUNNER": "0"}
"""Of the environment: in this process, where an error keeps its traceback; by the runner that knows custom processors."""


class Written(NamedTuple):
    """What a step added to a response."""

    number: int
    tokens: Sequence[int]
    ended: bool
    """Whether vLLM has ended the request."""


class Vllm:
    """An engine in this process, seen from outside.

    Attributes:
        version: of vLLM.
        max_model_len: tokens that a prompt and its response may have together.
        max_num_seqs: responses that are written at once.
        reads_whole_prompts: whether it reads no prompt in parts.
        carried: where the stream is in what its blocks return.
        device: where it runs.
    """

    def __init__(self, folder: str, architectures: Sequence[str], dtype: torch.dtype, options: Mapping[str, Any]) -> None:
        with generators_kept(), environment(_FORCED), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of vLLM's own imports
            import vllm

            require_own_code(architectures)
            self.version = str(vllm.__version__)
            self._params = vllm.SamplingParams
            self._kinds = vllm.sampling_params.RequestOutputKind
            self._put_back = replaced_by_vllm()
            self._llm: Any = None
            try:
                self._llm = _start(vllm, folder, dtype, options)
                self.max_model_len = int(self._llm.llm_engine.model_config.max_model_len)
                scheduling = self._llm.llm_engine.vllm_config.scheduler_config
                self.max_num_seqs = int(scheduling.max_num_seqs)
                self.reads_whole_prompts = not scheduling.enable_chunked_prefill
                self.carried: Carried = self._probe()
                self.device: torch.device = self.call(device_of)
                self._own_hooks: int = self.call(count_hooks)
            except BaseException:
                self.close()
                raise

    def _probe(self) -> Carried:
        self.call(begin_probe)
        self.add((0, 1), 0, 0, 1, (), False)
        while not self.step():
            pass
        carried: Carried = self.call(end_probe)
        return carried

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """What a function of the worker returns there."""
        return self._llm.llm_engine.collective_rpc(function, args=args)[0]

    def foreign_hooks(self) -> int:
        """How many hooks are on the model beside those that vLLM put there; to be asked between runs."""
        return int(self.call(count_hooks)) - self._own_hooks

    def add(self, prompt: Sequence[int], number: int, key: int, room: int, stops: Sequence[int], step_by_step: bool) -> str:
        """Queue a response; returns what the worker calls it.

        Args:
            prompt: token ids.
            number: what the caller calls it.
            key: seed of its draws.
            room: tokens that it may have.
            stops: token ids that end it.
            step_by_step: whether to tell of every token, not at its end.
        """
        params = self._params(
            temperature=0.0,  # what `Draws` leaves in the logits is one token
            max_tokens=room,
            stop_token_ids=list(stops),
            ignore_eos=True,  # those of the model are among `stops`
            detokenize=False,
            output_kind=self._kinds.DELTA if step_by_step else self._kinds.FINAL_ONLY,
            extra_args={_KEY: (number, key)},
        )
        return str(self._llm.llm_engine.add_request(str(number), {"prompt_token_ids": list(prompt)}, params))

    def step(self) -> list[Written]:
        """One pass of the model over what its scheduler chose."""
        outputs = self._llm.llm_engine.step()
        return [Written(int(one.request_id), one.outputs[0].token_ids, one.finished) for one in outputs]

    def abort(self, numbers: Sequence[int]) -> None:
        """End responses where they are."""
        self._llm.llm_engine.abort_request([str(number) for number in numbers])

    def close(self) -> None:
        """Free the model and its cache."""
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
            self._llm = None
        for owner, name, value in self._put_back:
            setattr(owner, name, value)


def _start(vllm: Any, folder: str, dtype: torch.dtype, options: Mapping[str, Any]) -> Any:
    try:
        return vllm.LLM(
            folder,
            dtype=dtype,
            enforce_eager=True,  # compiled graphs run no hooks
            enable_prefix_caching=False,  # tokens from a cache are read by no layer
            async_scheduling=False,  # a stop string would be seen a step late
            model_impl="vllm",
            logits_processors=[Draws],
            disable_log_stats=True,
            **options,
        )
    except (ValueError, TypeError) as error:  # pydantic's among them
        raise InputError(f"vLLM doesn't load the model in {folder} with {dict(options)}: {error}") from error


class _Row(NamedTuple):
    """A row of the batch, as its draws need it."""

    number: int
    key: int
    written: Sequence[int]
    """Tokens of the response so far; vLLM appends to it."""


class Draws(LogitsProcessor):  # type: ignore[misc,unused-ignore]
    """Chooses tokens as `generate` does, from draws keyed by sequence and position, and leaves vLLM the one that was chosen."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self.rows: dict[int, _Row] = {}
        self.warpers: list[Warper] = []
        self.forcing: Forcing | None = None
        self.scores: dict[int, dict[int, Tensor]] | None = None
        self.hooks: Hooks | StreamProbe | None = None

    def is_argmax_invariant(self) -> bool:
        """No: it decides what greedy sampling takes."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Keep up with which request is which row."""
        process_dict_updates(self.rows, batch_update, self._row)

    @staticmethod
    def _row(params: Any, prompt: Sequence[int] | None, written: Sequence[int]) -> _Row | None:
        own = (params.extra_args or {}).get(_KEY)
        return None if own is None else _Row(own[0], own[1], written)

    def apply(self, logits: Float[Tensor, "batch d_vocab"]) -> Float[Tensor, "batch d_vocab"]:
        """The logits with the chosen token's infinite."""
        rows = [self.rows[i] for i in range(len(logits))]
        numbers, keys, written = zip(*((row.number, row.key, len(row.written)) for row in rows), strict=True)
        seeds, counts = (torch.tensor(own, device=logits.device) for own in (keys, written))
        tokens = choose(logits, self.warpers, seeds, counts)
        if self.forcing is not None:
            tokens = self.forcing.over(tokens, numbers, written)
        if self.scores is not None:
            scores = score(logits, tokens).cpu().unbind(1)
            for number, at, own in zip(numbers, written, scores, strict=True):
                self.scores.setdefault(number, {})[at] = own
        return logits.scatter_(1, tokens[:, None], torch.inf)


class Hooks:
    """Hooks on decoder layers: what interventions make of the stream there, and behind them what records it."""

    def __init__(self, runner: Any, carried: Carried, acting: Acting | None, recorder: Recorder | None) -> None:
        blocks = decoder_layers(runner)
        self.runner, self.carried, self.acting, self.recorder = runner, carried, acting, recorder
        self.acts_at = acting.layers if acting else ()
        self.records_at = recorder.watched if recorder else ()
        self.hidden_at = list(inspect.signature(blocks[0].forward).parameters).index("hidden_states")
        self.ids: dict[str, int] = {}
        watched = sorted({*self.records_at, *self.acts_at})
        self.last = watched[-1]
        reruns = acting.first.blocks if acting else None
        again = {layer: block_again(blocks[layer], carried) for layer in (reruns.blocks if reruns else ())}
        if isinstance(reruns, Reruns):
            reruns.known = again
        self.handles = [block.attach() for block in again.values()]
        self.handles += [blocks[0].register_forward_pre_hook(self._begin, with_kwargs=True)]
        self.handles += [blocks[layer].register_forward_hook(partial(self._note, layer)) for layer in watched]

    def remove(self) -> None:
        """Take the hooks off the model."""
        for handle in self.handles:
            handle.remove()

    def _begin(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A pass starts: rows of the batch belong to its requests in order."""
        batch = self.runner.input_batch
        owners = np.array([self.ids.setdefault(request, len(self.ids)) for request in batch.req_ids])
        ends = self.runner.query_start_loc.np[: batch.num_reqs + 1]
        self.read = Read.of(owners, batch.num_computed_tokens_cpu[: batch.num_reqs], ends)
        states = kwargs["hidden_states"] if "hidden_states" in kwargs else args[self.hidden_at]
        if self.recorder is not None:
            self.recorder.begin(self.read, states[: len(self.read.owners)])
        if self.acting is not None:
            lengths = np.diff(ends)
            tokens = batch.token_ids_cpu[np.repeat(np.arange(len(lengths)), lengths), self.read.positions]
            self.acting.begin(batch.req_ids, lengths, self.read.positions, tokens, states.device)

    def _note(self, layer: int, block: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        stream = stream_of(output, self.carried)[: len(self.read.owners)]
        changed = self.acting.visit(layer, stream) if self.acting is not None and layer in self.acts_at else None
        if self.recorder is not None and layer in self.records_at:
            self.recorder.visit(layer, stream if changed is None else changed)
        if layer == self.last:
            judged = dict(zip(self.acts_at, self.acting.end(), strict=True)) if self.acting is not None else {}
            if self.recorder is not None:
                self.recorder.end(judged)
        return None if changed is None else with_stream(output, self.carried, stream, changed)


def block_again(block: nn.Module, carried: Carried) -> BlockAgain:
    """What runs a block again.

    Raises:
        NotImplementedError: one whose cache isn't written by attention layers of its own, apart from attending.
    """
    from vllm.forward_context import get_forward_context
    from vllm.model_executor.layers.attention import Attention
    from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase

    layers = [module for module in block.modules() if isinstance(module, AttentionLayerBase)]
    for layer in layers or (None,):
        shares = getattr(layer, "kv_sharing_target_layer_name", None) is not None
        if not isinstance(layer, Attention) or shares or layer.attn_backend.forward_includes_kv_cache_update:
            kind = f"{type(block).__name__} with {type(layer).__name__}"
            raise Unsupported(f"vLLM's {kind} can't run again without writing to its cache: use a model of load_model")
    return BlockAgain(block, carried, [layer.layer_name for layer in layers], lambda: get_forward_context().slot_mapping)


def decoder_layers(runner: Any) -> nn.ModuleList:
    """The blocks of the model that a worker runs."""
    model, n_layers = runner.get_model(), runner.model_config.get_num_layers(runner.parallel_config)
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == n_layers]
    if len(lists) != 1 or "hidden_states" not in inspect.signature(lists[0][0].forward).parameters:
        raise Unsupported(f"vLLM's {type(model).__name__} isn't one list of {n_layers} blocks: where its stream is isn't known")
    return lists[0]


def _draws(worker: Any) -> Draws:
    processors = worker.model_runner.input_batch.logitsprocs.non_argmax_invariant
    return next(one for one in processors if isinstance(one, Draws))


def device_of(worker: Any) -> torch.device:
    """On the worker: where it runs the model."""
    return torch.device(worker.device)


def count_hooks(worker: Any) -> int:
    """On the worker: hooks on the model and all inside it."""
    modules = worker.model_runner.get_model().modules()
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules)


def begin_probe(worker: Any) -> None:
    """On the worker: watch how the next pass carries the stream."""
    runner = worker.model_runner
    if not hasattr(runner, "query_start_loc") or not hasattr(getattr(runner, "input_batch", None), "logitsprocs"):
        raise Unsupported(f"vLLM runs this model by its {type(runner).__module__}, whose batches the engine doesn't know")
    _draws(worker).hooks = StreamProbe(runner.get_model(), decoder_layers(runner))


def end_probe(worker: Any) -> Carried:
    """On the worker: how it did."""
    draws = _draws(worker)
    probe, draws.hooks = draws.hooks, None
    assert isinstance(probe, StreamProbe)
    return probe.found()


def begin_run(
    worker: Any, carried: Carried, sampling: Sampling, forcing: Forcing | None, acting: Acting | None, recorder: Recorder | None
) -> None:
    """On the worker: hook the model, and sample like this from now on."""
    draws = _draws(worker)
    draws.warpers, draws.forcing, draws.scores = sampling.warpers(), forcing, None if recorder is None else {}
    draws.hooks = Hooks(worker.model_runner, carried, acting, recorder) if recorder or acting else None


def take_response(
    worker: Any, request: str, number: int, n_read: int, n_written: int
) -> tuple[Recorded, Float[Tensor, "3 token"]]:
    """On the worker: what was recorded of the tokens that were read, and scores of those that were written."""
    draws = _draws(worker)
    assert isinstance(draws.hooks, Hooks) and draws.hooks.recorder is not None and draws.scores is not None
    scores, owner = draws.scores.pop(number), draws.hooks.ids[request]
    return draws.hooks.recorder.take(owner, n_read), torch.stack([scores[i] for i in range(n_written)], dim=1)


def end_run(worker: Any) -> None:
    """On the worker: take the hooks off, and forget the run."""
    draws = _draws(worker)
    if isinstance(draws.hooks, Hooks):
        draws.hooks.remove()
    draws.hooks, draws.scores, draws.warpers, draws.forcing = None, None, [], None
