"""`jaxclip plot FILE...`: draws the runs in logged metrics side by side."""

from collections.abc import Collection, Sequence
from pathlib import Path

import matplotlib
from matplotlib import pyplot
from rich.console import Console

from jaxclip import plot
from jaxclip.train.commands import logs
from jaxclip.train.errors import UserError, figure_path, first_line
from jaxclip.train.recording import metrics_file
from jaxclip.train.reporting import figures, terminal

_MOST = 8  # runs in a figure


def run(files: Sequence[str], out: str, console: Console) -> None:
    """Draws the runs in all files.

    Args:
      files: logs of JSON lines, folders of runs, or `-` for standard input.
      out: the figure.
      console: where to print.

    Raises:
      UserError: if a file holds no run, or the files hold too many.
    """
    path = figure_path(out)
    runs = {}
    for file in files:
        found = logs.read(file, console)
        for run in found:
            runs[_name(run.name, file, len(files), len(found), runs)] = run.records
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


def _name(name: str, file: str, files: int, runs_in_file: int, taken: Collection[str]) -> str:
    """Returns a run's name; of several files, that of its file or folder comes first."""
    path = Path(file).resolve()
    path = path.parent if path.name == metrics_file.NAME else path
    if files > 1:
        name = path.name if runs_in_file == 1 else f"{path.name}: {name}"
    return name if name not in taken else f"{name} ({len(taken) + 1})"
