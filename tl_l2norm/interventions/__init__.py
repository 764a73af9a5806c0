"""Change the residual stream where its norm is high, by hooks.

Imports from: core, models.
"""
