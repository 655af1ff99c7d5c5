"""What norms of layers tell: what they are held against, and the sentences that say so.

Which layers there are and how a number changes over them is in `_depth`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxclip.diagnosis import layers as _depth
from jaxclip.diagnosis.activations import Units
from jaxclip.diagnosis.layers import Layer

LAYERS = 3  # a trend over depth needs so many layers
PER_LAYER = 1.5  # the norm falls, or grows, by more than this from layer to layer towards the input
IN_ALL = 100.0  # and by more than this from the output to the input
GROWTH = 1000.0  # the global norm grows by more than this from the first steps to the last
WINDOW = 5  # so many steps are the first, and the last; half of all if there are fewer than twice
DEAD = 0.5  # more units of a layer than this are dead
SATURATED = 0.5  # more pairs of a unit and an example are saturated, where both ends saturate


class Trend(NamedTuple):
    """A number over the layers that count, from input to output."""

    factor: float
    profile: np.ndarray

    @property
    def ends(self) -> tuple[float, float]:
        """The number at the input and at the output, where it is not 0."""
        there = self.profile[np.isfinite(self.profile) & (self.profile > 0)]
        return (float(there[0]), float(there[-1])) if there.size else (0.0, 0.0)

    @property
    def lost(self) -> int:
        """How many layers, from the input on, have exactly 0."""
        return int(np.cumprod(self.profile[np.isfinite(self.profile)] == 0).sum())

    @property
    def finding(self) -> str:
        """Steady over the layers, and large in all."""
        near, far = self.ends
        if np.isfinite(self.profile).sum() < LAYERS or near == 0:
            return "none"
        if self.factor > PER_LAYER and near > IN_ALL * far:
            return "exploding"
        fades = self.factor < 1 / PER_LAYER and far > IN_ALL * near
        return "vanishing" if fades else "none"


def over_depth(norms: Sequence[np.ndarray]) -> Trend:
    """The trend of one row of norms for each layer; of nothing without layers.

    Over the steps in which every layer is finite, or over each layer's own if there is none.
    """
    table = np.array(norms)
    if not len(table):
        return Trend(float("nan"), table)
    good = np.isfinite(table).all(axis=0)
    profile = np.array([_depth.typical(row) for row in (table[:, good] if good.any() else table)])
    return Trend(_depth.factor(profile), profile)


def nonfinite(rows: Sequence[Layer]) -> tuple[int, str] | None:
    """The earliest step, and the last layer of that step: see `diagnose` for why."""
    bad = ~np.isfinite([row.gradient for row in rows])
    if not bad.any():
        return None
    step = int(bad.any(axis=0).argmax())
    hit = [row for row, flag in zip(rows, bad[:, step], strict=True) if flag]
    return step, ([row for row in hit if row.deep] or hit)[-1].name


def growth(norms: np.ndarray) -> float:
    """The median of the last finite norms over that of the first; NaN where there is none."""
    finite = norms[np.isfinite(norms)]
    size = min(WINDOW, len(finite) // 2)
    first = np.median(finite[:size]) if size else 0.0
    return float(np.median(finite[-size:]) / first) if first > 0 else float("nan")


def say_nonfinite(
    rows: Sequence[Layer], broken: tuple[int, str] | None, first_step: int
) -> Iterator[str]:
    if broken is None:
        return
    step, name = broken
    when = f"at step {step + first_step}, " if len(rows[0].gradient) > 1 or first_step else ""
    deep = [row for row in rows if row.deep]
    finite = any(np.isfinite(row.gradient[step]) for row in deep)
    if finite and name != deep[-1].name:
        yield (
            f"non-finite: {when}the gradient of {name} is NaN or inf, and every layer nearer the "
            "output is finite: it began there on the way back through the network. Clipping cannot "
            "mend it; jaxclip.skip_nonfinite leaves such a step out."
        )
    else:
        extent = "" if finite or len(deep) == 1 else " and of every other layer"
        yield (
            f"non-finite: {when}the gradient of {name}, nearest the output,{extent} is NaN or inf: "
            "it began there, in the loss or on the way forward. Clipping cannot mend it; "
            "jaxclip.skip_nonfinite leaves such a step out."
        )


def say_exploding(norms: Trend, errors: Trend) -> Iterator[str]:
    cure = (
        "Clipping by the global norm (jaxclip.clip_by_global_norm) bounds the step; smaller "
        "weights to start from, or normalization, remove the cause."
    )
    if norms.finding == "exploding":
        yield f"exploding: {_course(norms, 'gradient norm')}. {cure}"
    elif errors.finding == "exploding":
        yield (
            f"exploding: {_course(errors, 'gradient norm of the biases')}. They show the error on "
            f"its way back; in the weights' gradients the activations hide it. {cure}"
        )


def say_growing(growth: float) -> Iterator[str]:
    if growth > GROWTH:
        yield (
            f"exploding: over the steps the global norm of the gradient grew {growth:.2g} times. "
            "Clip by the global norm (jaxclip.clip_by_global_norm), or lower the learning rate."
        )


def say_vanishing(norms: Trend, errors: Trend) -> Iterator[str]:
    cure = (
        "Clipping cannot make it larger; ReLU with He initialization, normalization and residual "
        "connections can."
    )
    if norms.profile.size and norms.lost == len(norms.profile):
        yield (
            "vanishing: the gradient is exactly 0 in every layer: the loss does not depend on "
            "the weights, or all units are dead."
        )
    elif norms.finding == "vanishing":
        yield f"vanishing: {_course(norms, 'gradient norm')}{_lost(norms)}. {cure}"
    elif norms.lost:
        yield f"vanishing: the gradient norm{_lost(norms, also='')}. {cure}"
    elif errors.finding == "vanishing":
        yield (
            f"vanishing: {_course(errors, 'gradient norm of the biases')}. They show the error on "
            f"its way back; in the weights' gradients the activations hide it. {cure}"
        )


def say_units(units: Sequence[Units]) -> Iterator[str]:
    dead = [f"{100 * u.dead:.0f} % of the units of {u.name}" for u in units if u.dead > DEAD]
    full = [(u.name, u.saturated) for u in units if u.bounded and u.saturated > SATURATED]
    if dead:
        yield (
            f"dead: {', '.join(dead)} have no slope at any of the examples, so no gradient gets "
            "through them. Lower the learning rate, or take an activation with a slope everywhere."
        )
    if full:
        shares = ", ".join(f"{100 * share:.0f} % of {name}" for name, share in full)
        yield (
            f"saturated: {shares} (units times examples) lie where the activation is flat. Start "
            "from smaller weights, or normalize."
        )


def say_none(norms: Trend) -> str:
    layers = int(np.isfinite(norms.profile).sum())
    if layers < LAYERS:
        few = "1 layer is" if layers == 1 else f"{layers} layers are"
        return f"none: nothing was found; {few} too few for a trend over depth."
    near, far = norms.ends
    return (
        f"none: nothing was found. From the output to the input the gradient norm goes from "
        f"{far:.2g} to {near:.2g} over {layers} layers, by a factor of {norms.factor:.2f} a layer."
    )


def _course(trend: Trend, what: str) -> str:
    near, far = trend.ends
    falls = trend.factor < 1
    verb, times = ("falls", 1 / trend.factor) if falls else ("grows", trend.factor)
    return (
        f"from the output to the input the {what} {verb} by a factor of {times:.2g} a layer, from "
        f"{far:.2g} to {near:.2g} over {len(trend.profile)} layers"
    )


def _lost(trend: Trend, also: str = ", and") -> str:
    which = "the first layer" if trend.lost == 1 else f"the first {trend.lost} layers"
    reasons = "underflow, dead units or frozen weights"
    return f"{also} is exactly 0 in {which} ({reasons})" if trend.lost else ""
