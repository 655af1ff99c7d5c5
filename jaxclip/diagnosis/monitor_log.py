"""Reads the norms that monitors recorded: arrays of shape (steps,) by the name of their leaf."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import jax
import numpy as np
from jax.typing import ArrayLike

from jaxclip import _validate
from jaxclip._validate import short

Metrics: TypeAlias = Mapping[str, ArrayLike]


def check_concrete(leaves: Iterable[object], name: str) -> None:
    """Raises if a leaf is traced."""
    if any(_validate.is_traced(leaf) for leaf in leaves):
        raise TypeError(f"{name} is traced, but a diagnosis is in words: make it outside of jit")


def entries(metrics: Metrics | Sequence[Metrics]) -> Sequence[Metrics]:
    """The log as a sequence of mappings, of which each holds one step or many."""
    log = [metrics] if isinstance(metrics, Mapping) else metrics
    if not isinstance(log, Sequence) or not all(isinstance(entry, Mapping) for entry in log):
        raise TypeError(f"metrics={short(metrics)} must be a dict of metrics or a sequence of them")
    if not log:
        raise ValueError(f"metrics={short(metrics)} has no step")
    return log


def recorded(log: Sequence[Metrics], monitor: str, argument: str) -> dict[str, np.ndarray]:
    """The norms that the monitor of this name recorded, by leaf."""
    prefix = f"{monitor}/norm/"
    keys = [key for key in log[0] if key.startswith(prefix)]
    if not keys:
        there = sorted({key.partition("/norm/")[0] for key in log[0] if "/norm/" in key})
        raise ValueError(
            f"{argument}={short(monitor)} recorded nothing; monitors found: {short(there)}"
        )
    table = {key.removeprefix(prefix): _values(log, key) for key in keys}
    sizes = {leaf: len(values) for leaf, values in table.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"{argument}={short(monitor)} recorded not all in the same steps: {short(sizes)}"
        )
    return table


def _values(log: Sequence[Metrics], key: str) -> np.ndarray:
    for i, entry in enumerate(log):
        if key not in entry:
            raise ValueError(f"metrics[{i}] has no {key!r}, which metrics[0] has")
    values = [entry[key] for entry in log]
    check_concrete(values, f"metrics[...][{key!r}]")
    arrays = [np.asarray(value, np.float64) for value in jax.device_get(values)]
    widest = max(arrays, key=np.ndim)
    if widest.ndim > 1 or not sum(x.size for x in arrays):
        shape = widest.shape
        raise ValueError(f"{key!r} has shape {shape}, but must be a scalar or (steps,), not empty")
    return np.concatenate([np.atleast_1d(x) for x in arrays])


def series(log: Sequence[Metrics], key: str) -> np.ndarray:
    """The values of a key, of shape (steps,); empty if it is not in all entries."""
    return _values(log, key) if all(key in entry for entry in log) else np.zeros(0)


def counted(log: Sequence[Metrics]) -> list[str]:
    """The names of the rules, guards and monitors in the log: those that count their updates."""
    keys = [key for key in log[0] if "/norm/" not in key and "/scale/" not in key]
    return [key.removesuffix("/count") for key in keys if key.endswith("/count")]


def steps(log: Sequence[Metrics], monitor: str, count: int, first_step: int) -> np.ndarray:
    """The numbers of the recorded steps: those of the run, if the monitor counted them."""
    numbers = series(log, f"{monitor}/count")
    return numbers.astype(int) - 1 if numbers.size else first_step + np.arange(count)


def of_each_step(values: ArrayLike | None, count: int, name: str) -> np.ndarray | None:
    """An argument with a number for each recorded step."""
    if values is None:
        return None
    check_concrete([values], name)
    array = np.asarray(jax.device_get(values), np.float64)
    if array.shape != (count,):
        raise ValueError(f"{name} of shape {array.shape} must have shape (steps,) = ({count},)")
    return array
