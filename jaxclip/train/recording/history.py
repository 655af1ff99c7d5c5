"""A run's past, read back from its `metrics.jsonl`: what figures and summaries are made of.

The file is only ever appended to. A run that was killed and resumed has written some lines twice;
the later one counts, and so the history of a resumed run is that of one that never stopped.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxclip.train.recording.trace import Trace

_NOT_FINITE = {"NaN": np.nan, "Infinity": np.inf, "-Infinity": -np.inf}
_LABELS = ("kind", "epoch", "step")


def read(folder: Path) -> Trace:
    """Reads the last run in a folder."""
    run: dict[str, Any] = {}
    steps: dict[int, dict[str, Any]] = {}
    epochs: dict[int, dict[str, Any]] = {}
    with (folder / "metrics.jsonl").open() as file:
        for line in file:
            record = json.loads(line)
            if record["kind"] == "run":
                run, steps, epochs = record, {}, {}
            elif record["kind"] == "step":
                steps[record["step"]] = record
            elif record["kind"] == "epoch":
                epochs[record["epoch"]] = {k: _number(v) for k, v in record.items()}
    trace = Trace(run.get("preset", ""))
    trace.steps = np.array(sorted(steps), int)
    trace.telemetry = _columns([steps[number] for number in sorted(steps)])
    trace.epochs = [epochs[number] for number in sorted(epochs)]
    return trace


def _columns(records: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Turns a list of records into a row of numbers for each key."""
    keys = [key for key in (records[0] if records else {}) if key not in _LABELS]
    return {key: np.array([_number(r[key]) for r in records]) for key in keys}


def _number(value: Any) -> Any:
    return _NOT_FINITE.get(value, value) if isinstance(value, str) else value
