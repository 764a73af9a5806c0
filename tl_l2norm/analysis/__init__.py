"""Traces to tables: statistics only, never a model, never a picture.

Imports from: core, tasks.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
