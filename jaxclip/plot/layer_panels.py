"""Axes of layers: their norms, their ratios of update and weight, and a heat map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from jaxclip.diagnosis.layers import Layer
from jaxclip.plot import style
from jaxclip.plot.log import Log, Metrics
from jaxclip.plot.style import GREY, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NAMED = 8  # layers in a legend
_COLUMNS = 200  # of a heat map


def norms(metrics: Metrics | Log, *, monitor: str | None = None, ax: Axes | None = None) -> Axes:
    """Draws the norm of each layer over the steps, on a log scale.

    Args:
        metrics: as described in `jaxclip.plot`, with the norms of a `jaxclip.monitor`.
        monitor: its name; `None` is `grads` if there is one, else the first.
        ax: the axes to draw into.

    Returns:
        The axes. A layer is the 2-norm over its leaves, as in `jaxclip.diagnosis`.

    Raises:
        ImportError: if matplotlib is missing.
        ValueError: if there is no such monitor.

    Examples:
        >>> import jaxclip, matplotlib
        >>> matplotlib.use("agg")
        >>> log = [{f"grads/norm/layers/{i}/kernel": 4.0**i for i in range(3)} for _ in range(9)]
        >>> ax = jaxclip.plot.norms(log)
        >>> print(ax.get_title("left"))
        grads: from 1 (layers/0) to 16 (layers/2)
        >>> ax.get_yscale()
        'log'
    """
    log = Log(metrics)
    monitor = _monitor(log, monitor)
    ax = style.axes(ax)
    draw_norms(ax, *log.layers(gradient=monitor), monitor)
    return ax


def draw_norms(ax: Axes, steps: np.ndarray, layers: Sequence[Layer], name: str) -> None:
    """Draws the gradient norms of layers that a diagnosis found; `name` is said in the title."""
    _lines(ax, steps, [(layer.name, layer.gradient) for layer in layers])
    style.title(ax, f"{name}: {_not_finite(steps, layers) or _range(layers)}")
    style.label(ax, "step", "norm of the layer", log=True)


def _monitor(log: Log, name: str | None) -> str:
    found = log.monitors()
    if name is None and not found:
        raise ValueError("no monitor recorded norms of layers: see jaxclip.monitor")
    return name or ("grads" if "grads" in found else found[0])


def _not_finite(steps: np.ndarray, layers: Sequence[Layer]) -> str:
    """The first step with a norm that is not finite, if there is one."""
    bad = ~np.isfinite([layer.gradient for layer in layers]).all(axis=0)
    return f"not finite from step {steps[bad][0]:.0f} on" if bad.any() else ""


def _range(layers: Sequence[Layer]) -> str:
    """The layers with the smallest and the largest median norm."""
    middles = [_median(layer.gradient) for layer in layers]
    low, high = int(np.argmin(middles)), int(np.argmax(middles))
    ends = [f"{number(middles[i])} ({style.short_name(layers[i].name)})" for i in (low, high)]
    return ends[0] if low == high else f"from {ends[0]} to {ends[1]}"


def _median(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if finite.size else np.nan


def _lines(ax: Axes, steps: np.ndarray, rows: Sequence[tuple[str, np.ndarray]]) -> None:
    """Draws a line for each layer; names at most some of very many."""
    named = set(np.linspace(0, len(rows) - 1, min(len(rows), _NAMED)).astype(int).tolist())
    for i, ((name, values), look) in enumerate(zip(rows, style.looks(len(rows)), strict=True)):
        style.line(ax, steps, values, name if i in named else "_", look, log=True)
    style.whole_steps(ax, steps)


def ratios(
    metrics: Metrics | Log,
    *,
    updates: str = "updates",
    weights: str = "weights",
    ax: Axes | None = None,
) -> Axes:
    """Draws the norm of each layer's update over that of its weights, on a log scale.

    A ratio of about 0.001 is usual; a dotted line shows it.

    Args:
        metrics: as described in `jaxclip.plot`, with the norms of two monitors.
        updates: the name of the monitor of the updates, last in the chain.
        weights: the name of the monitor of the parameters, `jaxclip.monitor(of="params")`.
        ax: the axes to draw into.

    Returns:
        The axes. Weights of norm 0 have no ratio and count as not finite.

    Raises:
        ImportError: if matplotlib is missing.
        ValueError: if there are no such monitors.

    Examples:
        >>> import jaxclip, matplotlib
        >>> matplotlib.use("agg")
        >>> log = {"updates/norm/w": [0.1, 0.2, 0.3], "weights/norm/w": [10.0, 10.0, 10.0]}
        >>> print(jaxclip.plot.ratios(log).get_title("left"))
        Update / weight: median 0.02, usual is 0.001
    """
    log = Log(metrics)
    ax = style.axes(ax)
    draw_ratios(ax, *log.layers(gradient=updates, weight=weights, update=updates))
    return ax


def draw_ratios(ax: Axes, steps: np.ndarray, layers: Sequence[Layer]) -> None:
    """Draws the ratios of layers that a diagnosis found; each must have one."""
    rows = [(layer.name, layer.ratio) for layer in layers if layer.ratio is not None]
    _lines(ax, steps, rows)
    ax.axhline(1e-3, color=GREY, linestyle=":", linewidth=2)
    middle = _median(np.concatenate([ratio for _, ratio in rows]))
    style.title(ax, f"Update / weight: median {number(middle)}, usual is 0.001")
    style.label(ax, "step", "norm of update / of weights", log=True)


def heat_map(metrics: Metrics | Log, *, monitor: str | None = None, ax: Axes | None = None) -> Axes:
    """Draws the norm of each layer in each step as a colour, on a log scale.

    Args:
        metrics: as described in `jaxclip.plot`, with the norms of a `jaxclip.monitor`.
        monitor: its name; `None` is `grads` if there is one, else the first.
        ax: the axes to draw into.

    Returns:
        The axes: a row for each layer, that next to the input at the bottom. Of more than 200
        steps, a column is the largest norm of several. A cross marks a norm that is not finite, a
        triangle one of 0.

    Raises:
        ImportError: if matplotlib is missing.
        ValueError: if there is no such monitor.

    Examples:
        >>> import jaxclip, matplotlib
        >>> matplotlib.use("agg")
        >>> log = {"grads/norm/a/kernel": [1.0, 30.0], "grads/norm/b/kernel": [2.0, 4.0]}
        >>> print(jaxclip.plot.heat_map(log).get_title("left"))
        grads: largest in a at step 1, 30
    """
    log = Log(metrics)
    monitor = _monitor(log, monitor)
    steps, layers = log.layers(gradient=monitor)
    ax = style.axes(ax)
    from matplotlib.colors import LogNorm

    parts = np.array_split(np.arange(len(steps)), min(len(steps), _COLUMNS))
    table = np.array([[layer.gradient[part].max() for part in parts] for layer in layers])
    shown = np.where(np.isfinite(table) & (table > 0), table, np.nan)
    known = shown[np.isfinite(shown)]
    low, high = (known.min(), known.max()) if known.size else (1.0, 1.0)
    scale = LogNorm(low, high) if low < high else LogNorm(low / 2, low * 2)
    x = np.array([steps[part].mean() for part in parts])
    edges = np.array([*[steps[part[0]] for part in parts], steps[-1] + 1]) - 0.5
    rows = np.arange(len(layers) + 1) - 0.5
    mesh = ax.pcolormesh(edges, rows, np.ma.masked_invalid(shown), norm=scale, cmap="viridis")
    for bad, marker in ((~np.isfinite(table), "x"), (table == 0, "v")):
        row, column = np.nonzero(bad[:, :: max(1, len(parts) // 25)])
        ax.plot(x[:: max(1, len(parts) // 25)][column], row, marker, color="#000000", markersize=4)
    bar = ax.figure.colorbar(mesh, ax=ax)
    bar.set_label("norm of the layer", fontsize=style.FONT)
    every = -(-len(layers) // 16)
    names = [style.plain(style.short_name(layer.name, 24)) for layer in layers[::every]]
    ax.set_yticks(range(0, len(layers), every), names)
    ax.grid(False)
    style.whole_steps(ax, steps)
    style.title(ax, f"{monitor}: {_not_finite(steps, layers) or _largest(steps, layers)}")
    style.label(ax, "step (cross: not finite, triangle: 0)", "", legend=None)
    return ax


def _largest(steps: np.ndarray, layers: Sequence[Layer]) -> str:
    """The layer and the step with the largest norm."""
    table = np.array([layer.gradient for layer in layers])
    row, column = divmod(int(table.argmax()), table.shape[1])
    name = style.short_name(layers[row].name)
    return f"largest in {name} at step {steps[column]:.0f}, {number(table.max())}"
