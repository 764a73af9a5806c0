"""Traces to tables: statistics only, never a model, never a figure."""
