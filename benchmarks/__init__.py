"""Experiments and measurements: run by hand from a checkout, imported by nothing, not installed."""
