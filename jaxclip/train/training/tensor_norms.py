"""The tensors in a run's telemetry: their norms as a table, and their names in reading order."""

import numpy as np

Telemetry = dict[str, np.ndarray]


def norms(telemetry: Telemetry, monitor: str, names: list[str]) -> np.ndarray:
    """Returns the norms that a monitor recorded: a row for each step, a column for each name."""
    return np.stack([telemetry[f"{monitor}/norm/{name}"] for name in names], axis=1)


def names(telemetry: Telemetry) -> list[str]:
    """Returns the tensors' names from the network's input on, kernels before biases."""
    prefix = "grads/norm/"
    tensors = [key.removeprefix(prefix) for key in telemetry if key.startswith(prefix)]
    return sorted(tensors, key=_reading_order)


def _reading_order(name: str) -> tuple[bool, int, bool]:
    group, number, part = name.split("/")
    return group != "layers", int(number), part != "kernel"
