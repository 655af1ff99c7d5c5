"""Reads metrics: from dicts of stacked arrays, lists of dicts, and files of JSON lines."""

from __future__ import annotations

import contextlib
import json
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import jax
import numpy as np
from jax.typing import ArrayLike

from jaxclip._validate import short
from jaxclip.diagnosis import layers

Metrics: TypeAlias = (
    Mapping[str, ArrayLike] | Sequence[Mapping[str, ArrayLike]] | str | os.PathLike[str]
)
_STEP = ("step", "_step", "global_step", "steps")
_LABELS = ("story", "run", "rule", "first_learning_rate", "seed")  # of the runs in one file
_WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class Series(NamedTuple):
    """The values of a key, in the order of their steps; float64 arrays of shape (steps,)."""

    steps: np.ndarray
    values: np.ndarray


class Log:
    """Metrics by key, whatever they were read from."""

    def __init__(self, metrics: Metrics | Log):
        """Takes metrics in any form; a log is taken as it is."""
        if isinstance(metrics, Log):
            self._entries, self.keys = metrics._entries, metrics.keys
            return
        if isinstance(metrics, str | os.PathLike):
            runs = read(metrics)
            if len(runs) != 1:
                raise ValueError(f"{metrics} has {len(runs)} runs, choose one: {short(list(runs))}")
            metrics = next(iter(runs.values()))
        entries = [metrics] if isinstance(metrics, Mapping) else metrics
        if not isinstance(entries, Sequence) or not all(isinstance(e, Mapping) for e in entries):
            raise TypeError(f"metrics={short(metrics)} must be a dict, a list of dicts or a path")
        self._entries = list(_numbered(entries))
        self.keys = list(dict.fromkeys(key for _, entry in self._entries for key in entry))

    def series(self, key: str) -> Series:
        """Returns the values of a key; of two for a step, the later."""
        found: dict[float, float] = {}
        for steps, entry in self._entries:
            if key in entry:
                values = np.broadcast_to(entry[key], steps.shape)
                found.update(zip(steps.tolist(), values.tolist(), strict=True))
        steps = sorted(found)
        return Series(np.array(steps, float), np.array([found[step] for step in steps], float))

    def ending(self, end: str) -> list[str]:
        """Returns the rules, guards and monitors that recorded a field, as `/threshold`."""
        return [k.removesuffix(end) for k in self.keys if k.endswith(end) and "/norm/" not in k]

    def rules(self) -> list[str]:
        """Returns the rules that recorded norm and threshold, projections last."""
        found = [name for name in self.ending("/threshold") if f"{name}/norm" in self.keys]
        return sorted(found, key=lambda name: name.rpartition("/")[2].startswith("project_"))

    def monitors(self) -> list[str]:
        """Returns the names of the monitors."""
        return list(dict.fromkeys(k.partition("/norm/")[0] for k in self.keys if "/norm/" in k))

    def layers(self, **monitors: str) -> tuple[np.ndarray, tuple[layers.Layer, ...]]:
        """Returns the steps that all monitors recorded, and the layers that have a weight.

        Args:
            **monitors: the name of a monitor by its field in `Layer`; `gradient` is needed.
        """
        tables: dict[str, dict[str, Series]] = {}
        for field, monitor in monitors.items():
            prefix = f"{monitor}/norm/"
            leaves = [key for key in self.keys if key.startswith(prefix)]
            tables[field] = {key.removeprefix(prefix): self.series(key) for key in leaves}
            if not leaves or tables[field].keys() != tables["gradient"].keys():
                found = short(self.monitors())
                raise ValueError(f"monitor={monitor!r}: no norms of layers; found: {found}")
        every = [series for table in tables.values() for series in table.values()]
        steps = every[0].steps
        for series in every[1:]:
            steps = steps if steps is series.steps else np.intersect1d(steps, series.steps)
        aligned = {
            field: {leaf: s.values[np.isin(s.steps, steps)] for leaf, s in table.items()}
            for field, table in tables.items()
        }
        rows = layers.from_leaves(aligned, {}, None)
        return steps, tuple(row for row in rows if row.deep)


def _numbered(
    entries: Sequence[Mapping[str, ArrayLike]],
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Yields the numbers of an entry's steps, of shape (steps,), and its numbers by key."""
    start = 0
    columns = jax.device_get([list(entry.values()) for entry in entries])
    for i, (entry, column) in enumerate(zip(entries, columns, strict=True)):
        values = {key: _array(value) for key, value in zip(entry, column, strict=True)}
        numbers = {key: value for key, value in values.items() if value is not None}
        for key, value in numbers.items():
            if value.ndim > 1:
                raise ValueError(f"{key!r} has shape {value.shape}, but must be () or (steps,)")
        sizes = {value.size for value in numbers.values() if value.ndim}
        if len(sizes) > 1:
            raise ValueError(f"metrics[{i}] has arrays of different lengths: {sorted(sizes)}")
        size = sizes.pop() if sizes else 1
        steps = next((numbers[key] for key in _STEP if key in numbers), None)
        counts = [value for key, value in numbers.items() if key.endswith("/count")]
        if steps is None:
            steps = np.max(counts, axis=0) - 1 if counts else start + np.arange(size)
        start += size
        yield np.broadcast_to(np.asarray(steps, float), (size,)), numbers


def _array(value: object) -> np.ndarray | None:
    """A number or an array of numbers as float64; None for a text."""
    value = _WORDS.get(value, value) if isinstance(value, str) else value
    array = np.asarray(math.nan if value is None else value)
    return None if array.dtype.kind in "OSU" else array.astype(np.float64)


def read(path: str | os.PathLike[str]) -> dict[str, list[dict[str, float]]]:
    r"""Reads the runs in a file of JSON lines, one dict a line.

    Lines that differ in `run`, `rule`, `seed`, `story` or `first_learning_rate` belong to different
    runs, as in the files of `jaxclip demo` and `jaxclip compare`. After a line of kind `run`, which
    the training program writes first, those before it do not count.

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
    name, damaged = file.resolve().parent.name, 0
    groups: dict[tuple[object, ...], list[dict[str, float]]] = {}
    lines = file.read_bytes().splitlines()
    for line in lines:
        record = _record(line)
        damaged += record is None
        if record is None or record.get("kind") == "resume":
            continue
        if record.get("kind") == "run":
            groups, name = {}, str(record.get("preset", name))
            continue
        labels = tuple(record.get(label) for label in _LABELS)
        groups.setdefault(labels, []).append(_numbers(record))
    if damaged:
        warnings.warn(f"{file}: {damaged} of {len(lines)} lines are damaged", stacklevel=2)
    if not groups:
        raise ValueError(f"{file} holds no record: a dict of numbers a line, as JSON")
    return dict(zip(_names(list(groups), name), groups.values(), strict=True))


def _record(line: bytes) -> dict[str, object] | None:
    """A line's object; None if it is damaged."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _numbers(record: Mapping[str, object]) -> dict[str, float]:
    """The numbers of a record; null is NaN."""
    found: dict[str, float] = {}
    for key, value in record.items():
        number = _WORDS.get(value) if isinstance(value, str) else value
        number = math.nan if value is None else number
        if isinstance(number, int | float) and key not in _LABELS:
            with contextlib.suppress(OverflowError):  # of a whole number of hundreds of digits
                found[key] = float(number)
    return found


def _names(groups: Sequence[tuple[object, ...]], alone: str) -> list[str]:
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
