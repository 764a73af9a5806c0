"""Tables of single tokens, as `token_importance` gives them, in which importance has nothing to do with the norm, or has."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

LAYERS = 4


def token_table(
    seed: int,
    *,
    n: int = 16,
    boring: float = 0.0,
    effect: float = 0.0,
    together: float = 0.0,
    before: float = 0.0,
    drift: float = 0.0,
    shortest: int = 12,
    first: float = 0.0,
    end: float = 0.0,
) -> pd.DataFrame:
    """A table of n prompts.

    Args:
        seed: of all that is drawn.
        n: prompts.
        boring: how much type, place, entropy and dose act on norm and importance alike.
        effect: how much of the norm's own noise goes into importance.
        together: how much type and place act on both as a product.
        before: how much the type of the token before acts on both.
        drift: how much each response drifts, by an amount of its own, in both.
        shortest: tokens of the shortest response; the longest has three times as many.
        first: how much it acts on both that a token is the first of its type in the response.
        end: how much it acts on both that it is one of the last three.
    """
    rng = np.random.default_rng([seed, 15])
    vocabulary = 30
    loud, weighty = rng.normal(size=vocabulary), rng.normal(size=vocabulary)
    weighty = loud + 0.5 * weighty
    logits = rng.normal(size=vocabulary)
    given = boring, effect, together, before, drift, shortest, first, end
    parts = [_response(rng, i, loud, weighty, logits, *given) for i in range(n)]
    return pd.concat(parts)


def _response(
    rng: np.random.Generator,
    number: int,
    loud: NDArray[np.float64],
    weighty: NDArray[np.float64],
    logits: NDArray[np.float64],
    boring: float,
    effect: float,
    together: float,
    before: float,
    drift: float,
    shortest: int,
    first: float,
    end: float,
) -> pd.DataFrame:
    k = int(rng.integers(shortest, 3 * shortest))
    p = np.exp(logits) / np.exp(logits).sum()
    ids, place = rng.choice(len(p), size=k, p=p), np.linspace(-1, 1, k)
    entropy = rng.exponential(size=k) * np.exp(0.5 * loud[ids])
    cosine = np.clip(0.2 + 0.3 * rng.normal(size=k) + 0.1 * loud[ids], -1, 1)
    noise, shared = rng.exponential(size=(LAYERS, k)) - 1, rng.exponential(size=k) - 1
    common = boring * (place + 0.5 * np.log1p(entropy) + cosine) + together * loud[ids] * place
    common += before * loud[np.append(ids[:1], ids[:-1])]
    if drift:
        common += drift * np.exp(0.8 * rng.normal()) * place
    common += first * np.isin(np.arange(k), np.unique(ids, return_index=True)[1]) + end * (np.arange(k) >= k - 3)
    norms = 100 + 10 * rng.normal() + 5 * (boring * loud[ids] + common + noise + shared)
    worth = boring * weighty[ids] + common + effect * shared + (rng.exponential(size=k) - 1)
    columns = {
        "sequence": number,
        "prompt": f"p{number}",
        "position": 20 + np.arange(k),
        "token_id": ids,
        "layer": 2,
        "importance": np.exp(3 * worth) * 1e-4,
        "entropy": entropy,
        "next_entropy": np.roll(entropy, -1),
        "cosine": cosine,
        **{f"l2_norm_{row}": own for row, own in enumerate(norms)},
        "late_norm": norms[-1],
    }
    return pd.DataFrame(columns)
