"""The complete diagnosis, and its printed form."""

import textwrap
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from jaxclip.diagnosis import findings, habits, trend
from jaxclip.diagnosis.activations import Units
from jaxclip.diagnosis.course import Course
from jaxclip.diagnosis.layers import Layer, Order
from jaxclip.diagnosis.trend import Trend


class Diagnosis(NamedTuple):
    """Whether gradients vanish or explode, and other findings; `print` it.

    Attributes:
        finding: the main finding, one of those in the table of `jaxclip.diagnosis`.
        findings: all findings, the main one first, as sentences that begin with the finding; then
            sentences that begin with `sound`, for numbers that are as they should be, and `note`,
            for numbers that could not be judged.
        layers: the layers, from input to output as far as the order is known.
        factor: the mean factor by which the gradient norm changes from one layer to the next
            towards the input, below 1 if it vanishes; NaN if the order is unknown or fewer than two
            layers have a gradient.
        bias_factor: the same factor for the gradients of the biases; NaN if it is unknown.
        growth: the global norm in the last steps over that in the first; NaN for a single step.
        nonfinite: the first step with a gradient that is not finite, and a layer that has one, that
            nearest the output if the order is known; `None` if all gradients are finite.
        units: one entry per array of preactivations.
        time_factor: the mean factor by which the norm changes from one time step to the one before
            it; NaN if it is unknown.
    """

    finding: str
    findings: tuple[str, ...]
    layers: tuple[Layer, ...]
    factor: float
    bias_factor: float
    growth: float
    nonfinite: tuple[int, str] | None
    units: tuple[Units, ...]
    time_factor: float

    def __str__(self) -> str:
        """The findings, and a table of the layers."""
        sentences = "\n".join(textwrap.fill(sentence, 88) for sentence in self.findings)
        tables = [_layer_table(self.layers)] + [_unit_table(self.units)] * bool(self.units)
        return "\n\n".join([sentences, *tables])


def conclude(
    layers: tuple[Layer, ...],
    course: Course,
    order: Order = None,
    units: tuple[Units, ...] = (),
    time: Trend | None = None,
) -> Diagnosis:
    """Collects the findings, the worst first."""
    norms, biases = trend.of_layers(layers), trend.of_biases(layers)
    broken = findings.first_nonfinite(layers)
    worst = [
        *findings.say_nonfinite(layers, broken, course),
        *findings.say_exploding(norms, biases, broken, course),
        *findings.say_vanishing(layers, norms, biases),
        *findings.say_time(time, course),
        *findings.say_zero(layers, norms),
    ]
    bad = [
        *worst,
        *findings.say_units(units),
        *habits.say_loss(course),
        *habits.say_clipped(course),
        *([] if broken else habits.say_skipped(course)),
        *habits.say_updates(layers, course, alone=not worst),
    ]
    parts = habits.sound(layers, norms, biases, time, course)
    lead = "sound: no alarm from these:" if bad else "healthy:"
    good = [f"{lead} {'; '.join(parts)}."] if parts else []
    sentences = [*bad, *good, *habits.say_unclipped(course)]
    for unknown in habits.say_unknown(layers, norms, order, time):
        sentences.append(f"{'note' if sentences else 'none'}: {unknown}")
    return Diagnosis(
        sentences[0].partition(":")[0],
        tuple(sentences),
        layers,
        norms.factor,
        biases.factor,
        course.growth,
        None if broken is None else (int(course.steps[broken[0]]), broken[1]),
        units,
        float("nan") if time is None else time.factor,
    )


def _layer_table(layers: Sequence[Layer]) -> str:
    """Medians over the steps, without the columns that are empty."""
    titles = ("layer", "gradient", "of biases", "weight", "update", "update/weight")
    rows = (
        [x.name, *map(_number, (x.gradient, x.bias, x.weight, x.update, x.ratio))] for x in layers
    )
    return _table(titles, rows)


def _number(values: np.ndarray | None) -> str:
    return "" if values is None else f"{trend.median(values):.2g}"


def _unit_table(units: Sequence[Units]) -> str:
    """The shares; saturation only of activations that are flat at both ends."""
    shares = [(u.dead, u.saturated if u.bounded else None) for u in units]
    rows = [["" if x is None else findings.percent(x) for x in pair] for pair in shares]
    names = [[u.name] for u in units]
    return _table(("units", "dead", "saturated"), map(list.__add__, names, rows))


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The columns that are not empty as lines: the first flush left, the others flush right."""
    columns = [column for column in zip(titles, *rows, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    lines = (
        [row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]
        for row in zip(*columns, strict=True)
    )
    return "\n".join("  ".join(line).rstrip() for line in lines)
