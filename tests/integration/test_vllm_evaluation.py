"""An evaluation where vLLM writes ends in the bridge's tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import tl_l2norm as l2
from tests import engines as made
from tests.engines import Engines
from tl_l2norm import cli
from tl_l2norm.experiments.evaluation_results import Results

pytestmark = pytest.mark.skipif(not made.has_vllm(), reason="vLLM isn't installed; see docs/engines.md")

running = pytest.fixture(scope="module", name="engines")(made.running)
reasoner = pytest.fixture(scope="module", name="model")(made.reasoner)


def test_an_engine_and_the_bridge_agree_on_arms(model: Any, engines: Engines, tmp_path: Path) -> None:
    problems = l2.make_mixture(6, families="compact", levels=[2, 4], split="test")
    others = l2.make_mixture(3, families="compact", levels=[2], split="train")
    hot: dict[str, Any] = {"n": 3, "sampling": {"temperature": 2.2}}
    arms = [
        l2.Arm("plain"),
        l2.Arm("low", lambda traces: l2.Suppression(l2.quantile_thresholds(traces, 0.2), layers="late", which="low")),
        l2.Arm("samples", **hot),
        l2.Arm("norms", selection="norm_sum", **hot),
    ]
    options: dict[str, Any] = {"calibration": others, "max_new_tokens": 60, "progress": False}
    theirs = l2.evaluate(engines(), problems, arms, out=tmp_path, **options)
    ours = l2.evaluate(model, problems, arms, **options)
    timeless = ["seconds", "model"]
    pd.testing.assert_frame_equal(theirs.outcomes.drop(columns=timeless), ours.outcomes.drop(columns=timeless))
    again = l2.evaluate(engines(), problems, arms, out=tmp_path, **options)
    pd.testing.assert_frame_equal(again.outcomes, theirs.outcomes)


def test_the_command_line_runs_on_an_engine(engines: Engines, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engines.close()  # there is room for one
    arms = tmp_path / "arms.toml"
    low = 'interventions = {kind = "Suppression", which = "low", thresholds = {rule = "quantile", q = 0.2}, layers = "late"}'
    arms.write_text(f'[[arm]]\nname = "baseline"\n[[arm]]\nname = "low"\n{low}\n')
    asked = ["evaluate", "--arms", str(arms), "--n", "6", "--max-new-tokens", "40"]
    engine = ["--engine", "vllm", "--batch-size", "3", "--engine-option", f"kv_cache_memory_bytes={1 << 27}"]
    for options, place in ((engine, "there"), (["--device", "cpu"], "here"), (engine, "there")):
        assert cli.main([*asked, *options, "--out", str(tmp_path / place)]) == 0
    assert "paired differences" in capsys.readouterr().out and (tmp_path / "there" / "evaluation.html").is_file()
    theirs, ours = (pd.read_csv(tmp_path / place / "tables" / "outcomes.csv") for place in ("there", "here"))
    pd.testing.assert_frame_equal(*(frame.drop(columns=["seconds", "model"]) for frame in (theirs, ours)))
    kept = Results.load(tmp_path / "there" / "results.json")
    assert kept.settings["backend"] == "vllm" and set(kept.decisions["arm"]) == {"low"}
