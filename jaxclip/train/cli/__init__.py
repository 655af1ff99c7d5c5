"""The command line: flags, and which command they start."""

from jaxclip.train.cli.entry_point import main

__all__ = ["main"]
