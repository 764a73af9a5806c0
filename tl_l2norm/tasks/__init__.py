"""Problems with known answers, and who judges a response.

Imports from: core, text.
"""
