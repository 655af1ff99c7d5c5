"""Norms of the units of every kernel, and the limits that projections set on them.

The projection that binds a kernel defines its units. Without one, a unit is a column of the kernel:
the incoming weights of one output.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxclip import norms
from jaxclip.train.config.presets import Config
from jaxclip.train.training import optimizer
from jaxclip.train.training.loop import State

Tree = Any
_UNITS: dict[tuple[int, ...], str] = {(0,): "column", (1,): "row"}


class Kernel(NamedTuple):
    """A kernel and its units.

    Attributes:
      layer: the number of its layer.
      axis: the axes that a unit's norm reduces.
      limit: the largest norm that a projection allows a unit.
    """

    layer: int
    axis: tuple[int, ...] = (0,)
    limit: float | None = None

    @property
    def name(self) -> str:
        """The kernel's name in the telemetry."""
        return f"layers/{self.layer}/kernel"

    @property
    def unit(self) -> str:
        """The word for one of its units: `column`, `row` or `whole`."""
        return _UNITS.get(self.axis, "whole")

    @property
    def label(self) -> str:
        """The kernel's name in a figure, as `layers/0, row ≤ 1`."""
        limit = "" if self.limit is None else f" ≤ {self.limit:g}"
        return f"layers/{self.layer}, {self.unit}{limit}"


def kernels(config: Config, params: Tree) -> tuple[Kernel, ...]:
    """Returns every kernel from the input on; if several projections bind one, the last counts."""
    result = {number: Kernel(number) for number in params["layers"]}
    for projection in optimizer.projections(config, params):
        if projection.limit is not None:
            for number in projection.layers:
                result[number] = Kernel(number, projection.spec.units, projection.limit)
    return tuple(result[number] for number in sorted(result))


def watch(
    kernels: Sequence[Kernel], jit: Callable[..., Any] = jax.jit
) -> Callable[[State], np.ndarray]:
    """Returns a function from a state to the largest and the median unit norm of each kernel.

    Args:
      kernels: a row of the result for each.
      jit: compiles a function of arrays that may be sharded.
    """

    @jit
    def unit_norms(layers: Tree) -> list[jax.Array]:
        return [norms.unit_norms(layers[k.layer]["kernel"], axis=k.axis) for k in kernels]

    def largest_and_median(state: State) -> np.ndarray:
        units = jax.device_get(unit_norms(state.params["layers"]))
        return np.array([(np.max(u), np.median(u)) for u in units])

    return largest_and_median


def record(kernels: Sequence[Kernel], rows: np.ndarray) -> dict[str, float]:
    """Returns the result of `watch` for the epoch's record in `metrics.jsonl`."""
    return {
        f"weights/{statistic}/{kernel.name}": float(value)
        for kernel, row in zip(kernels, rows, strict=True)
        for statistic, value in zip(("largest", "median"), row, strict=True)
    }
