"""Problems with known answers, and who judges a response.

Imports from: core, text.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
