"""The figure of a comparison."""

import itertools
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from jaxclip.plot import style
from jaxclip.plot.style import COLOURS, GREY, MARKERS
from jaxclip.train.recording.history import History
from jaxclip.train.reporting import figures
from jaxclip.train.reporting.comparison_table import (
    Row,
    best_of,
    lost_runs,
    scores_of_others,
    winner,
)
from jaxclip.train.reporting.terminal import percent
from jaxclip.train.words import count

_POINTS = 60  # of a line; each is the median over its share of the steps


def draw(rows: Sequence[Row], histories: Sequence[Sequence[History]], path: Path) -> None:
    """Draws every rule's loss at its best learning rate, and the test accuracies."""
    rules = list(dict.fromkeys(row["rule"] for row in rows))
    several = len({row["learning_rate"] for row in rows}) > 1
    titles = (
        "Training loss" + ", each rule at its most accurate rate" * several,
        "Test accuracy" + " by learning rate" * several,
    )
    figure, (left, right) = figures.panels(titles, _headline(rows))
    looks = {rule: _look(i) for i, rule in enumerate(rules)}
    for rule in rules:
        of_rule = [row for row in rows if row["rule"] == rule]
        best = best_of(of_rule) or of_rule[0]
        _losses(left, histories[rows.index(best)], rule, looks[rule])
        if several:
            _sensitivity(right, of_rule, rule, looks[rule])
    if not several:
        _dots(right, rows, looks)
    losses = np.concatenate([history.loss for runs in histories for history in runs])
    log = style.spans_decades(losses)
    style.label(left, "step", "loss (cross: all runs lost)", log=log, legend=None)
    figures.legend_below(figure, left, columns=3)
    figures.save(figure, path)


def _headline(rows: Sequence[Row]) -> str:
    lost = sum(map(lost_runs, rows))
    runs = sum(len(row["seeds"]) for row in rows)
    note = f"{lost} of {count(runs, 'run')} lost"
    best = best_of(rows)
    if best is None:
        return note
    return textwrap.fill(_verdict(best, rows) + f"; {note}" * bool(lost), 100)


def _verdict(best: Row, rows: Sequence[Row]) -> str:
    """Returns which rule is best, or why none is said to be."""
    accuracy, seeds = best["test_accuracy"], len(best["seeds"])
    scores = scores_of_others(best, rows)
    if not scores:
        return f"{best['rule']}: test accuracy {percent(float(np.median(accuracy)))}"
    if winner(rows) is not None:
        median = percent(float(np.median(accuracy)))
        return f"Best: {best['rule']}, median accuracy {median}, above all others in {seeds} seeds"
    every = [*scores, *accuracy]
    ends = f"Test accuracy {percent(min(every))} to {percent(max(every))}"
    if seeds < 3:
        return f"{ends}: {count(seeds, 'seed')}, too few to say which is better"
    return f"{ends}: no rule is above all others in each of {seeds} seeds"


def _look(i: int) -> dict[str, Any]:
    """Returns a rule's style; larger markers below smaller ones keep overlapping lines visible."""
    which = i % len(COLOURS)
    return {
        "colour": COLOURS[which],
        "dashes": ("-", "--", "-.", ":")[i % 4],
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
    style.label(ax, "learning rate", "test accuracy (%), lost: 0", legend=None)


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
            ax.annotate(text, (0.98, i), color=GREY, fontsize=style.FONT - 1, **where)
    names = [row["rule"] if len(row["rule"]) < 30 else row["rule"][:27] + "..." for row in rows]
    ax.set_yticks(range(len(rows)), names[::-1])
    ax.set_ylim(-0.6, len(rows) - 0.4)
    style.label(ax, "test accuracy (%), one dot a run", "", legend=None)
