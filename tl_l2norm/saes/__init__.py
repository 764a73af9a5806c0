"""Read and train sparse autoencoders, and see how well they fit a model.

Imports from: core, text, models.
"""
