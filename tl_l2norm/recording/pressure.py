"""Optimisation pressure: how hard the loss of the next token pulls at the last state, in closed form.

With L = -log p(next token), z = logits and y = norm(h): dL/dz = p - onehot(next), times 1 - (z/cap)^2 under a soft cap;
dL/dy = W_U dL/dz = sum_j (p_j - 1[j = next]) e_j, the argument of "The Tell-Tale Norm" (arXiv 2606.06188), which takes this for
dL/dh. Here it goes on through the final norm, exactly: with u = gain * dL/dy and rms = sqrt(mean h^2 + eps),
dL/dh = (u - h (h.u) / (d_model rms^2)) / rms; LayerNorm's also has its mean taken out.

||dL/dh|| has 1 / ||h|| in it: against a norm that has nothing to do with the loss its rank correlation is about -0.6.
||dL/dy||, the `pull`, has no norm in it, and is what norms may be held against.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from tl_l2norm.core.arguments import OnePerRow, as_labels
from tl_l2norm.core.errors import InputError, Unmeasurable, Unsupported
from tl_l2norm.core.measured import PRESSURES
from tl_l2norm.core.norms import find_sinks, l2_norms, sink_bounds
from tl_l2norm.core.presets import batch_size_of, sink_ratio_of
from tl_l2norm.core.prompts import require_own_prompts
from tl_l2norm.core.trace import Label
from tl_l2norm.models.backend import Backend
from tl_l2norm.models.backends import backend_of
from tl_l2norm.models.decode_check import batches
from tl_l2norm.models.final_norm import FinalNorm
from tl_l2norm.text.inputs import SequenceLike
from tl_l2norm.text.sequences import TokenSequence, pad_left, token_texts, tokenize

_AT_ONCE = 1 << 24  # logits, and weights copied to float32: 64 MB
_LOGIT_ERROR = {torch.float32: 1e-3, torch.float64: 1e-3}  # of the closed form, beside the largest logit
_HALF_LOGIT_ERROR = 0.05


def optimisation_pressure(
    model: Any,
    sequences: SequenceLike | Iterable[SequenceLike],
    *,
    prompt_lens: OnePerRow | None = None,
    labels: Mapping[str, Label] | Sequence[Mapping[str, Label]] | None = None,
    batch_size: int | None = None,
    prepend_bos: bool | None = None,
    sink_ratio: float | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """How hard the loss of the next token pulls at the last state, at every response token: before the final norm and after it.

    `pressure` is `||dL/dh||`, h the last layer's `resid_post`, and `pull` is `||dL/dy||`, y = norm(h), which has no 1 / ||h||
    in it; L = -log p(next token), in closed form and float32 whatever the model's dtype: dL/dz = p - onehot through the soft
    cap, W_U and the final norm. The paper (arXiv 2606.06188) argues from dL/dh = sum_j (p_j - 1[j = k]) e_j, which
    is dL/dy. Where the norm's gain was folded into W_U, y is what the norm gives without it.

    Args:
        model: a `HookedTransformer` or `TransformerBridge`; its own hooks stay and are heard before ours.
        sequences: texts, chats (lists of messages), token ids, or values with `.tokens`, as in `collect`.
        prompt_lens: where each response begins; by default as `collect` finds it.
        labels: for each sequence, columns to add.
        batch_size: sequences in one pass, grouped by length, 8 by default (100 for tiny-reasoner). The numbers don't depend on
            it.
        prepend_bos: for plain texts: BOS or none; by default what the model's tokenizer adds.
        sink_ratio: a norm over this many times the median over the prompt is marked as an attention sink; 5 by default (20 for
            tiny-reasoner).
        progress: show a progress bar.

    Returns:
        One entry for each position whose next token is of the response, from the prompt's last to the last but one; of a
        sequence that is all prompt, every position but the last. Columns: sequence, position (whose state it is), token_id,
        token and segment (of the next token), p_true (its probability), loss (nats), pressure (nats per unit of the stream),
        pull (nats per unit of the final norm's output), state_token_id, l2_norm and is_sink (of the state), next_l2_norm and
        next_is_sink (of the next token's own state, where it is read back), then the labels.

    Raises:
        ValueError: bad input; a sequence of one token, which has no next; logits that are not those of W_U and the soft cap.
        NotImplementedError: a final norm that is neither RMSNorm nor LayerNorm.
        FloatingPointError: a norm is NaN or infinite.

    Examples:
        >>> table = l2.recording.optimisation_pressure(model, think[:2], progress=False)
        >>> table.loc[0, ["token", "segment"]].tolist()
        ['<think>', 'think']
        >>> bool((table["p_true"] > 0.99).all()), bool((table["pressure"] < 1e-3).all())  # it is sure of its own words
        (True, True)
    """
    backend = backend_of(model)
    items = tokenize(backend, sequences, prepend_bos=prepend_bos, prompt_lens=prompt_lens)
    batch_size = batch_size_of(model, batch_size)
    sink_ratio = sink_ratio_of(model, sink_ratio, of=[item.sink_ratio for item in items])
    own_labels = as_labels(labels, len(items)) or [{}] * len(items)
    _check(items, own_labels)
    head = read_head(backend)
    frames: dict[int, pd.DataFrame] = {}
    with (
        torch.no_grad(),
        backend.capture_stream(backend.n_layers - 1) as streams,
        tqdm(total=len(items), desc="pressure", unit="seq", disable=not progress, delay=2) as bar,
    ):
        for batch in batches(backend, items, batch_size):
            tokens, mask = pad_left([items[i].tokens for i in batch], backend.device)
            logits, _ = backend.forward(tokens, mask, logits="last")
            stream = _take(streams)
            norms = {i: row[-len(items[i]) :] for i, row in zip(batch, l2_norms(stream).cpu(), strict=True)}
            _check_finite(norms, backend.n_layers - 1)
            assert logits is not None
            check_logits(head, stream[:, -1], logits[:, -1])
            by_item = _of_batch(head, [items[i] for i in batch], stream)
            for i, own in zip(batch, by_item, strict=True):
                frames[i] = _frame(backend, i, items[i], norms[i], own, sink_ratio)
                frames[i] = frames[i].assign(**own_labels[i])
            bar.update(len(batch))
    return pd.concat([frames[i] for i in range(len(items))], ignore_index=True)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Head:
    """What makes logits of the last state: `z = norm(h) W_U + b_U`, soft-capped where the model does."""

    norm: FinalNorm
    W_U: Float[Tensor, "d_model d_vocab"]
    """In the model's dtype; copied to float32 in parts."""
    b_U: Float[Tensor, " d_vocab"]
    cap: float | None = None

    def logits(self, states: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_vocab"]:
        """Float32 logits of float32 states."""
        outputs = self.norm(states)
        logits = torch.empty(len(states), self.W_U.shape[1], device=states.device)
        for part in self._parts():
            logits[:, part] = torch.addmm(self.b_U[part].float(), outputs, self.W_U[:, part].float())
        return logits if self.cap is None else logits.div_(self.cap).tanh_().mul_(self.cap)

    def pull_back(self, logits: Float[Tensor, "n d_vocab"], gradient: Float[Tensor, "n d_vocab"]) -> Float[Tensor, "n d_model"]:
        """Gradient with respect to the final norm's output, from that with respect to its logits."""
        if self.cap is not None:
            gradient = gradient * (1 - (logits / self.cap) ** 2)
        outputs = torch.zeros(len(logits), self.W_U.shape[0], device=logits.device)
        for part in self._parts():
            outputs.addmm_(gradient[:, part], self.W_U[:, part].float().T)
        return outputs

    def _parts(self) -> Iterator[slice]:
        width = max(1, _AT_ONCE // self.W_U.shape[0])
        return (slice(start, start + width) for start in range(0, self.W_U.shape[1], width))


def read_head(backend: Backend) -> Head:
    """The model's final norm and unembedding.

    Raises:
        ValueError: an unembedding that is no matrix of [d_model, d_vocab], as of quantised models.
        NotImplementedError: a final norm that is neither RMSNorm nor LayerNorm.
    """
    weight, bias = backend.model.W_U.detach(), backend.model.b_U.detach()
    d_model, d_vocab = backend.d_model, int(backend.model.cfg.d_vocab)
    # It may be wider: a bridge whose tokenizer was replaced counts that one's tokens.
    if weight.ndim != 2 or weight.shape[0] != d_model or weight.shape[1] < d_vocab or not weight.is_floating_point():
        raise Unsupported(
            f"W_U is {weight.dtype} of shape {tuple(weight.shape)}, expected floating point of [{d_model}, {d_vocab}]: load "
            "the model unquantised"
        )
    return Head(norm=backend.final_norm(), W_U=weight, b_U=bias, cap=backend.logit_cap)


def check_logits(head: Head, states: Float[Tensor, "n d_model"], truth: Float[Tensor, "n d_vocab"]) -> None:
    """Check that the head gives the model's own logits: else its gradient would not be the model's.

    Raises:
        ValueError: the model scales its logits, or a hook changes them.
    """
    logits = head.logits(states.to(head.W_U.device).float())
    off = (logits - truth.to(logits.device)).abs().max() / truth.abs().max().clamp_min(1e-6)
    if not off <= _LOGIT_ERROR.get(head.W_U.dtype, _HALF_LOGIT_ERROR):
        raise Unsupported(
            f"the model's logits are not norm(h) W_U + b_U{' under its soft cap' if head.cap else ''} (off by {float(off):.2g} "
            "of the largest): it scales them (as Cohere and Granite do) or a hook changes them; their gradient isn't known"
        )


class Pressure(NamedTuple):
    """Of states and their next tokens, each [n] in float32."""

    p_true: Float[Tensor, " n"]
    loss: Float[Tensor, " n"]
    pressure: Float[Tensor, " n"]
    """`||dL/dh||`"""
    pull: Float[Tensor, " n"]
    """`||dL/dy||`"""


def pressures(head: Head, states: Float[Tensor, "n d_model"], next_tokens: Int[Tensor, " n"]) -> Pressure:
    """Gradients' norms at states, some at a time: never more than 2^24 logits."""
    size = max(1, _AT_ONCE // head.W_U.shape[1])
    parts = [_pressures(head, *part) for part in zip(torch.split(states, size), torch.split(next_tokens, size), strict=True)]
    return Pressure(*map(torch.cat, zip(*parts, strict=True)))


def _pressures(head: Head, states: Tensor, next_tokens: Tensor) -> Pressure:
    states, column = states.float(), next_tokens[:, None]
    logits = head.logits(states)
    gradient = logits.softmax(-1)
    p_true = gradient.gather(1, column)
    # 1 - p by the sum of the others: where p is nearly 1 the difference would be rounding alone.
    rest = gradient.scatter_(1, column, 0.0).sum(1, keepdim=True)
    gradient.scatter_(1, column, -rest)
    surprise = logits.logsumexp(-1, keepdim=True) - logits.gather(1, column)
    loss = torch.where(rest < 0.5, -torch.log1p(-rest), surprise)
    outer = head.pull_back(logits, gradient)
    return Pressure(p_true[:, 0], loss[:, 0], l2_norms(head.norm.pull_back(states, outer)), l2_norms(outer))


def _check(items: Sequence[TokenSequence], labels: Sequence[Mapping[str, Label]]) -> None:
    for i, item in enumerate(items):
        if len(item) < 2:
            raise Unmeasurable(f"sequence {i} has one token: there is no next token whose loss could be taken")
    require_own_prompts(
        (own["prompt"], item.tokens[: item.prompt_len])
        for item, own in zip(items, labels, strict=True)
        if "prompt" in own and item.prompt_len < len(item)
    )
    if taken := {name for own in labels for name in own} & set(PRESSURES.names):
        raise InputError(f"labels can't be called {sorted(taken)}: the table has columns of these names")


def _take(streams: list[Tensor]) -> Tensor:
    if len(streams) != 1:
        raise RuntimeError(
            "the last layer wasn't heard once in a pass: its hook is gone (model.reset_hooks() removes everybody's) or the "
            "model ran inside one of its hooks"
        )
    return streams.pop()


def _first(item: TokenSequence) -> int:
    """The first position whose next token counts."""
    return item.prompt_len - 1 if item.prompt_len < len(item) else 0


def _check_finite(norms: Mapping[int, Float[Tensor, " _"]], layer: int) -> None:
    for i, own in norms.items():
        if not bool(torch.isfinite(own).all()):
            position = int((~torch.isfinite(own)).nonzero()[0, 0])
            raise FloatingPointError(
                f"the norm is {own[position].item()} at layer {layer}, sequence {i}, position {position}: the model's weights "
                "or its arithmetic (try dtype=torch.float32) are broken there"
            )


def _of_batch(head: Head, items: Sequence[TokenSequence], stream: Float[Tensor, "batch pos d_model"]) -> list[Pressure]:
    """Of each row of a left-padded batch, all of them computed together."""
    width, device = stream.shape[1], head.W_U.device
    states = [row[width - len(item) + _first(item) : -1] for row, item in zip(stream, items, strict=True)]
    tokens = [torch.tensor(item.tokens[_first(item) + 1 :]) for item in items]
    together = pressures(head, torch.cat(states).to(device), torch.cat(tokens).to(device))
    counts = [len(part) for part in tokens]
    return [Pressure(*own) for own in zip(*(torch.split(values.cpu(), counts) for values in together), strict=True)]


def _frame(
    backend: Backend, sequence: int, item: TokenSequence, norms: Float[Tensor, " pos"], own: Pressure, sink_ratio: float
) -> pd.DataFrame:
    first = _first(item)
    sinks = find_sinks(norms[None], sink_bounds(norms[None], prompt_len=item.prompt_len, ratio=sink_ratio))[0]
    columns = {
        "sequence": sequence,
        "position": range(first, len(item) - 1),
        "token_id": item.tokens[first + 1 :],
        "token": token_texts(backend.tokenizer, item.tokens)[first + 1 :],
        "segment": item.segments[first + 1 :],
        **{name: values.numpy() for name, values in own._asdict().items()},
        "state_token_id": item.tokens[first:-1],
        "l2_norm": norms[first:-1].numpy(),
        "is_sink": sinks[first:-1].numpy(),
        "next_l2_norm": norms[first + 1 :].numpy(),
        "next_is_sink": sinks[first + 1 :].numpy(),
    }
    return PRESSURES.frame(columns)
