"""Uniform draws from a counter: a draw depends on its keys alone, never on what was drawn before or beside it."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

_MASK = (1 << 64) - 1
_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def _shift_right(x: Int64[Tensor, "*shape"], bits: int) -> Int64[Tensor, "*shape"]:
    return (x >> bits) & ((1 << (64 - bits)) - 1)  # torch shifts the sign in: mask it off


def _mix(x: Int64[Tensor, "*shape"]) -> Int64[Tensor, "*shape"]:
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def _mix_int(x: int) -> int:
    """The same for a Python integer: no tensor on any device."""
    x &= _MASK
    x = ((x ^ (x >> 30)) * _MIX_1) & _MASK
    x = ((x ^ (x >> 27)) * _MIX_2) & _MASK
    return x ^ (x >> 31)


def hash_keys(*keys: Int64[Tensor, ...] | int, start: Int64[Tensor, ...] | int = 0) -> Int64[Tensor, ...]:
    """SplitMix64 (Steele et al., 2014) folded over the keys: broadcasts, wraps at 64 bits, the same on every device.

    `hash_keys(a, b, c)` is `hash_keys(c, start=hash_keys(a, b))`.
    """
    state: Tensor | int = start
    for key in keys:
        mixed = _mix(key.to(torch.int64)) if isinstance(key, Tensor) else _signed(_mix_int(key))
        joint = (state ^ mixed) + _GOLDEN
        state = _mix(joint) if isinstance(joint, Tensor) else _signed(_mix_int(joint))
    return state if isinstance(state, Tensor) else torch.tensor(state)


def uniform(*keys: Int64[Tensor, ...] | int, start: Int64[Tensor, ...] | int = 0) -> Float[Tensor, ...]:
    """One float64 in [0, 1) for each tuple of keys, such as (seed, sequence, layer, position); float32 on MPS.

    Examples:
        >>> together = uniform(0, 7, torch.arange(3))  # seed 0, sequence 7, three positions
        >>> together[2] == uniform(0, 7, 2)
        tensor(True)
    """
    bits = _shift_right(hash_keys(*keys, start=start), 11)
    dtype = torch.float32 if bits.device.type == "mps" else torch.float64
    return bits.to(dtype) * 2.0**-53


def sequence_key(seed: int, prompt: int, sample: int) -> int:
    """Seed of one sequence of a run: 53 bits, so that it survives a float."""
    return int(hash_keys(seed, prompt, sample)) & ((1 << 53) - 1)


def _signed(key: int) -> int:
    key &= _MASK
    return key - (1 << 64) if key >= 1 << 63 else key
