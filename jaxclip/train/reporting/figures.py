"""Figures: panels side by side in the style of `jaxclip.plot`; those of a run and its weights."""

import io
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxclip import plot
from jaxclip.plot import style
from jaxclip.plot.style import FONT, GREY
from jaxclip.train.recording import files
from jaxclip.train.recording.history import History
from jaxclip.train.reporting.terminal import number
from jaxclip.train.training.kernel_norms import Kernel
from jaxclip.train.words import count

_ACCURACY = "test accuracy (%)"


def panels(titles: Sequence[str], headline: str) -> tuple[Figure, Sequence[Axes]]:
    """Returns a figure with a headline, and a panel for each title side by side."""
    figure = Figure(figsize=(12, 5), layout="constrained")
    figure.suptitle(style.plain(headline), fontsize=FONT + 3, fontweight="bold")
    axes = figure.subplots(1, len(titles), squeeze=False)[0]
    for ax, title in zip(axes, titles, strict=True):
        style.title(style.axes(ax), title)
    return figure, axes


def line(ax: Axes, x, y, text: str, colour: str, dashes: str = "-", **options) -> None:
    """Draws a line."""
    ax.plot(x, y, dashes, color=colour, label=text, linewidth=2.2, **options)


def note(ax: Axes, text: str, point, offset, **options) -> None:
    """Writes text at a point, `offset` typographical points away."""
    options = {"textcoords": "offset points", "fontsize": FONT} | options
    ax.annotate(text, point, xytext=offset, **options)


def legend_below(figure: Figure, ax: Axes, columns: int) -> None:
    """Draws the legend of `ax` below all panels."""
    figure.legend(*style.entries(ax), fontsize=FONT - 1, loc="outside lower center", ncols=columns)


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG; a letter that the font lacks is drawn as a box."""
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        figure.savefig(content, dpi=110, format="png")
    files.replace(path, content.getvalue())


def run(history: History, *, clips: bool, path: Path) -> None:
    """Draws a training run: loss, gradient norm and threshold, test accuracy."""
    figure, axes = panels(("", "", ""), _headline(history))
    steps, telemetry = {"step": history.steps}, history.telemetry
    plot.series(steps | telemetry, "loss", ax=axes[0])
    rules = [key.removesuffix("/threshold") for key in telemetry if key.endswith("/threshold")]
    rule = next((rule for rule in rules if not rule.startswith("project_")), None)
    if rule is not None:
        plot.clipping(steps | telemetry, rule=rule, ax=axes[1])
    else:
        norms = {"after clipping": "clipped/norm", "before clipping": "grads/norm"}
        norms = norms if clips else {"gradient norm": "grads/norm"}
        log = style.spans_decades(np.concatenate([telemetry[key] for key in norms.values()]))
        for name, key in norms.items():
            one = steps | {"gradient norm": telemetry[key]}
            plot.series(one, "gradient norm", name=name, log=log, ax=axes[1])
    accuracy = 100 * history.test_accuracy
    epochs = np.arange(1, len(accuracy) + 1)
    plot.series({"step": epochs, _ACCURACY: accuracy}, _ACCURACY, log=False, ax=axes[2])
    axes[2].set_xlabel("epoch", fontsize=FONT)
    save(figure, path)


def _headline(history: History) -> str:
    lost = history.first_nonfinite()
    if lost is not None:
        return f"{history.name}: the loss is not finite from step {lost} on"
    accuracy = history.test_accuracy
    after = count(len(accuracy), "epoch")
    return f"{history.name}: test accuracy {100 * accuracy[-1]:.1f} % after {after}"


def weights(history: History, kernels: Sequence[Kernel], path: Path) -> None:
    """Draws the largest and the median norm of every kernel's units, and their limits."""
    statistics = ("largest", "median")
    rows = [[history.by_epoch(f"weights/{s}/{k.name}") for s in statistics] for k in kernels]
    norms = np.stack(rows).transpose(2, 0, 1)  # (epoch, kernel, statistic)
    limits = sorted({kernel.limit for kernel in kernels if kernel.limit is not None})
    ends = f"goes from {number(norms[0, :, 0].max())} to {number(norms[-1, :, 0].max())}"
    ends = ends if np.isfinite(norms).all() else "is not finite"
    headline = f"{history.name}: the largest norm of a unit's weights {ends}"
    figure, axes = panels(("Largest unit of each kernel", "Median unit of each kernel"), headline)
    log = style.spans_decades(np.array([*norms.ravel(), *limits]))
    epochs = np.arange(1, len(norms) + 1)
    for column, ax in enumerate(axes):
        ax.sharey(axes[0])
        for i, look in enumerate(style.looks(len(kernels))):
            style.line(ax, epochs, norms[:, i, column], kernels[i].label, look, log=log)
        for limit in limits:
            ax.axhline(limit, color=GREY, linestyle="--", linewidth=2, zorder=3)
        style.whole_steps(ax, epochs)
        y = "norm of a unit's weights" + " (dashed: the limit)" * bool(limits)
        style.label(ax, "epoch", y, log=log, legend=None)
    legend_below(figure, axes[0], columns=4)
    save(figure, path)
