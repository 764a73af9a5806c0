"""Model to traces: read given sequences, generate others, and watch the stream meanwhile.

Imports from: core, text, models, interventions, saes.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
