"""The history of a run, from its epochs or from its `metrics.jsonl`: data of figures and summaries.

A run that was killed and resumed has written some steps twice; the later record counts. So the
history of a resumed run equals that of a run that was never interrupted. Lines that are damaged are
left out and counted.
"""

import collections
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
Record = dict[str, Any]
_LABELS = ("kind", "epoch", "step")
# The kinds of records, the whole numbers that each must hold, and other keys that it must have.
_NUMBERED = {"run": (), "resume": (), "step": ("epoch", "step"), "epoch": ("epoch", "steps")}
_NEEDED = {"step": ("loss", "grads/norm"), "epoch": metrics_file.SCORES}
_TEXTS = ("kind", "story", "run", "rule")


class History:
    """The records of one run.

    Attributes:
      name: the run's name in figures.
      telemetry: arrays with a row for each recorded step.
      steps: the numbers of those steps.
      epochs: the record of each epoch.
      watched: the result of `watch` after each epoch.
      damaged: the number of lines of the file that were left out.
      settings: the record of kind `run`; empty if there is none.
    """

    def __init__(self, name: str):
        """Creates an empty history."""
        self.name = name
        self.telemetry: Telemetry = {}
        self.steps = np.zeros(0, int)
        self.epochs: list[dict[str, Any]] = []
        self.watched: list[np.ndarray] = []
        self.damaged = 0
        self.settings: Record = {}

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
    """Reads the last run in a folder; an absent file is one without lines."""
    path = folder / metrics_file.NAME
    lines = path.read_bytes().splitlines() if path.exists() else []
    run: Record = {}
    steps: dict[int, Record] = {}
    epochs: dict[int, Record] = {}
    records = [record for line in lines if (record := _record(line)) is not None]
    for record in records:
        if record["kind"] == "run":
            run, steps, epochs = record, {}, {}
        elif record["kind"] == "step":
            steps[record["step"]] = record
        elif record["kind"] == "epoch":
            epochs[record["epoch"]] = record
    history = History(str(run.get("preset", "")))
    history.settings = run
    rows, odd_steps = _alike(steps)
    history.epochs, odd_epochs = _alike(epochs)
    history.damaged = len(lines) - len(records) + odd_steps + odd_epochs
    history.steps = np.array([row["step"] for row in rows], int)
    keys = [key for key in (rows[0] if rows else {}) if key not in _LABELS]
    history.telemetry = {key: np.array([row[key] for row in rows]) for key in keys}
    return history


def _record(line: bytes) -> Record | None:
    """Returns a line's record, its numbers as numbers; None if the line is damaged."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or record.get("kind") not in _NUMBERED:
        return None
    record = {key: strict_json.number(value) for key, value in record.items()}
    numbered, needed = (names.get(record["kind"], ()) for names in (_NUMBERED, _NEEDED))
    if any(type(record.get(name)) is not int for name in numbered) or not record.keys() >= {
        *needed
    }:
        return None
    values = (value for key, value in record.items() if key not in _TEXTS)
    is_sound = not numbered or all(v is None or isinstance(v, int | float) for v in values)
    return record if is_sound else None


def _alike(records: dict[int, Record]) -> tuple[list[Record], int]:
    """Returns records in order, and how many were left out: those of another form than most."""
    forms = {i: frozenset(map(_form, record.items())) for i, record in records.items()}
    usual = collections.Counter(forms.values()).most_common(1)
    kept = [records[i] for i in sorted(records) if forms[i] == usual[0][0]]
    return kept, len(records) - len(kept)


def _form(item: tuple[str, Any]) -> tuple[str, bool, bool]:
    key, value = item
    return key, value is None, isinstance(value, bool)
