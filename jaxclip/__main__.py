# PYTHON_ARGCOMPLETE_OK
"""Console entry: `jaxclip ...` and `python -m jaxclip ...`."""

import sys

from jaxclip.train import signals, streams


def main() -> int:
    """Runs the command line; says what to install where the training extra is missing."""
    streams.install()
    signals.install()
    try:
        from jaxclip.train import cli
    except ModuleNotFoundError as error:
        print(f"jaxclip: {error}; install it with: pip install 'jaxclip[train]'", file=sys.stderr)
        return signals.exit_with(2)
    try:
        code = cli.main()
    except SystemExit as error:  # --help
        code = int(error.code or 0)
    if (reason := streams.failure()) and not code:
        print(f"jaxclip: error: standard output was cut off ({reason})", file=sys.stderr)
        code = 1
    return signals.exit_with(code)


if __name__ == "__main__":
    sys.exit(main())
