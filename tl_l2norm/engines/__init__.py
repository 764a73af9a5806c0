"""Models that run elsewhere and write whole responses there, norms recorded where they run: vLLM.

Imports from: core, text, models, interventions, recording.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
