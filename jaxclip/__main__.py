"""Console entry: `jaxclip ...` and `python -m jaxclip ...`."""

import sys


def main() -> int:
    """Runs the command line; says what to install where the training extra is missing."""
    try:
        from jaxclip.train import cli
    except ModuleNotFoundError as error:
        print(f"jaxclip: {error}; install it with: pip install 'jaxclip[train]'", file=sys.stderr)
        return 2
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
