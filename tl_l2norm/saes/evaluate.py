"""How much of a model's residual stream SAEs explain."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from tl_l2norm.core.measured import EXPLAINED
from tl_l2norm.core.presets import sink_ratio_of
from tl_l2norm.core.protocols import SparseAutoencoder
from tl_l2norm.core.resampling import interval, prompt_weights
from tl_l2norm.models.backends import backend_of
from tl_l2norm.saes.checks import check_saes
from tl_l2norm.saes.reader import Sae
from tl_l2norm.saes.train import read_states
from tl_l2norm.text.inputs import SequenceLike
from tl_l2norm.text.sequences import tokenize

_ACTIVATIONS_AT_ONCE = 1 << 24  # 64 MB in float32
_STATES_AT_ONCE = 1 << 26  # numbers of all layers that are read in one pass: 256 MB in float32


def evaluate_saes(
    model: Any,
    saes: Mapping[int, SparseAutoencoder],
    prompts: SequenceLike | Iterable[SequenceLike],
    *,
    sequences_at_once: int = 32,
    sink_ratio: float | None = None,
    prepend_bos: bool | None = None,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Explained variance of each SAE over all tokens of some sequences, sinks and padding left out.

    `explained_variance = 1 - sum ||h - sae(h)||^2 / sum ||h - mean h||^2`, `residual = sum ||h - sae(h)||^2 / sum ||h||^2`,
    both with 95% intervals by resampling sequences.

    Args:
        model: a `HookedTransformer` or `TransformerBridge`.
        saes: by layer, with `encode` and `decode`.
        prompts: texts, chats, token ids, or values with `.tokens`; held out from training.
        sequences_at_once: sequences in one pass of the model.
        sink_ratio: a norm over this many times its layer's median over the prompt is a sink's; 5 by default (20 for
            tiny-reasoner).
        prepend_bos: for plain texts: BOS or none; by default what the model's tokenizer adds.
        seed: of the resampling.
        progress: show a progress bar.

    Returns:
        One entry per layer: layer, explained_variance, low, high, residual, residual_low, residual_high, l0 (mean active
        latents of a token), dead (latents that are never active here), d_sae, n (sequences), n_tokens, seed.

    Examples:
        >>> saes = l2.load_saes("tiny-reasoner", layers=[4, 9])
        >>> table = l2.saes.evaluate_saes(model, saes, think[:4], progress=False)
        >>> table[["layer", "explained_variance", "l0"]].round(2)
           layer  explained_variance    l0
        0      4                0.98  32.0
        1      9                0.97  32.0
    """
    backend = backend_of(model)
    sink_ratio = sink_ratio_of(model, sink_ratio)
    items = tokenize(backend, prompts, prepend_bos=prepend_bos)
    tallies = {layer: _Tally(sae) for layer, sae in check_saes(backend, saes).items()}
    longest = sequences_at_once * max(map(len, items)) * backend.d_model
    at_once = max(1, _STATES_AT_ONCE // longest)
    layers = list(tallies)
    with tqdm(total=len(items) * len(layers), desc="evaluate SAEs", unit="seq", disable=not progress, delay=2) as bar:
        for group in (layers[i : i + at_once] for i in range(0, len(layers), at_once)):
            for start in range(0, len(items), sequences_at_once):
                states = read_states(backend, items[start : start + sequences_at_once], group, sink_ratio)
                for layer, sequences in states.items():
                    tallies[layer].add(sequences)
                    bar.update(len(sequences))
    return EXPLAINED.frame(({"layer": layer, **tally.entry(seed)} for layer, tally in tallies.items()), seed=seed)


class _Tally:
    """What one SAE made of the sequences so far."""

    def __init__(self, sae: Any) -> None:
        self.sae = sae
        self.sums: list[np.ndarray] = []  # of each sequence: tokens, squared error, squares, then the sum of its states
        self.active = 0
        self.fired = torch.zeros(sae.cfg.d_sae, dtype=torch.bool)

    def add(self, sequences: Sequence[Float[Tensor, "_ d_model"]]) -> None:
        errors = []
        for part in torch.split(torch.cat(list(sequences)), max(1, _ACTIVATIONS_AT_ONCE // len(self.fired))):
            acts, error = _error(self.sae, part)
            self.active += int((acts != 0).sum())
            self.fired |= (acts != 0).any(0).cpu()
            errors.append(error)
        for states, error in zip(sequences, torch.split(torch.cat(errors), [len(s) for s in sequences]), strict=True):
            x = states.double().cpu()
            self.sums.append(np.array([len(x), float(error.sum()), float(x.pow(2).sum()), *x.sum(0).tolist()]))

    def entry(self, seed: int) -> dict[str, object]:
        table = np.stack(self.sums)
        draws = prompt_weights(len(table), seed=seed) @ table
        explained, residual = (interval(float(f(table.sum(0)[None])[0]), f(draws), len(table)) for f in (_explained, _residual))
        n_tokens = int(table[:, 0].sum())
        return {
            "explained_variance": explained.mean,
            "low": explained.low,
            "high": explained.high,
            "residual": residual.mean,
            "residual_low": residual.low,
            "residual_high": residual.high,
            "l0": self.active / n_tokens,
            "dead": int((~self.fired).sum()),
            "d_sae": len(self.fired),
            "n": len(table),
            "n_tokens": n_tokens,
        }


@torch.no_grad()
def _error(sae: Any, states: Float[Tensor, "states d_model"]) -> tuple[Float[Tensor, "states d_sae"], Float[Tensor, " states"]]:
    """Feature activations, and the squared error of what is decoded from them."""
    states = states.to(sae.device)
    acts = sae.encode(states)
    acts = acts.to_dense() if acts.is_sparse else acts
    # SAELens' own remember the scale of what they encoded last
    decoded = sae.decode(acts, states) if isinstance(sae, Sae) else sae.decode(acts)
    return acts, (states - decoded).double().pow(2).sum(1).cpu()


def _explained(sums: np.ndarray) -> np.ndarray:
    """From sums over tokens, one entry a sequence: how many, squared error, squares, and the sum of the states."""
    n, error, squares, total = sums[:, 0], sums[:, 1], sums[:, 2], sums[:, 3:]
    explained: np.ndarray = 1 - error / (squares - (total**2).sum(1) / n)
    return explained


def _residual(sums: np.ndarray) -> np.ndarray:
    """From the same sums: the share of the squared norm that is not reconstructed."""
    residual: np.ndarray = sums[:, 1] / sums[:, 2]
    return residual
