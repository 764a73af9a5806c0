"""The interval of a coefficient and the p-value of 0, by one test of all values that it could have.

A test needn't reject a value the more surely the farther it is from the estimate: where samples are few, so that the other
coefficients all but separate the outcomes, values far beyond 0 may pass although 0 doesn't. Yet who says that the coefficient
is over 0 rejects all values under it. So the interval reaches to the farthest value that passes, and the p-value is the
greatest of those of 0 and of the values beyond it, seen from the estimate: at most 0.05 where the interval leaves out 0.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tl_l2norm.core.resampling import Array

VALUES: Array = np.array([-16.0, -8, -4, -2, -1, -0.5, -0.25, 0, 0.25, 0.5, 1, 2, 4, 8, 16])
"""Of which each is tested, in log-odds per standard deviation: an interval that holds the last on a side has no end there."""

ROUNDING = 1e-12
"""By how much a statistic may be over another that is the same but for rounding."""

_STEPS, _CLOSE = 12, 1e-3  # of the search for an end between two of them, and how near |t| comes to its critical value


def evidence(t: Array, estimate: Array) -> Array:
    """The least t against 0 and the values beyond it, at least 0: [layer].

    Args:
        t: [value, layer] of `VALUES`: over 0 where the data say that the coefficient is greater.
        estimate: [layer]
    """
    above, below = t[VALUES <= 0].min(0), -t[VALUES >= 0].max(0)
    return np.asarray(np.maximum(np.where(estimate > 0, above, below), 0))


def lower_end(test: Callable[[Array], Array], t: Array, estimate: Array, critical: Array) -> Array:
    """From where on some value passes, one with a t of at most `critical`: [layer]; -inf where `VALUES` hold no end.

    The estimate passes, whatever its t: where outcomes are separated, it is that of the ridge.

    Args:
        test: from values [layer] to t [layer].
        t: [value, layer] of `VALUES`.
        estimate: [layer]
        critical: [layer]
    """
    layer, lower = np.arange(len(estimate)), VALUES[:, None] < estimate
    passes = lower & (t - ROUNDING <= critical)
    first = np.where(passes.any(0), passes.argmax(0), lower.sum(0))  # of those that pass, or the estimate behind the lower ones
    endless, outer = first == 0, np.maximum(first - 1, 0)
    inner = np.minimum(first, len(VALUES) - 1)
    inside, below = np.where(passes.any(0), [VALUES[inner], t[inner, layer] - critical], [estimate, -critical])
    outside, above = VALUES[outer], t[outer, layer] - critical
    below, above = np.where(endless, -1.0, below), np.where(endless, 1.0, above)
    at, passed = outside, inside
    for _ in range(_STEPS):  # regula falsi; an end that stays has its value halved ("Illinois")
        at = np.where(above > below, (inside * above - outside * below) / np.where(above > below, above - below, 1), inside)
        value = test(at) - critical
        if (endless | (np.abs(value) < _CLOSE)).all():
            break
        within = value <= 0
        inside, outside = np.where(within, at, inside), np.where(within, outside, at)
        below, above = np.where(within, value, below / 2), np.where(within, above / 2, value)
    return np.where(
        endless, -np.inf, np.minimum(at, passed)
    )  # it passes: where t is just critical, rounding must not part them


def upper_end(test: Callable[[Array], Array], t: Array, estimate: Array, critical: Array) -> Array:
    """As `lower_end`, to where some value passes: `VALUES` are symmetric about 0."""
    return -lower_end(lambda at: -test(-at), -t[::-1], -estimate, critical)
