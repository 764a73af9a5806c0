"""Traces to tables: statistics only, never a model, never a picture.

Imports from: core, tasks.
"""
