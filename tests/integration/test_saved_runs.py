"""Processes that are killed in the middle of a run: what was finished is kept, and the next one comes to the same bits."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

RUN = """
import hashlib, sys, torch
import tl_l2norm as l2
torch.set_num_threads(1)
model = l2.load_model("tiny-reasoner", device="cpu")
problems = l2.make_mixture(24, families="compact", split="test", seed=3)
print("begins", flush=True)
options = {"max_new_tokens": 96, "batch_size": 8, "sink_ratio": 20.0, "progress": False}
results = l2.run_modes(model, problems, save_to=sys.argv[1] if sys.argv[1:] else None, **options)
digest = hashlib.sha256()
for r in results:
    digest.update(repr((r.mode, r.problem.id, r.response, r.correct, dict(r.trace.labels))).encode())
    digest.update(r.trace.l2_norms.numpy().tobytes())
print(digest.hexdigest())
"""


def run(*arguments: str) -> str:
    command = [sys.executable, "-W", "ignore", "-c", RUN, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]


@pytest.mark.slow
def test_killed_at_random_moments_it_loses_nothing_finished(tmp_path: Path) -> None:
    moments, before = random.Random(1), 0
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", RUN, str(tmp_path)], stdout=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout is not None and child.stdout.readline() == "begins\n"
            time.sleep(moments.uniform(0.2, 3))
            child.kill()
        kept = sum(len(file.read_bytes().splitlines()) for file in tmp_path.glob("*/responses.jsonl"))
        assert kept >= before
        before = kept
    whole = run()  # that nobody interrupts or saves
    assert run(str(tmp_path)) == whole
    assert run(str(tmp_path)) == whole, "all of it read back"
