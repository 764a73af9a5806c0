"""Imports run one way: down the order of the rooms, and in no circle between files, those needed only for types included."""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

import pytest

from benchmarks import pages

PACKAGE = Path(__file__).parents[2] / "tl_l2norm"
ROOMS = (*pages.ROOMS, "cli", "__main__")
"""From the lowest to the highest; a file imports from its own room and from those before it."""
MAX_LINES = 350


def modules() -> dict[str, Path]:
    """Files of the package by their dotted name below it; the package's own `__init__` is whoever is outside of it."""
    files = {path.relative_to(PACKAGE).with_suffix("").parts: path for path in PACKAGE.rglob("*.py")}
    named = {".".join(parts[:-1] if parts[-1] == "__init__" else parts): path for parts, path in files.items()}
    return {name: path for name, path in named.items() if name}


def imports(tree: ast.AST, known: set[str]) -> set[str]:
    """Modules of the package that a file imports, anywhere in it."""
    named = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "tl_l2norm":
            base = node.module.partition(".")[2]  # type: ignore[union-attr]
            inside = {f"{base}.{alias.name}".lstrip(".") for alias in node.names}
            named |= {name if name in known else base for name in inside}
        elif isinstance(node, ast.Import):
            named |= {alias.name.partition(".")[2] for alias in node.names if alias.name.startswith("tl_l2norm.")}
    return named & known


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    files = modules()
    return {name: imports(ast.parse(path.read_text()), set(files)) for name, path in files.items()}


def test_every_file_is_in_a_room_and_imports_from_its_own_or_below(graph: dict[str, set[str]]) -> None:
    level = {name: ROOMS.index(name.partition(".")[0]) for name in graph}
    assert [f"{name} -> {other}" for name, others in graph.items() for other in others if level[other] > level[name]] == []


def test_no_circle_between_files(graph: dict[str, set[str]]) -> None:
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, with the circle


def test_no_file_is_too_long() -> None:
    lines = {path.relative_to(PACKAGE): len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    assert {path: n for path, n in lines.items() if n > MAX_LINES} == {}


def test_every_room_says_what_belongs_there() -> None:
    for room in pages.ROOMS:
        assert "Imports from: " in (ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text())) or "")


@pytest.mark.parametrize(
    "code",
    [
        "def f():\n    from tl_l2norm.cli import main",
        "if TYPE_CHECKING:\n    from tl_l2norm.cli import main",
        "from tl_l2norm import cli",
        "import tl_l2norm.cli",
    ],
)
def test_the_parser_of_this_test_sees_an_arrow(code: str) -> None:
    assert imports(ast.parse(code), {"cli"}) == {"cli"}
