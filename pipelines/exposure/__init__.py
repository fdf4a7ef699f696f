"""Exposure: which clips a checkpoint holds, saw, or inherits, in closed form from the ledger."""
