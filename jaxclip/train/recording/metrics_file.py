"""Writes `metrics.jsonl`: one JSON object a line, of kind `run`, `resume`, `step` or `epoch`.

Lines are appended as they come, so a run that dies keeps them; a resumed run appends a line of kind
`resume` first. `history` reads the file.
"""

import contextlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxclip.train.recording import files, strict_json
from jaxclip.train.recording.tensorboard_events import TensorBoardEvents
from jaxclip.train.training import nonfinite
from jaxclip.train.training.loop import Epoch

NAME = "metrics.jsonl"
# The scores of an epoch beside those of `Epoch.test`.
SCORES = (
    *("train_loss", "train_accuracy", "test_loss", "test_accuracy", "grad_norm_mean"),
    *("grad_norm_max", "clipped_fraction", "learning_rate", "seconds"),
)
_SYNC_SECONDS = 1.0
_STEPS_BEFORE = 10  # steps recorded before the first gradient that is not finite


class MetricsFile(contextlib.AbstractContextManager):
    """Appends records to `metrics.jsonl`, and to TensorBoard's event file if there is one."""

    def __init__(self, folder: Path, events: TensorBoardEvents | None = None):
        """Opens the file in an existing folder; removes a line that a killed run did not finish."""
        self._path = folder / NAME
        with files.explained(self._path):
            self._file = files.open_for(self._path, os.O_RDWR | os.O_APPEND)
            _drop_unfinished_line(self._file)
        self._events = events
        self._synced = time.monotonic()

    def __exit__(self, *raised: object) -> None:
        """Closes the files."""
        with contextlib.suppress(OSError):
            os.fsync(self._file)
        os.close(self._file)
        if self._events is not None:
            self._events.close()

    def write_epoch(
        self, epoch: Epoch, every: int, more: Mapping[str, Any] | None = None, **labels: Any
    ) -> None:
        """Appends the records of an epoch.

        Args:
          epoch: the epoch.
          every: record each `every`-th of its steps.
          more: further numbers for the epoch's record.
          **labels: the run that these records belong to, for a file with several runs.
        """
        record = epoch_record(epoch, **labels) | dict(more or {})
        self.write(*step_records(epoch, every, **labels), record)

    def write(self, *records: Mapping[str, Any]) -> None:
        """Appends records, one a line; flushes them to the disk once a second.

        Raises:
          RunError: if they cannot be written; the file ends with a whole line.
        """
        with files.explained(self._path):
            files.append(self._file, "".join(map(strict_json.line, records)).encode())
            if time.monotonic() - self._synced >= _SYNC_SECONDS:
                os.fsync(self._file)
                self._synced = time.monotonic()
        if self._events is not None:
            self._events.write(records)


def _drop_unfinished_line(descriptor: int) -> None:
    with open(descriptor, "rb", closefd=False) as file:
        content = file.read()
    complete = content.rfind(b"\n") + 1
    if complete < len(content):
        os.ftruncate(descriptor, complete)


def step_records(epoch: Epoch, every: int, **labels: Any) -> list[dict[str, Any]]:
    """Returns a record for each `every`-th step of an epoch, with all its telemetry.

    If gradients stop being finite, the steps that led there are recorded too.
    """
    count = len(epoch.telemetry["loss"])
    bad = np.flatnonzero(~np.isfinite(epoch.telemetry["grads/norm"]))
    last = range(max(bad[0] - _STEPS_BEFORE, 0), bad[0] + 1) if bad.size else ()
    rows = sorted({*range(0, count, every), *last})
    columns = {name: values[rows].tolist() for name, values in epoch.telemetry.items()}
    return [
        {"kind": "step", **labels, "epoch": epoch.number, "step": epoch.first_step + row}
        | {name: values[i] for name, values in columns.items()}
        for i, row in enumerate(rows)
    ]


def epoch_record(epoch: Epoch, **labels: Any) -> dict[str, Any]:
    """Returns the record of an epoch."""
    steps = epoch.first_step + len(epoch.telemetry["loss"])
    return {"kind": "epoch", **labels, "epoch": epoch.number, "steps": steps} | scores(epoch)


def scores(epoch: Epoch) -> dict[str, Any]:
    """Returns the scores of an epoch.

    Training scores are means over the epoch's batches; steps that a guard skipped do not count.
    `clipped_fraction` is the largest over all rules, None if no rule records it.
    """
    taken = ~nonfinite.skipped(epoch.telemetry)
    telemetry = {k: v[taken] if taken.any() else v for k, v in epoch.telemetry.items()}
    fractions = [v.mean() for k, v in telemetry.items() if _is_clip_fraction(k)]
    return {
        "train_loss": float(telemetry["loss"].mean()),
        "train_accuracy": float(telemetry["accuracy"].mean()),
        **epoch.test,
        "grad_norm_mean": float(telemetry["grads/norm"].mean()),
        "grad_norm_max": float(telemetry["grads/norm"].max()),
        "clipped_fraction": float(max(fractions)) if fractions else None,
        "learning_rate": float(telemetry["learning_rate"][-1]),
        "seconds": epoch.seconds,
    }


def _is_clip_fraction(key: str) -> bool:
    return key.endswith("/fraction") and not key.startswith("project_")
