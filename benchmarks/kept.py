"""What runs left, small enough for the repository: docs/claims.md is written from these alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from benchmarks.regions import ROOT

RESULTS = ROOT / "benchmarks" / "results"
MODELS = {"tiny_reasoner": "tiny reasoner", "smollm2": "SmolLM2-135M-Instruct", "qwen": "Qwen2.5-Coder-1.5B-Instruct"}
"""Folders of results, and whose they are."""
_LARGE = {"bound_points", "causal_outcomes", "latents", "pressure_tokens", "samples"}
"""Tables with an entry for each token, latent or response, which no page shows."""


def keep(folder: Path, model: str) -> None:
    """Take the tables of an analysis in: `folder` is that of `tl-l2norm analyse --out`."""
    files = [file for file in sorted((folder / "tables").glob("*.csv")) if file.stem not in _LARGE]
    if not files:
        raise FileNotFoundError(f"no tables/*.csv in {folder}: is it a folder of `tl-l2norm analyse --out`?")
    place = RESULTS / model / "analysis"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    for file in [*files, *(folder / "tables").glob("notes.json")]:
        shutil.copy(file, place)


def analysis_of(model: str) -> tuple[dict[str, pd.DataFrame], Mapping[str, str]]:
    """The tables of a model's analysis, and why others are not there; nothing where there is none."""
    place = RESULTS / model / "analysis"
    notes = place / "notes.json"
    return (
        {file.stem: pd.read_csv(file) for file in sorted(place.glob("*.csv"))},
        json.loads(notes.read_text()) if notes.is_file() else {},
    )
