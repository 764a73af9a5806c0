"""Numbers and text in few bytes: four significant digits in 16 bits, all of a widget in one compressed text of base64."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt16

_DECADES, _SIGNED_DECADES = 6, 3
_MANTISSAS = 10_000
_SIGN = 0x8000
_INFINITE, _MISSING = 0xFFFE, 0xFFFF


class Packed(NamedTuple):
    """Values of several rows as decimal numbers: `mantissa * 10**(top - 3 - ...)`, see `pack`."""

    codes: UInt16[np.ndarray, "row value"]
    tops: list[int]
    """[row] the decade of its greatest value, `floor(log10)`."""
    signed: bool


def pack(values: Float[np.ndarray, "row value"]) -> Packed:
    """Four significant digits of every value over six decades beneath its row's greatest, three where some are negative; fewer
    digits beneath.

    A code is `10,000 * decade + mantissa`, a value `mantissa * 10**(decade + lowest - 3)`, where `lowest` is the row's lowest
    decade, `top - 5` (`top - 2` for signed ones, whose highest bit is the sign). Infinity and NaN have codes of their own.
    """
    finite = np.isfinite(values)
    size = np.where(finite, np.abs(values.astype(np.float64)), 0.0)
    signed = bool((finite & (values < 0)).any())
    decades = _SIGNED_DECADES if signed else _DECADES
    tops = _decade(size.max(axis=1, initial=0.0))
    lowest = (tops - decades + 1)[:, None]
    decade = np.where(size > 0, np.maximum(_decade(size), lowest), lowest)
    mantissa = np.rint(size * 10.0 ** (3 - decade)).astype(np.int64)
    codes = (decade - lowest) * _MANTISSAS + mantissa
    codes |= np.where(signed & (values < 0), _SIGN, 0)
    codes = np.where(finite, codes, np.where(np.isnan(values), _MISSING, _INFINITE))
    return Packed(codes.astype(np.uint16), tops.tolist(), signed)


def unpack(packed: Packed) -> Float[np.ndarray, "row value"]:
    """What a page reads from the codes."""
    decades = _SIGNED_DECADES if packed.signed else _DECADES
    codes = packed.codes.astype(np.int64)
    plain = codes & ~_SIGN if packed.signed else codes
    exponent = plain // _MANTISSAS + np.array(packed.tops)[:, None] - decades + 1 - 3
    sign = np.where(packed.signed & ((codes & _SIGN) > 0), -1.0, 1.0)
    values = sign * (plain % _MANTISSAS) * 10.0**exponent
    return np.where(codes == _MISSING, np.nan, np.where(codes == _INFINITE, np.inf, values))


def blob(header: Mapping[str, Any], arrays: list[UInt16[np.ndarray, ...]]) -> bytes:
    """Header and arrays, compressed: length of the header (4 bytes, little endian), the header as JSON, then of each array all
    high bytes and all low bytes, which compress better apart.
    """
    text = json.dumps(header, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode("ascii")
    planes = [plane.astype(np.uint8).tobytes() for codes in arrays for plane in (codes >> 8, codes & 0xFF)]
    return zlib.compress(b"".join([len(text).to_bytes(4, "little"), text, *planes]), 6)


def as_text(packed: bytes) -> str:
    """For an element of a page: letters, digits, `+`, `/` and `=`, whatever the tokens were."""
    return base64.b64encode(packed).decode("ascii")


def _decade(size: Float[np.ndarray, ...]) -> Any:
    """`floor(log10)` after rounding to four digits; 0 for 0."""
    with np.errstate(divide="ignore"):
        decade = np.where(size > 0, np.floor(np.log10(np.where(size > 0, size, 1.0))), 0.0)
    rounded_up = np.rint(size * 10.0 ** (3 - decade)) >= _MANTISSAS
    return (decade + rounded_up).astype(np.int64)
