"""The L2 norm of the residual stream as a signal of reasoning, on any TransformerLens model.

Names are imported when they are first used, so that `import tl_l2norm` is quick; the stub beside this file says where from.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
