"""The rule of each claim: from tables to what was measured, its control, a p-value and whether the claim is met.

Each is tried on the world in which length, token type and position act and thinking does nothing (tests/laws).
"""
