"""Small tables of the paper's analysis, made by hand; the model's name is hostile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from tl_l2norm.paper.result import Analysis
from tl_l2norm.paper.tables import SCHEMAS

MODEL = "m <b>"


def _frame(columns: str, *entries: tuple[Any, ...], **constant: Any) -> pd.DataFrame:
    return pd.DataFrame(entries, columns=columns.split()).assign(**{"n": 9, "seed": 0, "model": MODEL} | constant)


def filled(name: str, frame: pd.DataFrame) -> pd.DataFrame:
    """A table of an analysis with the columns that are of no matter here: 0, "" or NaN."""
    columns = [SCHEMAS[name][column] for column in SCHEMAS[name].names if column not in frame]
    return frame.assign(**{c.name: np.nan if c.dtype is float else c.dtype() for c in columns})


def _curves() -> pd.DataFrame:
    wanted = [("trained SAE", "l2_norm"), ("trained SAE", "reasoning_sum"), ("trained SAE", "hidden_entropy")]
    wanted += [("shuffled modes", "reasoning_sum")]
    entries = [
        (source, quantity, mode, layer, step * (layer + 1), step * layer, step * (layer + 2))
        for source, quantity in wanted
        for mode, step in (("think", 10.0), ("direct", 5.0))
        for layer in range(4)
    ]
    return _frame("source quantity mode layer mean low high", *entries, n_tokens=90)


def _correlations() -> pd.DataFrame:
    entries = []
    for source in ("trained SAE", "shuffled modes"):
        for scope, layer in (("tokens", "late"), ("tokens", 1), ("partial", "late"), ("layers", "all")):
            for quantity, rho in (("l2_norm", 0.5), ("hidden_entropy", -0.25)):
                value = np.nan if source == "shuffled modes" and scope == "tokens" else rho
                entries.append((source, scope, layer, quantity, value, value - 0.1, value + 0.1))
    return _frame("source scope layer quantity rho low high", *entries)


_BOUND = [("p", 0, 6.0, 3.0, True), ("q", 0, 8.0, 4.0, True), ("p", 1, 5.0, np.nan, False), ("q", 1, 7.0, np.nan, False)]
_SHAPE = "spike spike_low spike_high amplification amplification_low amplification_high"
_DYNAMICS = f"quantity {_SHAPE} sharpness sharpness_low sharpness_high"
_ATTRIBUTION = _frame(
    "tokens match compared difference low high",
    ("read", "none", "all tokens", 10.0, 8.0, 12.0),
    ("read", "token", "tokens of the same types", 2.0, -1.0, 4.0),
    ("chosen", "none", "all tokens", 8.0, 7.0, 9.0),
    ("chosen", "token", "tokens of the same types", np.nan, np.nan, np.nan),
    quantity="l2_norm",
    layers="3",
    verdict="Thinking is higher, but not when matched by <i>token</i>.",
)
TABLES = {
    "curves": _curves(),
    "correlations": _correlations(),
    "attribution": _ATTRIBUTION,
    "feature_attribution": _ATTRIBUTION.assign(quantity="reasoning_sum"),
    "bound_points": _frame("prompt layer left right premise", *_BOUND).drop(columns=["n", "seed"]),
    "assumptions": _frame(
        "assumption layer value low high bound holds control",
        ("A1", 0, 0.09, 0.09, 0.09, 0.02, "does not hold", 0.07),
        ("A1", 1, 0.02, 0.01, 0.03, 0.02, "undecided", 0.07),
        ("A2 R2", 0, 0.99, 0.98, 1.0, 0.95, "holds", np.nan),
        ("A2 R2", 1, np.nan, np.nan, np.nan, 0.95, "not measured", np.nan),
        statement="by hand",
        control_name="random <b> directions",
    ),
    "pressure_tokens": _frame(
        "sequence position token p_true loss pressure l2_norm is_sink mode prompt",
        (0, 3, "<think>", 0.99, 0.01, 1e-3, 100.0, False, "think", "p"),
        (0, 4, "", 0.9, 0.1, 1e-2, 200.0, False, "think", "p"),
        (0, 5, "s", 0.9, 0.1, 1e-2, 25_000.0, True, "think", "p"),
    ).drop(columns=["n", "seed"]),
    "causal": _frame(
        "arm quantile what positions events tokens accuracy low high cut_off",
        ("none", np.nan, "nothing suppressed", 0.0, 0.0, 20.0, 1.0, 0.9, 1.0, 0.0),
        ("high", 0.5, "high-norm", 5.0, 6.0, 20.0, 0.5, 0.4, 0.6, 0.0),
        ("high", 0.95, "high-norm", 1.0, 1.0, 20.0, 0.9, 0.8, 1.0, 0.0),
        ("random", 0.95, "random", 1.0, 1.0, 20.0, 1.0, 0.9, 1.0, 0.0),
    ),
    "dynamics_by_family": _frame(
        f"family n {_DYNAMICS}",
        ("a<b>", 9, "l2_norm", -5.0, -7.0, -4.0, 0.5, 0.4, 0.6, 0.2, 0.1, 0.3),
        ("c", 3, "l2_norm", 2.0, np.nan, np.nan, 1.5, np.nan, np.nan, 0.2, np.nan, np.nan),
        n=[9, 3],
    ),
    "dynamics_by_level": _frame(
        f"level n {_DYNAMICS}",
        (1, 9, "l2_norm", -5.0, -7.0, -4.0, 0.5, 0.4, 0.6, 0.2, 0.1, 0.3),
        (2, 3, "l2_norm", 2.0, np.nan, np.nan, 1.5, np.nan, np.nan, 0.2, np.nan, np.nan),
        n=[9, 3],
    ),
}
TABLES = {name: filled(name, frame) for name, frame in TABLES.items()}
"""What figures are drawn from."""

HOSTILE = "</script><img src=x onerror=alert(1)><think>"


def analysis_of(tables: Mapping[str, pd.DataFrame] = TABLES, **fields: Any) -> Analysis:
    """An analysis with these tables."""
    facts = {"model": MODEL, "responses": "9 thinking, 9 direct"}
    return Analysis(**{"tables": tables, "notes": {}, "features": {}, "facts": facts, **fields})


def hostile_analysis() -> Analysis:
    """All tables and one of tokens, with text that a page could take for something else."""
    tokens = pd.DataFrame({"layer": [1], "latent": [7], "token": [HOSTILE], "before": ["\x00\n"], "after": ["&lt;"]})
    return analysis_of({**TABLES, "top_tokens": tokens}, notes={"trend": f"{HOSTILE} is no level"})
