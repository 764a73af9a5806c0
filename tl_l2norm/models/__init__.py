"""Load models; the only room that knows `HookedTransformer` from `TransformerBridge`.

Imports from: core, text.
"""
