"""Made-up responses to the same prompts in two modes, with an effect planted where the caller says, or none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tests.traces import PROVENANCE
from tl_l2norm.core.features import FeatureActs
from tl_l2norm.core.trace import Provenance, Trace

Array = NDArray[np.float64]

LAYERS = 4
"""So that the last is the late quarter."""


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
    total = prompt_len + n
    thinking = mode == "think" and n > 1
    start = (n - 1 if thinking else 0) if answer_at is None else answer_at
    ids = np.arange(n) if tokens is None else tokens
    extra: dict[str, Any] = {}
    if acts is not None:
        dense = np.concatenate([np.zeros((prompt_len, acts.shape[1])), acts])
        extra["features"] = {n_layers - 1: FeatureActs.of_dense(torch.from_numpy(dense).float(), sae="by hand")}
    defaults: dict[str, Any] = {
        "tokens": torch.from_numpy(np.concatenate([np.full(prompt_len, 999), ids]).astype(np.int64)),
        "str_tokens": ("t",) * total,
        "segments": ("prompt",) * prompt_len + ("think" if thinking else "answer",) * start + ("answer",) * (n - start),
        "prompt_len": prompt_len,
        "layers": tuple(range(n_layers)),
        "l2_norms": torch.from_numpy(np.concatenate([np.full((n_layers, prompt_len), 1e6), norms], axis=1)).float(),
        "embed_l2_norms": torch.ones(total),
        "is_sink": torch.zeros(n_layers, total, dtype=torch.bool),
        "sink_bounds": torch.full((n_layers,), torch.inf),
        "provenance": Provenance(**{**PROVENANCE, "n_layers": n_layers}),
        **extra,
    }
    labels = {"prompt": prompt, "mode": mode, **fields.pop("labels", {})}
    return Trace(**{**defaults, **fields, "labels": labels})


def both_modes(n: int, make: Callable[[int, str], Trace]) -> tuple[list[Trace], list[Trace]]:
    """`make(prompt, mode)` for n prompts in each mode."""
    return [make(i, "think") for i in range(n)], [make(i, "direct") for i in range(n)]


def made(
    value: Callable[[int, str], Array],
    n: int = 12,
    lengths: Callable[[int, str], int] | None = None,
    **labels: Callable[[int], object],
) -> tuple[list[Trace], list[Trace]]:
    """Responses in both modes with the norms value(prompt, mode) [layer] at each token; labels are functions of the prompt."""

    def make(i: int, mode: str) -> Trace:
        k = 2 if lengths is None else lengths(i, mode)
        named = {name: of(i) for name, of in labels.items()}
        return response(np.tile(value(i, mode)[:, None], (1, k)), prompt=str(i), mode=mode, labels=named)

    return both_modes(n, make)
