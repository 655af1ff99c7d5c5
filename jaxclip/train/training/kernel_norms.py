"""What is watched of the weights: the norms of every kernel's units, and what bounds them.

A unit is what the projection that binds the kernel says it is; where none does, one output's
incoming weights, a column of the kernel. How norms are drawn is in `figures`.
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
_UNITS: dict[tuple[int, ...], str] = {(0,): "columns", (1,): "rows"}


class Kernel(NamedTuple):
    """A kernel, the axes that a unit of it reduces, and the largest norm that a unit may have."""

    layer: int
    axis: tuple[int, ...] = (0,)
    limit: float | None = None

    @property
    def name(self) -> str:
        """Returns its name in the telemetry."""
        return f"layers/{self.layer}/kernel"

    @property
    def label(self) -> str:
        """Returns its name in a figure, what its units are, and their limit: `W1, rows ≤ 1`."""
        limit = "" if self.limit is None else f" ≤ {self.limit:g}"
        return f"W{self.layer + 1}, {_UNITS.get(self.axis, 'whole')}{limit}"


def kernels(config: Config, params: Tree) -> tuple[Kernel, ...]:
    """Returns every kernel of a run, from the input on; where several bind one, the last counts."""
    found = {number: Kernel(number) for number in params["layers"]}
    for bound in optimizer.projections(config, params):
        if bound.limit is not None:
            units = Kernel(0, bound.spec.units, bound.limit)
            found |= {number: units._replace(layer=number) for number in bound.layers}
    return tuple(found[number] for number in sorted(found))


def watch(
    watched: Sequence[Kernel], jit: Callable[..., Any] = jax.jit
) -> Callable[[State], np.ndarray]:
    """Returns what looks at a state: a row (largest norm, median norm) for each kernel.

    `jit` compiles a function of what may be spread over devices.
    """

    def look(layers: Tree) -> list[jax.Array]:
        return [norms.unit_norms(layers[k.layer]["kernel"], axis=k.axis) for k in watched]

    compiled = jit(look)

    def seen(state: State) -> np.ndarray:
        found = jax.device_get(compiled(state.params["layers"]))
        return np.array([(np.max(units), np.median(units)) for units in found])

    return seen


def record(watched: Sequence[Kernel], seen: np.ndarray) -> dict[str, float]:
    """Returns what was seen, for an epoch's line in `metrics.jsonl`."""
    return {
        f"weights/{what}/{kernel.name}": float(value)
        for kernel, row in zip(watched, seen, strict=True)
        for what, value in zip(("largest", "median"), row, strict=True)
    }
