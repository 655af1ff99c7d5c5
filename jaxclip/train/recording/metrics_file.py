"""What a run leaves on disk: `config.json`, `metrics.jsonl`, `summary.json`.

`metrics.jsonl` is appended to and flushed, so that a run that dies keeps what it wrote; a later run
into the same folder begins with another line of kind `run`, one that goes on with a line of kind
`resume`, and `history` reads them back. JSON has no word
for a number that is not finite: those are written as the strings "NaN", "Infinity" and
"-Infinity", which `float()` reads back. Figures are in `figures`, the console in `report`.
"""

import contextlib
import itertools
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from jaxclip.train.errors import UserError
from jaxclip.train.recording.tensorboard_events import Events
from jaxclip.train.training import nonfinite
from jaxclip.train.training.loop import Epoch

_OF_A_RUN = (
    *("config.json", "summary.json", "checkpoints", "tensorboard", "compare.json"),
    *("run.png", "layers.png", "weights.png", "compare.png"),
)


def plain(value: Any) -> Any:
    """Returns what strict JSON can hold: no arrays, no non-finite numbers."""
    if type(value) is float:  # nearly all of what is written
        if math.isfinite(value):
            return float(f"{value:.9g}")  # nine digits tell any two float32 apart
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, list | tuple) else value


def write_json(path: Path, content: Any, *, exact: bool = False) -> None:
    """Writes a file whole or not at all; `exact`: strict JSON already, every digit counts."""
    part = path.with_name(path.name + ".part")
    content = content if exact else plain(content)
    part.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
    os.replace(part, path)


def open_folder(out: str) -> Path:
    """Makes the output folder and sees that it can be written to."""
    folder = Path(out).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.jsonl").open("a").close()
    except OSError as error:
        raise UserError(f"--out={out}: cannot be written to ({error.strerror})") from None
    return folder


def set_aside(folder: Path) -> Path | None:
    """Moves what an earlier run left in a folder into one of its own below it.

    `metrics.jsonl` stays, and is appended to.

    Returns:
      The new folder, None if there was nothing to move.
    """
    found = [folder / name for name in _OF_A_RUN if (folder / name).exists()]
    if not found:
        return None
    places = (folder / f"earlier-{number}" for number in itertools.count(1))
    place = next(path for path in places if not path.exists())
    place.mkdir()
    for path in found:
        path.rename(place / path.name)
    return place


class Recorder(contextlib.AbstractContextManager):
    """Appends objects to `metrics.jsonl`, and hands them to TensorBoard where that is wanted."""

    def __init__(self, folder: Path, events: Events | None = None):
        """Opens the file in `folder`, which exists, and takes away a line left torn by a kill."""
        path = folder / "metrics.jsonl"
        _end_in_a_line(path)
        self._file: TextIO = path.open("a")
        self._events = events

    def __exit__(self, *raised: object) -> None:
        """Closes the files, however the run ended."""
        self._file.close()
        if self._events is not None:
            self._events.close()

    def write(self, kind: str, **values: Any) -> None:
        """Writes one object, and flushes."""
        self.write_all([{"kind": kind, **values}])

    def write_all(self, objects: list[dict[str, Any]]) -> None:
        """Writes some objects, one a line, and flushes."""
        self._file.writelines(json.dumps(plain(o), allow_nan=False) + "\n" for o in objects)
        self._file.flush()
        if self._events is not None:
            self._events.write_all(objects)


def _end_in_a_line(path: Path) -> None:
    """Cuts off what follows the last line's end: a process was killed while it wrote that."""
    with path.open("ab+") as file:
        size = file.tell()
        file.seek(0)
        content = file.read() if size else b""
        whole = content.rfind(b"\n") + 1
        if whole < size:
            file.truncate(whole)


def step_records(epoch: Epoch, every: int, **labels: Any) -> list[dict[str, Any]]:
    """Returns one object for each `every`-th step of an epoch, with all its telemetry."""
    rows = range(0, len(epoch.telemetry["loss"]), every)
    columns = {name: values[::every].tolist() for name, values in epoch.telemetry.items()}
    return [
        {"kind": "step", **labels, "epoch": epoch.number, "step": epoch.first_step + row}
        | {name: values[i] for name, values in columns.items()}
        for i, row in enumerate(rows)
    ]


def epoch_record(epoch: Epoch, **labels: Any) -> dict[str, Any]:
    """Returns one object that sums an epoch up."""
    steps = epoch.first_step + len(epoch.telemetry["loss"])
    return {"kind": "epoch", **labels, "epoch": epoch.number, "steps": steps} | scores(epoch)


def scores(epoch: Epoch) -> dict[str, Any]:
    """Returns an epoch's figures.

    Those for training are means over its batches as they came, without the steps that a guard
    skipped. `clipped_fraction` is that of the rule that clipped most, None where none records it.
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
