"""Backfill: fills in the past of a source's symbols, or the observations of a file, piece by piece."""
