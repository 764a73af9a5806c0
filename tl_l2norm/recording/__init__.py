"""Model to traces: read given sequences, generate others, and watch the stream meanwhile.

Imports from: core, text, models, interventions, saes.
"""
