"""Runs that ask a model and compare what came of it.

Imports from: every room before it, core to analysis.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
