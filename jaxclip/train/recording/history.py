"""The history of a run, from its epochs or from its `metrics.jsonl`: data of figures and summaries.

A run that was killed and resumed has written some steps twice; the later record counts. So the
history of a resumed run equals that of a run that was never interrupted.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxclip.train.recording import metrics_file, strict_json
from jaxclip.train.training import nonfinite, tensor_norms
from jaxclip.train.training.loop import Epoch, State
from jaxclip.train.training.tensor_norms import Telemetry

Watch = Callable[[State], np.ndarray]
_LABELS = ("kind", "epoch", "step")


class History:
    """The records of one run.

    Attributes:
      name: the run's name in figures.
      telemetry: arrays with a row for each recorded step.
      steps: the numbers of those steps.
      epochs: the record of each epoch.
      watched: the result of `watch` after each epoch.
    """

    def __init__(self, name: str):
        """Creates an empty history."""
        self.name = name
        self.telemetry: Telemetry = {}
        self.steps = np.zeros(0, int)
        self.epochs: list[dict[str, Any]] = []
        self.watched: list[np.ndarray] = []

    def add(self, epoch: Epoch, watch: Watch | None = None) -> None:
        """Appends an epoch, and the result of `watch` on the state at its end."""
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
    def steps_done(self) -> list[int]:
        """The number of steps done after each epoch."""
        return [epoch["steps"] for epoch in self.epochs]

    def by_epoch(self, key: str) -> np.ndarray:
        """Returns one number of every epoch's record."""
        return np.array([epoch[key] for epoch in self.epochs])

    @property
    def test_accuracy(self) -> np.ndarray:
        """The accuracy on the test images after each epoch."""
        return self.by_epoch("test_accuracy")

    def kernel_norms(self, step: int) -> np.ndarray:
        """Returns the gradient norm of each layer's kernel at a step, the input's layer first."""
        kernels = [n for n in tensor_norms.names(self.telemetry) if n.endswith("/kernel")]
        return tensor_norms.norms(self.telemetry, "grads", kernels)[step]

    def first_nonfinite(self) -> int | None:
        """Returns the first recorded step with a non-finite loss that no guard skipped, or None."""
        bad = nonfinite.bad_rows(self.telemetry)
        return int(self.steps[bad[0]]) if bad.size else None

    def summary(self) -> dict[str, Any]:
        """Returns the run's numbers for a summary."""
        return {
            "first_loss": float(self.loss[0]),
            "last_loss": float(self.loss[-1]),
            "test_accuracy": float(self.test_accuracy[-1]),
            "steps": self.steps_done[-1],
            "first_nonfinite_step": self.first_nonfinite(),
            "grad_norm_by_layer_first_step": self.kernel_norms(0),
            "largest_unit_norm": float(self.watched[-1].max()) if self.watched else None,
        }


def read(folder: Path) -> History:
    """Reads the last run in a folder."""
    run: dict[str, Any] = {}
    steps: dict[int, dict[str, Any]] = {}
    epochs: dict[int, dict[str, Any]] = {}
    with (folder / metrics_file.NAME).open() as file:
        for line in file:
            record = json.loads(line)
            if record["kind"] == "run":
                run, steps, epochs = record, {}, {}
            elif record["kind"] == "step":
                steps[record["step"]] = record
            elif record["kind"] == "epoch":
                epochs[record["epoch"]] = {k: strict_json.number(v) for k, v in record.items()}
    history = History(run.get("preset", ""))
    history.steps = np.array(sorted(steps), int)
    history.telemetry = _columns([steps[number] for number in sorted(steps)])
    history.epochs = [epochs[number] for number in sorted(epochs)]
    return history


def _columns(records: list[dict[str, Any]]) -> Telemetry:
    keys = [key for key in (records[0] if records else {}) if key not in _LABELS]
    return {key: np.array([strict_json.number(r[key]) for r in records]) for key in keys}
