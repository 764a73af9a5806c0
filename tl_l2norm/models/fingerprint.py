"""Who a model is: what its weights, its buffers, its configuration, its tokenizer and its hooks are, not what it is called.

Of every weight three things are taken. Two sums over the bits of its values, read as integers and wrapping around: of the
values, and of their squares with sign and exponent mixed into the last bits, which a change of sign or a doubling of all of
them moves too. Both are exact, and the same in any order of summation, on any device and however the tensor lies in memory.
And a diagonal, wound around the tensor until it has touched every vector and every column: it tells apart what holds the same
values in another order. That takes about as long as a few decode steps, so nothing is remembered between calls and nothing can
be out of date, edits through `.data` included.

Buffers count as weights do; those that a configuration determines (rotary frequencies, masks) to three digits and tables of
positions by one position, since processors round differently and tables grow with use.

Numbers that modules keep beside them (an epsilon, a scale) count too, and a `forward` of one module's own.

What it can't see: values that change places within a tensor, away from the diagonal; edits whose sums cancel; other code.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import sys
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from tl_l2norm.core.identity import UNKNOWN

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_MANTISSA = {1: 3, 2: 7, 4: 23, 8: 52}
"""Bits by element size; float16, which has more, doesn't depend on the number."""
_DIGITS = 16
_ADMINISTRATION = re.compile(
    r"_name_or_path|architectures|(torch_)?dtype|transformers_version|use_cache|(bos|eos|pad)_token_id|init\w+|pretraining_tp"
    r"|id2label|label2id|task_specific_params|\w*dropout\w*"  # and HookedTransformer's:
    r"|model_name|tokenizer_name|device|n_devices|seed|original_architecture|from_checkpoint|checkpoint_\w+|n_params|n_ctx"
    r"|trust_remote_code|\w*prepends?_bos|use_attn_(result|in)|use_split_qkv_input|use_hook_\w+|ungroup_grouped_query_attention"
)
"""Keys of configurations that change nothing in a forward pass."""

_BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
"""A weight of a block, by its name in a file."""

_JOINT = ".qkv."  # the bridge keeps it beside the three that it was split into
_PIECE = 1 << 19  # values that are summed at once: they stay in a processor's cache
_TABLES = ("rotary_sin", "rotary_cos")  # HookedTransformer's, which aren't marked as derived
_SAME_ACTIVATION = {"gelu_fast": "gelu_new", "gelu_pytorch_tanh": "gelu_new", "gelu_tanh": "gelu_new", "swish": "silu"}

_NOT_ARITHMETIC = re.compile(r"_.*|training|gradient_checkpointing|\w*(cached|dropout|_coef)|is_caching|context_level")
"""Numbers of modules that change nothing in a forward pass, or with each."""


class _Reading(NamedTuple):
    """What is taken of one tensor."""

    kind: str
    """Data type and shape."""
    bits: int
    total: int
    """Sum of its values' bits, wrapped around to as many as `bits`."""
    squares: int
    """Sum of the squares, wrapped around to at least 32, see `_two_sums`."""
    diagonal: bytes


def model_fingerprint(weights: nn.Module, blocks: Iterable[nn.Module], config: Mapping[str, Any]) -> str:
    """Two hashes with a dash between them.

    The first is of what `HookedTransformer` and `TransformerBridge` have in common, who shape and name the same weights
    differently: sums over the weights of each block and over each weight outside of them, and the settings that both know.
    Where TransformerLens keeps other values than the file has (OPT's positions, GPT-J's rotation), they don't agree. The second
    is of every parameter, buffer, number and setting; it is the one to compare where both models are of one kind. `UNKNOWN`
    where a weight can't be read.
    """
    modules = list(weights.modules())  # walked through once: a bridge has thousands
    parameters = list({id(p): p for module in modules for p in module._parameters.values() if p is not None}.values())
    buffers = list(_lasting_buffers(modules))
    readings = _read([*parameters, *(buffer for _, buffer in buffers)])
    if readings is None:
        return UNKNOWN
    by_block, inside = [], set[int]()
    for block in blocks:
        named = [(name, p) for name, p in block.named_parameters() if id(p) in readings]
        inside.update(id(p) for _, p in named)
        by_block.append(_sums([readings[id(p)] for name, p in named if _JOINT not in name]))
    outside = sorted({_sums([readings[id(p)]]) for p in parameters if id(p) not in inside} - {(0, 0)})  # tied or not
    own = hashlib.sha256(json.dumps(_arithmetic(config), sort_keys=True, default=str).encode())
    for name, tensor in (*(("", p) for p in parameters), *buffers):
        reading = readings[id(tensor)]
        added = name in ("", "bias") and tensor.ndim <= 1 and not any(reading.diagonal)
        if not added:  # a bias of zeros, which TransformerLens 3 adds as a parameter and 4 as a buffer
            own.update(f"{name} {reading.kind} {reading.total} {reading.squares}".encode() + reading.diagonal)
    own.update("\n".join(_numbers(modules)).encode())
    return f"{_hash([by_block, outside, _known_to_both(config)])}-{own.hexdigest()[:_DIGITS]}"


