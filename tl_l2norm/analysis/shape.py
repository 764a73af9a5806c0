"""Whether a curve over layers is flat and then sharp, or rises smoothly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tl_l2norm.analysis.pairing import Match, Tokens, mode_means, pair_modes, require_prompts
from tl_l2norm.analysis.quantities import Latents, values
from tl_l2norm.core.errors import InputError, Unmeasurable
from tl_l2norm.core.resampling import RESAMPLES, Array, generator
from tl_l2norm.core.schema import MODEL, QUANTITY, SEED, Column, N, Schema
from tl_l2norm.core.sign_flips import as_extreme, random_signs
from tl_l2norm.core.trace import TracesLike, traces_of

BROKEN = "broken line"
SMOOTH = ("exponential", "power", "logistic")
MIN_LAYERS = 8
"""Four shapes of three or four parameters can't be told apart on fewer."""

_FOLDS = 5

SHAPES = Schema(
    "shapes of a rise",
    "rise_shape",
    (
        Column("curve", str, '"think" or "think minus direct"'),
        QUANTITY,
        Column("rival", str, "smooth shape that the broken line is held against"),
        Column("error", float, "the rival's held-out squared error, as a share of the curve's variance over layers"),
        Column("broken_error", float, "the broken line's"),
        Column("p_prompts", float, "one-sided, that the broken line errs less, by prompts"),
        Column("p_layers", float, "the same by layers"),
        Column("knot", float, "layer at which the broken line bends upwards; NaN where it doesn't"),
        N,
        Column("n_layers", int, "layers of the curve"),
        SEED,
        MODEL,
    ),
)


def rise_shape(
    think: TracesLike,
    direct: TracesLike,
    *,
    quantity: str = "l2_norm",
    features: Latents | None = None,
    match: Match = "none",
    tokens: Tokens = "read",
    seed: int = 0,
    flips: int = RESAMPLES,
) -> pd.DataFrame:
    """Two straight pieces against smooth curves, on layers and prompts that were not fitted.

    "Flat, then sharp" is a broken line, a + b l + c max(0, l - k) with c > 0. Its rivals rise as late and as steeply without a
    second stage: a + b exp(r l), a + b l^q, a + b / (1 + exp(-r (l - m))). Each is fitted by least squares to the mean curve of
    four fifths of the prompts without one layer, and predicts that layer for the other prompts; their level is taken out.
    `p_prompts` and `p_layers` say whether the broken line errs less, by exchanging it with the rival at whole prompts and at
    whole layers: what one model's layers do by themselves is no stage, and with a dozen layers hardly anything can be said. Of
    28 layers a knee that is rounded over 1.9 of them is called broken in 2% of cases, over 1.4 in 10%; two straight pieces are
    found by 48 prompts, but in a quarter of cases where each layer has a bump of its own of 5% of the rise.

    Args:
        think: traces with all layers; the label "prompt" pairs them.
        direct: to the same prompts.
        quantity: "l2_norm", a recorded metric, "feature_sum" or "reasoning_sum".
        features: for "reasoning_sum".
        match: which tokens of the two modes are compared, as in `find_reasoning_features`.
        tokens: "read", the response's own, or "chosen", those from which they were chosen.
        seed: of the folds and flips, and of match="count".
        flips: how many, 19 or more.

    Returns:
        One entry per curve ("think", "think minus direct") and smooth shape: curve, quantity, rival, error (held-out squared
        error of the rival, as a share of the curve's variance over layers), broken_error (of the broken line), p_prompts,
        p_layers (one-sided), knot (of the broken line on all prompts, in layers), n (prompts), n_layers, seed, model.

    Raises:
        ValueError: modes with different prompts, fewer than 8, or not all layers recorded.
        Unmeasurable: fewer than 8 layers, or 8 prompts with tokens to compare.

    Examples:
        >>> shapes = rise_shape(think, direct, flips=500).set_index(["curve", "rival"])
        >>> bool(shapes.loc[("think", "power"), "p_layers"] > 0.5)  # over 0.5: a power of the layer errs less
        False
    """
    think, direct = traces_of(think), traces_of(direct)
    pairs = pair_modes(think, direct)
    n_layers = think[0].provenance.n_layers
    if n_layers < MIN_LAYERS:
        raise Unmeasurable(f"shapes of a rise can't be told apart on {n_layers} layers: it takes at least {MIN_LAYERS}")
    if len(think[0].layers) < n_layers:
        raise InputError(f"the shape of a rise needs all {n_layers} layers: the traces have {len(think[0].layers)}")
    first, second = mode_means(pairs, lambda trace: values(trace, quantity, features), match=match, tokens=tokens, seed=seed)
    entries = []
    for name, curves in (("think", first), ("think minus direct", first - second)):
        held = curves[~np.isnan(curves).all(1)]
        held = held[:, ~np.isnan(held).all(0)]
        held = held[~np.isnan(held).any(1)]
        require_prompts(len(held), what=f"prompts have a curve of {quantity} ({name})")
        for entry in compare_shapes(held, seed=seed, flips=flips):
            entries.append({"curve": name, "quantity": quantity, **entry})
    return SHAPES.frame(entries, seed=seed, model=think[0].provenance.model)


