"""The paper's claims, one by one, on one's own model: readings, study, claims, figures, report.

Imports from: every other room.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
