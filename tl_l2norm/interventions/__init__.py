"""Change the residual stream where its norm is high, by hooks, and controls that spend the same elsewhere.

Imports from: core, text, models.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
