"""Figures: how to draw one that can be read alone. What the demo's three show is in `stories`.

Colours are Okabe and Ito's, told apart with any colour vision, and each line has its own dash as
well. Nothing here computes anything but where to put ink.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from jaxclip.train.recording.trace import Trace
from jaxclip.train.training.kernel_norms import Kernel

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"
COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
FONT = 13


def panels(titles: Sequence[str], headline: str) -> tuple[Figure, Sequence[Axes]]:
    """Returns a figure with a panel for each title side by side, and the finding above them."""
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
    """Names the axes, and draws the legend at `legend`, unless that is None."""
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
    """Writes beside a point, `offset` typographical points away from it."""
    options = {"textcoords": "offset points", "fontsize": FONT} | options
    ax.annotate(text, point, xytext=offset, **options)


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG."""
    figure.savefig(path, dpi=110)


def run(trace: Trace, *, clips: bool, path: Path) -> None:
    """Draws a training run: loss, gradient norm before and after clipping, test accuracy."""
    accuracy = 100 * trace.test_accuracy
    headline = f"{trace.name}: test accuracy {accuracy[-1]:.1f} % after {len(accuracy)} epoch"
    figure, axes = panels(
        ("Training loss", "Gradient norm", "Test accuracy"),
        headline + "s" * (len(accuracy) > 1),
    )
    steps = trace.steps
    line(axes[0], steps, trace.loss, "loss", BLUE)
    label(axes[0], "step", "loss", log=spans_decades(trace.loss), legend=None)
    line(
        axes[1],
        steps,
        trace.telemetry["grads/norm"],
        "before clipping" if clips else "gradient",
        ORANGE,
    )
    if clips:
        line(axes[1], steps, trace.telemetry["clipped/norm"], "after clipping", BLUE)
    label(axes[1], "step", "global norm", log=True, legend="best" if clips else None)
    epochs = np.arange(1, len(accuracy) + 1)
    line(axes[2], epochs, accuracy, "test", GREEN, "-", marker="o")
    axes[2].xaxis.set_major_locator(MaxNLocator(integer=True))
    label(axes[2], "epoch", "test accuracy (%)", legend=None)
    save(figure, path)


def weights(trace: Trace, kernels: Sequence[Kernel], path: Path) -> None:
    """Draws the norms of every kernel's units: the largest one, the median, and their limit."""
    seen = np.stack(
        [
            [trace.by_epoch(f"weights/{what}/{kernel.name}") for what in ("largest", "median")]
            for kernel in kernels
        ]
    ).transpose(2, 0, 1)
    limits = sorted({kernel.limit for kernel in kernels if kernel.limit is not None})
    headline = f"{trace.name}: norm of a unit's weights" + (", dashed: the limit" if limits else "")
    figure, axes = panels(("Largest unit", "Median unit"), headline)
    log = spans_decades(np.array([*seen.ravel(), *limits]))
    for column, ax in enumerate(axes):
        ax.sharey(axes[0])
        for i, kernel in enumerate(kernels):
            again, i_colour = divmod(i, len(COLOURS))
            look = {"marker": MARKERS[i_colour], "markersize": max(4, 11 - 3 * i)}
            values = seen[:, i, column]
            style = "-:"[again % 2]
            epochs = np.arange(1, len(seen) + 1)
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
