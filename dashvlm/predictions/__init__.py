"""Predictions that any tool wrote: their files, the truth beside them, and one table of both."""
