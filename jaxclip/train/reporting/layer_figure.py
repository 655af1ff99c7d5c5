"""The figure of a run's layers: gradient norms, update-to-weight ratios, and idle units.

The monitors record the norms at each step; the evaluation after each epoch records the idle units.
"""

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from jaxclip.diagnosis import Diagnosis, Layer
from jaxclip.plot import layer_panels, style
from jaxclip.plot.style import GREY
from jaxclip.train.recording.history import History
from jaxclip.train.reporting import figures

_BOUNDED = ("sigmoid", "tanh")  # flat at both ends: a unit without slope is saturated


def draw(history: History, diagnosis: Diagnosis, path: Path) -> None:
    """Draws the three panels, a line for each layer."""
    layers = [layer for layer in diagnosis.layers if layer.deep]
    first = re.split("[.;] ", diagnosis.findings[0])[0].rstrip(".")
    headline = textwrap.fill(f"{history.name}: {first}", 90)
    figure, axes = figures.panels(("", "", ""), headline)
    layer_panels.draw_norms(axes[0], history.steps, layers, "Gradient")
    if all(layer.ratio is not None for layer in layers):
        layer_panels.draw_ratios(axes[1], history.steps, layers)
    else:
        _say_missing(axes[1], "norms of updates and weights")
    _idle(axes[2], history, layers[:-1])
    for ax in axes[:2]:
        if (legend := ax.get_legend()) is not None:
            legend.remove()
    figures.legend_below(figure, axes[0], columns=6)
    figures.save(figure, path)


def _idle(ax: Axes, history: History, hidden: Sequence[Layer]) -> None:
    """Draws the shares of dead and saturated units of each hidden layer after each epoch."""
    epochs = np.arange(1, len(history.epochs) + 1)
    if not history.epochs:
        _say_missing(ax, "dead units")
        return
    bounded = history.settings.get("activation") in _BOUNDED
    kinds = {"dead": "-", "saturated": ":"} if bounded else {"dead": "-"}
    worst = 0.0
    for kind, dashes in kinds.items():
        for i, look in enumerate(style.looks(len(hidden) + 1)[:-1]):
            if f"units/{kind}/layers/{i}" not in history.epochs[0]:
                _say_missing(ax, "dead units")
                return
            shares = 100 * history.by_epoch(f"units/{kind}/layers/{i}")
            style.line(ax, epochs, shares, "_", look | {"linestyle": dashes})
            worst = max(worst, shares[-1])
        name = {"dead": "no slope for any image (dead)", "saturated": "no slope, share of images"}
        ax.plot([], [], dashes, color=GREY, label=name[kind])
    style.title(ax, f"{' and '.join(kinds).capitalize()} units: at most {worst:.0f} % at the end")
    style.whole_steps(ax, epochs)
    ax.set_ylim(-3, 128)  # space for the legend
    ax.set_yticks(range(0, 101, 20))
    style.label(ax, "epoch", "share of the layer's units (%)", legend="upper right")


def _say_missing(ax: Axes, text: str) -> None:
    ax.text(0.5, 0.5, f"{text}:\nnot recorded", ha="center", va="center")
    ax.set_axis_off()
