"""Metrics by key: from dicts of stacked arrays, lists of dicts, and files of JSON lines."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import jax
import numpy as np
from jax.typing import ArrayLike

from jaxclip._validate import short
from jaxclip.diagnosis import layers
from jaxclip.plot import json_lines

Metrics: TypeAlias = (
    Mapping[str, ArrayLike] | Sequence[Mapping[str, ArrayLike]] | str | os.PathLike[str]
)
_LARGEST_STEP = 2**53  # above it, float64 does not hold every whole number


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
            runs = json_lines.read(metrics)
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

    def rows(self) -> dict[float, dict[str, float]]:
        """Returns the numbers of each step; the log's entries must be of one step each."""
        found: dict[float, dict[str, float]] = {}
        for steps, entry in self._entries:
            row = {key: float(value) for key, value in entry.items()}
            found.setdefault(float(steps[0]), {}).update(row)
        return found

    def ending(self, end: str) -> list[str]:
        """Returns the rules, guards and monitors that recorded a field, as `/threshold`."""
        keys = [k for k in self.keys if "/norm/" not in k and "/scale/" not in k]
        return [k.removesuffix(end) for k in keys if k.endswith(end)]

    def rules(self) -> list[str]:
        """Returns the rules that recorded norm and threshold, projections last."""
        found = [name for name in self.ending("/threshold") if f"{name}/norm" in self.keys]
        return sorted(found, key=lambda name: name.rpartition("/")[2].startswith("project_"))

    def monitors(self) -> list[str]:
        """Returns the names of the monitors; the norms of a rule with a threshold are of groups."""
        found = dict.fromkeys(k.partition("/norm/")[0] for k in self.keys if "/norm/" in k)
        return [name for name in found if f"{name}/threshold" not in self.keys]

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
        given = (numbers[key] for key in json_lines.STEP if key in numbers)
        steps = next((x for x in given if _is_step(x)), None)
        counts = [x for key, x in numbers.items() if key.endswith("/count") and _is_step(x)]
        if steps is None:
            steps = np.max(counts, axis=0) - 1 if counts else start + np.arange(size)
        start += size
        yield np.broadcast_to(np.asarray(steps, float), (size,)), numbers


def _is_step(x: np.ndarray) -> bool:
    return bool(np.all(np.abs(x) < _LARGEST_STEP))


def _array(value: object) -> np.ndarray | None:
    """A number or an array of numbers as float64; None for a text."""
    if value is None or isinstance(value, str):
        value = json_lines.number(value)
    array = np.asarray(value)
    return None if array.dtype.kind in "OSU" else array.astype(np.float64)
