"""Read and train sparse autoencoders, and see how well they fit a model.

Imports from: core, text, models.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
