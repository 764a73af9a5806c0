"""What an analysis says of itself when it ends, and what it leaves in its folder beside the tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from tl_l2norm.core.layers import layer_ranges
from tl_l2norm.core.storage import replace_file
from tl_l2norm.core.tables import csv_text
from tl_l2norm.paper.readings import Readings
from tl_l2norm.paper.result import Analysis
from tl_l2norm.paper.tables import SCHEMAS
from tl_l2norm.tasks.results import Result

_MODES = {"think": "thinking", "direct": "direct"}


def facts_of(readings: Readings, results: Sequence[Result], tables: Mapping[str, pd.DataFrame]) -> dict[str, str]:
    """What was run, in words: of samples, controls and suppression what tables were made of."""
    b, o = readings.backend, readings.options
    counts = [f"{sum(r.mode == mode for r in results)} {name}" for mode, name in _MODES.items()]
    shares = {name: _right(results, mode) for mode, name in _MODES.items()}
    right = [f"{name} {share:.0%}" for name, share in shares.items() if share is not None]
    made = {str(source) for table in tables.values() if "source" in table for source in table["source"]} & o.controls
    samples = f"{o.samples} of each problem at temperature {o.temperature:g}"
    return {
        "model": b.model_name,
        "backend": b.name,
        "dtype": str(b.dtype).removeprefix("torch."),
        "problems": str(len(readings.problems)),
        "responses": ", ".join(counts),
        "right": ", ".join(right) or "not known",
        "most tokens of a response": f"{readings.room()} thinking, {o.max_direct_tokens} direct",
        "SAEs": f"layers {layer_ranges(sorted(readings.saes))}" if readings.saes else "none",
        "controls": ", ".join(sorted(made)) or "none",
        "thinking samples": samples if "samples" in tables else "none",
        "suppressed over the quantiles": ", ".join(f"{q:g}" for q in o.quantiles if "causal" in tables) or "none",
        "sink ratio": f"{o.sink_ratio:g}",
        "seed": str(o.seed),
        "tl_l2norm": version("tl_l2norm"),
    }


def _right(results: Sequence[Result], mode: str) -> float | None:
    judged = [bool(r.correct) for r in results if r.mode == mode and r.correct is not None]
    return sum(judged) / len(judged) if judged else None


def save_rest(analysis: Analysis, place: Path) -> None:
    """Notes and claims; tables of an earlier run with other options are taken away: they would pass for this one's."""
    place.mkdir(parents=True, exist_ok=True)
    replace_file(place / "notes.json", json.dumps(dict(analysis.notes), indent=1, sort_keys=True).encode())
    replace_file(place.parent / "claims.csv", csv_text(analysis.claims()).encode())
    for name in SCHEMAS:
        if name not in analysis.tables:
            (place / f"{name}.csv").unlink(missing_ok=True)
