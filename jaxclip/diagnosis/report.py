"""The complete diagnosis, and its printed form."""

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxclip.diagnosis import findings
from jaxclip.diagnosis.activations import Units
from jaxclip.diagnosis.layers import Layer


class Diagnosis(NamedTuple):
    """Whether gradients vanish or explode; `print` it.

    Attributes:
        finding: the main finding: `"non-finite"`, `"exploding"`, `"vanishing"`, `"dead"` or
            `"saturated"` (units), or `"none"` if none of these applies, which does not mean that
            all is well.
        findings: all findings, the main one first, as sentences that begin with the finding.
        layers: the layers, from input to output.
        factor: the factor by which the gradient norm changes from one layer to the next towards
            the input, below 1 if it vanishes; NaN if fewer than two layers have a gradient.
        bias_factor: the same factor for the gradients of the biases; NaN if it is unknown.
        growth: the global norm in the last steps over that in the first; NaN for a single step.
        nonfinite: the first step with a gradient that is not finite, and the layer nearest the
            output that has one; `None` if all gradients are finite.
        units: one entry per array of preactivations.
    """

    finding: str
    findings: tuple[str, ...]
    layers: tuple[Layer, ...]
    factor: float
    bias_factor: float
    growth: float
    nonfinite: tuple[int, str] | None
    units: tuple[Units, ...]

    def __str__(self) -> str:
        """The findings, and a table of the layers."""
        sentences = "\n".join(textwrap.fill(sentence, 88) for sentence in self.findings)
        tables = [_layer_table(self.layers)] + [_unit_table(self.units)] * bool(self.units)
        return "\n\n".join([sentences, *tables])


def conclude(
    layers: tuple[Layer, ...], units: tuple[Units, ...] = (), first_step: int = 0
) -> Diagnosis:
    """Collects the findings, the worst first."""
    deep = [layer for layer in layers if layer.deep]
    norms = findings.Trend([layer.gradient for layer in deep])
    biases = findings.Trend([layer.bias for layer in deep if layer.bias is not None])
    growth, nonfinite = findings.growth(layers), findings.first_nonfinite(layers)
    sentences = (
        *findings.say_nonfinite(layers, nonfinite, first_step),
        *findings.say_exploding(norms, biases, growth),
        *findings.say_vanishing(norms, biases),
        *findings.say_units(units),
    ) or (findings.say_none(norms),)
    if nonfinite is not None:
        nonfinite = nonfinite[0] + first_step, nonfinite[1]
    main = sentences[0].partition(":")[0]
    return Diagnosis(main, sentences, layers, norms.factor, biases.factor, growth, nonfinite, units)


def _layer_table(layers: Sequence[Layer]) -> str:
    """Medians over the steps, without the columns that are empty."""
    titles = ("layer", "gradient", "of biases", "weight", "update", "update/weight")
    rows = (
        [x.name, *map(_number, (x.gradient, x.bias, x.weight, x.update, x.ratio))] for x in layers
    )
    return _aligned([column for column in zip(titles, *rows, strict=True) if any(column[1:])])


def _number(values: np.ndarray | None) -> str:
    return "" if values is None else f"{findings.median(values):.2g}"


def _unit_table(units: Sequence[Units]) -> str:
    rows = ((u.name, findings.percent(u.dead), findings.percent(u.saturated)) for u in units)
    return _aligned(list(zip(("units", "dead", "saturated"), *rows, strict=True)))


def _aligned(columns: Sequence[Sequence[str]]) -> str:
    """The columns as lines of text: the first flush left, the others flush right."""
    widths = [max(map(len, column)) for column in columns]
    lines = (
        [row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]
        for row in zip(*columns, strict=True)
    )
    return "\n".join("  ".join(line).rstrip() for line in lines)
