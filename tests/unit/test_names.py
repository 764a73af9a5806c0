"""Public names: each is there, each is said once, no module hides one, and old ones are gone everywhere."""

import ast
import importlib
import operator
import pkgutil
import re
import subprocess
import sys

import pytest

import tl_l2norm as l2
from tests.unit.test_import_order import PACKAGE

ROOT = PACKAGE.parent
PLACES = ("tl_l2norm", "tests", "docs", "demos", "benchmarks", "assets")
WRITTEN = {".py", ".pyi", ".md", ".ipynb", ".jinja"}

ROOMS = ("analysis", "engines", "experiments", "interventions", "models", "paper", "recording", "saes", "tasks")


def test_the_top_is_what_the_stub_says_and_nothing_else() -> None:
    assert dir(l2) == sorted(l2.__all__) and len(set(l2.__all__) - {*ROOMS, "errors", "figures", "widgets"}) < 34
    for name in l2.__all__:
        assert getattr(l2, name) is not None
    assert "tl_l2norm" in repr(l2) and l2.__version__


def test_every_room_is_reached_from_the_top_whatever_was_imported_before() -> None:
    script = "import tl_l2norm as l2; print(l2.core, l2.show, l2.text, dir(l2.figures), sep='\\n')"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    lines = out.stdout.splitlines()
    rooms = [f"tl_l2norm.{room}" for room in ("core", "show", "text")]
    assert [line.split("'")[1] for line in lines[:3]] == rooms
    assert ast.literal_eval(lines[3]) == sorted(l2.figures.__all__)
    drawn = {"tl_l2norm.show.figures", "tl_l2norm.show.arm_figures"}
    own = [value for value in vars(l2.figures).values() if getattr(value, "__module__", "") in drawn]
    assert {value.__name__ for value in own if value.__name__[0] != "_"} == set(l2.figures.__all__)


@pytest.mark.parametrize("package", ["", *(f".{room}" for room in ROOMS)])
def test_no_module_hides_a_public_name(package: str) -> None:
    """Importing a submodule sets it as an attribute of its package: a function of the same name would be gone."""
    owner = importlib.import_module(f"tl_l2norm{package}")
    modules = {module.name for module in pkgutil.iter_modules(owner.__path__) if module.name != "__main__"}
    for module in modules:
        importlib.import_module(f"{owner.__name__}.{module}")
    for name in owner.__all__:
        assert name in ROOMS or name not in modules
        assert getattr(owner, name) is not None


def old_names() -> dict[str, set[str]]:
    """How names that are gone were written: those on the left of the changelog's table of `was | is` that aren't there.

    A cell such as `l2.one`, `another` means `l2.another` too.
    """
    cells = re.findall(r"^\| (`l2\..*?) \|", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    names = {match[1].removeprefix("l2.") for cell in cells for match in re.finditer(r"`([A-Za-z_][\w.]*)[`(]", cell)}
    gone = {name for name in names if not is_there(name)}
    defined = {node.name for node in package_nodes() if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    whole = {name for name in gone if name not in defined and re.search("[A-Z_]", name)}
    return {name: {f"l2.{name}", f"tl_l2norm.{name}"} | ({name} & whole) for name in gone}


def is_there(name: str) -> bool:
    try:
        operator.attrgetter(name)(l2)
    except AttributeError:
        return False
    return True


def package_nodes() -> list[ast.AST]:
    return [node for path in PACKAGE.rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))]


def test_nothing_says_an_old_name() -> None:
    old = old_names()
    assert len(old) > 25 and {"accuracy_table", "compare_late", "l2_norms"} <= set(old), "the changelog isn't read right"
    words = re.compile("|".join(rf"(?<![\w.]){re.escape(form)}(?![\w])" for forms in old.values() for form in forms))
    files = [path for place in PLACES for path in (ROOT / place).rglob("*") if path.suffix in WRITTEN]
    files += [path for path in ROOT.glob("*.md") if path.name != "CHANGELOG.md"]
    said = [f"{path.relative_to(ROOT)}: {match[0]}" for path in files for match in words.finditer(path.read_text())]
    assert len(files) > 300 and said == []
