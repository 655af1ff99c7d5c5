"""Figures of several panels: all that a run recorded, and several runs side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxclip._validate import short
from jaxclip.plot import layer_panels, step_panels, style
from jaxclip.plot.log import Log, Metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LOSSES = ("loss", "train_loss", "train/loss")


class _Panel(NamedTuple):
    """A panel, and whether a log has its numbers."""

    draw: Callable[..., Axes]
    is_in: Callable[[Log], bool]


def _loss(log: Log, *, ax: Axes) -> Axes:
    return step_panels.series(log, next(key for key in _LOSSES if key in log.keys), ax=ax)


_PANELS = {
    "loss": _Panel(_loss, lambda log: any(key in log.keys for key in _LOSSES)),
    "clipping": _Panel(step_panels.clipping, lambda log: bool(log.rules())),
    "norms of layers": _Panel(layer_panels.norms, lambda log: bool(log.monitors())),
    "norms by layer and step": _Panel(layer_panels.heat_map, lambda log: bool(log.monitors())),
    "update / weight": _Panel(
        layer_panels.ratios, lambda log: {"updates", "weights"} <= {*log.monitors()}
    ),
    "clip rate": _Panel(step_panels.clip_rate, lambda log: bool(log.ending("/fraction"))),
}


def overview(metrics: Metrics, *, fig: Figure | None = None) -> Figure:
    """Draws a panel for each thing that a run recorded.

    Args:
        metrics: as described in `jaxclip.plot`. Panels show the loss (key `loss`, `train_loss` or
            `train/loss`), the first rule's norm and threshold, the norms of layers by the monitor
            `grads` or the first, the ratios of the monitors `updates` and `weights`, and the share
            of clipped updates, as far as they are there.
        fig: the figure to draw into.

    Returns:
        The figure.

    Raises:
        ImportError: if matplotlib is missing.
        ValueError: if none of these was recorded.

    Examples:
        >>> import jaxclip, matplotlib
        >>> matplotlib.use("agg")
        >>> log = [{"loss": 1 / (i + 1), "grads/norm/w": 2.0 * i} for i in range(5)]
        >>> fig = jaxclip.plot.overview(log)
        >>> [ax.get_xlabel() for ax in fig.axes][:2]
        ['step', 'step']
    """
    log = Log(metrics)
    chosen = _recorded([log])
    rows = -(-len(chosen) // 3)
    columns = min(len(chosen), 3)
    fig = style.new_figure(fig, (4.8 * columns, 3.7 * rows))
    cells = fig.subplots(rows, columns, squeeze=False).ravel()
    for name, ax in zip(chosen, cells, strict=False):
        _PANELS[name].draw(log, ax=ax)
    for ax in cells[len(chosen) :]:
        ax.set_axis_off()
    return fig


def side_by_side(runs: Mapping[str, Metrics], *, fig: Figure | None = None) -> Figure:
    """Draws several runs, a column for each, with the panels of `overview` as rows.

    Args:
        runs: the metrics of each run, by its name.
        fig: the figure to draw into.

    Returns:
        The figure. The panels of a row have one scale.

    Raises:
        ImportError: if matplotlib is missing.
        ValueError: if there is no run, or none of them recorded what the panels show.

    Examples:
        >>> import jaxclip, matplotlib
        >>> matplotlib.use("agg")
        >>> fig = jaxclip.plot.side_by_side(
        ...     {"plain": {"loss": [2.3, 2.0]}, "clipped": {"loss": [2.3, 1.0]}}
        ... )
        >>> [ax.get_title("left") for ax in fig.axes]
        ['loss: 2.3 at first, 2 at the end', 'loss: 2.3 at first, 1 at the end']
    """
    logs = {name: Log(metrics) for name, metrics in runs.items()}
    chosen = _recorded(list(logs.values()))
    size = (max(4.6 * len(logs), 6.0), 3.3 * len(chosen) + 0.4)
    fig = style.new_figure(fig, size)
    cells = fig.subplots(len(chosen), len(logs), squeeze=False)
    drawn: dict[str, list[Axes]] = {name: [] for name in chosen}
    for (name, log), column in zip(logs.items(), cells.T, strict=True):
        head = {"xytext": (0, 36), "textcoords": "offset points", "ha": "center"}
        column[0].annotate(
            style.plain(name), (0.5, 1), xycoords="axes fraction", weight="bold", **head
        )
        for kind, ax in zip(chosen, column, strict=True):
            if _PANELS[kind].is_in(log):
                drawn[kind].append(_PANELS[kind].draw(log, ax=ax))
            else:
                ax.text(0.5, 0.5, f"{kind}:\nnot recorded", ha="center", va="center")
                ax.set_axis_off()
    for kind, row in drawn.items():
        _equal_colours(row) if kind == "norms by layer and step" else _equal_scales(row)
    return fig


def _recorded(logs: Sequence[Log]) -> list[str]:
    """The panels for which one of the runs has the numbers.

    Raises:
        ValueError: if there are none.
    """
    found = [name for name, panel in _PANELS.items() if any(map(panel.is_in, logs))]
    if not found:
        keys = short(list(dict.fromkeys(key for log in logs for key in log.keys)))
        raise ValueError(f"nothing to draw: no loss, rule or monitor in the keys {keys}")
    return found


def _equal_scales(row: Sequence[Axes]) -> None:
    if any(ax.get_yscale() == "log" for ax in row):
        for ax in row:
            ax.set_yscale("log")
    limits = np.array([ax.get_ylim() for ax in row])
    for ax in row:
        ax.set_ylim(limits.min(), limits.max())


def _equal_colours(row: Sequence[Axes]) -> None:
    limits = np.array([ax.collections[0].get_clim() for ax in row])
    for ax in row:
        ax.collections[0].set_clim(limits.min(), limits.max())
