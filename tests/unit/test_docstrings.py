"""Examples in docstrings run and print what they say; every public name has one."""

from __future__ import annotations

import ast
import dataclasses
import doctest
import importlib
import inspect
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch

import tl_l2norm as l2
from tests.saes import HAS_SAE_LENS
from tests.unit.test_import_order import PACKAGE, modules
from tests.unit.test_names import ROOMS
from tl_l2norm.experiments.selfcheck import count_hooks

OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
MADE = ("model", "results", "think", "direct")
"""Made when the first example wants them."""

WITHOUT_EXAMPLE = {
    "analyse",
    "analysis.assumption_table",
    "analysis.bound_control",
    "analysis.bound_points",
    "analysis.family_separation",
    "analysis.feature_link",
    "engines.VLLMEngine",
    "engines.load_engine",
    "load_engine",
}
"""Public names whose example would take seconds: two halves or families of 8 prompts, or a whole analysis; and
those of engines, which aren't installed everywhere."""


class Docstring(NamedTuple):
    module: str
    name: str
    text: str
    path: Path
    line: int

    def __str__(self) -> str:
        return ".".join(part for part in (self.module, self.name) if part)


def documented(node: ast.AST, name: str = "") -> list[tuple[str, Any]]:
    """Everything in a tree that can have a docstring, by its dotted name."""
    inside = [child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.expr)]
    own = [(name, node)] if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) else []
    return own + [
        pair for child in inside for pair in documented(child, ".".join(filter(None, (name, getattr(child, "name", "")))))
    ]


def docstrings() -> list[Docstring]:
    """Those with examples, read from the source, so that no decorator hides one."""
    return [
        Docstring(module, name, text, path, node.body[0].lineno - 1)
        for module, path in sorted({"": PACKAGE / "__init__.py", **modules()}.items())
        for name, node in documented(ast.parse(path.read_text()))
        if ">>>" in (text := ast.get_docstring(node) or "")
    ]


def names_in(examples: list[doctest.Example]) -> set[str]:
    trees = [ast.parse(example.source) for example in examples]
    return {node.id for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Name)}


@pytest.fixture(scope="module")
def model() -> Any:
    return l2.load_model("tiny-reasoner", device="cpu")


@pytest.fixture(scope="module")
def results(model: Any) -> tuple[l2.tasks.results.Result, ...]:
    return l2.run_modes(model, l2.make_mixture(12, families="compact"), progress=False)


@pytest.fixture(scope="module")
def think(results: Any) -> list[l2.Trace]:
    return [result.trace for result in results if result.mode == "think"]


@pytest.fixture(scope="module")
def direct(results: Any) -> list[l2.Trace]:
    return [result.trace for result in results if result.mode == "direct"]


@pytest.mark.parametrize("docstring", docstrings(), ids=str)
def test_an_example_prints_what_it_says(
    docstring: Docstring, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "train_saes(" in docstring.text and not HAS_SAE_LENS:
        pytest.skip("SAELens isn't installed")
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(".".join(filter(None, ("tl_l2norm", docstring.module))))
    names = {**vars(module), "l2": l2, "torch": torch, "np": np, "pd": pd}
    example = doctest.DocTestParser().get_doctest(docstring.text, names, str(docstring), str(docstring.path), docstring.line)
    wanted = names_in(example.examples)
    example.globs.update({name: request.getfixturevalue(name) for name in MADE if name in wanted})
    report: list[str] = []
    doctest.DocTestRunner(optionflags=OPTIONS, verbose=False).run(example, out=report.append)
    if report:
        pytest.fail("".join(report), pytrace=False)
    if "model" in wanted:
        assert count_hooks(request.getfixturevalue("model")) == 0, "a hook was left on the shared model"


def public_names() -> dict[str, Any]:
    """What the stubs of the top and of the rooms name, but for modules."""
    owners = {"": l2, **{f"{room}.": importlib.import_module(f"tl_l2norm.{room}") for room in ROOMS}}
    named = {f"{prefix}{name}": getattr(owner, name) for prefix, owner in owners.items() for name in owner.__all__}
    return {name: value for name, value in named.items() if not isinstance(value, ModuleType) and name != "__version__"}


def test_every_public_name_has_an_example() -> None:
    without = {name for name, value in public_names().items() if ">>>" not in (inspect.getdoc(value) or "")}
    assert without - WITHOUT_EXAMPLE == set(), "these need an example"
    assert WITHOUT_EXAMPLE - without == set(), "these have one: take them off the list"


def test_help_says_what_every_field_is() -> None:
    """`help` shows a class' docstring, and none of those beneath its fields."""
    classes = {name: value for name, value in public_names().items() if dataclasses.is_dataclass(value)}
    silent = {
        f"{name}.{field.name}"
        for name, value in classes.items()
        for field in dataclasses.fields(value)
        if f"\n    {field.name}: " not in (inspect.getdoc(value) or "")
    }
    assert len(classes) > 8 and silent == set()
