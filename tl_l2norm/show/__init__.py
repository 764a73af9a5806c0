"""Tables and traces to pictures and pages; never a statistic.

Imports from: core, text, interventions, recording, analysis, experiments.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules={"figures", "widgets"})
