"""Figures: panels, lines and labels in one style, and the figures of a run and of its weights.

Colours are Okabe and Ito's, which differ with any colour vision; lines differ in dashes too.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from jaxclip.train.recording import files
from jaxclip.train.recording.history import History
from jaxclip.train.training.kernel_norms import Kernel

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"
COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
FONT = 13


def panels(titles: Sequence[str], headline: str) -> tuple[Figure, Sequence[Axes]]:
    """Returns a figure with a headline, and a panel for each title side by side."""
    figure = Figure(figsize=(12, 5), layout="constrained")
    figure.suptitle(headline, fontsize=FONT + 3, fontweight="bold")
    axes = figure.subplots(1, len(titles), squeeze=False)[0]
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(title, fontsize=FONT + 1, loc="left")
        ax.tick_params(labelsize=FONT - 1)
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def label(ax: Axes, x: str, y: str, *, log: bool = False, legend: Any = "best") -> None:
    """Labels the axes, and draws the legend at `legend` unless that is None."""
    ax.set_xlabel(x, fontsize=FONT)
    ax.set_ylabel(y, fontsize=FONT)
    if log:
        ax.set_yscale("log")
    if legend:
        ax.legend(fontsize=FONT - 1, loc=legend, framealpha=0.9)


def line(ax: Axes, x, y, text: str, colour: str, style: str = "-", **options) -> None:
    """Draws a line."""
    ax.plot(x, y, style, color=colour, label=text, linewidth=2.2, **options)


def note(ax: Axes, text: str, point, offset, **options) -> None:
    """Writes text at a point, `offset` typographical points away."""
    options = {"textcoords": "offset points", "fontsize": FONT} | options
    ax.annotate(text, point, xytext=offset, **options)


def legend_below(figure: Figure, ax: Axes, columns: int) -> None:
    """Draws the legend of `ax` below all panels."""
    handles = ax.get_legend_handles_labels()
    figure.legend(*handles, fontsize=FONT - 1, loc="outside lower center", ncols=columns)


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG."""
    content = io.BytesIO()
    figure.savefig(content, dpi=110, format="png")
    files.replace(path, content.getvalue())


def run(history: History, *, clips: bool, path: Path) -> None:
    """Draws a training run: loss, gradient norm before and after clipping, test accuracy."""
    accuracy = 100 * history.test_accuracy
    after = f"{len(accuracy)} epoch" + "s" * (len(accuracy) > 1)
    headline = f"{history.name}: test accuracy {accuracy[-1]:.1f} % after {after}"
    figure, axes = panels(("Training loss", "Gradient norm", "Test accuracy"), headline)
    steps = history.steps
    line(axes[0], steps, history.loss, "loss", BLUE)
    label(axes[0], "step", "loss", log=spans_decades(history.loss), legend=None)
    name = "before clipping" if clips else "gradient"
    line(axes[1], steps, history.telemetry["grads/norm"], name, ORANGE)
    if clips:
        line(axes[1], steps, history.telemetry["clipped/norm"], "after clipping", BLUE)
    label(axes[1], "step", "global norm", log=True, legend="best" if clips else None)
    epochs = np.arange(1, len(accuracy) + 1)
    line(axes[2], epochs, accuracy, "test", GREEN, "-", marker="o")
    axes[2].xaxis.set_major_locator(MaxNLocator(integer=True))
    label(axes[2], "epoch", "test accuracy (%)", legend=None)
    save(figure, path)


def weights(history: History, kernels: Sequence[Kernel], path: Path) -> None:
    """Draws the largest and the median norm of every kernel's units, and their limits."""
    statistics = ("largest", "median")
    rows = [[history.by_epoch(f"weights/{s}/{k.name}") for s in statistics] for k in kernels]
    norms = np.stack(rows).transpose(2, 0, 1)  # (epoch, kernel, statistic)
    limits = sorted({kernel.limit for kernel in kernels if kernel.limit is not None})
    headline = f"{history.name}: norm of a unit's weights" + (
        ", dashed: the limit" if limits else ""
    )
    figure, axes = panels(("Largest unit", "Median unit"), headline)
    log = spans_decades(np.array([*norms.ravel(), *limits]))
    for column, ax in enumerate(axes):
        ax.sharey(axes[0])
        for i, kernel in enumerate(kernels):
            turn, i_colour = divmod(i, len(COLOURS))
            look = {"marker": MARKERS[i_colour], "markersize": max(4, 11 - 3 * i)}
            values = norms[:, i, column]
            style = "-:"[turn % 2]
            epochs = np.arange(1, len(norms) + 1)
            line(ax, epochs, values, kernel.label, COLOURS[i_colour], style, **look)
        for limit in limits:
            ax.axhline(limit, color=GREY, linestyle="--", linewidth=2, zorder=3)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        label(ax, "epoch", "norm of a unit's weights", log=log, legend=None)
    figure.legend(
        *axes[0].get_legend_handles_labels(), fontsize=FONT - 1, loc="outside right center"
    )
    save(figure, path)


def spans_decades(values: np.ndarray) -> bool:
    """Returns whether positive finite values span more than a factor of 30."""
    finite = values[np.isfinite(values) & (values > 0)]
    return finite.size > 0 and finite.max() > 30 * finite.min()
