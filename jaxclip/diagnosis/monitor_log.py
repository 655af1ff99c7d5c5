"""What monitors recorded, read back: norms of leaves by name, as arrays of shape (steps,)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxclip import _validate as _checks


def check_known(leaves: Sequence[Any], name: str) -> None:
    """Checks that nothing is traced."""
    if any(_checks.is_traced(leaf) for leaf in leaves):
        raise TypeError(f"{name} is traced, but a diagnosis is in words: make it outside of jit")


def entries(metrics: Any) -> list[Mapping[str, Any]]:
    """The mappings of a log, one after the other; a single one is a log as well."""
    log = [metrics] if isinstance(metrics, Mapping) else metrics
    if not isinstance(log, Sequence) or not all(isinstance(entry, Mapping) for entry in log):
        raise TypeError(f"metrics={metrics!r} must be a dict of metrics or a sequence of them")
    if not log:
        raise ValueError(f"metrics={metrics!r} has no step")
    return list(log)


def recorded(log: list[Mapping[str, Any]], **argument: Any) -> dict[str, np.ndarray]:
    """The norms that the monitor of this name recorded, by leaf."""
    ((argument_name, name),) = argument.items()
    prefix = f"{name}/norm/"
    keys = [key for key in log[0] if key.startswith(prefix)]
    if not keys:
        there = sorted({key.partition("/norm/")[0] for key in log[0] if "/norm/" in key})
        raise ValueError(f"{argument_name}={name!r} recorded nothing; monitors found: {there}")
    table = {key.removeprefix(prefix): _values(log, key) for key in keys}
    sizes = {leaf: len(values) for leaf, values in table.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"{argument_name}={name!r} recorded not all in the same steps: {sizes}")
    return table


def _values(log: list[Mapping[str, Any]], key: str) -> np.ndarray:
    lacking = [i for i, entry in enumerate(log) if key not in entry]
    if lacking:
        raise ValueError(f"metrics[{lacking[0]}] has no {key!r}, which metrics[0] has")
    values = [entry[key] for entry in log]
    check_known(values, f"metrics[...][{key!r}]")
    arrays = [np.asarray(value, np.float64) for value in jax.device_get(values)]
    wrong = [x.shape for x in arrays if x.ndim > 1]
    if wrong or not sum(x.size for x in arrays):
        shape = wrong[0] if wrong else (0,)
        raise ValueError(f"{key!r} has shape {shape}, but must be a scalar or (steps,), not empty")
    return np.concatenate([np.atleast_1d(x) for x in arrays])
