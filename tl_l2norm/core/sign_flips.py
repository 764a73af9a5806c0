"""p-values by the signs of what prompts give: where an effect is absent, each prompt's figure is as likely as its negative."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tl_l2norm.core.arguments import as_integer
from tl_l2norm.core.errors import InputError
from tl_l2norm.core.resampling import MAX_DRAWS, MIN_DRAWS, RESAMPLES, Array, generator


class FlipTest(NamedTuple):
    """Two-sided p-values, each [column]."""

    p: Array
    p_max: Array
    """Over all columns at once (max-T): at most 5% of tables hold one of at most 0.05 where no column has an effect."""


def random_signs(n: int, *, seed: int, flips: int) -> Array:
    """[draw, n] signs, none changed in the first: all 2^n where that is no more than `flips`, else random ones.

    Raises:
        InputError: fewer than 19 flips, or over a million.
    """
    flips = as_integer("flips", flips, least=MIN_DRAWS, most=MAX_DRAWS)
    if 2**n <= flips:
        return 1.0 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1).astype(np.float64)
    return np.vstack([np.ones(n), generator(seed).choice([-1.0, 1.0], size=(flips, n))])


def as_extreme(drawn: Array, own: Array) -> Array:
    """[column] share of the draws [draw, column] that are as large as what was measured, which is one of them."""
    share: Array = (drawn >= own - 1e-12).mean(0)
    return share


def sign_flips(values: NDArray[np.floating], *, seed: int = 0, flips: int = RESAMPLES) -> FlipTest:
    """Whether the mean over prompts is 0, by the sum over the root of the sum of squares under flipped signs of prompts.

    Args:
        values: [prompt, column]; a prompt that has no value there (NaN) doesn't count.
        seed: of the signs.
        flips: how many; of few prompts all.

    Returns:
        p and p_max; NaN for a column without any value, 1 for one that is all zero.

    Raises:
        InputError: an infinite value.

    Examples:
        >>> sign_flips(np.array([[1.0], [2], [3]])).p  # of 8 means, 2 and -2 are as far out
        array([0.25])
    """
    if np.isinf(values).any():
        raise InputError("a prompt's value is infinite: its mean over prompts says nothing, leave it out (NaN) or mend it")
    held = np.where(np.isnan(values), 0.0, np.asarray(values, dtype=np.float64))
    scale = np.sqrt((held**2).sum(0))
    held = held / np.where(scale > 0, scale, 1.0)
    own, drawn = np.abs(held.sum(0)), np.abs(random_signs(len(held), seed=seed, flips=flips) @ held)
    empty = np.isnan(values).all(0)
    p, p_max = (np.where(empty, np.nan, as_extreme(x, own)) for x in (drawn, drawn.max(1, keepdims=True)))
    return FlipTest(p, p_max)
