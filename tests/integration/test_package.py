"""What is built: the source distribution of a checkout, and of that alone the wheel (`.ci/newest` runs it) and editables."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
NOT_IN_IT = {".github", ".gitignore"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / ".git").exists(), reason="git says what belongs to the checkout"),
]


class Built(NamedTuple):
    files: set[str]
    """Of the checkout."""
    source: Path
    """The source distribution, unpacked."""
    installed: Path
    """The wheel, unpacked."""
    editable: Path
    """What an editable install puts into site-packages."""


def build(kind: str, source: Path, out: Path) -> Path:
    """What a front end such as pip asks of the backend, with the setuptools that is here."""
    script = f"import setuptools.build_meta as backend; print(backend.build_{kind}({str(out)!r}))"
    done = subprocess.run([sys.executable, "-c", script], cwd=source, check=True, capture_output=True, text=True)
    return out / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    place = tmp_path_factory.mktemp("built")
    listed = ["git", "ls-files", "-coz", "--exclude-standard", "--deduplicate"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")[:-1]
    files = {name for name in names if (ROOT / name).exists()}
    for name in files:
        (place / "checkout" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, place / "checkout" / name)
    (place / "unpacked").mkdir()
    subprocess.run(["tar", "-xzf", build("sdist", place / "checkout", place), "-C", place / "unpacked"], check=True)
    (source,) = (place / "unpacked").iterdir()
    for kind in ("wheel", "editable"):
        (place / f"{kind}s").mkdir()
        with zipfile.ZipFile(build(kind, source, place / f"{kind}s")) as archive:
            archive.extractall(place / kind)
    return Built(files, source, place / "wheel", place / "editable")


def test_the_source_distribution_is_the_checkout(built: Built) -> None:
    there = {path.relative_to(built.source).as_posix() for path in built.source.rglob("*") if path.is_file()}
    assert {name for name in built.files if name.split("/")[0] not in NOT_IN_IT} - there == set()
    assert {name.split("/")[0] for name in there - built.files} <= {"PKG-INFO", "setup.cfg", "tl_l2norm.egg-info", "build"}


def test_the_wheel_holds_the_package_and_the_model_inside_of_it_and_nothing_else(built: Built) -> None:
    there = {path.relative_to(built.installed).as_posix() for path in built.installed.rglob("*") if path.is_file()}
    ours = {name for name in built.files if name.startswith("tl_l2norm/")}
    ours |= {f"tl_l2norm/{name}" for name in built.files if name.startswith("assets/")}
    information = {name for name in there if name.split("/")[0].endswith(".dist-info")}
    assert there - information == ours
    assert sum(Path(name).name == "LICENSE" for name in information) == 2, "ours, and that of what pages draw with"


def test_an_editable_install_has_types(built: Built, tmp_path: Path) -> None:
    environment, script = tmp_path / "environment", tmp_path / "script.py"
    venv.create(environment, with_pip=False)
    (packages,) = environment.glob("lib/python*/site-packages")
    shutil.copytree(built.editable, packages, dirs_exist_ok=True)
    script.write_text("from tl_l2norm.core.layers import layer_ranges\n\nwrong: int = layer_ranges([9, 10])\n")
    check = [sys.executable, "-m", "mypy", "--python-executable", str(environment / "bin/python"), "--cache-dir", os.devnull]
    done = subprocess.run([*check, script.name], cwd=tmp_path, env={}, capture_output=True, text=True)
    (said, _) = done.stdout.splitlines()
    assert said.startswith("script.py:3: error: ") and 'expression has type "str", variable has type "int"' in said
