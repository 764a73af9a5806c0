"""The paper's claims, one by one, on one's own model: readings, study, claims, figures, report.

Imports from: every other room.
"""
