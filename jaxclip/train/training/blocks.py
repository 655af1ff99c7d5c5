"""Blocks of steps: between two of them a run can be stopped, saved or watched.

A block is any range of an epoch's steps. All blocks have one program, whose loop takes the range as
an argument, so an epoch's result does not depend on its blocks.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxclip.train.training import processes
from jaxclip.train.training.tensor_norms import Telemetry

SECONDS = 0.4  # the duration of a block, if a step is not longer
_GROWTH = 8  # of the first blocks, from one step on


class Part(NamedTuple):
    """The first steps of an epoch.

    Attributes:
      number: the epoch's number, from 0.
      steps: the number of these steps.
      state: the state after them, valid until the next block begins.
      blocks: the telemetry of each block, arrays with a row for each step.
      seconds: the duration of the blocks.
    """

    number: int
    steps: int
    state: Any
    blocks: tuple[Telemetry, ...] = ()
    seconds: float = 0.0

    @property
    def telemetry(self) -> Telemetry:
        """Arrays with a row for each step."""
        keys = self.blocks[0] if self.blocks else ()
        return {key: np.concatenate([block[key] for block in self.blocks]) for key in keys}


class Length:
    """The number of steps in the next block, from the duration of the last one."""

    def __init__(self):
        """Begins with one step, which also compiles, and is not measured."""
        self._steps = 1
        self._compiled = False

    def next(self, left: int) -> int:
        """Returns the next block's length, `left` steps before the end of an epoch."""
        return left if left < 1.5 * self._steps else self._steps

    def measure(self, steps: int, seconds: float) -> None:
        """Notes the duration of a block."""
        if self._compiled:
            wanted = int(steps * SECONDS / max(seconds, 1e-6))
            self._steps = processes.smallest(min(max(wanted, 1), _GROWTH * self._steps))
        self._compiled = True


def train(
    epoch: Callable[..., Any], part: Part, arrays: Sequence[Any], total: int, length: Length
) -> Iterator[Part]:
    """Trains the rest of an epoch, and yields after every block.

    Args:
      epoch: `(state, *arrays, bounds) -> (state, telemetry)`, see `loop.scan`.
      part: the steps that are done.
      arrays: images, labels, and the epoch's batches and numbers of steps.
      total: the number of steps in the epoch.
      length: the length of the blocks.
    """
    while part.steps < total:
        start = time.perf_counter()
        stop = part.steps + length.next(total - part.steps)
        bounds = np.array([part.steps, stop], np.int32)
        state, telemetry = epoch(part.state, *arrays, bounds)
        host = jax.device_get(telemetry)
        block = {key: np.asarray(values)[part.steps : stop] for key, values in host.items()}
        seconds = time.perf_counter() - start
        length.measure(stop - part.steps, seconds)
        part = Part(part.number, stop, state, (*part.blocks, block), part.seconds + seconds)
        yield part
