"""An evaluation where vLLM writes ends in the bridge's tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import tl_l2norm as l2
from tests import engines as made
from tests.engines import Engines

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
