"""The table of a comparison, with a row for each variant."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from jaxclip.train.reporting.terminal import number, percent

Row = dict[str, Any]


def table(title: str, rows: Sequence[Row]) -> Table:
    """Returns the table: medians over the seeds, and the range of the test accuracy."""
    seeds = max(len(row["seeds"]) for row in rows)
    title += f", medians of {seeds} seeds" * (seeds > 1)
    result = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    result.add_column("rule", overflow="fold")
    losses, norms = ("train loss", "test loss"), ("largest norm", "clipped", "lost")
    for head in ("rate", *losses, "test accuracy", "range", *norms):
        result.add_column(head, justify="right", overflow="fold")
    best = best_of(rows)
    for row in rows:
        style = "bold" if row is best else None
        result.add_row(row["rule"], *_cells(row), style=style)
    return result


def _cells(row: Row) -> list[str]:
    lost, runs = lost_runs(row), len(row["seeds"])
    clipped = [c for c in row["clipped_fraction"] if c is not None]
    return [
        f"{row['learning_rate']:.3g}",
        _median(row["train_loss"], number),
        _median(row["test_loss"], number),
        _median(row["test_accuracy"], percent),
        _range(row["test_accuracy"]),
        _median(row["grad_norm_max"], number),
        percent(float(np.median(clipped))) if clipped else "-",
        f"{lost} of {runs}" if lost else "-",
    ]


def lost_runs(row: Row) -> int:
    """Returns the number of runs with a non-finite loss."""
    return sum(step is not None for step in row["lost_at_step"])


def _median(values: Sequence[float], write) -> str:
    return write(float(np.median(values))) if values else "-"


def _range(values: Sequence[float]) -> str:
    several = len(values) > 1
    return f"{100 * min(values):.2f} to {100 * max(values):.2f}" if several else "-"


def best_of(rows: Sequence[Row]) -> Row | None:
    """Returns the row with the best median accuracy of those that lost no run."""
    complete = [row for row in rows if lost_runs(row) == 0]
    return max(complete, key=lambda row: np.median(row["test_accuracy"]), default=None)
