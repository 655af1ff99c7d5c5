"""Reads a log of `jaxclip.metrics` as JSON lines: of this program, or of any other.

A line is an object of numbers; keys of objects within it are joined by `/`. Lines without a norm,
such as those of an epoch, are passed over. A line that is not an object is damaged, and counted.
"""

import collections
import json
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxclip.train.errors import RunError, UserError, user_path
from jaxclip.train.recording import metrics_file, strict_json

Row = dict[str, float]
_STEPS = ("step", "_step", "global_step")
_LABELS = ("story", "run", "rule", "first_learning_rate", "seed")  # of `demo` and `compare`


class Log(NamedTuple):
    """The recorded steps of a run.

    Attributes:
      name: the labels of the run in a file with several runs, else empty.
      steps: the numbers of its steps; without a key `step` they count from 0.
      telemetry: arrays with a row for each step.
      settings: the record of kind `run`, if this program wrote the file.
      epochs: the records of its epochs, if this program wrote the file.
    """

    name: str
    steps: np.ndarray
    telemetry: dict[str, np.ndarray]
    settings: dict[str, Any]
    epochs: list[dict[str, Any]]


def read(file: str) -> tuple[list[Log], int]:
    """Returns the runs in a file, or in standard input, and the number of damaged lines.

    A step that was recorded twice counts once, as it was recorded last. If the first step comes
    again, or a record of kind `run`, another run begins, which replaces the earlier one.

    Raises:
      UserError: if there is no such file, or no line of it holds a norm.
      RunError: if it cannot be read.
    """
    source = f"FILE={file}"
    content = _content(file, source)
    lines = [line for line in content.splitlines() if line.strip()]
    if not lines:
        raise UserError(f"{source}: empty")
    objects = [_object(line) for line in lines]
    found = [record for record in objects if record is not None]
    if not found:
        raise UserError(f"{source}: no line is a JSON object; {_how()}")
    settings: dict[str, Any] = {}
    runs: dict[str, dict[int, Row]] = {}
    epochs: dict[int, Row] = {}
    for record in found:
        labels = [label for label in _LABELS if label in record]
        name = ", ".join(f"{label.replace('_', ' ')} {record[label]}" for label in labels)
        row = _flat(record)
        if record.get("kind") == "run":
            settings, runs, epochs = record, {}, {}
        elif record.get("kind") == "epoch" and "epoch" in row:
            epochs[int(row["epoch"])] = row
        elif any(map(_is_norm, row)):
            _add(runs.setdefault(name, {}), row)
    if not runs:
        raise UserError(f"{source}: no line has a norm, such as grads/norm; {_how()}")
    last = _alike(epochs, lambda key: True)[1] if epochs and len(runs) == 1 else []
    logs = [_log(name, rows, settings, last) for name, rows in runs.items()]
    return logs, len(lines) - len(found)


def _add(rows: dict[int, Row], row: Row) -> None:
    """Adds a step to a run."""
    number = next((row[key] for key in _STEPS if key in row), len(rows))
    step = int(number) if float(number).is_integer() else len(rows)
    if rows and step <= min(rows):
        rows.clear()  # the run was started again
    rows[step] = row


def _content(file: str, source: str) -> bytes:
    try:
        if file == "-":
            return sys.stdin.buffer.read()
        path = user_path(file, "FILE")
        if path.is_dir():
            path /= metrics_file.NAME
            if not path.exists():
                raise UserError(f"{source}: a folder without {metrics_file.NAME}")
        return path.read_bytes()
    except OSError as error:
        kind = UserError if isinstance(error, FileNotFoundError) else RunError
        raise kind(f"{source}: {error.strerror}") from None


def _how() -> str:
    return "log one object a line: json.dumps(jaxclip.to_floats(jaxclip.metrics(state)))"


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _flat(record: dict[str, Any], prefix: str = "") -> Row:
    """Returns the numbers of a record by key; null is NaN."""
    row: Row = {}
    for key, value in record.items():
        if isinstance(value, dict):
            row |= _flat(value, f"{prefix}{key}/")
        elif (number := _number(value)) is not None:
            row[prefix + key] = number
    return row


def _number(value: Any) -> float | None:
    if value is None:
        return np.nan
    try:
        return None if isinstance(value, bool) else float(strict_json.number(value))
    except (TypeError, ValueError, OverflowError):
        return None


def _is_norm(key: str) -> bool:
    return key.endswith("/norm") or "/norm/" in key


def _log(
    name: str, rows: dict[int, Row], settings: dict[str, Any], epochs: list[dict[str, Any]]
) -> Log:
    steps, kept = _alike(rows, _is_norm)
    keys = [key for key in kept[0] if all(key in row for row in kept)]
    telemetry = {key: np.array([row[key] for row in kept]) for key in keys}
    return Log(name, np.array(steps, int), telemetry, settings, epochs)


def _alike(
    rows: dict[int, Row], counts: Callable[[str], bool]
) -> tuple[list[int], list[dict[str, Any]]]:
    """Returns the rows, in order, that have the same keys that count as most rows have.

    Rows with norms of leaves come before more rows without.
    """
    forms = {i: frozenset(filter(counts, row)) for i, row in rows.items()}
    often = collections.Counter(forms.values())
    usual = max(often, key=lambda form: (any("/norm/" in key for key in form), often[form]))
    kept = [i for i in sorted(rows) if forms[i] == usual]
    return kept, [rows[i] for i in kept]
