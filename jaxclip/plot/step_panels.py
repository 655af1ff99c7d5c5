"""Axes of a run: what its rules clipped, and any number over the steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from jaxclip.plot import style
from jaxclip.plot.log import Log, Metrics
from jaxclip.plot.style import BLUE, ORANGE, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def clipping(metrics: Metrics | Log, *, rule: str | None = None, ax: Axes | None = None) -> Axes:
    """Draws the norm that a rule measured, its threshold, and the steps that it clipped.

    Args:
        metrics: as described in `jaxclip.plot`, with the metrics of a rule that has a norm.
        rule: its name; `None` is the first that clips gradients.
        ax: the axes to draw into.

    Returns:
        The axes. A threshold of inf, as in a warm-up, is left out.

    Raises:
        ImportError: if matplotlib is missing.
        ValueError: if there is no such rule.

    Examples:
        >>> import jaxclip, matplotlib
        >>> matplotlib.use("agg")
        >>> norm, threshold = [1.0, 9.0, 2.0, 1.0], [5.0] * 4
        >>> log = {"zclip/norm": norm, "zclip/threshold": threshold, "zclip/fraction": [0, 1, 0, 0]}
        >>> print(jaxclip.plot.clipping(log).get_title("left"))
        zclip clipped 1 of 4 steps; largest norm 9
    """
    log = Log(metrics)
    rules = log.rules()
    if rule not in (None, *rules) or not rules:
        raise ValueError(f"rule={rule!r}: no norm and threshold recorded; rules found: {rules}")
    rule = rule or rules[0]
    steps, values = log.series(f"{rule}/norm")
    at, threshold = log.series(f"{rule}/threshold")
    ax = style.axes(ax)
    limited = np.isfinite(threshold)
    positive = np.concatenate([values, threshold[limited]])
    is_log = style.spans_decades(positive)
    look = {"color": ORANGE, "marker": "o", "linestyle": "-"}
    style.line(ax, steps, values, "norm", look, log=is_log)
    few = "_" if limited.sum() == 1 else ""  # a line needs two points
    name = "threshold" if limited.any() else "_"
    (limit,) = ax.plot(at[limited], threshold[limited], "--", color=BLUE, label=name)
    limit.set(linewidth=2.2, marker=few, markersize=20)
    clipped = _clipped(log, rule)
    over = np.isin(steps, clipped) & np.isfinite(values)
    some = np.flatnonzero(over)[:: max(1, over.sum() // 60)]
    if some.size:
        ax.plot(steps[some], values[some], "^", color="#000000", markersize=6, label="clipped")
    bad = steps[~np.isfinite(values)]
    top = f"; norm not finite from step {bad[0]:.0f} on" if bad.size else ""
    top = top if bad.size or not steps.size else f"; largest norm {number(values.max())}"
    word = "step" if len(steps) == 1 else "steps"
    style.title(ax, f"{rule} clipped {len(clipped)} of {len(steps)} {word}{top}")
    style.whole_steps(ax, steps)
    style.label(ax, "step", "norm", log=is_log)
    return ax


def _clipped(log: Log, rule: str) -> np.ndarray:
    """The steps in which a rule changed something."""
    steps, fraction = log.series(f"{rule}/fraction")
    return steps[fraction > 0]


def clip_rate(metrics: Metrics | Log, *, ax: Axes | None = None) -> Axes:
    """Draws the share of the updates that each rule clipped: the mean over parts of the run.

    Args:
        metrics: as described in `jaxclip.plot`, with the metrics of rules.
        ax: the axes to draw into.

    Returns:
        The axes, in percent; a mean over a twentieth of the steps each.

    Raises:
        ImportError: if matplotlib is missing.
        ValueError: if no rule recorded anything.

    Examples:
        >>> import jaxclip, matplotlib
        >>> matplotlib.use("agg")
        >>> log = {"clip_by_norm/fraction": [1.0, 0.5, 0.0, 0.0]}
        >>> print(jaxclip.plot.clip_rate(log).get_title("left"))
        clip_by_norm clipped 37.5 %
    """
    log = Log(metrics)
    rules = log.ending("/fraction")
    if not rules:
        raise ValueError("no rule recorded which steps it clipped")
    ax = style.axes(ax)
    said: list[str] = []
    for rule, look in zip(rules, style.looks(len(rules)), strict=True):
        steps, fraction = log.series(f"{rule}/fraction")
        parts = np.array_split(np.arange(len(steps)), min(len(steps), 20))
        x, share = (np.array([v[part].mean() for part in parts]) for v in (steps, 100 * fraction))
        style.line(ax, x, share, rule, look)
        said.append(f"{rule} clipped {number(100 * fraction.mean())} %")
        style.whole_steps(ax, steps)
    ax.set_ylim(-3, 103)
    style.title(ax, "; ".join(said))
    style.label(ax, "step", "clipped (%)")
    return ax


def series(
    metrics: Metrics | Log,
    key: str = "loss",
    *,
    name: str | None = None,
    log: bool | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draws one number over the steps. Call it again with the same axes for another run.

    Args:
        metrics: as described in `jaxclip.plot`.
        key: the number's key.
        name: the name in the legend; `None` is the key.
        log: a log scale; `None` is one if positive values span more than a factor of 30.
        ax: the axes to draw into.

    Returns:
        The axes.

    Raises:
        ImportError: if matplotlib is missing.
        ValueError: if the key was not recorded.

    Examples:
        >>> import jaxclip, matplotlib
        >>> matplotlib.use("agg")
        >>> ax = jaxclip.plot.series({"loss": [2.3, 1.1, 0.4]}, name="plain")
        >>> ax = jaxclip.plot.series({"loss": [2.3, float("nan")]}, name="wild", ax=ax)
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['plain', 'wild', 'not finite']
    """
    found = Log(metrics)
    if key not in found.keys:
        raise ValueError(f"key={key!r} was not recorded; recorded: {found.keys[:20]}")
    steps, values = found.series(key)
    ax = style.axes(ax)
    is_log = style.spans_decades(values) if log is None else log
    drawn = {str(text) for text in ax.get_legend_handles_labels()[1]} - set(style.MARKS)
    look = style.looks(7)[len(drawn) % 7]
    style.line(ax, steps, values, name or key, look, log=is_log)
    style.whole_steps(ax, steps)
    bad = steps[~np.isfinite(values)]
    end = (
        f"not finite from step {bad[0]:.0f} on" if bad.size else f"{number(values[-1])} at the end"
    )
    style.title(ax, f"{key}: {number(values[0])} at first, {end}")
    style.label(ax, "step", key, log=is_log)
    return ax
