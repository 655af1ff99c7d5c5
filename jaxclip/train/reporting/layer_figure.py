"""The figure of a run's layers: gradient norms, update-to-weight ratios, and idle units.

The monitors record the norms at each step; the evaluation after each epoch records the idle units.
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
from jaxclip.train.recording.history import History
from jaxclip.train.reporting import figures
from jaxclip.train.reporting.figures import COLOURS, GREY, MARKERS

_MANY = len(COLOURS)  # with more layers, colours run from dark to light with depth


def draw(history: History, diagnosis: Diagnosis, path: Path) -> None:
    """Draws the three panels, a line for each layer."""
    layers = [layer for layer in diagnosis.layers if layer.deep]
    titles = ("Gradient norm", "Update norm / weight norm", "Units with zero slope")
    headline = textwrap.fill(f"{history.name}: {diagnosis.findings[0].partition('. ')[0]}", 90)
    figure, axes = figures.panels(titles, headline)
    colours = _colours(len(layers))
    for layer, colour in zip(layers, colours, strict=True):
        for ax, values in ((axes[0], layer.gradient), (axes[1], layer.ratio)):
            if values is not None:
                _spread(ax, history.steps, values, layer.name, colour)
    axes[1].axhline(1e-3, color=GREY, linestyle=":", linewidth=2)
    figures.label(axes[0], "step", "norm of the layer's gradient", log=True, legend=None)
    figures.label(axes[1], "step", "ratio (dotted: 0.001)", log=True, legend=None)
    _idle(axes[2], history, len(layers) - 1, colours)
    figures.legend_below(figure, axes[0], columns=6)
    figures.save(figure, path)


def _colours(count: int) -> Sequence[str]:
    if count <= _MANY:
        return COLOURS[:count]
    shades = mpl.colormaps["viridis"](np.linspace(0, 0.9, count))
    return [to_hex(shade) for shade in shades]


def _spread(ax: Axes, steps: np.ndarray, values: np.ndarray, name: str, colour: str) -> None:
    """Draws a noisy series: all values in faint, the medians of twenty parts in bold."""
    figures.line(ax, steps, values, "_", colour, alpha=0.25)
    parts = [p for p in np.array_split(np.arange(len(steps)), 20) if p.size]
    middles = [np.median(values[p]) for p in parts]
    figures.line(ax, [steps[p].mean() for p in parts], middles, name, colour)


def _idle(ax: Axes, history: History, hidden: int, colours: Sequence[str]) -> None:
    """Draws the shares of dead and saturated units of each hidden layer after each epoch."""
    epochs = np.arange(1, len(history.epochs) + 1)
    for kind, style in (("dead", "-"), ("saturated", "--")):
        for i in range(hidden):
            shares = 100 * history.by_epoch(f"units/{kind}/layers/{i}")
            look = {"marker": MARKERS[i % len(MARKERS)], "markersize": 5}
            figures.line(ax, epochs, shares, "_", colours[i], style, **look)
    ax.plot([], [], "-", color=GREY, label="for every image (dead)")
    ax.plot([], [], "--", color=GREY, label="for an image")
    ax.set_ylim(-3, 128)  # space for the legend
    ax.set_yticks(range(0, 101, 20))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    figures.label(ax, "epoch", "share of the layer's units (%)", legend="upper right")
