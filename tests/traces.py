"""Traces written by hand: `trace_of` makes them all, from norms; the others say with which norms and tokens."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tl_l2norm.core.features import FeatureActs
from tl_l2norm.core.trace import Provenance, Trace

Array = NDArray[np.float64]

PROVENANCE = {
    "model": "by hand",
    "backend": "bridge",
    "dtype": "float32",
    "n_layers": 1,
    "centred": False,
    "sink_ratio": 5.0,
    "versions": {"torch": "0"},
}


def trace_of(
    norms: Sequence[Sequence[float]] | Array,
    *,
    prompt_len: int | None = None,
    think: int = 0,
    sinks: Sequence[int] = (),
    provenance: dict[str, Any] | None = None,
    **fields: Any,
) -> Trace:
    """A trace with these norms; by default the whole is prompt and nothing is a sink.

    Args:
        norms: [layer, pos]
        prompt_len: tokens of the prompt.
        think: how many tokens after the prompt are thinking; the rest is answer.
        sinks: positions that are sinks at every layer.
        provenance: what isn't that of `PROVENANCE`.
        fields: of `Trace`.
    """
    l2_norms = torch.as_tensor(norms, dtype=torch.float32)
    n_layers, n_pos = l2_norms.shape
    prompt_len = n_pos if prompt_len is None else prompt_len
    layers, answer_at = fields.get("layers", tuple(range(n_layers))), prompt_len + think
    is_sink = torch.zeros(n_layers, n_pos, dtype=torch.bool)
    is_sink[:, list(sinks)] = True
    source = {**PROVENANCE, "n_layers": max(layers, default=0) + 1, **(provenance or {})}
    defaults: dict[str, Any] = {
        "tokens": torch.arange(n_pos),
        "str_tokens": tuple(f"t{i}" for i in range(n_pos)),
        "segments": tuple("prompt" if i < prompt_len else "think" if i < answer_at else "answer" for i in range(n_pos)),
        "prompt_len": prompt_len,
        "layers": layers,
        "l2_norms": l2_norms,
        "embed_l2_norms": torch.ones(n_pos),
        "is_sink": is_sink,
        "sink_bounds": torch.full((n_layers,), torch.inf),
        "provenance": Provenance(**source),
    }
    return Trace(**{**defaults, **fields})


def make_trace(
    str_tokens: Sequence[str],
    *,
    norms: Sequence[Sequence[float]] | None = None,
    prompt_len: int = 1,
    sinks: Sequence[int] = (0,),
    **fields: Any,
) -> Trace:
    """A trace with these tokens; by default two layers, norms 10, 11, ... and 100, 110, ..., the first a sink of 25,000."""
    n = len(str_tokens)
    norms = norms or [[25_000.0] + [scale * (10.0 + i) for i in range(1, n)] for scale in (1, 10)]
    defaults = {"str_tokens": tuple(str_tokens), "sink_bounds": torch.full((len(norms),), 5_000.0)}
    return trace_of(norms, **{**defaults, "prompt_len": prompt_len, "sinks": sinks, **fields})


def response(
    norms: Array,
    *,
    prompt: str,
    mode: str = "think",
    prompt_len: int = 1,
    tokens: Array | None = None,
    answer_at: int | None = None,
    acts: Array | None = None,
    **fields: Any,
) -> Trace:
    """A response with these norms [layer, response token] behind `prompt_len` prompt tokens of huge norm, which must not count.

    Args:
        norms: of the response's tokens.
        prompt: label.
        mode: label; a thinking response is thinking up to its answer, a direct one is all answer.
        prompt_len: how many tokens the prompt has.
        tokens: ids of the response's tokens; all different by default.
        answer_at: index in the response of the answer's first token; the last of a thinking response, the first of a direct one
            by default.
        acts: SAE activations [response token, latent] of the last layer.
        fields: of the trace; `labels` are added to prompt and mode.
    """
    n_layers, n = norms.shape
    thinking = mode == "think" and n > 1
    start = (n - 1 if thinking else 0) if answer_at is None else answer_at
    ids = np.arange(n) if tokens is None else tokens
    asked = 1_000_000 + zlib.crc32(prompt.encode())  # of no two labels the same
    defaults: dict[str, Any] = {
        "tokens": torch.from_numpy(np.concatenate([np.full(prompt_len, asked), ids]).astype(np.int64)),
        "str_tokens": ("t",) * (prompt_len + n),
    }
    if acts is not None:
        dense = np.concatenate([np.zeros((prompt_len, acts.shape[1])), acts])
        defaults["features"] = {n_layers - 1: FeatureActs.of_dense(torch.from_numpy(dense).float(), sae="by hand")}
    labels = {"prompt": prompt, "mode": mode, **fields.pop("labels", {})}
    whole = np.concatenate([np.full((n_layers, prompt_len), 1e6), norms], axis=1)
    think = start if thinking else 0
    return trace_of(whole, prompt_len=prompt_len, think=think, **{**defaults, **fields, "labels": labels})
