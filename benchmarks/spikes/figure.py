"""The figure of `benchmarks.spikes`: four rules step by step, and the final losses of all rules.

The colours are Okabe and Ito's; the scenarios also differ in their marks.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter

from benchmarks.spikes.training import failed
from jaxclip.train.reporting.figures import BLUE, FONT, GREY, ORANGE

SEED = 0  # its curve is highlighted, and its bad steps are marked
LINES = ("no rule", "clip_by_history()", "skip_spikes", "zclip(max_norm=None)")
TICKS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
TOP = 10.0  # higher losses are drawn at this value
HEAD = {"fontsize": FONT + 2, "fontweight": "bold"}
MARKS = {
    "calm": {"marker": "o", "mfc": "white", "mec": GREY, "label": "no bad batch"},
    "spiked": {"marker": "D", "color": ORANGE, "label": "2 % bad batches"},
}


def draw(tables: Sequence[Any], plans: Mapping[str, Any], path: Path) -> None:
    """Draws the final losses of the tables that have both scenarios, and curves of the first."""
    both = [table for table in tables if table.scenarios == tuple(MARKS)]
    figure = Figure(figsize=(12, 11.4), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(0.34, 0.66), hspace=0.03)
    _curves(upper, both[0], np.flatnonzero(plans["spiked"].kind[SEED]))
    _ends(lower, both)
    figure.savefig(path, dpi=110)


def _curves(figure: Any, table: Any, bad: np.ndarray) -> None:
    figure.suptitle(f"Bad batches, step by step: {table.title}", **HEAD)
    rows = {row.rule: row for row in table.rows}
    shown = [rows[name] for name in LINES if name in rows]
    axes = figure.subplots(1, len(shown), sharex=True, sharey=True, squeeze=False)[0]
    for ax, row in zip(axes, shown, strict=True):
        _curve(ax, row, bad)
    axes[0].set_ylabel("loss on clean images", fontsize=FONT)
    place = {"xycoords": axes[0].get_xaxis_transform(), "textcoords": "offset points"}
    small = {"color": ORANGE, "fontsize": FONT - 1}
    axes[0].annotate("bad batches, blue run", (bad[0], 0.03), (-4, 9), **small, **place)


def _curve(ax: Axes, row: Any, bad: np.ndarray) -> None:
    ends = row.numbers["spiked"]["final_loss"]
    said = f"{sum(map(failed, ends))} of {len(ends)} fail"
    ax.set_title(row.rule, fontsize=FONT, loc="left")
    text = {"ha": "right", "va": "top", "fontsize": FONT, "transform": ax.transAxes}
    ax.text(0.97, 0.95, said, **text)
    curves = np.minimum(row.curves["spiked"], TOP)
    for curve in np.delete(curves, SEED, axis=0):
        ax.plot(curve, color=GREY, linewidth=0.8, alpha=0.5)
    ax.plot(curves[SEED], color=BLUE, linewidth=1.4)
    # The vertical axis has axis coordinates, so the marks stay at the bottom.
    marks = {"linestyle": "", "marker": "|", "color": ORANGE, "ms": 9, "mew": 1.8}
    ax.plot(bad, np.full(len(bad), 0.03), transform=ax.get_xaxis_transform(), **marks)
    ax.set_xlabel("step", fontsize=FONT)
    ax.set_yscale("log")
    _frame(ax, ax.yaxis)


def _frame(ax: Axes, losses: Axis) -> None:
    losses.set_major_locator(FixedLocator(TICKS))
    losses.set_major_formatter(lambda value, _: f"{value:g}")
    losses.set_minor_formatter(NullFormatter())
    ax.tick_params(labelsize=FONT - 1)
    ax.grid(alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)


def _ends(figure: Any, tables: Sequence[Any]) -> None:
    figure.suptitle(
        "Where every rule ends: one mark a seed, failed where the loss is above 1", **HEAD
    )
    names = list(dict.fromkeys(row.rule for table in tables for row in table.rows))
    axes = figure.subplots(1, len(tables), sharex=True, sharey=True, squeeze=False)[0]
    for ax, table in zip(axes, tables, strict=True):
        ax.set_title(table.title, fontsize=FONT, loc="left")
        ax.set_xscale("log")
        for row in table.rows:
            _end(ax, row, names.index(row.rule))
        for name in set(names) - {row.rule for row in table.rows}:
            at = (0.04, names.index(name))
            ax.text(*at, "not run", color=GREY, va="center", transform=ax.get_yaxis_transform())
        first = table.rows[0].numbers["calm"]["final_loss"]
        line = {"color": GREY, "linestyle": ":", "linewidth": 1.3, "zorder": 0}
        ax.axvline(np.median(first), label="median of no rule, no bad batch", **line)
        ax.set_yticks(range(len(names)), names, family="monospace")
        ax.set_ylim(len(names) - 0.5, -0.6)
        ax.set_xlabel("final loss", fontsize=FONT)
        _frame(ax, ax.xaxis)
    right = max(ax.get_xlim()[1] for ax in axes)
    axes[0].set_xlim(right=2.2 * right)  # space for "failed"
    handles, labels = axes[0].get_legend_handles_labels()
    kinds = dict(zip(labels, handles, strict=True))
    below = {"loc": "outside lower center", "ncols": len(kinds), "frameon": False}
    figure.legend(kinds.values(), kinds.keys(), fontsize=FONT, **below)


def _end(ax: Axes, row: Any, y: int) -> None:
    for (scenario, marks), shift in zip(MARKS.items(), (-0.15, 0.15), strict=True):
        x = np.minimum(row.numbers[scenario]["final_loss"], TOP)
        ax.plot(x, np.full(len(x), y + shift), linestyle="", markersize=6, **marks)
        if count := sum(map(failed, x)):
            text = {"va": "center", "fontsize": FONT - 1, "color": ORANGE}
            at = max(value for value in x if failed(value)), y + shift
            ax.annotate(f"{count} failed", at, (8, 0), textcoords="offset points", **text)
