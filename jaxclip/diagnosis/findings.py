"""Findings: statistics of the layers' norms, their limits, and the sentences that report them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from jaxclip.diagnosis.activations import Units
from jaxclip.diagnosis.layers import Layer

LAYERS = 3  # a trend over depth needs at least this many layers,
PER_LAYER = 1.5  # a change of the norm per layer by more than this factor,
IN_ALL = 100.0  # and a change from the output to the input by more than this factor
GROWTH = 1000.0  # the global norm grows over the steps by more than this factor
WINDOW = 5  # the first and last steps are this many, or half of all steps if there are fewer
DEAD = 0.5  # more than this share of a layer's units is dead
SATURATED = 0.5  # more than this share of (unit, example) pairs is saturated

_CURES = {
    "exploding": "Clipping by the global norm (jaxclip.clip_by_global_norm) bounds the step; "
    "smaller weights to start from, or normalization, remove the cause.",
    "vanishing": "Clipping cannot make it larger; ReLU with He initialization, normalization and "
    "residual connections can.",
}


class Trend:
    """The norms of the layers that count, from input to output.

    Each layer is represented by the median over the steps in which every layer is finite; if there
    is no such step, over the steps in which it is finite itself.

    Attributes:
        factor: the factor by which the norm changes from one layer to the next towards the input.
            This is the Theil-Sen slope of the logarithm: the median over all pairs of layers, which
            one or two odd layers do not change much. Layers without a positive finite norm are
            left out; NaN if fewer than two remain.
        near: the positive norm nearest the input; 0 if there is none.
        far: the positive norm nearest the output; 0 if there is none.
        layers: the number of layers.
        finite: the number of layers with a finite norm.
        zeros: the number of layers, counted from the input, whose norm is exactly 0.
    """

    def __init__(self, norms: Sequence[np.ndarray]):
        """Takes one array of shape (steps,) per layer."""
        table = np.array(norms, ndmin=2)  # without layers, one row without steps
        good = np.isfinite(table).all(axis=0)
        profile = np.array([median(row) for row in (table[:, good] if good.any() else table)])
        finite = profile[np.isfinite(profile)]
        where = np.flatnonzero(np.isfinite(profile) & (profile > 0))
        logs, (i, j) = np.log(profile[where]), np.triu_indices(len(where), 1)
        self.factor = float(np.exp(-median((logs[j] - logs[i]) / (where[j] - where[i]))))
        self.near, self.far = profile[where[[0, -1]]].tolist() if where.size else (0.0, 0.0)
        self.layers, self.finite = len(profile), len(finite)
        self.zeros = int(np.sum(np.cumprod(finite == 0)))

    @property
    def finding(self) -> str:
        """The finding, which needs a large change per layer and a large change in all."""
        if self.finite < LAYERS:
            return "none"
        if self.factor > PER_LAYER and self.near > IN_ALL * self.far:
            return "exploding"
        fades = self.factor < 1 / PER_LAYER and self.far > IN_ALL * self.near
        return "vanishing" if fades else "none"


def median(values: np.ndarray) -> float:
    """The median of the finite values; NaN if there are none."""
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if finite.size else float("nan")


def first_nonfinite(layers: Sequence[Layer]) -> tuple[int, str] | None:
    """The first step with a non-finite gradient, and the layer nearest the output that has one."""
    bad = ~np.isfinite([layer.gradient for layer in layers])
    if not bad.any():
        return None
    step = int(bad.any(axis=0).argmax())
    hit = list(itertools.compress(layers, bad[:, step]))
    return step, ([layer for layer in hit if layer.deep] or hit)[-1].name


def growth(layers: Sequence[Layer]) -> float:
    """The global norm of the last finite steps over that of the first; NaN if unknown."""
    norms = np.hypot.reduce([layer.gradient for layer in layers], axis=0)
    finite = norms[np.isfinite(norms)]
    size = min(WINDOW, len(finite) // 2)
    first, last = median(finite[:size]), median(finite[-size:])
    return last / first if first > 0 else float("nan")


def say_nonfinite(
    layers: Sequence[Layer], broken: tuple[int, str] | None, first_step: int
) -> Iterator[str]:
    """Where gradients that are not finite began."""
    if broken is None:
        return
    step, name = broken
    when = f"at step {step + first_step}, " if len(layers[0].gradient) > 1 or first_step else ""
    deep = [layer for layer in layers if layer.deep]
    some_finite = any(np.isfinite(layer.gradient[step]) for layer in deep)
    if some_finite and name != deep[-1].name:
        extent = " is NaN or inf, and every layer nearer the output is finite"
        place = " on the way back through the network"
    else:
        others = "" if some_finite or len(deep) == 1 else " and of every other layer"
        extent = f", nearest the output,{others} is NaN or inf"
        place = ", in the loss or on the way forward"
    yield (
        f"non-finite: {when}the gradient of {name}{extent}: it began there{place}. Clipping cannot "
        "mend it; jaxclip.skip_nonfinite leaves such a step out."
    )


def say_exploding(norms: Trend, biases: Trend, growth: float) -> Iterator[str]:
    """Gradients that explode over depth, and over the steps."""
    yield from _say_trend("exploding", norms, biases)
    if growth > GROWTH:
        yield (
            f"exploding: over the steps the global norm of the gradient grew {growth:.2g} times. "
            "Clip by the global norm (jaxclip.clip_by_global_norm), or lower the learning rate."
        )


def say_vanishing(norms: Trend, biases: Trend) -> Iterator[str]:
    """Gradients that vanish over depth, or are exactly 0 from the input on."""
    if norms.zeros == norms.layers:
        yield (
            "vanishing: the gradient is exactly 0 in every layer: the loss does not depend on "
            "the weights, or all units are dead."
        )
    elif norms.zeros and norms.finding != "vanishing":
        yield f"vanishing: the gradient norm{_zeros(norms)}. {_CURES['vanishing']}"
    else:
        yield from _say_trend("vanishing", norms, biases)


def say_units(units: Sequence[Units]) -> Iterator[str]:
    """Layers with many dead units, and layers with many saturated units."""
    dead = [f"{percent(u.dead)} of the units of {u.name}" for u in units if u.dead > DEAD]
    if dead:
        yield (
            f"dead: {', '.join(dead)} have no slope at any of the examples, so no gradient gets "
            "through them. Lower the learning rate, or take an activation with a slope everywhere."
        )
    full = [u for u in units if u.bounded and u.saturated > SATURATED]
    if full:
        yield (
            f"saturated: {', '.join(f'{percent(u.saturated)} of {u.name}' for u in full)} (units "
            "times examples) lie where the activation is flat. Start from smaller weights, or "
            "normalize."
        )


def say_none(norms: Trend) -> str:
    """The sentence if there is no finding."""
    if norms.finite < LAYERS:
        few = "1 layer is" if norms.finite == 1 else f"{norms.finite} layers are"
        return f"none: nothing was found; {few} too few for a trend over depth."
    return (
        "none: nothing was found. From the output to the input the gradient norm goes from "
        f"{norms.far:.2g} to {norms.near:.2g} over {norms.finite} layers, by a factor of "
        f"{norms.factor:.2f} a layer."
    )


def percent(share: float) -> str:
    """A share as a whole percentage."""
    return f"{100 * share:.0f} %"


def _say_trend(finding: str, norms: Trend, biases: Trend) -> Iterator[str]:
    """The trend of the norms, else that of the biases, if it is this finding."""
    trend = norms if norms.finding == finding else biases
    if trend.finding != finding:
        return
    number, also = "gradient norm", f", and{_zeros(norms)}." if norms.zeros else "."
    if trend is biases:
        number = "gradient norm of the biases"
        also = (
            ". They show the error on its way back; in the weights' gradients the activations hide "
            "it."
        )
    verb, times = ("falls", 1 / trend.factor) if trend.factor < 1 else ("grows", trend.factor)
    yield (
        f"{finding}: from the output to the input the {number} {verb} by a factor of {times:.2g} a "
        f"layer, from {trend.far:.2g} to {trend.near:.2g} over {trend.layers} layers{also} "
        f"{_CURES[finding]}"
    )


def _zeros(norms: Trend) -> str:
    which = "the first layer" if norms.zeros == 1 else f"the first {norms.zeros} layers"
    return f" is exactly 0 in {which} (underflow, dead units or frozen weights)"
