"""The command line: flags, and which command they start."""

from jaxclip.train.cli.dispatch import main

__all__ = ["main"]
