import importlib
import pkgutil

import tl_l2norm as l2


def test_no_module_hides_a_public_function() -> None:
    """Importing a submodule sets it as an attribute of the package: a function of the same name would be gone."""
    for module in pkgutil.iter_modules(l2.__path__):
        importlib.import_module(f"tl_l2norm.{module.name}")
        assert module.name == "widgets" or module.name not in l2.__all__
