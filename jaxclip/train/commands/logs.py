"""The logs that a user names: files of JSON lines, folders of runs, or standard input."""

import sys

from rich.console import Console

from jaxclip.plot import json_lines
from jaxclip.plot.json_lines import Run
from jaxclip.train.errors import RunError, UserError, user_path
from jaxclip.train.recording import metrics_file
from jaxclip.train.reporting import terminal
from jaxclip.train.words import count

STDIN = "-"


def read(file: str, console: Console) -> list[Run]:
    """Returns the runs in a log; says how many damaged lines were left out.

    Raises:
      UserError: if there is no such file, or it holds no record.
      RunError: if it cannot be read.
    """
    try:
        if file == STDIN:
            content, name = sys.stdin.buffer.read(), STDIN
        else:
            path = user_path(file, "FILE")
            path = path / metrics_file.NAME if path.is_dir() else path
            name = path.resolve().parent.name if path.name == metrics_file.NAME else path.name
            content = path.read_bytes()
        runs, damaged = json_lines.parse(content, name)
    except FileNotFoundError:
        known = user_path(file, "FILE").is_dir()
        text = f"a folder without {metrics_file.NAME}" if known else "No such file or directory"
        raise UserError(f"FILE={file}: {text}") from None
    except OSError as error:
        raise RunError(f"FILE={file}: {error.strerror or error}") from None
    except ValueError as error:
        raise UserError(f"FILE={file}: {error}") from None
    if damaged:
        terminal.say(console, f"note: {file}: {count(damaged, 'damaged line')} left out")
    return runs
