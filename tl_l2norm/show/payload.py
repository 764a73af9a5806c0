"""What the module draws from: sequences and quantities as bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from tl_l2norm.show.packing import blob, pack
from tl_l2norm.show.quantities import Quantity, medians
from tl_l2norm.show.shown import Shown
from tl_l2norm.show.token_text import short_text

FORMAT = 1
"""A module draws what is of its own format; what isn't stays text."""


def payload(
    shown: Sequence[Shown],
    quantities: Sequence[Quantity],
    *,
    start: Mapping[str, Any],
    compact: bool,
    max_tokens: int | None = None,
) -> bytes:
    """Everything of a widget.

    Args:
        shown: sequences of the same model and layers.
        quantities: the norm first; of one layer, if compact.
        start: the `layer` and `quantity` that are shown first.
        compact: text and legend, without the controls and the plots.
        max_tokens: of each sequence.
    """
    lengths = [len(one.trace) for one in shown]
    kept = [n if max_tokens is None else min(n, max_tokens) for n in lengths]
    offsets = np.cumsum([0, *lengths])
    index = np.concatenate([np.arange(kept[i]) + offsets[i] for i in range(len(shown))])
    layers = quantities[0].layers
    rows = [shown[0].trace.index_of(layer) for layer in layers]
    sinks = np.concatenate([one.trace.is_sink[rows].numpy() for one in shown], axis=1)
    packed = [pack(quantity.values[:, index]) for quantity in quantities]
    header = {
        "format": FORMAT,
        "model": shown[0].trace.provenance.model,
        "layers": list(layers),
        "late": [layer for layer in shown[0].trace.late_layers if layer in layers],
        "start": dict(start),
        "compact": compact,
        "medians": [float(f"{median:.6g}") for median in medians(quantities[0].values, sinks)],
        "sinks": np.flatnonzero(sinks[:, index]).tolist(),
        "sequences": [_sequence(one, n) for one, n in zip(shown, kept, strict=True)],
        "quantities": [
            {"name": q.name, "label": q.label, "layers": list(q.layers), "tops": p.tops, "signed": p.signed}
            for q, p in zip(quantities, packed, strict=True)
        ],
    }
    return blob(header, [p.codes for p in packed])


def _sequence(one: Shown, n: int) -> dict[str, Any]:
    """The first `n` tokens of a sequence; what is sparse stands as pairs of place and value."""
    trace = one.trace
    texts = trace.str_tokens[:n]
    return {
        "title": one.title,
        "labels": dict(one.labels),
        "item": one.item,
        "column": one.column,
        "hidden": len(trace) - n,
        "runs": [[segment, len(list(run))] for segment, run in groupby(trace.segments[:n])],
        "tokens": [short_text(text) for text in texts],
        "breaks": [[p, text.count("\n")] for p, text in enumerate(texts) if "\n" in text],
        "events": [
            [e.position, e.layer, e.intervention, e.decision, int(e.fired), _digits(e.before), _digits(e.after)]
            for e in one.events
            if e.position < n
        ],
        "blocks": [list(block) for block in one.blocks],
    }


def _digits(value: float) -> float | None:
    return float(f"{value:.4g}") if np.isfinite(value) else None
