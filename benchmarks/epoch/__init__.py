"""The benchmark of the time of an epoch."""
