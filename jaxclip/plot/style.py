"""One style for all figures: colours, markers, and marks of values that cannot be drawn.

Colours are Okabe and Ito's, which differ with any colour vision. Lines differ in markers and dashes
too. This module imports matplotlib when a function is called.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"
COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
MARKS = ("not finite", "0")
DASHES = ("-", "--", "-.", ":")
FONT = 11
_MANY = 100  # points of a line from which on the medians of its parts are drawn in bold
_PARTS = 20


def axes(ax: Axes | None) -> Axes:
    """Returns the axes, or those of a new figure; with a grid, and without a frame.

    Raises:
        ImportError: if matplotlib is missing, with the command that installs it.
    """
    if ax is None:
        ax = new_figure(None, (7.0, 4.2)).subplots()
    ax.grid(alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=FONT - 1)
    return ax


def new_figure(figure: Figure | None, size: tuple[float, float]) -> Figure:
    """Returns the figure, or a new one of pyplot.

    Raises:
        ImportError: if matplotlib is missing, with the command that installs it.
    """
    try:
        from matplotlib import pyplot
    except ImportError as error:
        text = 'jaxclip.plot needs matplotlib: pip install "jaxclip[plot]"'
        raise ImportError(text) from error
    return pyplot.figure(figsize=size, layout="constrained") if figure is None else figure


def title(ax: Axes, text: str) -> None:
    """Writes a title, in lines as long as the axes are wide."""
    width = ax.get_window_extent().width / ax.figure.dpi
    text = textwrap.fill(plain(text), max(24, int(12 * width)))
    ax.set_title(text, fontsize=FONT, loc="left")


def plain(text: str) -> str:
    """Returns a text in which a dollar is no formula."""
    return text.replace("$", r"\$")


def short_name(name: str, longest: int = 40) -> str:
    """Returns the ends of a name that is too long for a legend."""
    end = (longest - 3) // 2
    return name if len(name) <= longest else f"{name[:end]}...{name[-end:]}"


def label(ax: Axes, x: str, y: str, *, log: bool = False, legend: Any = "best") -> None:
    """Labels the axes, and draws the legend at `legend` unless that is None.

    A legend of one line is left out, and one of many is below the axes.
    """
    ax.set_xlabel(x, fontsize=FONT)
    ax.set_ylabel(y, fontsize=FONT)
    if log:
        ax.set_yscale("log")
        if not ax.dataLim.y1 > 0:  # marks alone
            ax.set_ylim(0.1, 10)
    found = entries(ax)
    texts = found[1]
    if legend is None or len(texts) < 2:
        return
    if len(texts) <= 6:
        ax.legend(*found, fontsize=FONT - 2, loc=legend, framealpha=0.8)
        return
    width = ax.get_window_extent().width / ax.figure.dpi
    columns = max(1, int(12 * width / (6 + max(map(len, texts)))))
    corner = (0, -0.2)  # below the label of the axis
    ax.legend(
        *found, fontsize=FONT - 2, ncols=columns, loc="upper left", bbox_to_anchor=corner,
        frameon=False,
    )  # fmt: skip


def entries(ax: Axes) -> tuple[list[Any], list[str]]:
    """Returns the lines and names for a legend, marks last."""
    handles, texts = ax.get_legend_handles_labels()
    order = sorted(range(len(texts)), key=lambda i: texts[i] in MARKS)
    return [handles[i] for i in order], [texts[i] for i in order]


def whole_steps(ax: Axes, steps: np.ndarray) -> None:
    """Has ticks at whole numbers, and room around a single point."""
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    if steps.size and steps.min() == steps.max():
        ax.set_xlim(steps[0] - 1, steps[0] + 1)


def looks(count: int) -> Sequence[dict[str, Any]]:
    """Returns a colour, a marker and dashes for each of several lines; many go dark to light."""
    colours: Sequence[Any] = COLOURS
    if count > len(COLOURS):
        from matplotlib import colormaps

        colours = list(colormaps["viridis"](np.linspace(0, 0.9, count)))
    return [
        {"color": colours[i], "marker": MARKERS[i % 7], "linestyle": DASHES[i // 7 % 4]}
        for i in range(count)
    ]


def line(
    ax: Axes, x: np.ndarray, y: np.ndarray, text: str, look: dict[str, Any], *, log: bool = False
) -> None:
    """Draws a line with a marker at some points; a long one in faint, and its medians in bold.

    Values that are not finite are crosses at the top; 0 and less on a log scale triangles at the
    bottom.
    """
    bad, low = ~np.isfinite(y), np.isfinite(y) & (y <= 0) & log
    at, y = x[~bad & ~low], y[~bad & ~low]
    if len(at) >= _MANY:
        ax.plot(at, y, color=look["color"], linewidth=1, alpha=0.3)
        parts = [part for part in np.array_split(np.arange(len(at)), _PARTS) if part.size]
        at, y = (np.array([np.median(values[part]) for part in parts]) for values in (at, y))
    (drawn,) = ax.plot(at, y, label=plain(short_name(text)), markersize=5, linewidth=1.8)
    drawn.set(**look, markevery=max(1, len(at) // 8))
    mark(ax, x[bad], top=True)
    mark(ax, x[low], top=False)


def mark(ax: Axes, x: np.ndarray, *, top: bool) -> None:
    """Marks steps at the top or the bottom of the axes; of very many, some."""
    if not x.size:
        return
    x = x[np.unique(np.linspace(0, x.size - 1, 25).astype(int))]
    text = MARKS[0] if top else MARKS[1]
    known = ax.get_legend_handles_labels()[1]
    height, transform = np.full(x.shape, 0.97 if top else 0.03), ax.get_xaxis_transform()
    new = "_" if text in known else text
    ax.plot(x, height, "kx" if top else "kv", transform=transform, label=new)


def spans_decades(values: np.ndarray) -> bool:
    """Returns whether positive finite values span more than a factor of 30."""
    finite = values[np.isfinite(values) & (values > 0)]
    return finite.size > 0 and bool(finite.max() > 30 * finite.min())


def number(value: float) -> str:
    """Returns three digits of a number, as 0.0231 or 3.02e+05."""
    return f"{value:.3g}" if math.isfinite(value) else str(value)
