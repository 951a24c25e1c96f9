"""Intervals, corrections for many tests, correlations."""
