"""Generate responses and watch the stream meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, SupportsIndex

import torch

from tl_l2norm.core.arguments import (
    OnePerRow,
    check_callable,
    check_flag,
    check_progress,
)
from tl_l2norm.core.errors import InputError
from tl_l2norm.core.layers import Layers
from tl_l2norm.core.protocols import SparseAutoencoder
from tl_l2norm.core.trace import Label
from tl_l2norm.interventions.base import Intervention
from tl_l2norm.models.backend import Backend
from tl_l2norm.recording.completions import Completion, FinishReason, Generations
from tl_l2norm.recording.ending import Ending
from tl_l2norm.recording.engine import Engine
from tl_l2norm.recording.metrics import check_metrics
from tl_l2norm.recording.plan import Plan, make_rows
from tl_l2norm.recording.sampling import Sampling
from tl_l2norm.recording.steps import Steps
from tl_l2norm.recording.stops import Stops
from tl_l2norm.recording.stream import NORM, StreamObserver
from tl_l2norm.recording.think_on import ThinkOn
from tl_l2norm.text.boundaries import Boundaries
from tl_l2norm.text.inputs import SequenceLike
from tl_l2norm.text.sequences import tokenize

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
        0        18      0   True
    """
    _check_options(record, metrics, progress, on_finish)
    plan = Plan.of(
        model,
        prompts,
        sampling=Sampling(temperature=temperature, top_k=top_k, top_p=top_p, think_on=think_on),
        max_new_tokens=max_new_tokens,
        n=n,
        stop=stop,
        ignore_eos=ignore_eos,
        seed=seed,
        interventions=interventions,
        saes=saes,
        record=bool(record),
        observers=observers,
        layers=layers,
        labels=labels,
        batch_size=batch_size,
        prepend_bos=prepend_bos,
        sink_ratio=sink_ratio,
        steps=steps,
    )
    return _decode(plan, on_finish, progress)


def _decode(plan: Plan, on_finish: Callable[[Generations], None] | None, progress: bool | str) -> Generations:
    completions: dict[int, Completion] = {}
    decoding, log = plan.decoding, plan.decoding.log
    with torch.inference_mode(), decoding.attached():
        for finished in decoding.run(plan.rows, plan.rows_at_once, progress):
            with torch.inference_mode(False):
                completions.update({row.number: plan.ending.complete(row) for row in finished})
                if on_finish:
                    on_finish(Generations(tuple(completions[row.number] for row in finished), log))
    return Generations(tuple(completions[row.number] for row in plan.rows), log)


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
    row = make_rows(tokenize(backend, [prompt], continues=True), 1, [seed])[0]
    row.new, row.finish_reason = list(tokens), finish_reason
    return Ending(Boundaries(backend.tokenizer), Stops.of(backend, stop, False)).complete(row)


def _check_options(record: Any, metrics: Any, progress: Any, on_finish: Any) -> None:
    check_flag("record", record)
    _refuse_metrics(metrics)
    check_progress(progress)
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
