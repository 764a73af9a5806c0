"""Traces written by hand."""

from __future__ import annotations

from typing import Any

import torch

from tl_l2norm.core.trace import Provenance, Trace

PROVENANCE = {
    "model": "by hand",
    "backend": "bridge",
    "dtype": "float32",
    "n_layers": 1,
    "centred": False,
    "sink_ratio": 5.0,
    "versions": {"torch": "0"},
}


def trace_of(norms: list[list[float]], *, provenance: dict[str, Any] | None = None, **fields: Any) -> Trace:
    """A trace with these norms [layer, pos]; by default the whole is prompt and nothing is a sink."""
    l2_norms = torch.tensor(norms, dtype=torch.float32)
    n_layers, n_pos = l2_norms.shape
    prompt_len, layers = fields.get("prompt_len", n_pos), fields.get("layers", tuple(range(n_layers)))
    source = {**PROVENANCE, "n_layers": max(layers, default=0) + 1, **(provenance or {})}
    defaults: dict[str, Any] = {
        "tokens": torch.arange(n_pos),
        "str_tokens": tuple(f"t{i}" for i in range(n_pos)),
        "segments": tuple("prompt" if i < prompt_len else "answer" for i in range(n_pos)),
        "prompt_len": prompt_len,
        "layers": layers,
        "l2_norms": l2_norms,
        "embed_l2_norms": torch.ones(n_pos),
        "is_sink": torch.zeros(n_layers, n_pos, dtype=torch.bool),
        "sink_bounds": torch.full((n_layers,), torch.inf),
        "provenance": Provenance(**source),
    }
    return Trace(**{**defaults, **fields})
