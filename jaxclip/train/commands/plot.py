"""`jaxclip plot FILE...`: draws the runs in logged metrics side by side."""

import warnings
from collections.abc import Collection, Sequence
from pathlib import Path

import matplotlib
from matplotlib import pyplot
from rich.console import Console

from jaxclip import plot
from jaxclip.train.errors import UserError, first_line, user_path
from jaxclip.train.recording import metrics_file
from jaxclip.train.reporting import figures, terminal

_MOST = 8  # runs in a figure


def run(files: Sequence[str], out: str, console: Console) -> None:
    """Draws the runs in all files.

    Args:
      files: logs of JSON lines, or folders of runs.
      out: the figure.
      console: where to print.

    Raises:
      UserError: if a file holds no run, or the files hold too many.
    """
    path = user_path(out, "--out")
    runs = {}
    for file in files:
        found = _read(file, console)
        for name, records in found.items():
            runs[_name(name, file, len(files), len(found), runs)] = records
    if len(runs) > _MOST:
        raise UserError(f"FILE: {len(runs)} runs, but at most {_MOST} fit side by side")
    matplotlib.use("agg")  # no window
    try:
        figure = plot.overview(*runs.values()) if len(runs) == 1 else plot.side_by_side(runs)
    except ValueError as error:
        raise UserError(f"FILE={' '.join(files)}: {first_line(error)}") from None
    figures.save(figure, path)
    pyplot.close(figure)
    terminal.say(console, f"figure: {out}, of {'; '.join(runs)}")


def _read(file: str, console: Console) -> dict[str, list[dict[str, float]]]:
    path = user_path(file, "FILE")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            runs = plot.read(path)
        except OSError as error:
            raise UserError(f"FILE={file}: {error.strerror or error}") from None
        except ValueError as error:
            raise UserError(f"FILE={file}: {first_line(error)}") from None
    for warning in caught:
        terminal.say(console, f"note: {warning.message}, left out")
    return runs


def _name(name: str, file: str, files: int, runs_in_file: int, taken: Collection[str]) -> str:
    """Returns a run's name; of several files, that of its file or folder comes first."""
    path = Path(file).resolve()
    path = path.parent if path.name == metrics_file.NAME else path
    if files > 1:
        name = path.name if runs_in_file == 1 else f"{path.name}: {name}"
    return name if name not in taken else f"{name} ({len(taken) + 1})"
