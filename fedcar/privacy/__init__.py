"""Differential privacy: clipping, noise, an accountant, a ledger, a statement, an attack and an audit.

Imports nothing from the rest of fedcar. `clip` is the only module that needs torch; it is not imported here.
"""
