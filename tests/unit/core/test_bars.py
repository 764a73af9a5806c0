"""Bars of other packages are not drawn where nobody wants them, and are as they were afterwards."""

from __future__ import annotations

import io
import sys
from types import ModuleType

import pytest
from tqdm import tqdm

from tl_l2norm.core.bars import without_bars


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("others")
    module.tqdm = tqdm  # type: ignore[attr-defined]
    module.__spec__ = sys.__spec__
    monkeypatch.setitem(sys.modules, "others", module)
    return module


def drawn(module: ModuleType) -> str:
    file = io.StringIO()
    assert list(module.tqdm(range(3), file=file)) == [0, 1, 2]
    return file.getvalue()


def test_they_are_not_drawn_inside_and_are_outside(others: ModuleType) -> None:
    assert "3/3" in drawn(others)
    with without_bars("others", "no_such_module"):
        assert drawn(others) == ""
    assert "3/3" in drawn(others)


def test_an_error_leaves_them_as_they_were(others: ModuleType) -> None:
    with pytest.raises(KeyError), without_bars("others"):
        raise KeyError
    assert others.tqdm is tqdm
