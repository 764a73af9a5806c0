"""Each line of tests/mistakes.py: taken as what it is, or refused with what to do; never silently something else."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests import models
from tests.mistakes import MISTAKES

ROOT = Path(__file__).parents[2]
CASES = [case for case in models.TINY if case.architecture == "qwen3"]


@cache
def outcomes(case: models.Case) -> dict[str, dict[str, Any]]:
    command = [sys.executable, "-m", "tests.mistakes", models.folder(case.architecture), case.backend]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return {line["name"]: line for line in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("name", MISTAKES)
def test_it_is_taken_as_meant_or_refused(name: str, case: models.Case) -> None:
    outcome, mistake = outcomes(case)[name], MISTAKES[name]
    if mistake.same_as is not None:
        assert outcome.get("as_meant"), outcome
        return
    assert "message" in outcome, f"taken for something: {outcome}"
    assert {"InputError", "Unmeasurable"} & set(outcome["error"]), outcome
    assert mistake.says in outcome["message"]


def test_there_are_many_of_them() -> None:
    assert len(MISTAKES) >= 100
