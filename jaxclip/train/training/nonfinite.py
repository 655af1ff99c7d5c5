"""Detects non-finite losses: the step, and the first non-finite gradient before it.

A guard may skip a step with a non-finite loss; only a loss that no guard skipped ends a run.
"""

import numpy as np

from jaxclip.train.errors import RunError
from jaxclip.train.training import tensor_norms
from jaxclip.train.training.tensor_norms import Telemetry


class NonFiniteLossError(RunError):
    """The loss became NaN or infinite."""


def failure(first_step: int, telemetry: Telemetry) -> str | None:
    """Describes the first non-finite loss and the first non-finite gradient.

    Args:
      first_step: the number of the telemetry's first row.
      telemetry: arrays with a row for each step.

    Returns:
      None if every loss is finite or belongs to a step that a guard skipped.
    """
    bad = bad_rows(telemetry)
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


def bad_rows(telemetry: Telemetry) -> np.ndarray:
    """Returns the rows with a non-finite loss that no guard skipped."""
    return np.flatnonzero(~np.isfinite(telemetry["loss"]) & ~skipped(telemetry))


def skipped(telemetry: Telemetry) -> np.ndarray:
    """Returns for each step whether a guard skipped it."""
    guards = [values for key, values in telemetry.items() if key.endswith("/skipped")]
    return np.any([np.zeros(len(telemetry["loss"]), bool), *guards], axis=0)
