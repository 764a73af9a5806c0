"""How much of a model's residual stream SAEs explain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from tl_l2norm.analysis.resampling import RESAMPLES
from tl_l2norm.backends import backend_of
from tl_l2norm.norms import SINK_RATIO
from tl_l2norm.protocols import SparseAutoencoder
from tl_l2norm.sae_training import read_states
from tl_l2norm.saes import check_saes
from tl_l2norm.sequences import SequenceLike, tokenize


def evaluate_saes(
    model: Any,
    saes: Mapping[int, SparseAutoencoder],
    prompts: SequenceLike | Sequence[SequenceLike],
    *,
    sequences_at_once: int = 32,
    sink_ratio: float = SINK_RATIO,
    prepend_bos: bool | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Explained variance of each SAE over all tokens of some sequences, sinks and padding left out.

    `explained_variance = 1 - sum ||h - sae(h)||^2 / sum ||h - mean h||^2`, its 95% interval by resampling sequences.

    Args:
        model: a `HookedTransformer` or `TransformerBridge`.
        saes: by layer, with `encode` and `decode`.
        prompts: texts, chats, token ids, or values with `.tokens`; held out from training.
        sequences_at_once: sequences in one pass of the model.
        sink_ratio: a norm over this many times its layer's median over the prompt is a sink's.
        prepend_bos: for plain texts: BOS or none; by default what the model's tokenizer adds.
        seed: of the resampling.

    Returns:
        One row per layer: layer, explained_variance, low, high, l0 (mean active latents of a token), dead (latents that are
        never active here), d_sae, n (sequences), n_tokens, seed.
    """
    backend = backend_of(model)
    items = tokenize(backend, prompts, prepend_bos=prepend_bos)
    rows = []
    for layer, sae in check_saes(backend, saes).items():
        sums: list[np.ndarray] = []  # of each sequence: tokens, squared error, squares, then the sum of its states
        active, fired = 0, torch.zeros(sae.cfg.d_sae, dtype=torch.bool)
        for start in range(0, len(items), sequences_at_once):
            for states in read_states(backend, items[start : start + sequences_at_once], layer, sink_ratio):
                acts, error = _error(sae, states)
                active += int((acts != 0).sum())
                fired |= (acts != 0).any(0).cpu()
                x = states.double().cpu()
                sums.append(np.array([len(x), error, float(x.pow(2).sum()), *x.sum(0).tolist()]))
        table = np.stack(sums)
        draws = np.random.default_rng(seed).multinomial(len(table), np.full(len(table), 1 / len(table)), size=RESAMPLES)
        low, high = np.quantile(_explained(draws @ table), [0.025, 0.975])
        n_tokens = int(table[:, 0].sum())
        rows.append(
            {
                "layer": layer,
                "explained_variance": float(_explained(table.sum(0)[None])[0]),
                "low": float(low),
                "high": float(high),
                "l0": active / n_tokens,
                "dead": int((~fired).sum()),
                "d_sae": int(sae.cfg.d_sae),
                "n": len(table),
                "n_tokens": n_tokens,
                "seed": seed,
            }
        )
    return pd.DataFrame(rows)


@torch.no_grad()
def _error(sae: Any, states: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Feature activations, and the squared error of what is decoded from them."""
    acts = sae.encode(states.to(sae.device))
    acts = acts.to_dense() if acts.is_sparse else acts
    error = (states.to(sae.device) - sae.decode(acts)).double().pow(2).sum()
    return acts, float(error)


def _explained(sums: np.ndarray) -> np.ndarray:
    """From rows of sums over tokens: how many, squared error, squares, and the sum of the states."""
    n, error, squares, total = sums[:, 0], sums[:, 1], sums[:, 2], sums[:, 3:]
    explained: np.ndarray = 1 - error / (squares - (total**2).sum(1) / n)
    return explained
