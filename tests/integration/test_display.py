"""Tables in a terminal and in a notebook: once, whichever way they are shown."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

MAKE = """
import warnings; warnings.filterwarnings("ignore")
import torch
import tl_l2norm as l2
from tl_l2norm.experiments.selfcheck import Check, SelfCheck
from tl_l2norm.interventions.log import Log
from tl_l2norm.paper.result import Analysis
from tl_l2norm.core.tables import render_table
import pandas as pd

def completion(sample, n):
    tokens = {"prompt_tokens": (5,), "tokens": tuple(range(n)), "logprobs": None, "self_certainty": None, "trace": None}
    text = {"prompt": "p", "text": f"the answer is {n}", "answer": str(n), "finish_reason": "stop"}
    return l2.recording.Completion(prompt_index=0, sample=sample, seed=0, **tokens, **text)

check = Check(name="MARK", measured=0.0, bound=1.0, meaning="as it should be")
shown = {
    "selfcheck": SelfCheck(checks=(check,), model="m", backend="bridge", dtype="float32", device="cpu", versions={}),
    "scores": l2.score_table([completion(i, 3 + i) for i in range(4)]),
    "log": Log([l2.Suppression(which="random", layers=[0])]),
}
"""
MARKS = {"selfcheck": "as it should be", "scores": "longest", "log": "no earlier token"}
"""What stands in each once."""

WAYS = {
    "print(x)": "print(shown[{name!r}])",
    "print(str(x))": "print(str(shown[{name!r}]))",
    "print(repr(x))": "print(repr(shown[{name!r}]))",
    "display(x)": "display(shown[{name!r}])",
    "x": "shown[{name!r}]",
}


@pytest.fixture(scope="module")
def cells() -> dict[tuple[str, str], Any]:
    """What a real kernel shows for each."""
    ways = [(name, way) for name in MARKS for way in WAYS]
    sources = [MAKE, *(WAYS[way].format(name=name) for name, way in ways)]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    return {way: cell.outputs for way, cell in zip(ways, notebook.cells[1:], strict=True)}


def texts(output: Any) -> list[str]:
    """The ways in which a notebook could show one output: it takes one of them."""
    return [output.text] if output.output_type == "stream" else list(output.data.values())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MARKS)
def test_a_notebook_shows_it_once(cells: dict[tuple[str, str], Any], name: str, way: str) -> None:
    outputs = cells[name, way]
    if all(output.output_type == "stream" for output in outputs):  # a busy kernel sends what is printed in several parts
        outputs[0].text = "".join(output.text for output in outputs)
        outputs = outputs[:1]
    assert len(outputs) == 1, outputs
    assert all(text.count(MARKS[name]) == 1 for text in texts(outputs[0])), outputs
    if way.startswith("print"):
        assert outputs[0].output_type == "stream"


def test_a_terminal_shows_it_once_and_without_colour() -> None:
    code = MAKE + "".join(f"\nprint(shown[{name!r}])" for name in MARKS)
    colours = {"FORCE_COLOR": "1", "TTY_COMPATIBLE": "1", "COLUMNS": "40"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **colours})
    assert done.returncode == 0, done.stderr
    for mark in MARKS.values():
        assert done.stdout.count(mark) == 1, done.stdout
    assert "\x1b" not in done.stdout
