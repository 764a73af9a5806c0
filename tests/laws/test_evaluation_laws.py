"""An evaluation outlives its process: killed at any moment it loses what was in flight, and ends in the same tables."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import tl_l2norm as l2
from tl_l2norm.core.errors import InputError
from tl_l2norm.experiments.evaluation_results import Results
from tl_l2norm.recording.saved import locked

SCRIPT = """
import sys
import tl_l2norm as l2
from tests.laws.test_evaluation_laws import evaluation

evaluation(l2.load_model("tiny-reasoner", device="cpu"), sys.argv[1])
"""


def evaluation(model: Any, folder: str | Path | None) -> Results:
    problems = l2.make_mixture(10, families="compact", levels=[2, 4], split="test")
    others = l2.make_mixture(4, families="compact", levels=[2], split="train")
    hot: dict[str, Any] = {"n": 3, "sampling": {"temperature": 2.2}}
    arms = [
        l2.Arm("plain"),
        l2.Arm("ALRR", lambda traces: l2.ALRR(l2.quantile_thresholds(traces, 0.8), growth_eps=0.0, blowup=2.0)),
        l2.Arm("samples", **hot),
        l2.Arm("norms", selection="event_area", **hot),
    ]
    return l2.evaluate(model, problems, arms, calibration=others, max_new_tokens=60, batch_size=3, out=folder, progress=False)


def lines(folder: Path) -> int:
    file = folder / "responses.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


@pytest.mark.slow
def test_a_process_that_is_killed_loses_what_was_in_flight(tmp_path: Path) -> None:
    folder, total = tmp_path / "run", 10 + 10 + 30
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder)], cwd=Path(__file__).parents[2])
    try:
        end = time.monotonic() + 240
        while lines(folder) < 24 and process.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert 24 <= lines(folder) < total, "it was to be killed on its way"
    model = l2.load_model("tiny-reasoner", device="cpu")
    resumed, whole = evaluation(model, folder), evaluation(model, None)
    assert lines(folder) == total
    for one, other in (
        (resumed.outcomes.drop(columns="seconds"), whole.outcomes.drop(columns="seconds")),
        (resumed.to_frame(), whole.to_frame()),
        (resumed.decisions, whole.decisions),
    ):
        pd.testing.assert_frame_equal(one, other, check_exact=True)


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    model = l2.load_model("tiny-reasoner", device="cpu")
    with locked(tmp_path), pytest.raises(InputError, match="another process works in"):
        evaluation(model, tmp_path)
