"""What a run left behind, put together from its epochs: the material of figures and findings."""

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxclip.train.recording import metrics_file
from jaxclip.train.training import nonfinite, tensor_norms
from jaxclip.train.training.loop import Epoch, State
from jaxclip.train.training.tensor_norms import Telemetry

Watch = Callable[[State], np.ndarray]


class Trace:
    """What a run left behind.

    Attributes:
      name: what it is called in figures.
      telemetry: a row for each recorded step.
      steps: the numbers of those steps.
      epochs: the record of each epoch.
      watched: what was watched of the state after each epoch.
    """

    def __init__(self, name: str):
        """Begins empty."""
        self.name = name
        self.telemetry: Telemetry = {}
        self.steps = np.zeros(0, int)
        self.epochs: list[dict[str, Any]] = []
        self.watched: list[np.ndarray] = []

    def add(self, epoch: Epoch, watch: Watch | None = None) -> None:
        """Appends an epoch, and what `watch` sees in the state at its end."""
        for key, values in epoch.telemetry.items():
            earlier = self.telemetry.get(key, values[:0])
            self.telemetry[key] = np.concatenate([earlier, values])
        numbers = epoch.first_step + np.arange(len(epoch.telemetry["loss"]))
        self.steps = np.concatenate([self.steps, numbers])
        self.epochs.append(metrics_file.epoch_record(epoch))
        if watch is not None:
            self.watched.append(watch(epoch.state))

    @property
    def loss(self) -> np.ndarray:
        """The loss at each recorded step, before its update."""
        return self.telemetry["loss"]

    @property
    def ends(self) -> list[int]:
        """How many steps were done after each epoch."""
        return [epoch["steps"] for epoch in self.epochs]

    def by_epoch(self, key: str) -> np.ndarray:
        """Returns one number of every epoch's record."""
        return np.array([epoch[key] for epoch in self.epochs])

    @property
    def test_accuracy(self) -> np.ndarray:
        """The accuracy on the test images after each epoch."""
        return self.by_epoch("test_accuracy")

    def kernel_norms(self, step: int) -> np.ndarray:
        """Returns the gradient norm of each layer's kernel at a step, from the input on."""
        kernels = [name for name in tensor_norms.names(self.telemetry) if name.endswith("/kernel")]
        return tensor_norms.norms(self.telemetry, "grads", kernels)[step]

    def first_nonfinite(self) -> int | None:
        """Returns the first recorded step of a non-finite loss that no guard skipped, or None."""
        bad = np.flatnonzero(~np.isfinite(self.loss) & ~nonfinite.skipped(self.telemetry))
        return int(self.steps[bad[0]]) if bad.size else None

    def summary(self) -> dict[str, Any]:
        """Returns what goes into the table."""
        return {
            "first_loss": float(self.loss[0]),
            "last_loss": float(self.loss[-1]),
            "test_accuracy": float(self.test_accuracy[-1]),
            "steps": self.ends[-1],
            "first_nonfinite_step": self.first_nonfinite(),
            "grad_norm_by_layer_first_step": self.kernel_norms(0),
            "largest_unit_norm": float(self.watched[-1].max()) if self.watched else None,
        }
