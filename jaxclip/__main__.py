# PYTHON_ARGCOMPLETE_OK
"""Console entry: `jaxclip ...` and `python -m jaxclip ...`."""

import sys

from jaxclip.train import signals


def main() -> int:
    """Runs the command line; says what to install where the training extra is missing."""
    signals.install()
    try:
        from jaxclip.train import cli
    except ModuleNotFoundError as error:
        print(f"jaxclip: {error}; install it with: pip install 'jaxclip[train]'", file=sys.stderr)
        return signals.exit_with(2)
    try:
        return signals.exit_with(cli.main())
    except SystemExit as error:  # --help
        return signals.exit_with(int(error.code or 0))


if __name__ == "__main__":
    sys.exit(main())
