"""The L2 norm of the residual stream as a signal of reasoning, on any TransformerLens model.

Names are imported when they are first used, so that `import tl_l2norm` is quick; the stub beside this file says where from.
"""

from importlib import import_module
from typing import Any

import lazy_loader

__version__ = "0.1.0"

_named, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
_INSIDE = ("core", "show", "text")  # whose names are used by their modules; dir doesn't list them


def __getattr__(name: str) -> Any:
    """What the stub names, and the rooms inside, whether or not something has imported them."""
    return import_module(f"{__name__}.{name}") if name in _INSIDE else _named(name)
