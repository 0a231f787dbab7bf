"""Predictions that any tool wrote beside the truth: one table, as a run of ours would have written it."""
