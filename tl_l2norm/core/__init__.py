"""Values, and kernels on them: traces, thresholds, norms, random draws, files, errors.

Imports from: nothing of ours.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules={"errors"})