def files_fingerprint(weights: Iterable[tuple[str, Tensor]], config: Mapping[str, Any]) -> str:
    """`model_fingerprint` of a model from its files: the first half is that of a model with these weights.

    Args:
        weights: name and values of each, in the dtype that the model computes in.
        config: as Hugging Face has it.
    """
    by_block: dict[int, list[_Reading]] = {}
    outside, own = set(), hashlib.sha256(json.dumps(_arithmetic(config), sort_keys=True, default=str).encode())
    for name, tensor in weights:
        readings = _read([tensor])
        if readings is None:
            return UNKNOWN
        (reading,) = readings.values()
        own.update(f"{name} {reading.kind} {reading.total} {reading.squares}".encode() + reading.diagonal)
        if block := _BLOCK.search(name):
            by_block.setdefault(int(block[1]), []).append(reading)
        else:
            outside.add(_sums([reading]))
    blocks = [_sums(by_block[i]) for i in sorted(by_block)]
    return f"{_hash([blocks, sorted(outside - {(0, 0)}), _known_to_both(config)])}-{own.hexdigest()[:_DIGITS]}"


def _sums(readings: Sequence[_Reading]) -> tuple[int, int]:
    bits = max((reading.bits for reading in readings), default=1)
    return sum(r.total for r in readings) % 2**bits, sum(r.squares for r in readings) % 2 ** max(bits, 32)


def _lasting_buffers(modules: Iterable[nn.Module]) -> Iterator[tuple[str, Tensor]]:
    """The buffers that are the same before a forward pass and after it."""
    for module in modules:
        kind = str(getattr(module, "rope_type", ""))
        for name, buffer in module._buffers.items():
            if name.endswith("inv_freq") and "original" not in name and ("dynamic" in kind or "longrope" in kind):
                continue  # set anew by the length of each pass
            if buffer is not None and buffer.numel():
                derived = name in module._non_persistent_buffers_set or name in _TABLES
                yield name, _rounded(buffer) if derived else buffer


def _numbers(modules: Iterable[nn.Module]) -> Iterator[str]:
    """What modules multiply by, add or count, beside tensors; and code put in place of theirs."""
    place = 0
    for module in modules:
        if isinstance(module, HookPoint):
            continue
        wraps = type(module).__module__.startswith("transformer_lens.model_bridge.")  # what it keeps is bookkeeping, by version
        place += not wraps
        for name, value in vars(module).items():
            if isinstance(value, int | float):
                if not wraps and _counts(name):
                    yield f"{place} {name} {float(value)}"
            elif name == "forward" and "_hf_hook" not in vars(module):  # accelerate's, which only moves tensors
                yield f"{place} {_code(value)}"


@cache
def _counts(name: str) -> bool:
    return not _NOT_ARITHMETIC.fullmatch(name)


def _code(function: Any) -> str:
    code = getattr(function, "__code__", None)
    numbers = [constant for constant in getattr(code, "co_consts", ()) if isinstance(constant, int | float)]
    return f"{getattr(function, '__qualname__', type(function).__name__)} {getattr(code, 'co_code', b'').hex()} {numbers}"


def _rounded(buffer: Tensor) -> Tensor:
    """What is left of a buffer that was computed, maybe on another processor or for fewer positions."""
    kept = buffer[1] if buffer.ndim == 2 and len(buffer) > 1 else buffer
    return kept.to(torch.bfloat16) if kept.is_floating_point() else kept


def _known_to_both(config: Mapping[str, Any]) -> list[Any]:
    """Settings under the names of Hugging Face or of HookedTransformer: epsilon, activation, window, rotation."""
    first = {name: config[name] for name in config if config[name] is not None}
    names = ("eps", "rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps", "norm_epsilon", "norm_eps")
    epsilon = next((float(first[name]) for name in names if name in first), None)
    functions = ("act_fn", "hidden_act", "activation_function", "hidden_activation")
    activation = str(next((first[name] for name in functions if name in first), ""))
    hooked = "act_fn" in config
    window = first.get("window_size" if hooked else "sliding_window")
    uses_window = first.get("use_local_attn" if hooked else "use_sliding_window", True)
    rotation = _rotation_of_hooked(first) if hooked else _rotation(first.get("rope_parameters") or {})
    return [epsilon, _SAME_ACTIVATION.get(activation, activation), window if uses_window else None, rotation]


def _rotation(rope: Mapping[str, Any]) -> list[Any]:
    kind = rope.get("rope_type", "default")
    told = {
        "default": (),
        "linear": ("factor",),
        "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
        "yarn": ("factor", "original_max_position_embeddings"),
    }
    values = [float(rope.get(name) or 0) for name in ("rope_theta", *told.get(kind, ()))]
    return [kind, *values] if rope and kind in told else [str(rope)] if rope else []


