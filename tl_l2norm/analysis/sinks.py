"""Attention sinks: where they were found, and norms with them left out."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tl_l2norm.core.schema import Column, Schema
from tl_l2norm.core.trace import Trace, TracesLike, require_comparable, traces_of

SINKS = Schema(
    "sinks",
    "sink_table",
    (
        Column("position", int, "in the sequence, from 0"),
        Column("token", str, "its text"),
        Column("sequences", int, "in how many it is a sink at some layer"),
        Column("n", int, "all sequences"),
        Column("layers", object, "tuple: where its norm is over the bound; empty for a sink by position alone"),
        Column("max_norm", float, "greatest norm as a sink, over all sequences"),
    ),
)


def norms_without_sinks(trace: Trace) -> NDArray[np.float64]:
    """[layer, pos] norms, NaN where a sink is."""
    norms: NDArray[np.float64] = trace.l2_norms.double().numpy()
    return np.where(trace.is_sink.numpy(), np.nan, norms)


def layer_medians(trace: Trace) -> NDArray[np.float64]:
    """[layer] median norm over the tokens that are no sinks; NaN where all are."""
    kept = (norms[~np.isnan(norms)] for norms in norms_without_sinks(trace))
    return np.array([np.median(norms) if len(norms) else np.nan for norms in kept])


def sink_table(traces: TracesLike) -> pd.DataFrame:
    """Where sinks are: one entry per position and token, the most frequent first.

    Columns: position, token, sequences (in how many it is a sink at some layer), n (all sequences), layers (tuple: where its
    norm is over the bound; empty for a first token that is a sink by position alone), max_norm (as a sink, over all of them).

    Examples:
        >>> sink_table(think)[["position", "sequences", "n"]]
           position  sequences   n
        0         0         12  12
    """
    traces = traces_of(traces)
    require_comparable(traces)
    sinks: dict[tuple[int, str], list[tuple[set[int], float]]] = {}
    for trace in traces:
        over = trace.l2_norms > trace.sink_bounds[:, None]
        for position in trace.is_sink.any(0).nonzero().flatten().tolist():
            layers = {layer for layer, is_over in zip(trace.layers, over[:, position].tolist(), strict=True) if is_over}
            norm = float(trace.l2_norms[trace.is_sink[:, position], position].max())
            sinks.setdefault((position, trace.str_tokens[position]), []).append((layers, norm))
    entries = [
        {
            "position": position,
            "token": token,
            "sequences": len(hits),
            "n": len(traces),
            "layers": tuple(sorted(set().union(*(layers for layers, _ in hits)))),
            "max_norm": max(norm for _, norm in hits),
        }
        for (position, token), hits in sinks.items()
    ]
    table = SINKS.frame(entries)
    return table.sort_values(["sequences", "position", "token"], ascending=[False, True, True], ignore_index=True)
