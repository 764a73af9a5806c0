"""Attention sinks: where they were found, and norms with them left out."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tl_l2norm.core.trace import Trace, TracesLike, require_comparable, traces_of


def norms_without_sinks(trace: Trace) -> NDArray[np.float64]:
    """[layer, pos] norms, NaN where a sink is."""
    norms: NDArray[np.float64] = trace.l2_norms.double().numpy()
    return np.where(trace.is_sink.numpy(), np.nan, norms)


def layer_medians(trace: Trace) -> NDArray[np.float64]:
    """[layer] median norm over the tokens that are no sinks; NaN where all are."""
    rows = (row[~np.isnan(row)] for row in norms_without_sinks(trace))
    return np.array([np.median(row) if len(row) else np.nan for row in rows])


def sink_table(traces: TracesLike) -> pd.DataFrame:
    """Where sinks are: one row per position and token, the most frequent first.

    Columns: position, token, sequences (in how many it is a sink at some layer), n (all sequences), layers (tuple: where its
    norm is over the bound; empty for a first token that is a sink by position alone), max_norm (as a sink, over all of them).
    """
    traces = traces_of(traces)
    require_comparable(traces)
    found: dict[tuple[int, str], list[tuple[set[int], float]]] = {}
    for trace in traces:
        over = trace.l2_norms > trace.sink_bounds[:, None]
        for position in trace.is_sink.any(0).nonzero().flatten().tolist():
            layers = {layer for layer, is_over in zip(trace.layers, over[:, position].tolist(), strict=True) if is_over}
            norm = float(trace.l2_norms[trace.is_sink[:, position], position].max())
            found.setdefault((position, trace.str_tokens[position]), []).append((layers, norm))
    rows = [
        {
            "position": position,
            "token": token,
            "sequences": len(hits),
            "n": len(traces),
            "layers": tuple(sorted(set().union(*(layers for layers, _ in hits)))),
            "max_norm": max(norm for _, norm in hits),
        }
        for (position, token), hits in found.items()
    ]
    columns = ["position", "token", "sequences", "n", "layers", "max_norm"]
    table = pd.DataFrame(rows, columns=columns)
    return table.sort_values(["sequences", "position", "token"], ascending=[False, True, True], ignore_index=True)
