"""Whether thinking amplifies a quantity more at higher levels of difficulty."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import rankdata

from tl_l2norm.analysis.pairing import Tokens, label, mode_means, pair_modes
from tl_l2norm.analysis.quantities import Latents, values
from tl_l2norm.analysis.rise import amplification
from tl_l2norm.core.errors import Unmeasurable
from tl_l2norm.core.resampling import RESAMPLES, Array, generator, interval, prompt_weights
from tl_l2norm.core.schema import MODEL, QUANTITY, SEED, Column, N, Schema, ends
from tl_l2norm.core.trace import TracesLike, traces_of

TRENDS = Schema(
    "trends",
    "level_trend",
    (
        Column("given", str, 'what is held fixed: "nothing" or "length"'),
        Column("rho", float, "Spearman's, of amplification with the level within families"),
        *ends("rho"),
        Column("p", float, "two-sided, of permuted levels"),
        N,
        Column("levels", int, "how many"),
        QUANTITY,
        SEED,
        MODEL,
    ),
)


def level_trend(
    think: TracesLike,
    direct: TracesLike,
    *,
    quantity: str = "l2_norm",
    features: Latents | None = None,
    tokens: Tokens = "read",
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> pd.DataFrame:
    """Does amplification (late layers, thinking over direct) grow with the level? Spearman's rho over prompts, within families.

    Ranks are centred within each family, so that families of different level or size of norm don't make a trend. The test
    permutes the levels within families. Beside it the same given the length of the thinking response, which grows with the
    level.

    Returns:
        Two entries: given ("nothing", "length"), rho, low, high, p (two-sided), n (prompts), levels (how many), quantity, seed,
        model.

    Raises:
        ValueError: as `dynamics`; or one level only.
    """
    think, direct = traces_of(think), traces_of(direct)
    pairs = pair_modes(think, direct)
    first, second = mode_means(pairs, lambda trace: values(trace, quantity, features), tokens=tokens)
    late = np.isin(think[0].layers, think[0].late_layers)
    firsts = [members[0][0] for members in pairs.values()]
    levels = np.array([float(label(trace, "level")) for trace in firsts])  # type: ignore[arg-type]
    if len(set(levels.tolist())) < 2:
        raise Unmeasurable("all prompts are of one level: a trend needs at least two")
    ratio = amplification(np.stack([first, second], axis=1)[..., late])
    lengths = np.array([float(len(trace) - trace.prompt_len) for trace in firsts])
    families = np.unique([str(trace.labels.get("family", "")) for trace in firsts], return_inverse=True)[1]
    held = np.isfinite(ratio)
    level, amount, length = (_ranks(x[held], families[held]) for x in (levels, ratio, lengths))
    entries = []
    for given in ("nothing", "length"):
        against = _without(amount, length) if given == "length" else amount
        trend = _without(level, length) if given == "length" else level
        entries.append({"given": given, **_trend(trend, against, families[held], seed, resamples)})
    count, model = len(set(levels.tolist())), think[0].provenance.model
    return TRENDS.frame(entries, levels=count, quantity=quantity, seed=seed, model=model)


def _ranks(x: Array, families: NDArray[np.intp]) -> Array:
    """Ranks within each family, about 0, as shares of its size."""
    shares = np.zeros(len(x))
    for family in np.unique(families):
        at = families == family
        ranks = rankdata(x[at])
        shares[at] = (ranks - ranks.mean()) / at.sum()
    return shares


def _without(y: Array, x: Array) -> Array:
    """Residuals of y after a linear fit on x, both centred on 0."""
    scale = (x**2).sum()
    return y if scale == 0 else y - x * (x @ y) / scale


def _trend(x: Array, y: Array, families: NDArray[np.intp], seed: int, resamples: int) -> dict[str, object]:
    def correlate(a: Array, b: Array, weights: Array) -> Array:
        cross, first, second = weights @ (a * b), weights @ a**2, weights @ b**2
        with np.errstate(divide="ignore", invalid="ignore"):
            rho: Array = np.where(first * second > 1e-18, cross / np.sqrt(first * second), np.nan)
        return rho

    rho = float(correlate(x, y, np.ones((1, len(x))))[0])
    around = interval(rho, correlate(x, y, prompt_weights(len(x), seed=seed, resamples=resamples)), len(x))
    if np.isnan(rho):  # the levels follow from the lengths
        return {"rho": np.nan, "low": np.nan, "high": np.nan, "p": np.nan, "n": len(x)}
    rng = generator(seed)
    order = np.argsort(families, kind="stable")
    keys = np.sort(families)[None] + rng.random((resamples, len(x)))
    shuffled = np.empty((resamples, len(x)))
    shuffled[:, order] = x[order][np.argsort(keys, axis=1)]
    null = (shuffled * y).sum(1) / np.sqrt((x**2).sum() * (y**2).sum())
    p = (1 + int((np.abs(null) >= abs(rho) - 1e-12).sum())) / (1 + resamples)
    return {"rho": rho, "low": around.low, "high": around.high, "p": p, "n": len(x)}
