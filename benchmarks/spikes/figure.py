"""The figure of `benchmarks.spikes`: an explosion under four rules, and where all rules end.

The colours are Okabe and Ito's; the scenarios differ in their marks.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from jaxclip.plot.style import BLUE, GREY, ORANGE

FONT = 13
SEED = 0  # its curve is highlighted
EXPLOSION = "rnn", ("high", "calm")  # the section and setting of the curves
LINES = (
    "no rule",
    "autoclip(50, window=100, factor=2)",
    "zclip(max_norm=None)",
    "clip_by_global_norm(1.0)",
)
BOTTOM, TOP = 0.1, 1e6  # of the curves: higher losses are drawn at the top
HEAD = {"fontsize": FONT + 2, "fontweight": "bold"}
MARKS = {
    ("sound", "calm"): {"marker": "o", "mfc": "white", "mec": BLUE},
    ("sound", "spiked"): {"marker": "D", "color": BLUE},
    ("high", "calm"): {"marker": "o", "mfc": "white", "mec": ORANGE},
    ("high", "spiked"): {"marker": "D", "color": ORANGE},
}
LABELS = {"sound": "sound learning rate", "high": "ten times that"} | {
    "calm": "no bad batch",
    "spiked": "2 to 4 % bad batches",
}


def draw(tables: Sequence[Any], path: Path) -> None:
    """Draws the curves, and the final losses of the tables that have all settings."""
    whole = [table for table in tables if set(table.rows[0].numbers) == set(MARKS)]
    rules = list(dict.fromkeys(row.rule for table in whole for row in table.rows))
    height = 2.2 + 0.62 * len(rules)
    figure = Figure(figsize=(16, 4 + height), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(4, height), hspace=0.03)
    section, setting = EXPLOSION
    _curves(upper, next(table for table in whole if table.section.name == section), setting)
    _ends(lower, whole, rules)
    figure.savefig(path, dpi=100)


def _curves(figure: Any, table: Any, setting: tuple[str, str]) -> None:
    rate = table.section.rates[setting[0]]
    title = f"An explosion, step by step: {table.section.title}, learning rate {rate:g}"
    figure.suptitle(title, **HEAD)
    shown = [row for name in LINES for row in table.rows if row.rule == name]
    axes = figure.subplots(1, len(shown), sharex=True, sharey=True, squeeze=False)[0]
    for ax, row in zip(axes, shown, strict=True):
        ax.set_title(row.rule, fontsize=FONT, loc="left")
        curves = np.clip(np.nan_to_num(row.losses[setting], nan=np.inf), None, TOP)
        for curve in np.delete(curves, SEED, axis=0):
            ax.plot(curve, color=GREY, linewidth=0.8, alpha=0.5)
        ax.plot(curves[SEED], color=BLUE, linewidth=1.4)
        ax.set_xlabel("step", fontsize=FONT)
        ax.set_yscale("log")
        ax.set_ylim(BOTTOM, TOP)
        _frame(ax)
    axes[0].set_ylabel("loss", fontsize=FONT)


def _frame(ax: Axes) -> None:
    ax.tick_params(labelsize=FONT - 1)
    ax.grid(alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)


def _ends(figure: Any, tables: Sequence[Any], rules: list[str]) -> None:
    figure.suptitle("Where every rule ends: one mark a seed, lost on the right of the line", **HEAD)
    axes = figure.subplots(1, len(tables), sharey=True, squeeze=False)[0]
    for ax, table in zip(axes, tables, strict=True):
        ax.set_title(table.section.title.replace(", ", "\n", 1), fontsize=FONT, loc="left")
        for row in table.rows:
            _end(ax, row, rules.index(row.rule), table.lost)
        for name in set(rules) - {row.rule for row in table.rows}:
            at = (0.04, rules.index(name))
            ax.text(*at, "not run", color=GREY, va="center", transform=ax.get_yaxis_transform())
        ax.axvline(table.lost, color=GREY, linestyle=":", linewidth=1.5)
        ax.set_yticks(range(len(rules)), rules, family="monospace")
        ax.set_ylim(len(rules) - 0.5, -0.6)
        ax.set_xlabel("final loss", fontsize=FONT)
        _frame(ax)
        _losses(ax, table)
    handles, labels = axes[0].get_legend_handles_labels()
    kinds = dict(zip(labels, handles, strict=True))
    below = {"loc": "outside lower center", "ncols": len(kinds), "frameon": False}
    figure.legend(kinds.values(), kinds.keys(), fontsize=FONT, **below)


def _losses(ax: Axes, table: Any) -> None:
    """Scales the axis of losses: from the best run to a little above the loss of a lost one."""
    numbers = [n["final_loss"] for row in table.rows for n in row.numbers.values()]
    left, lost = min(np.nanmin(numbers), table.lost / 1.5), table.lost
    room = lost / left
    ax.set_xscale("log")
    ax.set_xlim(left / room**0.05, lost * room**0.45)
    ticks = [t for t in (0.05, 0.1, 0.2, 0.5, 1, 2, 2.5, 3) if left <= t <= lost]
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.xaxis.set_minor_locator(NullLocator())


def _end(ax: Axes, row: Any, y: int, lost: float) -> None:
    for (setting, marks), shift in zip(MARKS.items(), (-0.3, -0.1, 0.1, 0.3), strict=True):
        losses = np.array(row.numbers[setting]["final_loss"], float)
        kept = losses[losses <= lost]
        label = ", ".join(LABELS[name] for name in setting)
        ax.plot(kept, np.full(len(kept), y + shift), linestyle="", ms=5, label=label, **marks)
        if count := len(losses) - len(kept):
            colour = marks.get("color", marks.get("mec"))
            text = {"va": "center", "fontsize": FONT - 4, "color": colour}
            place = {"xytext": (5, 0), "textcoords": "offset points"}
            ax.annotate(f"{count} lost, {setting[1]}", (lost, y + shift), **place, **text)
