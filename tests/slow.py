"""Which parameters of a test every change needs; the others are marked slow."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def slow_but(quick: Collection[Any], values: Iterable[Any]) -> list[Any]:
    """All values, for `pytest.mark.parametrize`; those that aren't quick are slow."""
    return [value if value in quick else slow(value) for value in values]


def slow(*value: Any) -> Any:
    return pytest.param(*value, marks=pytest.mark.slow)
