"""How well families of problems are told apart by what the model does on them."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tl_l2norm.analysis.accuracy import WILSON, wilson_interval
from tl_l2norm.analysis.pairing import Tokens, label, mode_means, pair_modes
from tl_l2norm.analysis.quantities import Latents, values
from tl_l2norm.core.errors import Unmeasurable
from tl_l2norm.core.resampling import MIN_PROMPTS, RESAMPLES, Array, generator
from tl_l2norm.core.schema import MODEL, QUANTITY, Column, N, Schema, ends
from tl_l2norm.core.trace import TracesLike, traces_of

SEPARATIONS = Schema(
    "separations of families",
    "family_separation",
    (
        Column("predictor", str, '"spike", "profile" or "length"'),
        Column("accuracy", float, "share of prompts whose family is guessed right"),
        *ends("accuracy", kind=WILSON),
        Column("chance", float, "share of the largest family"),
        N,
        Column("families", int, "that are told apart"),
        QUANTITY,
        Column("seed", int, "of the halves"),
        MODEL,
    ),
)


def family_separation(
    think: TracesLike,
    direct: TracesLike,
    *,
    quantity: str = "l2_norm",
    features: Latents | None = None,
    tokens: Tokens = "read",
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> pd.DataFrame:
    """How well families are told apart: by the spike, by the norms of all layers, and, as a control, by the response's length.

    Families are guessed by the nearest mean of standardised values (over layers, for the profile) of the other half of the
    prompts, and the other way round.

    Returns:
        One entry per predictor ("spike", "profile", "length"): predictor, accuracy, low, high (Wilson), chance (the largest
        family's share), n (prompts), families, quantity, seed, model.

    Raises:
        ValueError: as `dynamics`; or fewer than two families of at least 8 prompts.
    """
    think, direct = traces_of(think), traces_of(direct)
    pairs = pair_modes(think, direct)
    first, second = mode_means(pairs, lambda trace: values(trace, quantity, features), tokens=tokens)
    late = np.isin(think[0].layers, think[0].late_layers)
    firsts = [members[0][0] for members in pairs.values()]
    names, families = np.unique([str(label(trace, "family")) for trace in firsts], return_inverse=True)
    held = ~np.isnan(first).any(1) & ~np.isnan(second).any(1)
    large = [i for i in range(len(names)) if (families[held] == i).sum() >= MIN_PROMPTS]
    if len(large) < 2:
        raise Unmeasurable(f"at least two families of {MIN_PROMPTS} prompts or more are needed to tell them apart")
    held &= np.isin(families, large)
    predictors = {
        "spike": (first - second)[:, late].mean(1, keepdims=True),
        "profile": first,
        "length": np.array([[float(len(trace) - trace.prompt_len)] for trace in firsts]),
    }
    entries = []
    for name, x in predictors.items():
        right, n = _nearest_mean(x[held], families[held], seed), int(held.sum())
        low, high = wilson_interval(right, n)
        chance = float(np.bincount(families[held]).max() / n)
        entries.append({"predictor": name, "accuracy": right / n, "low": low, "high": high, "chance": chance, "n": n})
    model = think[0].provenance.model
    return SEPARATIONS.frame(entries, families=len(large), quantity=quantity, seed=seed, model=model)


def _nearest_mean(x: Array, classes: NDArray[np.intp], seed: int) -> int:
    """How many are guessed right, each half from the other."""
    fold = np.zeros(len(x), dtype=int)
    rng = generator(seed)
    for c in np.unique(classes):
        at = rng.permutation(np.flatnonzero(classes == c))
        fold[at[::2]] = 1
    right = 0
    for test in (0, 1):
        known, asked = x[fold != test], x[fold == test]
        centre, scale = known.mean(0), known.std(0)
        scale = np.where(scale > 1e-6 * np.abs(centre), scale, np.inf)  # rounding of float32 tells nothing apart
        labels = np.unique(classes)
        means = np.stack([((known - centre) / scale)[classes[fold != test] == c].mean(0) for c in labels])
        distance = ((((asked - centre) / scale)[:, None] - means[None]) ** 2).sum(-1)
        right += int((labels[distance.argmin(1)] == classes[fold == test]).sum())
    return right