def _rotation_of_hooked(cfg: Mapping[str, Any]) -> list[Any]:
    if cfg.get("positional_embedding_type") != "rotary":
        return []
    kind, names = "default", ["rotary_base"]
    if cfg.get("use_NTK_by_parts_rope"):
        ntk = ("factor", "low_freq_factor", "high_freq_factor")
        kind, names = "llama3", [*names, *(f"NTK_by_parts_{name}" for name in ntk), "NTK_original_ctx_len"]
    elif cfg.get("use_yarn_rope"):
        kind, names = "yarn", [*names, "yarn_factor", "yarn_original_max_position_embeddings"]
    elif cfg.get("rotary_scaling_factor", 1.0) != 1.0:
        kind, names = "linear", [*names, "rotary_scaling_factor"]
    return [kind, *(float(cfg.get(name) or 0) for name in names)]


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Hash of what turns text into tokens: vocabulary, merges, added tokens and the steps around them."""
    if tokenizer is None:
        return UNKNOWN
    fast = getattr(tokenizer, "backend_tokenizer", None)
    added = str(getattr(tokenizer, "added_tokens_decoder", ""))
    state = (id(fast), len(tokenizer), added, _steps(fast))
    known = _tokenizers.get(tokenizer)
    if known is None or known[0] != state:
        if fast is not None:
            what = json.loads(fast.to_str())
            what = {name: part for name, part in what.items() if name not in ("padding", "truncation")}  # of the last call
        else:
            what = [type(tokenizer).__name__, sorted(tokenizer.get_vocab().items()), added]
        known = _tokenizers[tokenizer] = (state, _hash(what))
    return known[1]


def _steps(fast: Any) -> object:
    """What shows in a moment whether a tokenizer was changed in place: all but its vocabulary, and tokens of a text."""
    if fast is None:
        return None
    steps = (fast.normalizer, fast.pre_tokenizer, fast.post_processor, fast.decoder)
    return [pickle.dumps(step) for step in steps], fast.encode("Nine rivers, 3\u00a0hills:\n  a b\u00e9d.").ids


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


def _read(tensors: Sequence[Tensor]) -> dict[int, _Reading] | None:
    """Of each tensor by its id, with one copy from each device; None where one has no values."""
    pieces: dict[tuple[torch.device, torch.dtype], list[tuple[Tensor, Tensor]]] = {}
    for tensor in tensors:
        for part in _parts(tensor.detach()):
            if part.is_meta:
                return None
            piece = _sample(part)
            pieces.setdefault((piece.device, piece.dtype), []).append((tensor, piece))
    readings: dict[int, _Reading] = {}
    for (_, dtype), members in pieces.items():
        joined = torch.cat([piece for _, piece in members]).cpu()
        n = max(4 // dtype.itemsize, 1)  # elements of the squares' sum
        for (tensor, _), own in zip(members, torch.split(joined, [len(piece) for _, piece in members]), strict=True):
            kind = f"{tensor.dtype} {tuple(tensor.shape)}"
            before = readings.get(id(tensor), _Reading(kind, dtype.itemsize * 8, 0, 0, b""))
            readings[id(tensor)] = before._replace(
                total=before.total + int(own[0]),
                squares=before.squares + int.from_bytes(own[1 : 1 + n].numpy().tobytes(), sys.byteorder, signed=True),
                diagonal=before.diagonal + own[1 + n :].numpy().tobytes(),
            )
    return readings


def _parts(tensor: Tensor) -> list[Tensor]:
    """The plain tensors that a tensor is made of: several where a quantiser wraps them."""
    if type(tensor) is Tensor or not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [part for name in names for part in _parts(getattr(tensor, name))]


def _sample(tensor: Tensor) -> Tensor:
    """`_sums` of the bits, then the bits of a diagonal through every vector (along the last axis) and every column."""
    tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    bits = (tensor if tensor.ndim else tensor[None]).view(_INTEGERS[tensor.element_size()])
    sums = _two_sums(bits)
    if not bits.numel():
        return sums
    columns = bits.shape[-1]
    vectors = bits.numel() // columns
    steps = torch.arange(max(vectors, columns), device=bits.device)
    index = torch.unravel_index(steps % vectors, bits.shape[:-1]) if bits.ndim > 1 else ()
    return torch.cat([sums, bits[(*index, steps % columns)]])


def _two_sums(bits: Tensor) -> Tensor:
    """Sum of the values, wrapped around, and sum of their squares, wrapped around to 32 bits or 64, each with its sign and
    exponent mixed in: alone they are the upper bits, which wrap away where many values change in them.
    """
    in_memory = bits.permute(sorted(range(bits.ndim), key=bits.stride, reverse=True)).reshape(-1)
    dtype = bits.dtype if bits.element_size() >= 4 else torch.int32
    values, squares = torch.zeros(1, dtype=bits.dtype, device=bits.device), torch.zeros(1, dtype=dtype, device=bits.device)
    room = torch.empty(min(len(in_memory), _PIECE), dtype=dtype, device=bits.device)
    for piece in torch.split(in_memory, _PIECE):
        mixed = room[: len(piece)]
        wide = piece if piece.dtype is dtype else mixed.copy_(piece)
        torch.bitwise_right_shift(wide, _MANTISSA[bits.element_size()], out=mixed).bitwise_xor_(piece)
        values += piece.sum(dtype=bits.dtype)
        squares += mixed.mul_(mixed).sum(dtype=dtype)
    return torch.cat([values, squares.view(bits.dtype)])
