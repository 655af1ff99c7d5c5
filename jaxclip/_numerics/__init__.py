"""Arithmetic that is exact over the whole range of a dtype, and collectives."""
