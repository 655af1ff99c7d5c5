"""Findings about a run besides its gradients, and the sentences about sound numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from jaxclip.diagnosis import course as courses
from jaxclip.diagnosis.course import USUAL, Counts, Course
from jaxclip.diagnosis.findings import GROWTH, listed, percent
from jaxclip.diagnosis.layer_order import LayerOrder
from jaxclip.diagnosis.layers import Layer, Order
from jaxclip.diagnosis.trend import LAYERS, Trend, median

SHORT = 10  # clipped steps and the loss are judged from this many steps on
OFTEN = 0.5  # more than this share of the steps is clipped
AT_CHANCE = 0.98  # the loss is above this share of that of a guess,
HIGH = 10.0  # or above this multiple
FAR = 30.0  # an update is more than this factor away from 1e-3 of the weights


def say_loss(course: Course) -> Iterator[str]:
    """A loss that is no better than a guess, or that does not fall."""
    if course.loss is None or course.steps[-1] - course.steps[0] < SHORT - 1:
        return
    if not np.isfinite(course.loss[-1]):
        return
    first, last = courses.ends(course.loss)
    falls = "falls" if last < first else "does not fall"
    trend = f"it {falls}: {courses.between(course.loss, '.4g')}"
    if course.chance is not None and last > HIGH * course.chance:
        yield (
            f"loss: far above the {course.chance:.4g} of a constant guess. Smaller weights to "
            f"start from, or a lower learning rate, keep it from such sizes. Here {trend}."
        )
    elif course.chance is not None and last > AT_CHANCE * course.chance:
        yield f"loss: no better than the {course.chance:.4g} of a constant guess; {trend}."
    elif last >= first:
        yield f"loss: {trend}."


def say_clipped(course: Course) -> Iterator[str]:
    """Rules that clip more than half of the steps."""
    for rule in course.rules:
        if rule.acted is not None and rule.acted > OFTEN * rule.updates >= OFTEN * SHORT:
            share = percent(rule.acted / rule.updates)
            yield (
                f"clipped: {rule.name} clipped {rule.acted} of {rule.updates} steps ({share}); "
                f"{_norms(rule)}. The threshold, not the gradient, sets the length of these steps."
            )


def say_unclipped(course: Course) -> Iterator[str]:
    """Rules that never clip."""
    for rule in course.rules:
        if rule.acted == 0 and rule.updates >= SHORT and np.isfinite(rule.thresholds[-1]):
            yield (
                f"unclipped: {rule.name} clipped none of {rule.updates} steps; {_norms(rule)}. "
                "Lower the threshold, or leave the rule out."
            )


def _norms(rule: Counts) -> str:
    finite = rule.norms[np.isfinite(rule.norms)].max(initial=0.0)
    elements = rule.name.rpartition("/")[2] in ("clip", "clip_by_value")
    measured = "element" if elements else "norm"
    return (
        f"the largest {measured} that it recorded is {finite:.2g}, its last threshold "
        f"{rule.thresholds[-1]:.2g}"
    )


def say_skipped(course: Course) -> Iterator[str]:
    """Steps that guards skipped."""
    for guard in course.guards:
        if guard.acted:
            yield f"skipped: {guard.name} skipped {guard.acted} of {guard.updates} steps."


def say_updates(layers: Sequence[Layer], course: Course, *, alone: bool) -> Iterator[str]:
    """Layers whose updates are far from 1e-3 of the weights.

    The learning rate, or the threshold of a rule that clips, may be the cause if it stands `alone`:
    no gradient vanishes or explodes.
    """
    clips = "the threshold or " if list(say_clipped(course)) else ""
    known = _ratios(layers)
    for far, word, rate in (
        ([pair for pair in known if pair[0] < USUAL / FAR], "below", "low"),
        ([pair for pair in known[::-1] if pair[0] > USUAL * FAR], "above", "high"),
    ):
        if far:
            names = listed([f"{ratio:.2g} in {name}" for ratio, name in far])
            cause = f": {clips}the learning rate may be too {rate}" if alone else ""
            yield f"updates: update/weight is {names}, far {word} the usual {USUAL:g}{cause}."


def _ratios(layers: Sequence[Layer]) -> list[tuple[float, str]]:
    """Update over weight of each layer, in the steps that changed it, if any; the least first."""
    known: list[tuple[float, str]] = []
    for layer in layers:
        if layer.deep and layer.ratio is not None:
            moved = layer.ratio[layer.ratio > 0]
            known.append((median(moved if moved.size else layer.ratio), layer.name))
    return sorted(known, key=lambda pair: pair[0])


def sound(
    layers: Sequence[Layer], norms: Trend, biases: Trend, time: Trend | None, course: Course
) -> list[str]:
    """The numbers that are as they should be, as parts of a sentence."""
    parts: list[str] = []
    judged = {norms.over_depth, biases.over_depth} == {"none"} and not norms.zeros
    if norms.finite >= LAYERS and judged and norms.level:
        parts.append(
            f"the gradient norm changes by a factor of {norms.factor:.3g} a layer, from "
            f"{norms.far:.2g} at the output to {norms.near:.2g} at the input, over {norms.span} "
            "layers"
        )
    if time is not None and time.finite >= LAYERS and not time.zeros and time.level_in_all:
        parts.append(
            f"through time it changes by a factor of {time.factor:.3g} a time step, over "
            f"{time.span} steps"
        )
    if len(course.steps) > 1 and np.isfinite(course.norms).all() and not course.growth > GROWTH:
        parts.append(
            f"the norm of all gradients is finite in all {len(course.steps)} recorded steps: "
            f"{courses.between(course.norms, '.2g')}"
        )
    ratios = [ratio for ratio, _ in _ratios(layers)]
    if ratios and USUAL / FAR <= ratios[0] <= ratios[-1] <= USUAL * FAR:
        parts.append(f"update/weight is {ratios[0]:.2g} to {ratios[-1]:.2g}")
    if course.loss is not None and len(course.loss) > 1 and not list(say_loss(course)):
        first, last = courses.ends(course.loss)
        if last < first:
            parts.append(f"the loss falls: {courses.between(course.loss, '.4g')}")
    return parts


def say_unknown(
    layers: Sequence[Layer], norms: Trend, order: Order, time: Trend | None
) -> Iterator[str]:
    """Why depth or time was not judged, and how it can be."""
    deep = [layer for layer in layers if layer.deep]
    places = {layer.place for layer in deep if layer.place is not None}
    if not places and len(deep) >= LAYERS and order is None:
        yield (
            "the order of the layers is unknown, so nothing is said about depth; give "
            "order=jaxclip.diagnosis.layer_order(loss, params, *batch)."
        )
    elif len(places or deep) < LAYERS:
        count = len(places or deep)
        yield f"{count} layer{'s are' if count > 1 else ' is'} too few for a trend over depth."
    if norms.finite >= LAYERS and norms.over_depth == "none" and not norms.level:
        yield (
            f"the gradient norm is {norms.far:.2g} at the output and {norms.near:.2g} at the "
            "input, but the layers between do not follow this trend."
        )
    if time is not None and time.over_time == "none" and not (time.zeros or time.level_in_all):
        yield (
            f"the gradient norm is {time.far:.2g} at the last time step and {time.near:.2g} at the "
            "first, but the steps between do not follow this trend."
        )
    if not isinstance(order, LayerOrder):
        return
    stacks = {leaf for leaf, place in order.places.items() if isinstance(place, tuple)}
    stacks |= {leaf.rpartition("/")[0] for leaf in stacks}
    whole = [x.name for x in deep if x.place is None and x.name in stacks]
    if whole:
        yield f"{listed(whole)} stacks layers; give stacked= to see each of them."
    if order.recurrent and time is None:
        yield (
            "a loop uses the same weights in each step; give through_time= to see whether "
            "gradients vanish or explode through time."
        )
