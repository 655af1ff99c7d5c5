"""The entry point: runs a command, and turns errors of the user into one line and an exit code.

Exit codes: 0 done, 1 the run failed, 2 the request is invalid, 128 + n ended by signal n.
"""

import logging
import sys

from jaxclip.train.cli import parser
from jaxclip.train.errors import InterruptError, UserError

logging.getLogger("matplotlib").setLevel(logging.ERROR)  # no word on a home without a cache


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    code = _run(argv)
    if not code or "jaxclip.train.training.processes" not in sys.modules:
        return code
    from jaxclip.train.training import processes

    return processes.exit_code(code)


def _run(argv: list[str] | None) -> int:
    try:
        options = parser.build().parse_args(argv)
        options.command(options)
        sys.stdout.flush()
        return 0
    except InterruptError as error:
        print(f"jaxclip: {error}", file=sys.stderr)
        return error.exit_code
    except UserError as error:
        return _error(str(error), error.exit_code)
    except ModuleNotFoundError as error:
        if (error.name or "jaxclip").partition(".")[0] == "jaxclip":
            raise
        return _error(f"no module {error.name}; install it with: pip install 'jaxclip[train]'", 2)
    except KeyboardInterrupt:
        print("jaxclip: interrupted; the files written so far are kept", file=sys.stderr)
        return 130
    except OSError as error:  # the disk is full, or a folder was removed
        where = f"{error.filename}: " if error.filename else ""
        return _error(f"{where}{error.strerror or error}", 1)


def _error(message: str, code: int) -> int:
    print(f"jaxclip: error: {message}", file=sys.stderr)
    return code
