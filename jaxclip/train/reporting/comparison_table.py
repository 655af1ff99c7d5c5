"""The table of a comparison, with a row for each variant."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console

from jaxclip.train.reporting import terminal
from jaxclip.train.reporting.terminal import number, percent
from jaxclip.train.words import count

Row = dict[str, Any]
_HEADS = (
    *("rule", "rate", "train loss", "test loss", "test accuracy", "range"),
    *("largest norm", "clipped", "lost"),
)
# The order in which columns are left out of a table that is too wide.
_OPTIONAL = ("train loss", "largest norm", "test loss", "range", "clipped")


def show(console: Console, title: str, rows: Sequence[Row]) -> None:
    """Prints the table: medians over the seeds, and the range of the test accuracy.

    The winner's row is bold.
    """
    seeds = max(len(row["seeds"]) for row in rows)
    terminal.say(console, "")
    terminal.say(console, title + f", medians of {count(seeds, 'seed')}" * (seeds > 1), "bold")
    best = winner(rows)
    bold = next((i for i, row in enumerate(rows) if row is best), None)
    cells = [[row["rule"], *_cells(row)] for row in rows]
    left_out = terminal.table(console, _HEADS, cells, optional=_OPTIONAL, bold=bold)
    if left_out:
        terminal.say(console, f"more in compare.json: {', '.join(left_out)}")


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


def winner(rows: Sequence[Row]) -> Row | None:
    """Returns the best row, if each of its runs is above all runs of the other rules.

    Of the rows of a single rule, it must be above all other rows. By chance, that happens in 1 of
    10 comparisons of two equal rules with three seeds, and in 1 of 3 with two: so fewer than three
    seeds decide nothing.
    """
    best = best_of(rows)
    if best is None or len(best["seeds"]) < 3:
        return None
    scores = scores_of_others(best, rows)
    return best if scores and min(best["test_accuracy"]) > max(scores) else None


def scores_of_others(best: Row, rows: Sequence[Row]) -> list[float]:
    """Returns the test accuracies of the other rules, or of the other rows of the only rule."""
    others = [row for row in rows if row["rule"] != best["rule"]] or [x for x in rows if x != best]
    return [score for row in others for score in row["test_accuracy"]]
