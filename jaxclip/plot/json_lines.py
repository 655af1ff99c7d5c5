"""Reads files of JSON lines: the runs in a file, and the numbers of each line by key."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

Record: TypeAlias = dict[str, float]
STEP = ("step", "_step", "global_step", "steps")
_LABELS = ("story", "run", "rule", "first_learning_rate", "seed")  # of the runs in one file
_NOT_FINITE = ("nan", "inf", "infinity")


class Run(NamedTuple):
    """A run in a file.

    Attributes:
        name: its labels as far as those of the file's runs differ.
        records: a dict of numbers for each line.
        settings: the line of kind `run` before them, which the training program writes.
    """

    name: str
    records: list[Record]
    settings: Mapping[str, object]


def read(path: str | os.PathLike[str]) -> dict[str, list[Record]]:
    r"""Reads the runs in a file of JSON lines, one dict a line.

    Lines that differ in `run`, `rule`, `seed`, `story` or `first_learning_rate` belong to different
    runs, as in the files of `jaxclip demo` and `jaxclip compare`. After a line of kind `run`, which
    the training program writes first, those before it do not count, and neither do those before
    the first step if that comes again. Keys of dicts within a line are joined by `/`. Numbers that
    are not finite may be the words `inf` and `nan`, or `null`.

    Args:
        path: the file, or a folder with a `metrics.jsonl`.

    Returns:
        The records of each run, by its name; the only run of a file has the name of its preset, or
        that of the file's folder.

    Raises:
        OSError: if there is no such file.
        ValueError: if it holds no record.

    Warns:
        UserWarning: if lines are damaged; they are left out.

    Examples:
        >>> import json, pathlib, tempfile, jaxclip
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "log.jsonl"
        >>> rows = [{"run": name, "step": 0, "loss": 2.3} for name in ("plain", "clipped")]
        >>> _ = path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        >>> jaxclip.plot.read(path)["clipped"]
        [{'step': 0.0, 'loss': 2.3}]
    """
    file = Path(path)
    file = file / "metrics.jsonl" if file.is_dir() else file
    try:
        runs, damaged = parse(file.read_bytes(), file.resolve().parent.name)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    if damaged:
        warnings.warn(f"{file}: damaged lines left out: {damaged}", stacklevel=2)
    return {run.name: run.records for run in runs}


def parse(content: bytes, name: str) -> tuple[list[Run], int]:
    """Returns the runs in the content of a file, and the number of damaged lines.

    Args:
        content: the lines.
        name: that of the only run, if it has no preset.

    Raises:
        ValueError: if there is no record.
    """
    damaged = 0
    settings: Mapping[str, object] = {}
    runs: dict[tuple[str | None, ...], list[Record]] = {}
    spans: dict[tuple[str | None, ...], tuple[float, float]] = {}  # first and latest step
    for line in filter(bytes.strip, content.splitlines()):
        try:
            record = _object(line)
            numbers = _numbers(record)
        except (ValueError, RecursionError):
            damaged += 1
            continue
        if record.get("kind") == "resume":
            continue
        if record.get("kind") == "run":
            settings, runs, spans = record, {}, {}
            continue
        labels = tuple(_printable(record[x]) if x in record else None for x in _LABELS)
        records = runs.setdefault(labels, [])
        step = next((numbers[key] for key in STEP if key in numbers), None)
        if step is not None:
            first, latest = spans.get(labels, (step, step))
            if step <= first < latest:
                records.clear()  # the run was started again
                first = step
            spans[labels] = first, step
        records.append({key: value for key, value in numbers.items() if key not in _LABELS})
    if not runs:
        how = "log one object a line: json.dumps(jaxclip.to_floats(jaxclip.metrics(state)))"
        found = "no line is a JSON object" if damaged else "no line has a number"
        raise ValueError(f"{found}; {how}" if content.strip() else "empty")
    names = _names(list(runs), _printable(settings.get("preset", name)))
    return [Run(*pair, settings) for pair in zip(names, runs.values(), strict=True)], damaged


def _object(line: bytes) -> dict[str, object]:
    record = json.loads(line)
    if not isinstance(record, dict):
        raise ValueError
    return record


def _numbers(record: Mapping[str, object], prefix: str = "") -> Record:
    """The numbers of a record; keys of dicts in it are joined by `/`."""
    found: Record = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            found |= _numbers(value, f"{prefix}{key}/")
        elif (converted := number(value)) is not None:
            found[_printable(prefix + key)] = converted
    return found


def _printable(value: object) -> str:
    """A text without control characters, which a terminal would obey."""
    text = str(value)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def number(value: object) -> float | None:
    """A number or the word of one that is not finite; null is NaN. None for all else."""
    if value is None:
        return math.nan
    if isinstance(value, str):
        return float(value) if value.lstrip("+-").lower() in _NOT_FINITE else None
    try:
        return float(value) if isinstance(value, int | float) else None
    except OverflowError:  # a whole number of hundreds of digits
        return None


def _names(groups: Sequence[tuple[str | None, ...]], alone: str) -> list[str]:
    """Names of runs: their labels as far as they differ."""
    if len(groups) == 1:
        return [alone]
    differ = [len(set(column)) > 1 for column in zip(*groups, strict=True)]
    words = {"first_learning_rate": "rate ", "seed": "seed "}
    rows = [
        [
            f"{words.get(label, '')}{value}"
            for label, value, differs in zip(_LABELS, row, differ, strict=True)
            if differs and value is not None
        ]
        for row in groups
    ]
    return [", ".join(row) or alone for row in rows]
