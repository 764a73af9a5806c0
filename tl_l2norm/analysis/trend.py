"""Whether thinking amplifies a quantity more at higher levels of difficulty."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.stats import rankdata

from tl_l2norm.analysis.covariates import Projection, indicators, log_powers
from tl_l2norm.analysis.pairing import Pair, Tokens, label, mode_means, pair_modes
from tl_l2norm.analysis.quantities import Latents, values
from tl_l2norm.analysis.rise import amplification
from tl_l2norm.core.errors import Unmeasurable
from tl_l2norm.core.resampling import RESAMPLES, Array, generator, interval, prompt_weights
from tl_l2norm.core.schema import MODEL, QUANTITY, SEED, Column, N, Schema, ends
from tl_l2norm.core.trace import TracesLike, traces_of

MIN_TOLERANCE = 0.1
"""Share of the variance of the level that lengths leave. Below it the two can't be told apart."""

TRENDS = Schema(
    "trends",
    "level_trend",
    (
        Column("part", str, '"ratio" (thinking over direct), "thinking" (its numerator) or "direct" (its denominator)'),
        Column("given", str, 'what is held fixed: "nothing" or "length"'),
        Column("rho", float, "rank correlation with the level within families; NaN where length and level go together"),
        *ends("rho"),
        Column("p", float, "two-sided, of permuted levels"),
        Column("tolerance", float, "share of the level's variance within families that is left at given lengths"),
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
    """Does amplification (late layers, thinking over direct) grow with the level? Over prompts, within families.

    Spearman's rho of ranks that are centred within each family, so that families of different level or size of norm don't make
    a trend, for the ratio, its numerator and its denominator: a ratio also grows where direct answers alone get quieter. Its
    test permutes the levels within families.

    Given the length: what powers 1 to 3 of both responses' log length, their ranks and the family explain is taken out of the
    ranks of levels and amounts; what is left of the levels is permuted within families, and t, not rho, is compared, so that
    neither a length that acts non-linearly nor scatter that grows with it breaks the test. Where lengths leave less than a
    tenth of the level's variance, rho and p given it are NaN: there is no telling them apart.

    Returns:
        Two entries for each part ("ratio", "thinking", "direct"): part, given ("nothing", "length"), rho, low, high, p
        (two-sided), tolerance (share of the level's variance that is left), n (prompts), levels (how many), quantity, seed,
        model.

    Raises:
        ValueError: as `dynamics`; or one level only.

    Examples:
        >>> trend = level_trend(think, direct, resamples=200).set_index(["part", "given"])
        >>> trend.loc[("thinking", "nothing"), ["rho", "n"]].round(1).tolist()  # harder problems are thought about more quietly
        [-0.9, 12.0]
    """
    think, direct = traces_of(think), traces_of(direct)
    pairs = pair_modes(think, direct)
    means = np.stack(mode_means(pairs, lambda trace: values(trace, quantity, features), tokens=tokens), axis=1)
    late = means[..., np.isin(think[0].layers, think[0].late_layers)]
    firsts = [members[0][0] for members in pairs.values()]
    levels = np.array([float(label(trace, "level")) for trace in firsts])  # type: ignore[arg-type]
    if len(set(levels.tolist())) < 2:
        raise Unmeasurable("all prompts are of one level: a trend needs at least two")
    families = np.unique([str(trace.labels.get("family", "")) for trace in firsts], return_inverse=True)[1]
    parts = {"ratio": amplification(late), "thinking": late[:, 0].mean(-1), "direct": late[:, 1].mean(-1)}
    held = np.isfinite(parts["ratio"])
    own, lengths = families[held], _lengths(list(pairs.values()))[held]
    level = _ranks(levels[held], own)
    sides = {"nothing": Projection.on(indicators(own)), "length": Projection.on(indicators(own), *_of_length(lengths, own))}
    entries = [
        {"part": part, "given": given, **_trend(level, _ranks(amount[held], own), own, projection, seed, resamples)}
        for part, amount in parts.items()
        for given, projection in sides.items()
    ]
    count, model = len(set(levels.tolist())), think[0].provenance.model
    return TRENDS.frame(entries, levels=count, quantity=quantity, seed=seed, model=model)


def _lengths(members: Sequence[Sequence[Pair]]) -> Array:
    """[prompt, mode] mean length of the responses."""
    return np.array([[np.mean([len(p[m]) - p[m].prompt_len for p in pairs]) for m in (0, 1)] for pairs in members])


def _of_length(lengths: Array, families: NDArray[np.intp]) -> list[csr_array]:
    """Covariates of [prompt, mode]: powers of log lengths, and ranks: a monotone effect on ranks is nearly linear in them."""
    powers = [log_powers(length) for length in lengths.T]
    return [*powers, csr_array(np.stack([_ranks(length, families) for length in lengths.T], axis=1))]


def _ranks(x: Array, families: NDArray[np.intp]) -> Array:
    """Ranks within each family, about 0, as shares of its size."""
    shares = np.zeros(len(x))
    for family in np.unique(families):
        at = families == family
        ranks = rankdata(x[at])
        shares[at] = (ranks - ranks.mean()) / at.sum()
    return shares


def _trend(
    level: Array, amount: Array, families: NDArray[np.intp], projection: Projection, seed: int, resamples: int
) -> dict[str, object]:
    """Of what the projection leaves of level and amount."""
    x, y, n = projection.rest(level), projection.rest(amount), len(level)
    tolerance = float((x @ x) / (level @ level)) if level.any() else 0.0
    if tolerance < MIN_TOLERANCE or not y.any():
        return {"rho": np.nan, "low": np.nan, "high": np.nan, "p": np.nan, "tolerance": tolerance, "n": n}
    rho = float(_correlate(x, y, np.ones((1, n)))[0])
    around = interval(rho, _correlate(x, y, prompt_weights(n, seed=seed, resamples=resamples)), n)
    null = np.abs(_t(projection.rest(_permuted(x, families, seed, resamples).T), y))
    p = (1 + int((null >= abs(_t(x[:, None], y)[0]) - 1e-12).sum())) / (1 + resamples)
    return {"rho": rho, "low": around.low, "high": around.high, "p": p, "tolerance": tolerance, "n": n}


def _correlate(x: Array, y: Array, weights: Array) -> Array:
    """[resample] correlation about 0, each prompt with its weight."""
    cross, first, second = weights @ (x * y), weights @ x**2, weights @ y**2
    with np.errstate(divide="ignore", invalid="ignore"):
        rho: Array = np.where(first * second > 1e-18, cross / np.sqrt(first * second), np.nan)
    return rho


def _t(x: Array, y: Array) -> Array:
    """Of the slope of y [prompt] on each column of x [prompt, column], with errors that hold where the scatter is uneven."""
    products = x * y[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        t: Array = np.nan_to_num(products.sum(0) / np.sqrt((products**2).sum(0)))
    return t


def _permuted(x: Array, families: NDArray[np.intp], seed: int, resamples: int) -> Array:
    """[resample, prompt] x, dealt out anew within families."""
    order = np.argsort(families, kind="stable")
    keys = np.sort(families)[None] + generator(seed).random((resamples, len(x)))
    shuffled = np.empty((resamples, len(x)))
    shuffled[:, order] = x[order][np.argsort(keys, axis=1)]
    return shuffled
