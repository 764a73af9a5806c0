"""How much an answer hangs on the content of single tokens of the thought, each changed alone and at equal norm."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from typing_extensions import override

from tl_l2norm.core.arguments import as_integer, as_seed, check_progress
from tl_l2norm.core.batch import Batch, Rows, RowTensors
from tl_l2norm.core.errors import InputError, Unmeasurable
from tl_l2norm.core.layers import BUT_LAST, LATE, Layers, late_groups, layer_ranges, resolve_layers
from tl_l2norm.core.presets import batch_size_of, sink_ratio_of
from tl_l2norm.core.prompts import require_own_prompts
from tl_l2norm.core.random_draws import hash_keys, sequence_key, uniform
from tl_l2norm.core.thresholds import ThresholdLike
from tl_l2norm.core.trace import Trace, TracesLike, require_comparable, traces_of
from tl_l2norm.interventions.base import Intervention
from tl_l2norm.interventions.intervener import Intervener
from tl_l2norm.interventions.operators import Swap
from tl_l2norm.interventions.rule import Decision, Effect, Visit
from tl_l2norm.models.backend import Backend
from tl_l2norm.models.backends import backend_of
from tl_l2norm.models.lens_check import require_lens
from tl_l2norm.recording.answers import Scored, entropies, score_answers
from tl_l2norm.text.sequences import tokenize
from tl_l2norm.text.spans import answer_start, thought_span

_DRAWN = 0x494D504F  # "IMPO": keeps the draw of tokens apart from that of their directions


def token_importance(
    model: Any,
    results_or_traces: TracesLike,
    *,
    layer: Layers = None,
    max_tokens: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """What each token of a thought is worth to the answer: log p(answer) less log p(answer | that token's content swapped).

    Each response is read again, teacher-forced, once for each token: there the direction of `resid_post` is replaced, at the
    same norm, by that of a random earlier token of the same response (`Suppression(how="swap")`, one token at a time). Dose is
    the norm alone: how far the direction turns still differs and is given as `cosine`.

    It shows on which states the written answer hangs, given all that was written. What a swap breaks in what the model would
    have written after it is not seen, for the text stands fixed; a state whose content stands elsewhere too, in a copy or in
    earlier layers of other positions, counts little; one draw of a direction is noise that only many tokens average out.

    Args:
        model: a `HookedTransformer` or `TransformerBridge`.
        results_or_traces: finished thinking responses with the label answer_at, as `run_modes` gives them.
        layer: after which block to swap, one or several in turn; by default that at a sixth of the depth: states know what
            stands around them, and nearly all blocks are still to read them. Deeper, other positions have read what they need
            (tiny-reasoner's answer loses 0.03 nats a token at layer 2, under 0.001 from layer 3 on); after the last block
            nothing but the unembedding at that very position reads it, so that one is refused.
        max_tokens: of each response, drawn at random; by default all.
        seed: of the directions, and of that draw.
        batch_size: copies of a response in one pass, 8 by default (100 for tiny-reasoner).
        progress: show a progress bar.

    Returns:
        One row per response, layer and token: sequence (number of the response), prompt, family (if labelled), position,
        token_id, token, previous_token_id (of the token before it), second_previous_token_id (of the one before that; -1
        where there is none), occurrence (how many tokens of its id stand before it in the response), left (tokens of the
        thought behind it), layer, importance (nats, over 0 where the answer loses), answer_logprob (nats, unchanged), entropy
        (nats, of the distribution from which the token was drawn, as for "forking tokens", Wang et al., arXiv 2506.01939),
        next_entropy (of that behind it), cosine (of old and new direction), l2_norm_0, ... (of each recorded layer),
        late_norm (mean over late layers), late_norm_but_the_last (without the model's last block), seed, model.
        Attention sinks, the first token and the one just before the answer are left out.

    Raises:
        ValueError: no such layer; responses whose answer's place isn't known; traces of another model; one prompt
            under two labels.
        Unmeasurable: no response in which anything is thought; those in which nothing is are left out, and a warning says how
            many.

    Examples:
        The answer is copied from the last result of the thought, the last token but one:

        >>> swapped = l2.recording.token_importance(model, think[0], layer=0, progress=False)
        >>> int(swapped["position"].max() - swapped.loc[swapped["importance"].idxmax(), "position"])
        1
    """
    backend = backend_of(model)
    traces, seed = traces_of(results_or_traces), as_seed(seed)
    check_progress(progress)
    if max_tokens is not None:
        max_tokens = as_integer("max_tokens", max_tokens, least=1)
    require_lens(backend)
    chosen = _layers(backend, layer)
    places = _places(backend, traces, chosen, max_tokens, seed)
    sink_ratio = sink_ratio_of(model, None, of=[trace.provenance.sink_ratio for trace in traces])
    reader = _Reader(backend, batch_size_of(model, batch_size), sink_ratio, seed)
    tokenize(backend, traces)  # refuses tokens that this model doesn't have
    frames = []
    with torch.no_grad(), tqdm(total=len(places), desc="importance", unit="seq", disable=not progress, delay=2) as bar:
        for i, positions in places.items():
            frames.append(reader.read(i, traces[i], positions))
            bar.update()
    return pd.concat(frames, ignore_index=True).assign(seed=seed, model=backend.model_name)


def _layers(backend: Backend, layer: Layers) -> tuple[int, ...]:
    chosen = resolve_layers(backend.n_layers // 6 if layer is None else layer, backend.n_layers)
    last = backend.n_layers - 1
    if chosen == (last,) or (last in chosen and not isinstance(layer, str | slice)):
        raise InputError(f"layer {last} is the last: no other token reads what is swapped after it; give an earlier one")
    return tuple(one for one in chosen if one != last)


def _places(
    backend: Backend, traces: Sequence[Trace], layers: Sequence[int], max_tokens: int | None, seed: int
) -> dict[int, dict[int, list[int]]]:
    """Of each response that thinks, by its number and by layer, the positions to swap."""
    require_comparable(traces)
    if unknown := [i for i, trace in enumerate(traces) if answer_start(trace) is None]:
        raise InputError(
            f"{len(unknown)} responses don't say where their answer stands, such as number {unknown[0]}: label them answer_at, "
            "or leave them out, [r for r in results if 'answer_at' in r.trace.labels]"
        )
    if lacking := sorted(set(layers) - set(traces[0].layers)):
        raise InputError(f"the traces lack layers {layer_ranges(lacking)}, whose attention sinks are not swapped: record them")
    identity = backend.identity()
    if traces[0].provenance.fingerprint not in ("", identity.weights):
        raise InputError(f"the traces are of {traces[0].provenance.describe()}, which is not this model")
    require_own_prompts(
        (trace.labels["prompt"], trace.tokens[: trace.prompt_len].tolist()) for trace in traces if "prompt" in trace.labels
    )
    places = {}
    for i, trace in enumerate(traces):
        drawn, usable = _drawn(trace, i, max_tokens, seed), {layer: _live(trace, layer) for layer in layers}
        if drawn:
            places[i] = {layer: [t for t in drawn if t in usable[layer]] for layer in layers}
    if not any(positions for of_layers in places.values() for positions in of_layers.values()):
        raise Unmeasurable(
            f"each of {len(traces)} responses thinks nothing before its answer that could be swapped: give thinking responses"
        )
    if n := len(traces) - len(places):
        warnings.warn(f"{n} of {len(traces)} responses think nothing before their answer and are left out", stacklevel=3)
    return places


def _drawn(trace: Trace, number: int, max_tokens: int | None, seed: int) -> list[int]:
    """Positions of the thought, all or some of them; not that from which the answer is predicted."""
    at = answer_start(trace)
    positions = [t for t in thought_span(trace) if t < at - 1]  # type: ignore[operator]
    if max_tokens is None or len(positions) <= max_tokens:
        return positions
    order = uniform(torch.tensor(positions), start=hash_keys(_DRAWN, seed, number)).argsort()[:max_tokens]
    return sorted(positions[i] for i in order.tolist())


def _live(trace: Trace, layer: int) -> set[int]:
    """Response positions that are no sinks and have another such before them."""
    live = (trace.is_response & ~trace.is_sink[trace.index_of(layer)]).nonzero()[:, 0].tolist()
    return set(live[1:])


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SwapOne(Intervention):
    """One token of each sequence gets the direction of a random earlier one, at its own norm: the same as
    `Suppression(how="swap")` would give it, and nothing else is changed.
    """

    targets: tuple[int, ...]
    """By the number of the sequence, the position that is swapped."""
    seed: int = 0
    thresholds: ThresholdLike | None = None

    DECISIONS: ClassVar = (Decision("swapped", True), Decision("no earlier token", False))
    COLUMNS: ClassVar = ("cosine",)

    @override
    def new_state(self, layer: int, rows: Rows, d_model: int) -> RowTensors | None:
        return Swap().begin(hash_keys(self.seed, rows.key, layer), d_model)

    @override
    def act(self, state: Any, visit: Visit) -> Effect:
        swapped, able = Swap().changed(state, visit)
        numbers = visit.places.rows.number
        target: Int[Tensor, " batch"] = torch.tensor(self.targets, device=numbers.device)[numbers]
        hit = visit.live & (visit.places.positions == target[:, None])
        changed = hit & able
        stream = torch.where(changed[..., None], swapped, visit.stream)
        cosine = torch.where(changed, torch.cosine_similarity(visit.stream.float(), stream.float(), dim=-1), torch.nan)
        decision = torch.where(changed, 1, hit * 2).to(torch.int8)
        return Effect(stream, decision, {"cosine": cosine})


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads responses again and again."""

    backend: Backend
    batch_size: int
    sink_ratio: float
    seed: int

    def read(self, number: int, trace: Trace, places: dict[int, list[int]]) -> pd.DataFrame:
        at = answer_start(trace)
        assert at is not None
        n_answer = len(trace) - at
        last = self._pass(trace, 1)
        plain = score_answers(self.backend, last, _copies(self.backend, trace, 1), [n_answer])[0]
        entropy = entropies(self.backend, last[0, :at])
        frames = []
        for layer, positions in places.items():
            found, cosines = self._swapped(number, trace, layer, positions, n_answer)
            importance = [plain.logprob - one.logprob for one in found]
            own = _frame(trace, positions, entropy).assign(left=at - 2 - np.array(positions, dtype=int))
            frames.append(own.assign(layer=layer, importance=importance, answer_logprob=plain.logprob, cosine=cosines))
        labels = {name: trace.labels[name] for name in ("prompt", "family") if name in trace.labels}
        return pd.concat(frames, ignore_index=True).assign(sequence=number, **labels)[_columns(trace, labels)]

    def _swapped(
        self, number: int, trace: Trace, layer: int, positions: Sequence[int], n_answer: int
    ) -> tuple[list[Scored], list[float]]:
        """The answer, and the cosine of old and new direction, for each position swapped alone."""
        found: list[Scored] = []
        if not positions:
            return [], []
        run = Intervener(
            self.backend,
            [SwapOne(targets=tuple(positions), seed=self.seed, layers=layer)],
            sink_ratio=self.sink_ratio,
        )
        key = sequence_key(0, number, 0) if trace.provenance.seed is None else trace.provenance.seed
        with run.attached():
            for start in range(0, len(positions), self.batch_size):
                n = min(self.batch_size, len(positions) - start)
                last = self._pass(trace, n, run, _rows(self.backend, trace, start, n, key))
                found += score_answers(self.backend, last, _copies(self.backend, trace, n), [n_answer] * n)
        cosines = run.log.events().set_index("sequence")["cosine"].reindex(range(len(positions)))
        return found, cosines.tolist()

    def _pass(
        self, trace: Trace, n: int, run: Intervener | None = None, rows: Rows | None = None
    ) -> Float[Tensor, "row pos d_model"]:
        """The last layer's states of n copies of a response."""
        tokens = _copies(self.backend, trace, n)
        with self.backend.capture_stream(self.backend.n_layers - 1) as streams:
            if run is not None and rows is not None:
                batch = Batch(rows)
                run.begin(batch)
                run.next_pass(batch.next_pass(tokens.shape[1]))
                self.backend.forward(tokens, torch.ones_like(tokens))
                run.leave(batch)
            else:
                self.backend.forward(tokens, torch.ones_like(tokens))
        if len(streams) != 1:
            raise RuntimeError("the last layer wasn't heard once in a pass: model.reset_hooks() removes everybody's hooks")
        return streams[0]


def _copies(backend: Backend, trace: Trace, n: int) -> Int[Tensor, "row pos"]:
    return trace.tokens.to(backend.device).expand(n, -1).contiguous()


def _rows(backend: Backend, trace: Trace, start: int, n: int, key: int) -> Rows:
    """Copies of a response, with the same draws, of which each has its own number: that of its target."""
    number = torch.arange(start, start + n, device=backend.device)
    same = torch.zeros_like(number)
    return Rows.of(number=number, key=same + key, prompt_len=same + trace.prompt_len, padding=same)


def _frame(trace: Trace, positions: Sequence[int], entropy: Float[Tensor, " pos"]) -> pd.DataFrame:
    at = np.array(positions, dtype=int)
    norms = trace.l2_norms.double().numpy()
    groups = late_groups(trace.layers, trace.provenance.n_layers)
    by_layer = {f"l2_norm_{one}": norms[row, at] for row, one in enumerate(trace.layers)}
    return pd.DataFrame(
        {
            "position": at,
            "token_id": trace.tokens.numpy()[at],
            "token": [trace.str_tokens[t] for t in positions],
            "previous_token_id": trace.tokens.numpy()[at - 1],
            "second_previous_token_id": np.where(at > 1, trace.tokens.numpy()[at - 2], -1),
            "occurrence": [int((trace.tokens[trace.prompt_len : t] == trace.tokens[t]).sum()) for t in positions],
            "entropy": entropy.numpy()[at - 1],
            "next_entropy": entropy.numpy()[at],
            **by_layer,
            **{name: norms[groups[group]][:, at].mean(0) if group in groups else np.nan for name, group in _LATE_NORMS.items()},
        }
    )


_LATE_NORMS = {"late_norm": LATE, "late_norm_but_the_last": BUT_LAST}


def _columns(trace: Trace, labels: dict[str, Any]) -> list[str]:
    around = ["previous_token_id", "second_previous_token_id", "occurrence", "left"]
    first = ["sequence", *labels, "position", "token_id", "token", *around, "layer", "importance", "answer_logprob"]
    norms = [f"l2_norm_{one}" for one in trace.layers]
    return [*first, "entropy", "next_entropy", "cosine", *norms, *_LATE_NORMS]
