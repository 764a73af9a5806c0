"""What runs left, small enough for the repository: docs/claims.md is written from these alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from benchmarks.regions import ROOT
from tl_l2norm.experiments.evaluation_results import Results

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


def keep_evaluation(folder: Path, model: str, name: str) -> None:
    """Take in the tables of an evaluation: `folder` is that of `evaluate(..., out=folder)`."""
    found = Results.load(folder / "results.json")
    place = RESULTS / model
    place.mkdir(parents=True, exist_ok=True)
    found.to_frame().to_csv(place / f"{name}.csv", index=False)
    found.to_frame(by=["family", "level"]).to_csv(place / f"{name}_by_cell.csv", index=False)
    found.costs().to_csv(place / f"{name}_costs.csv", index=False)
    if len(found.curves):
        found.curves.to_csv(place / f"{name}_curves.csv", index=False)
    found.decisions.to_csv(place / f"{name}_decisions.csv", index=False)
    (place / f"{name}_notes.json").write_text(json.dumps(found.notes, indent=1) + "\n")


def evaluation_of(model: str, name: str) -> pd.DataFrame | None:
    """Arms of an evaluation with what they are held against, or None where there is none."""
    file = RESULTS / model / f"{name}.csv"
    return pd.read_csv(file, keep_default_na=False, na_values=["", "nan"]) if file.is_file() else None
