"""Layer metrics beside the norm, in nats: entropy of the hidden state, of the logit lens and of attention.

Every entropy is Shannon's, `H = -sum_i p_i log p_i` with `0 log 0 = 0`, computed in float32 whatever the model's dtype:

- hidden entropy, `p_i = h_i^2 / ||h||^2` over d_model: how many coordinates carry the state; `log d_model` if all do alike.
- output entropy, `p = softmax(W_U norm(h))`: how sure the logit lens is, that is the model's own final norm and unembedding
  applied to `resid_post`. At the last layer it is the entropy of the model's next-token distribution.
- attention entropy, `p` = the weights of one query over its keys, as the block used them: how widely each head looks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint
from typing_extensions import override

from tl_l2norm.core.arguments import as_names
from tl_l2norm.core.batch import Pass
from tl_l2norm.core.errors import InputError, InputTypeError
from tl_l2norm.core.layers import did_you_mean, layer_ranges
from tl_l2norm.models.backend import Backend
from tl_l2norm.models.hooks import HookFn, attached
from tl_l2norm.models.lens_check import require_lens
from tl_l2norm.models.observer import Observer, Recorded

METRICS = ("l2_norm", "hidden_entropy", "output_entropy", "attention_entropy", "attention_entropy_by_head")
"""What `collect` can record. The norm always is; the last one keeps heads apart, the one before it is their mean."""

_STREAM_METRICS = ("hidden_entropy", "output_entropy")
_ATTENTION_METRICS = ("attention_entropy", "attention_entropy_by_head")

# Numbers that are worked on at once: just under 32 MB in float32, beyond which glibc maps (and clears) fresh memory each time.
_AT_ONCE = (1 << 23) - 4096
_IN_CACHE = 1 << 20  # the same for the steps from logits to entropy on a CPU: 4 MB, which one step leaves there for the next
_LARGEST_SUM = 1.01  # of attention weights: rounded to half precision they sum to 1 within 0.4%
_LEAST_LOGIT = -1e4  # below the largest: exp of it is 0, and unlike -inf it may be multiplied by 0


def hidden_entropy(stream: Float[Tensor, "*axes d_model"]) -> Float[Tensor, "*axes"]:
    """Entropy in nats of `h^2 / ||h||^2` over the last axis, 0 to log d_model; 0 for a state of zeros.

    The state is scaled by its largest coordinate first: squares of a float16 stream of norm 76,800 don't overflow.
    """
    return _by_parts(_hidden_entropy, stream)


def entropy_of_logits(logits: Float[Tensor, "*axes d_vocab"]) -> Float[Tensor, "*axes"]:
    """Entropy in nats of the softmax over the last axis, 0 to log d_vocab; a logit of -inf has probability 0."""
    return _by_parts(lambda part: _logit_entropy(part.clone()), logits)


def attention_entropy(pattern: Float[Tensor, "*axes key"]) -> Float[Tensor, "*axes"]:
    """Entropy in nats of attention weights over the last axis, 0 to log key; masked keys have weight 0 and add nothing.

    Weights are scaled to sum to 1: in half precision they do so only roughly, and where a model gives a part to no key (learned
    sinks) the entropy is that of the rest. It is 0 where all weights are 0.
    """
    return _by_parts(lambda part: _entropy(part.float()), pattern)


def _by_parts(kernel: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """Apply a kernel to the last axis, to so many vectors at once that its copies stay small."""
    vectors = rearrange(values.detach(), "... d -> (...) d")
    return torch.cat([kernel(part) for part in _parts(vectors, values.shape[-1])]).reshape(values.shape[:-1])


def _parts(vectors: Float[Tensor, "n d"], width: int, at_once: int | None = None) -> Sequence[Tensor]:
    """Vectors in parts of about the same size, each small enough for `width` numbers per vector."""
    n_parts = -(-len(vectors) * width // (at_once or _AT_ONCE))
    return vectors.tensor_split(max(1, min(n_parts, len(vectors))))


def _hidden_entropy(states: Float[Tensor, "n d_model"]) -> Float[Tensor, " n"]:
    states = states.float()
    largest = states.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    return _entropy((states / largest).square_())


def _entropy(weights: Float[Tensor, "n outcome"]) -> Float[Tensor, " n"]:
    """Of each set of weights, in nats; they need not sum to 1, and a negative one gives infinity or NaN."""
    total = weights.sum(-1)
    entropy = torch.special.entr(weights).sum(-1) / total + total.log()
    rounded = (entropy < 0) & entropy.isfinite()
    return torch.where((total == 0) | rounded, 0.0, entropy)


def _logit_entropy(logits: Float[Tensor, "n d_vocab"]) -> Float[Tensor, " n"]:
    """Of each softmax, in nats; the logits are overwritten."""
    on_cpu = logits.device.type == "cpu"
    parts = _parts(logits, logits.shape[-1], _IN_CACHE) if on_cpu else (logits,)
    return torch.cat([_entropy_of_softmax(part.float()) for part in parts])


def _entropy_of_softmax(logits: Float[Tensor, "n d_vocab"]) -> Float[Tensor, " n"]:
    """`log sum e^z - sum z e^z / sum e^z`, z being what a logit is below the largest; it writes into the logits."""
    below = logits.sub_(logits.amax(-1, keepdim=True)).clamp_(min=_LEAST_LOGIT)
    weights = below.exp()
    total = weights.sum(-1)
    return total.log() - weights.mul_(below).sum(-1) / total


def check_metrics(metrics: Sequence[str]) -> tuple[str, ...]:
    """The names, each once.

    Raises:
        ValueError: an unknown one.
    """
    if metrics is None or not isinstance(metrics, Iterable):
        raise InputTypeError(f"metrics are names, one or several of {', '.join(METRICS)}; () for none; got {metrics!r:.80}")
    names = as_names("metrics", metrics)
    if unknown := [name for name in names if name not in METRICS]:
        raise InputError(f"unknown metrics {unknown}{did_you_mean(unknown[0], METRICS)}; known are {', '.join(METRICS)}")
    return names


class MetricRecorder(Observer):
    """Layer metrics of one forward pass at a time. Nothing of size d_model, d_vocab or n_keys outlives its hook."""

    def __init__(self, backend: Backend, layers: Sequence[int], metrics: Sequence[str]) -> None:
        self.layers = tuple(layers)
        self.names = tuple(name for name in check_metrics(metrics) if name != "l2_norm")  # that one is StreamRecorder's
        self._backend = backend
        self._hooks: list[tuple[HookPoint, HookFn]] = []
        if "output_entropy" in self.names:
            require_lens(backend)
        if set(self.names) & set(_STREAM_METRICS):
            self._hooks += [(backend.resid_post(layer), partial(self._read_stream, layer)) for layer in self.layers]
        if set(self.names) & set(_ATTENTION_METRICS):
            self._hooks += [(backend.attention_pattern(layer), partial(self._read_pattern, layer)) for layer in self.layers]
        self._values: dict[tuple[str, int], Float[Tensor, "batch ... pos"]] = {}
        self._largest_sums: dict[int, Float[Tensor, ""]] = {}  # of one query's attention weights, by layer
        self._real: Bool[Tensor, "batch pos"] | None = None

    @override
    def attached(self) -> AbstractContextManager[None]:
        return attached(self._hooks)

    @override
    def next_pass(self, now: Pass) -> None:
        self._real = now.places().real

    def _read_stream(self, layer: int, stream: Float[Tensor, "batch pos d_model"], hook: Any) -> None:
        if "hidden_entropy" in self.names:
            self._values["hidden_entropy", layer] = hidden_entropy(stream)
        if "output_entropy" in self.names:
            self._values["output_entropy", layer] = self._output_entropy(stream.detach())

    def _output_entropy(self, stream: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos"]:
        """0 at padding, whose logits are not computed."""
        assert self._real is not None, "next_pass was not called"
        real = self._real.to(stream.device)
        parts = _parts(stream[real], self._backend.d_vocab)
        with torch.no_grad():
            entropies = [_logit_entropy(self._backend.unembed(part)) for part in parts]  # the logits are ours to use up
        by_token = torch.zeros(real.shape, device=stream.device)
        by_token[real] = torch.cat(entropies).to(stream.device)
        return by_token

    def _read_pattern(self, layer: int, pattern: Float[Tensor, "batch head pos key"], hook: Any) -> None:
        self._largest_sums[layer] = pattern.detach().sum(-1, dtype=torch.float32).amax()
        by_head = attention_entropy(pattern)
        if "attention_entropy" in self.names:
            self._values["attention_entropy", layer] = reduce(by_head, "batch head pos -> batch pos", "mean")
        if "attention_entropy_by_head" in self.names:
            self._values["attention_entropy_by_head", layer] = by_head

    @override
    def take(self, n_rows: int) -> list[Recorded]:
        """For each row the metrics of the pass that has just ended, [layer, pos] or [layer, head, pos], by their names.

        Raises:
            RuntimeError: a hook point didn't fire, for instance after `model.reset_hooks()` inside the context.
            ValueError: what came as an attention pattern are no weights: they sum to more than 1.
        """
        values, self._values = self._values, {}
        self._check_sums()
        assert self._real is not None, "next_pass was not called"
        for name in self.names:
            if silent := [layer for layer in self.layers if (name, layer) not in values]:
                raise RuntimeError(_silent(name, silent))
        metrics = {name: torch.stack([values[name, layer].cpu() for layer in self.layers]) for name in self.names}
        rows = enumerate(self._real.cpu())
        return [{name: of_all[:, row][..., real] for name, of_all in metrics.items()} for row, real in rows]

    def _check_sums(self) -> None:
        sums, self._largest_sums = self._largest_sums, {}
        for layer, largest in sums.items():
            if largest > _LARGEST_SUM:
                raise InputError(
                    f"blocks.{layer}.attn.hook_pattern: attention weights of one query sum to {largest:.3g}, not to 1: a hook "
                    "changed them, or what this model shows there is not its pattern"
                )


def _silent(name: str, layers: Sequence[int]) -> str:
    message = (
        f"no {name} was recorded at layers {layer_ranges(layers)}: the hooks are gone (model.reset_hooks() removes everybody's)"
        " or that part of the model didn't run"
    )
    if name in _ATTENTION_METRICS:
        message += "; a model whose attention never forms its pattern (attn_implementation other than 'eager') has none to read"
    return message


def check_finite_metrics(
    metrics: Mapping[str, Float[Tensor, "layer ... pos"]],
    layers: Sequence[int],
    sequence: int,
    *,
    first: int = 0,
    of_model: Sequence[str] = METRICS,
) -> None:
    """Stop at the first metric that is NaN or infinite.

    Args:
        metrics: by name, at real positions.
        layers: which they are.
        sequence: number of the sequence, for the message.
        first: position of the first column.
        of_model: those that are the library's own; of the others an observer is to blame.

    Raises:
        FloatingPointError: with metric, layer, sequence and position.
    """
    for name, values in metrics.items():
        broken = ~torch.isfinite(values)
        if not bool(broken.any()):
            continue
        index, *head, position = broken.nonzero()[0].tolist()
        where = f"layer {layers[index]}, {f'head {head[0]}, ' if head else ''}sequence {sequence}, position {first + position}"
        why = "the model's weights or its arithmetic (try dtype=torch.float32) are broken there"
        if name not in of_model:
            why = "its observer measures no finite number there, or one too large for float32"
        raise FloatingPointError(f"{name} is {values[index, *head, position].item()} at {where}: {why}")
