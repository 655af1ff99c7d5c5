"""The figure of a run's layers: gradients, steps against weights, and units that do nothing.

What is drawn was recorded by the monitors and by the evaluation after each epoch.
"""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.ticker import MaxNLocator

from jaxclip.diagnosis import Diagnosis
from jaxclip.train.recording.trace import Trace
from jaxclip.train.reporting import figures
from jaxclip.train.reporting.figures import COLOURS, FONT, GREY, MARKERS

_MANY = len(COLOURS)  # layers beyond which colours run from dark to light with depth


def draw(trace: Trace, found: Diagnosis, path: Path) -> None:
    """Draws norms of gradients, update-to-weight ratios and idle units, a line for each layer."""
    layers = [layer for layer in found.layers if layer.deep]
    titles = ("Gradient norm", "Update norm / weight norm", "Units without slope")
    headline = textwrap.fill(f"{trace.name}: {found.findings[0].partition('. ')[0]}", 90)
    figure, axes = figures.panels(titles, headline)
    colours = _colours(len(layers))
    for layer, colour in zip(layers, colours, strict=True):
        for ax, values in ((axes[0], layer.gradient), (axes[1], layer.ratio)):
            if values is not None:
                _spread(ax, trace.steps, values, layer.name, colour)
    axes[1].axhline(1e-3, color=GREY, linestyle=":", linewidth=2)
    figures.label(axes[0], "step", "norm of the layer's gradient", log=True, legend=None)
    figures.label(axes[1], "step", "ratio (dotted: 0.001)", log=True, legend=None)
    _idle(axes[2], trace, len(layers) - 1, colours)
    figure.legend(
        *axes[0].get_legend_handles_labels(),
        fontsize=FONT - 1,
        loc="outside lower center",
        ncols=6,
    )
    figures.save(figure, path)


def _colours(count: int) -> Sequence[str]:
    if count <= _MANY:
        return COLOURS[:count]
    shades = mpl.colormaps["viridis"](np.linspace(0, 0.9, count))
    return [to_hex(shade) for shade in shades]


def _spread(ax: Axes, steps: np.ndarray, values: np.ndarray, name: str, colour: str) -> None:
    """Draws a noisy series: faintly every value, boldly the median of each twentieth part."""
    figures.line(ax, steps, values, "_", colour, alpha=0.25)
    parts = [p for p in np.array_split(np.arange(len(steps)), 20) if p.size]
    middles = [np.median(values[p]) for p in parts]
    figures.line(ax, [steps[p].mean() for p in parts], middles, name, colour)


def _idle(ax: Axes, trace: Trace, hidden: int, colours: Sequence[str]) -> None:
    """Draws the share of dead and of saturated units of each hidden layer after each epoch."""
    epochs = np.arange(1, len(trace.epochs) + 1)
    for what, style in (("dead", "-"), ("saturated", "--")):
        for i in range(hidden):
            shares = 100 * trace.by_epoch(f"units/{what}/layers/{i}")
            look = {"marker": MARKERS[i % len(MARKERS)], "markersize": 5}
            figures.line(ax, epochs, shares, "_", colours[i], style, **look)
    ax.plot([], [], "-", color=GREY, label="at every image (dead)")
    ax.plot([], [], "--", color=GREY, label="at an image (saturated)")
    ax.set_ylim(-3, 128)  # room for the legend
    ax.set_yticks(range(0, 101, 20))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    figures.label(ax, "epoch", "share of the layer's units (%)", legend="upper right")
