"""A loss that is not finite: at which step, where a gradient was so first, and whether it matters.

A guard that skipped the step has dealt with it. What ends a run is a loss that no guard skipped.
"""

import numpy as np

from jaxclip.train.errors import RunError
from jaxclip.train.training import tensor_norms
from jaxclip.train.training.tensor_norms import Telemetry


class NonFiniteLossError(RunError):
    """The loss became NaN or infinite."""


def failure(first_step: int, telemetry: Telemetry) -> str | None:
    """Says at which step the loss became non-finite, and where a gradient did so first.

    Args:
      first_step: the number of the telemetry's first row.
      telemetry: one row a step.

    Returns:
      None if every loss is finite, or its step was skipped by a guard.
    """
    bad = np.flatnonzero(~np.isfinite(telemetry["loss"]) & ~skipped(telemetry))
    if not bad.size:
        return None
    steps = f"steps {first_step} to {first_step + len(telemetry['loss']) - 1}"
    where = f"the loss is {telemetry['loss'][bad[0]]} at step {first_step + bad[0]} ({steps})"
    names = tensor_norms.names(telemetry)
    finite = np.isfinite(tensor_norms.norms(telemetry, "grads", names))
    rows, columns = np.nonzero(~finite & ~skipped(telemetry)[:, None])
    if not rows.size:
        return f"{where}; no gradient was non-finite"
    at = first_step + rows[0]
    return f"{where}; first non-finite gradient: {names[columns[0]]} at step {at}"


def skipped(telemetry: Telemetry) -> np.ndarray:
    """Returns which steps a guard skipped, shape (steps,)."""
    guards = [values for key, values in telemetry.items() if key.endswith("/skipped")]
    return np.any([np.zeros(len(telemetry["loss"]), bool), *guards], axis=0)
