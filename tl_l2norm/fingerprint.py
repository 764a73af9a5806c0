"""Who a model is: what its weights, its configuration, its tokenizer and its hooks are, not what it is called.

Of every weight two things are taken. The sum of its bits, read as integers of its element size and wrapping around: exact, the
same in any order of summation, on any device and however the tensor lies in memory; it moves with any single value that is
changed. And a diagonal, wound around the tensor until it has touched every row and every column: it tells apart what holds the
same values in another order. Summing reads the weights once, as one decode step does, so nothing is remembered between calls
and nothing can be out of date, edits through `.data` included.

What it can't see: values that change places within a tensor, away from the diagonal; edits whose sums cancel; buffers, such as
rotary frequencies, for which the configuration stands; code.
"""

from __future__ import annotations

import hashlib
import json
import re
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

UNKNOWN = ""
"""Fingerprint of what can't be read, such as weights that are on the meta device."""

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_DIGITS = 16
_ADMINISTRATION = re.compile(
    r"_name_or_path|architectures|(torch_)?dtype|transformers_version|use_cache|(bos|eos|pad)_token_id|init\w+|pretraining_tp"
    r"|id2label|label2id|task_specific_params|\w*dropout\w*"  # and HookedTransformer's:
    r"|model_name|tokenizer_name|device|n_devices|seed|original_architecture|from_checkpoint|checkpoint_\w+|n_params|n_ctx"
    r"|trust_remote_code|\w*prepends?_bos|use_attn_(result|in)|use_split_qkv_input|use_hook_\w+|ungroup_grouped_query_attention"
)
"""Keys of configurations that change nothing in a forward pass."""

_JOINT = ".qkv."  # the bridge keeps it beside the three that it was split into


class Identity(NamedTuple):
    """Who a model is at one moment, each a hash or `UNKNOWN`."""

    weights: str
    """Of weights and configuration."""
    tokenizer: str
    chat_template: str
    foreign_hooks: int
    """How many hooks, beside those of the run itself, were on the model."""


class _Reading(NamedTuple):
    """Of one tensor."""

    kind: str
    """Data type and shape."""
    total: int
    """Sum of its values' bits, wrapped around."""
    bits: int
    diagonal: bytes


def model_fingerprint(weights: nn.Module, blocks: Iterable[nn.Module], config: Mapping[str, Any]) -> str:
    """Two hashes with a dash between them.

    The first is of the matrices in each block by their sums alone: `HookedTransformer` and `TransformerBridge` shape and name
    the same weights differently, and agree here. The second is of every parameter and of the configuration; it is the one to
    compare where both models are of one kind. `UNKNOWN` where a weight can't be read.
    """
    parameters = list(weights.parameters())
    readings = _read(parameters)
    if readings is None:
        return UNKNOWN
    by_block = [
        sum(readings[p].total for name, p in block.named_parameters() if p in readings and _is_matrix(name, p))
        % 2 ** max((readings[p].bits for p in block.parameters() if p in readings), default=1)
        for block in blocks
    ]
    own = hashlib.sha256(json.dumps(_arithmetic(config), sort_keys=True, default=str).encode())
    for parameter in parameters:
        found = readings[parameter]
        if parameter.ndim > 1 or any(found.diagonal):  # TransformerLens adds biases that are zero
            own.update(f"{found.kind} {found.total}".encode() + found.diagonal)
    return f"{_hash(by_block)}-{own.hexdigest()[:_DIGITS]}"


def same_weights(first: str, second: str, *, same_kind: bool) -> bool:
    """Whether two known fingerprints are of the same weights; `same_kind`: both models are of one class."""
    return first == second if same_kind else first.partition("-")[0] == second.partition("-")[0]


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Hash of what turns text into tokens: vocabulary, merges, added tokens and the steps around them."""
    if tokenizer is None:
        return UNKNOWN
    known = _tokenizers.get(tokenizer)
    fast = getattr(tokenizer, "backend_tokenizer", None)
    state = (id(fast), len(tokenizer), str(getattr(tokenizer, "added_tokens_decoder", "")))
    if known is None or known[0] != state:
        if fast is not None:
            what = json.loads(fast.to_str())
            what = {name: part for name, part in what.items() if name not in ("padding", "truncation")}  # of the last call
        else:
            what = [type(tokenizer).__name__, sorted(tokenizer.get_vocab().items()), state[2]]
        known = _tokenizers[tokenizer] = (state, _hash(what))
    return known[1]


def template_fingerprint(tokenizer: Any) -> str:
    """Hash of the chat template; `UNKNOWN` without one."""
    template = getattr(tokenizer, "chat_template", None)
    return _hash(template) if template else UNKNOWN


_tokenizers: weakref.WeakKeyDictionary[Any, tuple[Any, str]] = weakref.WeakKeyDictionary()


def _hash(what: object) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:_DIGITS]


def _arithmetic(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a configuration changes a forward pass, parts of multimodal ones included."""
    return {
        name: _arithmetic(value) if isinstance(value, Mapping) else value
        for name, value in config.items()
        if not _ADMINISTRATION.fullmatch(name)
    }


def _is_matrix(name: str, parameter: Tensor) -> bool:
    leaf = name.rpartition(".")[2].lstrip("_")
    return parameter.ndim > 1 and not leaf.startswith("b_") and _JOINT not in name  # HookedTransformer's b_Q has a head axis


def _read(parameters: Sequence[nn.Parameter]) -> dict[nn.Parameter, _Reading] | None:
    """Of each tensor, with one copy from each device; None where one has no values."""
    pieces: dict[tuple[torch.device, torch.dtype], list[tuple[nn.Parameter, Tensor]]] = {}
    for parameter in parameters:
        for part in _parts(parameter.detach()):
            if part.is_meta:
                return None
            piece = _sample(part)
            pieces.setdefault((piece.device, piece.dtype), []).append((parameter, piece))
    found: dict[nn.Parameter, _Reading] = {}
    for (_, dtype), members in pieces.items():
        joined = torch.cat([piece for _, piece in members]).cpu()
        for (parameter, _), own in zip(members, torch.split(joined, [len(piece) for _, piece in members]), strict=True):
            before = found.get(parameter, _Reading(f"{parameter.dtype} {tuple(parameter.shape)}", 0, dtype.itemsize * 8, b""))
            found[parameter] = before._replace(
                total=before.total + int(own[0]), diagonal=before.diagonal + own[1:].numpy().tobytes()
            )
    return found


def _parts(tensor: Tensor) -> list[Tensor]:
    """The plain tensors that a tensor is made of: several where a quantiser wraps them."""
    if type(tensor) is Tensor or not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [part for name in names for part in _parts(getattr(tensor, name))]


def _sample(tensor: Tensor) -> Tensor:
    """Sum of the bits, then those of a diagonal through every row (all axes but the last) and every column."""
    tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    bits = (tensor if tensor.ndim else tensor[None]).view(_INTEGERS[tensor.element_size()])
    total = bits.sum(dtype=bits.dtype)[None]
    if not bits.numel():
        return total
    columns = bits.shape[-1]
    rows = bits.numel() // columns
    steps = torch.arange(max(rows, columns), device=bits.device)
    index = torch.unravel_index(steps % rows, bits.shape[:-1]) if bits.ndim > 1 else ()
    return torch.cat([total, bits[(*index, steps % columns)]])
