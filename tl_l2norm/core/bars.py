"""Progress bars of other packages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any


@contextmanager
def without_bars(*modules: str) -> Iterator[None]:
    """Inside, these modules draw no progress bars, where they draw them by a `tqdm` of theirs; afterwards they are as before.

    To redirect stderr does it in a terminal; in a notebook bars are widgets.
    """
    there = [import_module(name) for name in modules if find_spec(name)]  # other versions have others
    before = {module: _shown(module.tqdm) for module in there if hasattr(module, "tqdm")}
    for module, bar in before.items():
        vars(module)["tqdm"] = partial(bar, disable=True)
    try:
        yield
    finally:
        for module, bar in before.items():
            vars(module)["tqdm"] = bar


def _shown(bar: Any) -> Any:
    """The bar itself, where another thread has hidden it meanwhile."""
    return bar.func if isinstance(bar, partial) else bar
