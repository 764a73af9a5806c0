"""Compare a loaded model with its files, read again as plain Hugging Face has them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from tl_l2norm.backends import Backend
from tl_l2norm.errors import InputError, Unmeasurable
from tl_l2norm.models.agreement import TOLERANCE, lens_pass, logits_differ_by, norms_differ_by, plain_pass
from tl_l2norm.models.reading import Plain, read
from tl_l2norm.models.sources import source_of
from tl_l2norm.turn_ends import turn_ends

_TEXT = (
    "A river rises in the hills, runs through 3 villages and 14 fields, and reaches the sea after 212 kilometres. Who walks "
    "along it at 4 kilometres an hour, six hours a day, needs 212 / 24 days, that is nine days with a short last one. "
)
_USUAL, _LONGEST = 256, 1024  # tokens


class Compared(NamedTuple):
    """One row of the comparison; `measured` is None where there was nothing to compare with."""

    name: str
    measured: float | None
    bound: float
    meaning: str


def compare_with_file(backend: Backend) -> tuple[Compared, ...]:
    """Norms behind every block, logits, and tokens that end a turn: the loaded model against the files that it came from."""
    try:
        if backend.centred:
            raise Unmeasurable("its weights were processed as they were loaded, its files' are not")
        source = source_of(backend.model)
        plain = _read(source, backend)
    except (Unmeasurable, InputError) as error:
        return tuple(Compared(name, None, 0.0, str(error)) for name in ("file: norms", "file: logits", "file: turn ends"))
    tokens, unseen = _tokens(backend, plain.model.config)
    found, truth = lens_pass(backend, tokens), plain_pass(plain.model, tokens)
    bound = TOLERANCE.get(backend.dtype, 1e-1)
    against = f"against plain Hugging Face from {source.name}, {len(tokens)} tokens{unseen}"
    return (
        Compared("file: norms", norms_differ_by(found, truth), bound, f"norms behind every block {against}"),
        Compared("file: logits", logits_differ_by(found, truth), 10 * bound, f"logits {against}"),
        _ends(backend, plain),
    )


def _read(source: Any, backend: Backend) -> Plain:
    plain = read(source, backend.dtype, download=False)
    plain.model.set_attn_implementation("eager")
    weights = sum(parameter.numel() * parameter.element_size() for parameter in plain.model.parameters())
    room = torch.cuda.mem_get_info(backend.device)[0] if backend.device.type == "cuda" else 0
    return plain._replace(model=plain.model.to(backend.device)) if room > 1.5 * weights else plain


def _tokens(backend: Backend, config: Any) -> tuple[Int[Tensor, " pos"], str]:
    """Tokens that reach past the model's window and the length that its positions are scaled from; else what isn't reached."""
    reach = {"window": getattr(config, "sliding_window", None), "unscaled length": _unscaled(config)}
    wanted = max([_USUAL, *(n + 32 for n in reach.values() if n and n + 32 <= _LONGEST)])
    n_tokens = min(wanted, backend.n_ctx)
    unseen = [f"{what} of {n}" for what, n in reach.items() if n and n >= n_tokens]
    return _some(backend, n_tokens), f" (its {' and '.join(unseen)} not reached)" if unseen else ""


def _unscaled(config: Any) -> int | None:
    rope = getattr(config, "rope_parameters", None) or {}
    return rope.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)


def _some(backend: Backend, n_tokens: int) -> Int[Tensor, " pos"]:
    if backend.tokenizer is None:
        return (7 * torch.arange(n_tokens) + 3) % backend.d_vocab
    once = list(backend.tokenizer(_TEXT).input_ids)
    return torch.tensor((once * (n_tokens // len(once) + 1))[:n_tokens])


def _ends(backend: Backend, plain: Plain) -> Compared:
    named = getattr(plain.model.generation_config, "eos_token_id", None)
    known = frozenset() if named is None else frozenset([named] if isinstance(named, int) else named)
    expected, found = turn_ends(plain.tokenizer, known), backend.eos_token_ids()
    missing, added = sorted(expected - found), sorted(found - expected)
    meaning = f"tokens that end a turn: {sorted(expected)} in the files"
    if missing or added:
        meaning += f"; the loaded model lacks {missing} and adds {added}"
    return Compared("file: turn ends", float(len(missing) + len(added)), 0.0, meaning)
