"""Each line of tests/mistakes.py: taken as what it is, or refused with what to do; never silently something else."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import models
from tests.mistakes import MISTAKES

ROOT = Path(__file__).parents[2]
CASES = [case for case in models.TINY if case.architecture == "qwen3"]


def make_all(case: models.Case) -> str:
    command = [sys.executable, "-m", "tests.mistakes", models.folder(case.architecture), case.backend]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module", params=CASES, ids=str)
def outcomes(request: pytest.FixtureRequest, once: Any) -> dict[str, dict[str, Any]]:
    """What came of each, on this backend."""
    lines = once(f"mistakes-{request.param}", functools.partial(make_all, request.param)).splitlines()
    return {line["name"]: line for line in map(json.loads, lines)}


@pytest.mark.parametrize("name", MISTAKES)
def test_it_is_taken_as_meant_or_refused(name: str, outcomes: dict[str, dict[str, Any]]) -> None:
    outcome, mistake = outcomes[name], MISTAKES[name]
    if mistake.same_as is not None:
        assert outcome.get("as_meant"), outcome
        return
    assert "message" in outcome, f"taken for something: {outcome}"
    assert {"InputError", "Unmeasurable"} & set(outcome["error"]), outcome
    assert mistake.says in outcome["message"]


def test_there_are_many_of_them() -> None:
    assert len(MISTAKES) >= 100
