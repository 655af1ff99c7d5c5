"""The table of a comparison, with a row for each variant, and its figure."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from rich import box
from rich.table import Table

from jaxclip.train.recording.history import History
from jaxclip.train.reporting import figures
from jaxclip.train.reporting.figures import COLOURS, GREY, MARKERS
from jaxclip.train.reporting.terminal import number, percent

Row = dict[str, Any]
_POINTS = 60  # of a line; each is the median over its share of the steps


def table(title: str, rows: Sequence[Row]) -> Table:
    """Returns the table: medians over the seeds, and the range of the test accuracy."""
    seeds = max(len(row["seeds"]) for row in rows)
    title += f", medians of {seeds} seeds" * (seeds > 1)
    result = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    result.add_column("rule", overflow="fold")
    losses, norms = ("train loss", "test loss"), ("largest norm", "clipped", "lost")
    for head in ("rate", *losses, "test accuracy", "range", *norms):
        result.add_column(head, justify="right", overflow="fold")
    best = _best(rows)
    for row in rows:
        style = "bold" if row is best else None
        result.add_row(row["rule"], *_cells(row), style=style)
    return result


def _cells(row: Row) -> list[str]:
    lost, runs = _lost(row), len(row["seeds"])
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


def _lost(row: Row) -> int:
    """Returns the number of runs with a non-finite loss."""
    return sum(step is not None for step in row["lost_at_step"])


def _median(values: Sequence[float], write) -> str:
    return write(float(np.median(values))) if values else "-"


def _range(values: Sequence[float]) -> str:
    several = len(values) > 1
    return f"{100 * min(values):.2f} to {100 * max(values):.2f}" if several else "-"


def _best(rows: Sequence[Row]) -> Row | None:
    """Returns the row with the best median accuracy of those that lost no run."""
    complete = [row for row in rows if _lost(row) == 0]
    return max(complete, key=lambda row: np.median(row["test_accuracy"]), default=None)


def draw(rows: Sequence[Row], histories: Sequence[Sequence[History]], path: Path) -> None:
    """Draws every rule's loss at its best learning rate, and the test accuracies."""
    rules = list(dict.fromkeys(row["rule"] for row in rows))
    several = len({row["learning_rate"] for row in rows}) > 1
    titles = (
        "Training loss" + ", each rule at its best rate" * several,
        "Test accuracy" + " by learning rate" * several,
    )
    figure, (left, right) = figures.panels(titles, _headline(rows))
    looks = {rule: _look(i) for i, rule in enumerate(rules)}
    for rule in rules:
        of_rule = [row for row in rows if row["rule"] == rule]
        best = _best(of_rule) or of_rule[0]
        _losses(left, histories[rows.index(best)], rule, looks[rule])
        if several:
            _sensitivity(right, of_rule, rule, looks[rule])
    if not several:
        _dots(right, rows, looks)
    losses = np.concatenate([history.loss for runs in histories for history in runs])
    log = figures.spans_decades(losses)
    figures.label(left, "step", "loss (cross: all runs lost)", log=log, legend=None)
    figures.legend_below(figure, left, columns=3)
    figures.save(figure, path)


def _headline(rows: Sequence[Row]) -> str:
    lost = sum(map(_lost, rows))
    runs = sum(len(row["seeds"]) for row in rows)
    best = _best(rows)
    if best is None:
        return f"{lost} of {runs} runs lost"
    accuracy = percent(float(np.median(best["test_accuracy"])))
    return f"Best median: {best['rule']}, {accuracy}" + f"; {lost} of {runs} runs lost" * bool(lost)


def _look(i: int) -> dict[str, Any]:
    """Returns a rule's style; larger markers below smaller ones keep overlapping lines visible."""
    which = i % len(COLOURS)
    return {
        "colour": COLOURS[which],
        "style": ("-", "--", "-.", ":")[i % 4],
        "marker": MARKERS[which],
        "markersize": max(5, 13 - 3 * i),
    }


def _losses(ax: Axes, histories: Sequence[History], rule: str, look: dict[str, Any]) -> None:
    """Draws the median and the range of the loss over the seeds, and a cross if all are lost."""
    steps = max(history.steps_done[-1] for history in histories)
    edges = np.unique(np.linspace(0, steps, _POINTS + 1).astype(int))
    losses = np.array([_by_part(history, edges) for history in histories])
    known = np.isfinite(losses).any(axis=0)
    at, losses = (edges[1:] + edges[:-1])[known] / 2, losses[:, known]
    every = max(1, len(at) // 8)
    figures.line(ax, at, np.nanmedian(losses, axis=0), rule, **look, markevery=every)
    low, high = np.nanmin(losses, axis=0), np.nanmax(losses, axis=0)
    ax.fill_between(at, low, high, color=look["colour"], alpha=0.15, linewidth=0)
    if all(history.first_nonfinite() is not None for history in histories) and len(at):
        last = np.nanmedian(losses[:, -1])
        ax.plot(at[-1], last, "x", color=look["colour"], markersize=14, markeredgewidth=4)


def _by_part(history: History, edges: np.ndarray) -> np.ndarray:
    """Returns the median of the finite losses between edges, NaN if there is none."""
    finite = np.isfinite(history.loss)
    steps, loss = history.steps[finite], history.loss[finite]
    parts = [loss[(steps >= low) & (steps < high)] for low, high in itertools.pairwise(edges)]
    return np.array([np.median(part) if part.size else np.nan for part in parts])


def _sensitivity(ax: Axes, rows: Sequence[Row], rule: str, look: dict[str, Any]) -> None:
    """Draws accuracy against the learning rate; lost runs count as 0."""
    ordered = sorted(rows, key=lambda row: row["learning_rate"])
    rates = [row["learning_rate"] for row in ordered]
    accuracy = np.array([_all_runs(row) for row in ordered])
    figures.line(ax, rates, np.median(accuracy, axis=1), rule, **look)
    ax.fill_between(
        rates, accuracy.min(axis=1), accuracy.max(axis=1), color=look["colour"], alpha=0.15
    )
    ax.set_xscale("log")
    figures.label(ax, "learning rate", "test accuracy (%), lost: 0", legend=None)


def _all_runs(row: Row) -> list[float]:
    finished = iter(row["test_accuracy"])
    return [100 * next(finished) if at is None else 0.0 for at in row["lost_at_step"]]


def _dots(ax: Axes, rows: Sequence[Row], looks: dict[str, dict[str, Any]]) -> None:
    """Draws a dot for each finished run, a bar at their median, and the number of lost runs."""
    for i, row in enumerate(reversed(rows)):
        look, accuracy = looks[row["rule"]], [100 * a for a in row["test_accuracy"]]
        ax.plot(accuracy, [i] * len(accuracy), look["marker"], color=look["colour"], markersize=9)
        if accuracy:
            ax.plot(
                [np.median(accuracy)] * 2, [i - 0.3, i + 0.3], color=look["colour"], linewidth=3
            )
        lost = len(row["seeds"]) - len(accuracy)
        if lost:
            text = f"{lost} of {len(row['seeds'])} lost"
            where = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "center"}
            ax.annotate(text, (0.98, i), color=GREY, fontsize=figures.FONT - 1, **where)
    names = [row["rule"] if len(row["rule"]) < 30 else row["rule"][:27] + "..." for row in rows]
    ax.set_yticks(range(len(rows)), names[::-1])
    ax.set_ylim(-0.6, len(rows) - 0.4)
    figures.label(ax, "test accuracy (%), one dot a run", "", legend=None)
