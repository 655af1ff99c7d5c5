"""The benchmark of speed: `python -m benchmarks` runs it."""
