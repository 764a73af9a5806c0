"""p-values by the signs of what prompts give: where an effect is absent, each prompt's figure is as likely as its negative."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tl_l2norm.core.arguments import as_integer
from tl_l2norm.core.resampling import RESAMPLES, Array, generator


class FlipTest(NamedTuple):
    """Two-sided p-values, each [column]."""

    p: Array
    p_max: Array
    """Over all columns at once (max-T): at most 5% of tables hold one of at most 0.05 where no column has an effect."""


def sign_flips(values: NDArray[np.floating], *, seed: int = 0, flips: int = RESAMPLES) -> FlipTest:
    """Whether the mean over prompts is 0, by the sum over the root of the sum of squares under random signs per prompt.

    Args:
        values: [prompt, column]; a prompt that has no value there (NaN) doesn't count.
        seed: of the signs.
        flips: how many.

    Returns:
        p and p_max; NaN for a column without any value, 1 for one that is all zero.
    """
    flips = as_integer("flips", flips, least=1)
    held = np.where(np.isnan(values), 0.0, np.asarray(values, dtype=np.float64))
    scale = np.sqrt((held**2).sum(0))
    held = held / np.where(scale > 0, scale, 1.0)
    signs = generator(seed).choice([-1.0, 1.0], size=(flips, len(held)))
    own, null = np.abs(held.sum(0)), np.abs(signs @ held)
    empty = np.isnan(values).all(0)

    def shares(null: Array) -> Array:
        return np.where(empty, np.nan, (1 + (null >= own - 1e-12).sum(0)) / (1 + flips))

    return FlipTest(shares(null), shares(null.max(1, keepdims=True)))
