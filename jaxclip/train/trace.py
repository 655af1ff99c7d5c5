"""What a run left behind, put together from its epochs: the material of figures and findings."""

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxclip.train.loop import Epoch, State, Telemetry, tensor_names, tensor_norms

Watch = Callable[[State], np.ndarray]


class Trace:
    """What a run left behind: a row of telemetry a step, scores and what was watched an epoch."""

    def __init__(self, name: str):
        """Begins empty."""
        self.name = name
        self.telemetry: Telemetry = {}
        self.ends: list[int] = []
        self.test_accuracy: list[float] = []
        self.watched: list[np.ndarray] = []

    def add(self, epoch: Epoch, watch: Watch | None = None) -> None:
        """Appends an epoch, and what `watch` sees in the state at its end."""
        for key, values in epoch.telemetry.items():
            earlier = self.telemetry.get(key, values[:0])
            self.telemetry[key] = np.concatenate([earlier, values])
        self.ends.append(len(self.telemetry["loss"]))
        self.test_accuracy.append(epoch.test_accuracy)
        if watch is not None:
            self.watched.append(watch(epoch.state))

    @property
    def loss(self) -> np.ndarray:
        """The loss at each step, before its update."""
        return self.telemetry["loss"]

    def kernel_norms(self, step: int) -> np.ndarray:
        """Returns the gradient norm of each layer's kernel at a step, from the input on."""
        kernels = [name for name in tensor_names(self.telemetry) if name.endswith("/kernel")]
        return tensor_norms(self.telemetry, "grads", kernels)[step]

    def first_nonfinite(self) -> int | None:
        """Returns the first step whose loss is not finite, None if there is none."""
        bad = np.flatnonzero(~np.isfinite(self.loss))
        return int(bad[0]) if bad.size else None

    def summary(self) -> dict[str, Any]:
        """Returns what goes into the table."""
        return {
            "first_loss": float(self.loss[0]),
            "last_loss": float(self.loss[-1]),
            "test_accuracy": self.test_accuracy[-1],
            "steps": len(self.loss),
            "first_nonfinite_step": self.first_nonfinite(),
            "grad_norm_by_layer_first_step": self.kernel_norms(0),
            "largest_unit_norm": float(self.watched[-1].max()) if self.watched else None,
        }
