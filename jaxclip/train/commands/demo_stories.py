"""The three stories of `jaxclip demo`: their runs, their figures and their sentences."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxclip import norms
from jaxclip.plot import style
from jaxclip.plot.style import BLUE, GREEN, GREY, ORANGE
from jaxclip.train.config import presets
from jaxclip.train.config.presets import Config
from jaxclip.train.recording.history import History, Watch
from jaxclip.train.reporting import figures
from jaxclip.train.reporting.terminal import number, percent
from jaxclip.train.training.loop import State


class Variant(NamedTuple):
    """One run of a story: `steps` of `config`, with `watch` called after each epoch."""

    name: str
    config: Config
    steps: int
    watch: Watch | None = None


class Story(NamedTuple):
    """A few runs, a figure of them, and a sentence about their result."""

    name: str
    variants: tuple[Variant, ...]
    draw: Callable[[Sequence[History], Path], None]
    finding: Callable[[Sequence[History]], str]


# Vanishing -------------------------------------------------------------------------------------

_DEEP = Config(
    preset="demo",
    sizes=(64,) * 11,
    activation="sigmoid",
    init="glorot",
    loss="cross_entropy",
    learning_rate=0.1,
)
# base, style, colour, offset and side of the label
_POWERS = ((1.01, "-", GREEN, (-8, 6), "bottom"), (0.99, "--", ORANGE, (-8, -6), "top"))


def _vanishing_finding(histories: Sequence[History]) -> str:
    sigmoid, clipped, relu = histories
    first, *between, last = sigmoid.kernel_norms(0)
    relu_first, *_, relu_last = relu.kernel_norms(0)
    return (
        f"vanishing: through {len(between) + 1} sigmoid layers the gradient norm falls from "
        f"{number(last)} at the output to {number(first)} at the input; with ReLU and He "
        f"initialization from {number(relu_last)} to {number(relu_first)}. Clipping does not cure "
        f"it: an upper bound leaves small gradients small (test accuracy "
        f"{percent(sigmoid.test_accuracy[-1])} without clipping, "
        f"{percent(clipped.test_accuracy[-1])} with clipping, "
        f"{percent(relu.test_accuracy[-1])} with ReLU). "
        f"0.99^365 = {0.99**365:.4f}, 1.01^365 = {1.01**365:.2f}."
    )


def _draw_vanishing(histories: Sequence[History], path: Path) -> None:
    figure, (left, right) = figures.panels(
        ("Gradient norm of each layer at the first step", "Why: a product of 365 equal factors"),
        "Gradients vanish through sigmoid layers; clipping does not restore them",
    )
    styles = ((ORANGE, "-o"), (GREY, ":x"), (BLUE, "-s"))
    for history, (colour, dashes) in zip(histories, styles, strict=True):
        values = history.kernel_norms(0)
        figures.line(left, np.arange(1, len(values) + 1), values, history.name, colour, dashes)
    style.label(left, "layer (1 = next to the input)", "gradient norm of the kernel", log=True)
    n = np.arange(366)
    for base, dashes, colour, offset, side in _POWERS:
        figures.line(right, n, base**n, f"${base}^n$", colour, dashes)
        text = f"${base}^{{365}}$ = {base**365:.4g}"
        figures.note(right, text, (365, base**365), offset, ha="right", va=side)
    right.set_ylim(0.01, 100)
    style.label(right, "number of factors n", "product", log=True, legend="upper left")
    figures.save(figure, path)


# Exploding -------------------------------------------------------------------------------------

_THRESHOLD = 300
_WILD = presets.get("forward").override({"preset": "demo", "init_std": 1.0, "log_every": 10})


def _exploding_finding(histories: Sequence[History]) -> str:
    wild, clipped = histories
    at = wild.first_nonfinite()
    end = f"overflows after {at} steps" if at is not None else f"is {number(wild.loss[-1])}"
    return (
        f"exploding: with weights of standard deviation 1 the loss is {number(wild.loss[0])} at "
        f"first; without clipping it {end}, with clip_by_global_norm({_THRESHOLD}) it is "
        f"{number(clipped.loss[-1])} after {len(clipped.loss)} steps (test accuracy "
        f"{percent(clipped.test_accuracy[-1])}: clipping keeps the loss finite, but a good "
        "initialization reaches a higher accuracy)."
    )


def _draw_exploding(histories: Sequence[History], path: Path) -> None:
    wild, clipped = histories
    wild_end = wild.first_nonfinite()
    end = "grows" if wild_end is None else f"overflows after {wild_end} steps"
    figure, (left, right) = figures.panels(
        ("Training loss", "Global gradient norm, before clipping"),
        f"Weights of std 1: without clipping the loss {end}; clipped, it falls",
    )
    for ax, key in ((left, "loss"), (right, "grads/norm")):
        for history, colour, dashes in ((clipped, BLUE, "-"), (wild, ORANGE, "-o")):
            values = history.telemetry[key].astype(np.float64)
            finite = np.flatnonzero(np.isfinite(values))
            figures.line(ax, finite + 1, values[finite], history.name, colour, dashes)
        last = np.flatnonzero(np.isfinite(wild.telemetry[key]))[-1]
        at = (last + 1, float(wild.telemetry[key][last]))
        figures.note(ax, "not finite after this step", at, (12, 0), color=ORANGE, va="center")
        ax.set_xscale("log")
    right.axhline(_THRESHOLD, color=GREY, linestyle="--", label=f"threshold {_THRESHOLD}")
    style.label(left, "step (from 1)", "loss", log=True)
    style.label(right, "step (from 1)", "gradient norm", log=True)
    figures.save(figure, path)


# Max-norm --------------------------------------------------------------------------------------

_LIMIT = 1.5
_FREE = presets.get("max-norm").override({"preset": "demo", "project": (), "learning_rate": 0.05})


def _first_layer_units(state: State) -> np.ndarray:
    """Returns the norm of the incoming weights of each unit in the first layer."""
    return np.asarray(norms.unit_norms(state.params["layers"][0]["kernel"], axis=0)).ravel()


def _max_norm_finding(histories: Sequence[History]) -> str:
    free, bound = (np.stack(history.watched) for history in histories)
    return (
        f"max-norm: without projection the largest incoming weight norm of a unit grows from "
        f"{number(free[0].max())} to {number(free[-1].max())}, with project_max_norm({_LIMIT}) it "
        f"is {number(bound[-1].max())}, and {(bound[-1] > 0.999 * _LIMIT).sum()} of "
        f"{bound.shape[1]} units are at the limit. The accuracies of one seed do not say which is "
        "better."
    )


def _draw_max_norm(histories: Sequence[History], path: Path) -> None:
    figure, (left, right) = figures.panels(
        ("Largest and median unit of the first layer", "All its units at the end"),
        f"Max-norm holds every unit's weights at {_LIMIT} or below",
    )
    looks = ((ORANGE, "-", "o"), (BLUE, "--", "s"))
    for history, (colour, dashes, marker) in zip(histories, looks, strict=True):
        units, steps = np.stack(history.watched), history.steps_done
        look = {"marker": marker, "markevery": max(1, len(steps) // 8)}
        largest, median = units.max(axis=1), np.median(units, axis=1)
        figures.line(left, steps, largest, f"{history.name}: largest", colour, dashes, **look)
        name = f"{history.name}: median"
        figures.line(left, steps, median, name, colour, dashes, **look, fillstyle="none")
        look["markevery"] = max(1, units.shape[1] // 8)
        ranks = np.arange(1, units.shape[1] + 1)
        figures.line(right, ranks, np.sort(units[-1]), history.name, colour, dashes, **look)
    for ax in (left, right):
        ax.axhline(_LIMIT, color=GREY, linestyle=":", label=f"limit {_LIMIT}")
    style.label(left, "step", "norm of a unit's incoming weights", legend="upper left")
    bottom, top = left.get_ylim()
    left.set_ylim(bottom, top + 0.6 * (top - bottom))  # space for the legend
    style.label(right, "unit, in the order of its norm", "norm of its incoming weights")
    figures.save(figure, path)


STORIES = (
    Story(
        "vanishing",
        (
            Variant("sigmoid, Glorot", _DEEP, 300),
            Variant(
                "sigmoid, Glorot, clip_by_global_norm(1)",
                _DEEP.override({"clip": ("global_norm=1",)}),
                300,
            ),
            Variant("ReLU, He", _DEEP.override({"activation": "relu", "init": "he"}), 300),
        ),
        _draw_vanishing,
        _vanishing_finding,
    ),
    Story(
        "exploding",
        (
            Variant("no clipping", _WILD, 100),
            Variant(
                f"clip_by_global_norm({_THRESHOLD})",
                _WILD.override({"clip": (f"global_norm={_THRESHOLD}",)}),
                1_500,
            ),
        ),
        _draw_exploding,
        _exploding_finding,
    ),
    Story(
        "max-norm",
        (
            Variant("no projection", _FREE, 3_000, _first_layer_units),
            Variant(
                f"project_max_norm({_LIMIT})",
                _FREE.override({"project": (f"max_norm={_LIMIT},axis=0,layers=hidden",)}),
                3_000,
                _first_layer_units,
            ),
        ),
        _draw_max_norm,
        _max_norm_finding,
    ),
)
