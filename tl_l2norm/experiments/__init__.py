"""Runs that ask a model and compare what came of it.

Imports from: everything above but show and paper.
"""
