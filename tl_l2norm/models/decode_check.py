"""Whether decode steps of a model see what its cache holds, and whether rows of a padded batch are read as they are alone."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_l2norm.core.errors import Unsupported
from tl_l2norm.models.backend import Backend
from tl_l2norm.models.cache import known_versions
from tl_l2norm.models.hooks import silenced
from tl_l2norm.text.sequences import TokenSequence, batches_by_length, pad_left

_PAST, _SHORT, _STEPS = 5, 2, 3
"""Tokens behind which decode steps are read, in a row and in a shorter one beside it; and how many steps."""
_FEW = _PAST + _STEPS
_EXACT, _COARSE = 1e-3, 0.1
"""Rounding errors of logits, relative to their spread: of float32, and of anything coarser."""

_Memo = weakref.WeakKeyDictionary[Any, bool]
_checked, _read_together, _decoded_together = _Memo(), _Memo(), _Memo()


def telling_tokens(items: Sequence[TokenSequence]) -> tuple[int, ...]:
    """Tokens for the checks below: of the first 64 sequences the beginning that repeats the fewest tokens."""
    return max((item.tokens[:_FEW] for item in items[:64]), key=lambda tokens: len(set(tokens)))


def check_decoding(backend: Backend, tokens: Sequence[int]) -> bool:
    """Refuse a model that doesn't decode as it reads in one pass. Once for each model: it costs a few short passes.

    A cache that grows can still be one that a layer doesn't look into, or in which positions are off. So a few tokens are read
    one by one behind a cache of those before them: their logits must be those of one pass over all. Nobody's hooks hear it.

    Returns:
        Whether all that is carried over is keys and values, so that several tokens can be read behind a cache as well.
        (Recurrent mixers may start anew there.)

    Raises:
        NotImplementedError: with the versions that work together.
    """
    if backend.checked_as in _checked:
        return _checked[backend.checked_as]
    few = _few(tokens)
    with _unheard(backend):
        truth = _one_pass(backend, few)[None, _PAST - 1 :]
        logits, cache = _read(backend, [few[:_PAST]])
        plain = backend.cache_rows.can_join(cache)
        decoded = torch.cat([logits, _decode(backend, cache, [few[:_PAST]], [few[_PAST:]])], dim=1)
    if (error := _error(decoded, truth, backend)) > _rounding(backend):
        raise Unsupported(
            f"decoding with a cache gives other logits than one pass over the same tokens (off by {error:.2g} of their spread, "
            f"where rounding makes up {_rounding(backend):.2g}): responses of this model would be wrong. {known_versions()}"
        )
    return _keep(_checked, backend, few, plain)


def decodes_rows_together(backend: Backend, tokens: Sequence[int]) -> bool:
    """Whether rows of a padded batch decode as they do alone, and can change places; of a model that decodes right alone."""
    if backend.checked_as in _decoded_together:
        return _decoded_together[backend.checked_as]
    few = _few(tokens)
    with _unheard(backend):
        truth = _one_pass(backend, few)
        truth = torch.stack([truth[_SHORT - 1 :][: _STEPS + 1], truth[_PAST - 1 :]])
        logits, cache = _read(backend, [few[:_PAST], few[:_SHORT]])
        together = backend.cache_rows.can_select(cache)
        if together:
            cache = backend.cache_rows.select(cache, torch.tensor([1, 0], device=backend.device))
            steps = _decode(backend, cache, [few[:_SHORT], few[:_PAST]], [few[_SHORT:_PAST], few[_PAST:]])
            together = _error(torch.cat([logits.flip(0), steps], dim=1), truth, backend) <= _rounding(backend)
    if not together:
        _warn("decodes rows of a batch otherwise than each alone: responses are generated one at a time")
    return _keep(_decoded_together, backend, few, together)


def reads_rows_together(backend: Backend, tokens: Sequence[int]) -> bool:
    """Whether rows of a padded batch are read as they are alone: not by recurrent mixers that take padding for tokens."""
    if backend.checked_as in _read_together:
        return _read_together[backend.checked_as]
    few = _few(tokens)
    with _unheard(backend):
        truth = _one_pass(backend, few)[[_PAST - 1, _FEW - 1]][:, None]
        logits, _ = _read(backend, [few[:_PAST], few], keep_cache=False)
    together = _error(logits, truth, backend) <= _rounding(backend)
    if not together:
        _warn("takes padding for tokens: sequences of different lengths are read one at a time")
    return _keep(_read_together, backend, few, together)


def batches(backend: Backend, items: Sequence[TokenSequence], batch_size: int) -> list[list[int]]:
    """Batches of like length in which each sequence is read as it is alone."""
    groups = batches_by_length(items, batch_size)
    if (boundary := backend.longrope_boundary) is not None:
        sides = [[[i for i in batch if (len(items[i]) > boundary) == far] for far in (True, False)] for batch in groups]
        groups = [side for both in sides for side in both if side]
    padded = any(len(items[batch[0]]) > len(items[batch[-1]]) for batch in groups)
    if padded and not reads_rows_together(backend, telling_tokens(items)):
        return [[i] for batch in groups for i in batch]
    return groups


def _few(tokens: Sequence[int]) -> list[int]:
    return [tokens[i % len(tokens)] for i in range(_FEW)]


def _keep(memo: _Memo, backend: Backend, few: Sequence[int], answer: bool) -> bool:
    if 2 * len(set(few)) >= _FEW:  # else these tokens couldn't tell: the same one again reads the same whatever is seen
        memo[backend.checked_as] = answer
    return answer


@contextmanager
def _unheard(backend: Backend) -> Iterator[None]:
    with torch.inference_mode(), silenced(backend.points):
        yield


def _one_pass(backend: Backend, few: Sequence[int]) -> Float[Tensor, "pos d_vocab"]:
    tokens, mask = pad_left([few], backend.device)
    logits, _ = backend.forward(tokens, mask, logits="all")
    assert logits is not None
    return logits[0].float()


def _read(
    backend: Backend, rows: Sequence[Sequence[int]], keep_cache: bool = True
) -> tuple[Float[Tensor, "row 1 d_vocab"], Any]:
    tokens, mask = pad_left(rows, backend.device)
    logits, cache = backend.forward(tokens, mask, keep_cache=keep_cache, logits="last")
    assert logits is not None
    return logits.float(), cache


def _decode(
    backend: Backend, cache: Any, past: Sequence[Sequence[int]], new: Sequence[Sequence[int]]
) -> Float[Tensor, "row step d_vocab"]:
    """Logits at these tokens, read one by one behind a cache of those before them."""
    _, mask = pad_left(past, backend.device)
    steps: Int[Tensor, "row step"] = torch.tensor(new, device=backend.device)
    logits_of_steps = []
    for step in torch.split(steps, 1, dim=1):
        mask = torch.cat([mask, torch.ones_like(step)], dim=1)
        logits, cache = backend.forward(step, mask, cache=cache, logits="last")
        assert logits is not None
        logits_of_steps.append(logits.float())
    return torch.cat(logits_of_steps, dim=1)


def _error(logits: Float[Tensor, "row step d_vocab"], truth: Float[Tensor, "row step d_vocab"], backend: Backend) -> float:
    """Error of logits relative to their spread, of the worst row.

    In float32 of its worst step; in coarse arithmetic of its median step, as a router may flip at single ones.
    """
    possible = truth.abs() < 1e30  # some models shut tokens out by the lowest number there is
    logits, truth = torch.where(possible, logits, 0.0), torch.where(possible, truth, 0.0)
    errors = (logits - truth).norm(dim=-1) / (truth - truth.mean(-1, keepdim=True)).norm(dim=-1)
    worst = errors.amax(1) if _rounding(backend) == _EXACT else errors.median(1).values
    return float(worst.max())


def _rounding(backend: Backend) -> float:
    kind = backend.device.type
    coarse = torch.is_autocast_enabled(kind) or (kind == "cuda" and torch.get_float32_matmul_precision() != "highest")
    return _COARSE if coarse or backend.dtype not in (torch.float32, torch.float64) else _EXACT


def _warn(what: str) -> None:
    warnings.warn(f"this model {what}, whatever batch_size says", stacklevel=4)