def compare_shapes(curves: Array, *, seed: int = 0, flips: int = RESAMPLES) -> Iterator[dict[str, object]]:
    """The broken line against each smooth shape on curves [prompt, layer]: an entry of `rise_shape` each."""
    n, n_layers = curves.shape
    if n < _FOLDS or n_layers < MIN_LAYERS:
        raise Unmeasurable(f"{n} prompts with {n_layers} layers are too few to compare shapes")
    curves = curves - curves.mean(1, keepdims=True)
    fold = generator(seed).permutation(n) % _FOLDS
    errors = {name: _held_out(curves, fold, shapes) for name, shapes in _shapes(n_layers).items()}
    variance = float(np.var(curves.mean(0)))
    constant = {"knot": _knot(curves.mean(0)), "n": n, "n_layers": n_layers}
    for rival in SMOOTH:
        gain = errors[rival] - errors[BROKEN]
        yield {
            "rival": rival,
            "error": float(errors[rival].mean()) / variance if variance else np.nan,
            "broken_error": float(errors[BROKEN].mean()) / variance if variance else np.nan,
            "p_prompts": _flip_test(gain.mean(1), seed, flips),
            "p_layers": _flip_test(gain.mean(0), seed, flips),
            **constant,
        }


@dataclass(frozen=True, slots=True, eq=False)
class _Shape:
    """A family of curves, each a linear fit of three or four columns, when one layer is left out."""

    predicts: Array
    """[layer left out, member, other layer] weights of the prediction at that layer."""
    fits: Array
    """[layer left out, member, other layer, other layer] hat matrices."""


@lru_cache(maxsize=4)
def _shapes(n_layers: int) -> dict[str, _Shape]:
    return {name: _shape(np.stack(list(designs))) for name, designs in _designs(n_layers).items()}


def _designs(n_layers: int) -> dict[str, list[Array]]:
    x = np.linspace(0, 1, n_layers)
    one = np.ones_like(x)
    rates = np.concatenate([-np.geomspace(0.5, 20, 8), np.geomspace(0.25, 40, 30)])
    return {
        BROKEN: [np.stack([one, x, np.maximum(0, x - knot)], axis=1) for knot in x[1:-1]],
        "exponential": [np.stack([one, np.expm1(r * x) / np.expm1(r)], axis=1) for r in rates],
        "power": [np.stack([one, x**q], axis=1) for q in np.geomspace(0.25, 30, 36)],
        "logistic": [
            np.stack([one, 1 / (1 + np.exp(-r * (x - m)))], axis=1)
            for m in np.linspace(0.1, 1.1, 11)
            for r in (4, 6, 9, 13, 20, 30, 45)
        ],
    }


def _shape(designs: Array) -> _Shape:
    predicts, fits = [], []
    for layer in range(designs.shape[1]):
        others = np.delete(designs, layer, axis=1)
        inverse = np.linalg.pinv(others)
        predicts.append(np.einsum("mc,mco->mo", designs[:, layer], inverse))
        fits.append(others @ inverse)
    return _Shape(np.stack(predicts), np.stack(fits))


def _held_out(curves: Array, fold: NDArray[np.int64], shape: _Shape) -> Array:
    """Squared error of each prompt's layer [prompt, layer] by the member that fits the other prompts' other layers best."""
    errors = np.empty_like(curves)
    for f in np.unique(fold):
        mean = curves[fold != f].mean(0)
        for layer in range(curves.shape[1]):
            others = np.delete(mean, layer)
            best = ((shape.fits[layer] @ others - others) ** 2).sum(-1).argmin()
            errors[fold == f, layer] = (curves[fold == f, layer] - shape.predicts[layer][best] @ others) ** 2
    return errors


def _knot(curve: Array) -> float:
    """Where the broken line of least squares bends; NaN where it bends downwards."""
    fits = [(design, np.linalg.lstsq(design, curve, rcond=None)[0]) for design in _designs(len(curve))[BROKEN]]
    errors = [float(((design @ weights - curve) ** 2).sum()) for design, weights in fits]
    best = int(np.argmin(errors))
    return float(best + 1) if fits[best][1][2] > 0 else float("nan")


def _flip_test(gains: Array, seed: int, flips: int) -> float:
    """One-sided p that the mean is over 0, of a studentised mean under flipped signs."""
    signs = random_signs(len(gains), seed=seed, flips=flips)
    means, square = signs @ gains / len(gains), (gains**2).mean()
    t = means / np.sqrt(np.maximum(square - means**2, 1e-12 * square + 1e-300))
    return float(as_extreme(t[:, None], t[:1])[0])
