"""Holm's correction for several tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def holm(p: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """p-values by Holm's procedure, all together; NaN stays NaN and out of their number.

    Examples:
        >>> holm([0.01, 0.04, float("nan")])
        array([0.02, 0.04,  nan])
    """
    values = np.array(p, dtype=np.float64)
    order = np.argsort(values)[: int((~np.isnan(values)).sum())]  # NaN comes last
    # by hand: statsmodels' collects garbage in every call, a quarter of a second beside a model
    values[order] = np.minimum(1.0, np.maximum.accumulate(values[order] * np.arange(len(order), 0, -1)))
    return values
