"""A labelled linear probe: logistic regression of correctness on states, cross-fitted by problem.

It has seen labels, of other problems: what a linear signal in these states can give, as far as so many labels teach it. States
are taken relative to their problem's mean, as candidates are compared within it, and scaled by coordinate; no label enters
there. It is fitted to rank, and may choose worse than chance where the most extreme of many responses are wrong ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize
from scipy.special import expit

from tl_l2norm.core.errors import Unmeasurable
from tl_l2norm.core.resampling import Array

FOLDS, INNER_FOLDS = 5, 4
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
"""Of the ridge, beside a mean loss and states of mean squared length 1; chosen by the loss on problems held out again."""
_COMPONENTS = 256  # principal components of the states


class _Fit(NamedTuple):
    weights: Array
    intercept: float

    def __call__(self, states: Array) -> Array:
        return states @ self.weights + self.intercept


def cross_fitted(
    states: Float[np.ndarray, "response d"], correct: Float[np.ndarray, " response"], problems: Sequence[str]
) -> Float[np.ndarray, " response"]:
    """Log-odds that each response is right, by a probe that was fitted on other problems alone.

    Args:
        states: of each response.
        correct: 1 or 0; NaN where it isn't known, which nothing is fitted on.
        problems: which problem each response answers. Folds go by these names, whatever the order.

    Raises:
        Unmeasurable: fewer than two problems with known answers, or all responses right, or wrong.
    """
    names = np.array(problems)
    known, told = np.unique(names[~np.isnan(correct)]), np.unique(correct[~np.isnan(correct)])
    if len(known) < 2 or len(told) < 2:
        lacks = f"are {len(known)} with known answers" if len(known) < 2 else f"all are {'right' if told[0] else 'wrong'}"
        raise Unmeasurable(f"a probe learns from right and wrong responses to other problems, and here {lacks}")
    order = np.argsort(names, kind="stable")
    scores = np.empty(len(names))
    scores[order] = _in_order(_relative(states[order], names[order]), correct[order], names[order])
    return scores


def _in_order(states: Array, correct: Array, names: np.ndarray) -> Array:  # type: ignore[type-arg]
    known = ~np.isnan(correct)
    folds, scores = np.searchsorted(np.unique(names[known]), names) % FOLDS, np.empty(len(names))
    for fold in np.unique(folds):
        inside = (folds != fold) & known
        fitted = _fit(states[inside], correct[inside], _penalty(states[inside], correct[inside], names[inside]))
        scores[folds == fold] = fitted(states[folds == fold])
    return scores


def _relative(states: Array, names: np.ndarray) -> Array:  # type: ignore[type-arg]
    """Principal components of the states relative to their problem's mean, each coordinate scaled, mean squared length 1."""
    _, which = np.unique(names, return_inverse=True)
    means = np.zeros((which.max() + 1, states.shape[1]))
    np.add.at(means, which, states)
    centred = states - (means / np.bincount(which)[:, None])[which]
    deviation = centred.std(0)
    centred = centred / np.where(deviation > 0, deviation, 1.0) / np.sqrt(max(1, int((deviation > 0).sum())))
    values, vectors = np.linalg.eigh(centred @ centred.T)
    largest = slice(-_COMPONENTS, None)
    components: Array = vectors[:, largest] * np.sqrt(np.maximum(values[largest], 0.0))
    return components


def _penalty(states: Array, correct: Array, names: np.ndarray) -> float:  # type: ignore[type-arg]
    """The penalty with the least loss on problems that were held out."""
    problems, which = np.unique(names, return_inverse=True)
    if len(problems) < 2:
        return PENALTIES[-1]
    folds = which % INNER_FOLDS
    losses = [sum(_held_out(states, correct, folds == fold, size) for fold in np.unique(folds)) for size in PENALTIES]
    return PENALTIES[int(np.argmin(losses))]


def _held_out(states: Array, correct: Array, held: np.ndarray, penalty: float) -> float:  # type: ignore[type-arg]
    odds = _fit(states[~held], correct[~held], penalty)(states[held])
    return float((np.logaddexp(0.0, odds) - correct[held] * odds).sum())


def _fit(states: Array, correct: Array, penalty: float) -> _Fit:
    """Mean logistic loss and `penalty / 2 * ||w||^2`; the intercept is free up to what separates everything."""

    def loss(at: Array) -> tuple[float, Array]:
        odds = states @ at[:-1] + at[-1]
        residual = expit(odds) - correct
        value = (np.logaddexp(0.0, odds) - correct * odds).mean() + penalty / 2 * (at[:-1] @ at[:-1]) + _FREE / 2 * at[-1] ** 2
        slope = states.T @ residual / len(correct) + penalty * at[:-1]
        return float(value), np.append(slope, residual.mean() + _FREE * at[-1])

    found = minimize(loss, np.zeros(states.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": 500, "gtol": 1e-8})
    return _Fit(found.x[:-1], float(found.x[-1]))


_FREE = 1e-6  # of the intercept: finite where all are right
