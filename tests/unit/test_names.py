"""Public names: each is there, each is said once, and no module hides one."""

import importlib
import pkgutil

import pytest

import tl_l2norm as l2

ROOMS = ("analysis", "experiments", "models", "paper", "recording", "saes", "tasks")


def test_the_top_is_what_the_stub_says_and_nothing_else() -> None:
    assert dir(l2) == sorted(l2.__all__) and len(set(l2.__all__) - {*ROOMS, "errors", "figures", "widgets"}) < 30
    for name in l2.__all__:
        assert getattr(l2, name) is not None
    assert "tl_l2norm" in repr(l2) and l2.__version__


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
