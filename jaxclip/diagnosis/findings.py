"""Findings about gradients: limits, and the sentences that report them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from jaxclip.diagnosis.activations import Units
from jaxclip.diagnosis.course import Counts, Course
from jaxclip.diagnosis.layers import Layer
from jaxclip.diagnosis.trend import Trend

GROWTH = 1000.0  # the global norm grows over the steps by more than this factor
DEAD = 0.5  # more than this share of a layer's units is dead
SATURATED = 0.5  # more than this share of (unit, example) pairs is saturated
_LISTED = 3  # so many layers are named, of more their number

_VANISHING = (
    "Clipping cannot make it larger; ReLU with He initialization, normalization and residual "
    "connections can."
)
_IN_TIME = "gated cells (LSTM, GRU), orthogonal recurrent weights or shorter sequences"


def first_nonfinite(layers: Sequence[Layer]) -> tuple[int, str] | None:
    """The first row with a non-finite gradient, and a layer that has one.

    It is the layer nearest the output, as far as places are known.
    """
    bad = ~np.isfinite([layer.gradient for layer in layers])
    if not bad.any():
        return None
    row = int(bad.any(axis=0).argmax())
    hit = list(itertools.compress(layers, bad[:, row]))
    placed = [(x.place, i) for i, x in enumerate(hit) if x.place is not None]
    return row, hit[max(placed)[1] if placed else -1].name


def say_nonfinite(
    layers: Sequence[Layer], broken: tuple[int, str] | None, course: Course
) -> Iterator[str]:
    """Why and where gradients that are not finite began."""
    if broken is None:
        return
    row, name = broken
    step, before = course.steps[row], course.norms[:row]
    guards = _acted(course.guards, "skipped")
    if _grew(before):
        yield (
            f"exploding: the norm of the gradient grew from {before[0]:.2g} at step "
            f"{course.steps[0]} to {before[-1]:.2g} at step {course.steps[row - 1]}, and is NaN or "
            f"inf at step {step}. {_bounded(course, row)}"
            + (f" {guards}, too late: the weights had changed before." if guards else "")
        )
        return
    when = f"at step {step}, " if len(course.steps) > 1 or step else ""
    cure = f"{guards}." if guards else "jaxclip.skip_nonfinite leaves such a step out."
    past = f"Clipping cannot mend it; {cure}"
    if row == 1:
        past = f"With one recorded step before it, this may be an explosion or a bad batch. {cure}"
    elif row:
        past = (
            f"Before, its norm was {before.max():.2g} at most and did not grow until it "
            f"overflowed: look for a bad batch, or an invalid operation such as log(0). {past}"
        )
    yield f"non-finite: {when}{_where(layers, row, name)}. {past}"


def say_exploding(
    norms: Trend, biases: Trend, broken: tuple[int, str] | None, course: Course
) -> Iterator[str]:
    """Gradients that explode over depth, and over the steps."""
    cure = f"{_bounds(course)}; smaller weights to start from, or normalization, remove the cause."
    if course.growth > GROWTH and not (broken and _grew(course.norms[: broken[0]])):
        yield (
            f"exploding: over the steps the norm of the gradient grew {course.growth:.2g} times. "
            f"{_bounded(course, len(course.norms))}"
        )
    yield from _say_depth("exploding", norms, biases, cure)


def say_vanishing(layers: Sequence[Layer], norms: Trend, biases: Trend) -> Iterator[str]:
    """Gradients that vanish over depth, or are exactly 0 from the input on."""
    if not any(layer.gradient.any() for layer in layers if layer.deep):
        yield (
            "vanishing: the gradient is exactly 0 in every layer: the loss does not depend on "
            "the weights, or all units are dead."
        )
    elif norms.zeros and norms.over_depth != "vanishing":
        yield f"vanishing: the gradient norm{_zeros(norms)}. {_VANISHING}"
    else:
        yield from _say_depth("vanishing", norms, biases, _VANISHING)


def say_zero(layers: Sequence[Layer], norms: Trend) -> Iterator[str]:
    """Single layers whose gradient is exactly 0, besides the first ones."""
    zero = [x for x in layers if x.deep and not x.gradient.any()]
    places = sorted({x.place for x in layers if x.place is not None})
    rest = [x.name for x in zero if x.place not in places[: norms.zeros]]
    if rest and len(zero) < sum(x.deep for x in layers):
        yield (
            f"zero: the gradient is exactly 0 in {listed(rest)}: dead units, underflow, or frozen "
            "or unused weights."
        )


def say_time(time: Trend | None, course: Course) -> Iterator[str]:
    """Gradients that explode or vanish through the time steps of a recurrent layer."""
    if time is None:
        return
    start = "from the last time step to the first the gradient norm"
    end = f"a time step, from {time.far:.2g} to {time.near:.2g} over {time.span} steps."
    if time.over_time == "exploding":
        cure = f"{_bounds(course)}; {_IN_TIME} remove the cause."
        yield f"exploding: {start} {_change(time)} {end} {cure}"
    elif time.over_time == "vanishing" or time.zeros:
        zeros = f"is exactly 0 in the first {time.zeros} of {time.places} steps."
        said = f"{_change(time)} {end}" if time.over_time == "vanishing" else zeros
        yield f"vanishing: {start} {said} Clipping cannot make it larger; {_IN_TIME} can."


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


def percent(share: float) -> str:
    """A share as a whole percentage."""
    return f"{100 * share:.0f} %"


def listed(names: Sequence[str]) -> str:
    """The names, or the first of many and their number."""
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")


def _grew(norms: np.ndarray) -> bool:
    """Whether finite norms grew until the next one overflowed."""
    return len(norms) > 1 and norms[-1] > GROWTH * norms[: (len(norms) + 1) // 2].min()


def _where(layers: Sequence[Layer], row: int, name: str) -> str:
    deep = [layer for layer in layers if layer.deep]
    hit = [layer for layer in deep if not np.isfinite(layer.gradient[row])]
    if hit and len(hit) == len(deep):
        every = f"the gradient of {name}" if len(deep) == 1 else "the gradient of every layer"
        return f"{every} is NaN or inf: it began in the loss or on the way forward"
    places = [layer.place for layer in hit if layer.place is not None]
    if not places or len(places) < len(hit):
        names = [layer.name for layer in hit] or [name]
        return f"the gradient is NaN or inf in {listed(names)}, and finite in other layers"
    if max(places) == max(layer.place for layer in deep if layer.place is not None):
        return (
            f"the gradient of {name}, nearest the output, is NaN or inf: it began there, in the "
            "loss or on the way forward"
        )
    return (
        f"the gradient of {name} is NaN or inf, and every layer nearer the output is finite: it "
        "began there on the way back through the network"
    )


def _acted(counts: Sequence[Counts], verb: str) -> str:
    return ", ".join(f"{c.name} {verb} {c.acted} of {c.updates} steps" for c in counts if c.acted)


def _bounds(course: Course) -> str:
    """The rules that bound the step: those of the run, or one to take."""
    names = [rule.name for rule in course.rules]
    return f"{listed(names) or 'jaxclip.clip_by_global_norm'} bounds the step"


def _bounded(course: Course, end: int) -> str:
    """A bound to take, or the counts of the rules of the run."""
    if not course.rules:
        bound = f"jaxclip.clip_by_global_norm({course.bound(end):g})"
        return f"A bound on the norm helps, such as {bound}, and so does a lower learning rate."
    did = _acted(course.rules, "clipped") or f"{listed([r.name for r in course.rules])} is there"
    return f"{did}, which was not enough: lower the threshold or the learning rate."


def _say_depth(finding: str, norms: Trend, biases: Trend, cure: str) -> Iterator[str]:
    """The trend of the norms, else that of the biases, if it is this finding."""
    trend = norms if norms.over_depth == finding else biases
    if trend.over_depth != finding:
        return
    number, also = "gradient norm", f", and{_zeros(norms)}." if norms.zeros else "."
    if trend is biases:
        number = "gradient norm of the biases"
        also = (
            ". The gradient of a weight is also multiplied by the input of its layer, which hides "
            "this."
        )
    yield (
        f"{finding}: from the output to the input the {number} {_change(trend)} a layer, from "
        f"{trend.far:.2g} to {trend.near:.2g} over {trend.span} layers{also} {cure}"
    )


def _change(trend: Trend) -> str:
    verb, times = ("falls", 1 / trend.factor) if trend.factor < 1 else ("grows", trend.factor)
    return f"{verb} by a factor of {times:.3g}"


def _zeros(norms: Trend) -> str:
    which = "the first layer" if norms.zeros == 1 else f"the first {norms.zeros} layers"
    return f" is exactly 0 in {which} (underflow, dead units or frozen weights)"
