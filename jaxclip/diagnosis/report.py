"""The diagnosis as a whole: its parts put together, and printed."""

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxclip.diagnosis import findings as _findings
from jaxclip.diagnosis import layers as _depth
from jaxclip.diagnosis.activations import Units
from jaxclip.diagnosis.layers import Layer


class Diagnosis(NamedTuple):
    """What gradients tell about vanishing and exploding; `print` it.

    Attributes:
        finding: the main one: `"non-finite"`, `"exploding"`, `"vanishing"`, `"dead"` or
            `"saturated"` (units), or `"none"`, which means that none of these was found, not that
            all is well.
        findings: all that were found, the main one first, each a sentence that begins with its
            word; one that begins with `none` if nothing was.
        layers: one row for each layer, from input to output.
        factor: by what the gradient norm changes from one layer to the next one towards the input,
            below 1 where it vanishes; NaN where fewer than two layers have a gradient.
        bias_factor: the same for the biases' gradients alone, NaN where they cannot tell.
        growth: the global norm in the last steps over that in the first; NaN for a single step.
        nonfinite: the earliest step with a gradient that is not finite, and the layer nearest the
            output of those that have one; `None` if all are finite.
        units: one row for each array of preactivations.
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
        words = [textwrap.fill(sentence, 88) for sentence in self.findings]
        tables = [_layer_table(self.layers)] + [_unit_table(self.units)] * bool(self.units)
        return "\n\n".join(["\n".join(words), *tables])


def diagnosis(rows: tuple[Layer, ...], units: tuple[Units, ...], first_step: int) -> Diagnosis:
    """Puts everything together, the worst first."""
    deep = [row for row in rows if row.deep]
    norms = _findings.over_depth([row.gradient for row in deep])
    errors = _findings.over_depth([row.bias for row in deep if row.bias is not None])
    broken, growth = _findings.nonfinite(rows), _findings.growth(_depth.whole(rows))
    found = [
        *_findings.say_nonfinite(rows, broken, first_step),
        *_findings.say_exploding(norms, errors),
        *_findings.say_growing(growth),
        *_findings.say_vanishing(norms, errors),
        *_findings.say_units(units),
    ] or [_findings.say_none(norms)]
    return Diagnosis(
        finding=found[0].partition(":")[0],
        findings=tuple(found),
        layers=rows,
        factor=norms.factor,
        bias_factor=errors.factor,
        growth=growth,
        nonfinite=None if broken is None else (broken[0] + first_step, broken[1]),
        units=units,
    )


def _layer_table(rows: Sequence[Layer]) -> str:
    """Medians over the steps; a column only where something is known."""
    columns = {
        "gradient": [row.gradient for row in rows],
        "of biases": [row.bias for row in rows],
        "weight": [row.weight for row in rows],
        "update": [row.update for row in rows],
        "update/weight": [row.ratio for row in rows],
    }
    known = {title: cells for title, cells in columns.items() if any(x is not None for x in cells)}
    texts = zip(*([_number(cell) for cell in cells] for cells in known.values()), strict=True)
    lines = [[row.name, *text] for row, text in zip(rows, texts, strict=True)]
    return _aligned([["layer", *known], *lines])


def _number(values: np.ndarray | None) -> str:
    return "" if values is None else f"{_depth.typical(values):.2g}"


def _unit_table(units: Sequence[Units]) -> str:
    rows = [[u.name, f"{100 * u.dead:.0f} %", f"{100 * u.saturated:.0f} %"] for u in units]
    return _aligned([["units", "dead", "saturated"], *rows])


def _aligned(lines: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in lines
    )
