"""The course of a run: its steps, norms and loss, and the counts of its rules and guards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from jaxclip.diagnosis.layers import Layer
from jaxclip.diagnosis.trend import median

WINDOW = 5  # the first and last steps are this many, or half of all steps if there are fewer
USUAL = 1e-3  # the norm of an update over that of the weights

Series: TypeAlias = Callable[[str], np.ndarray]  # the recorded values of a key; empty if unknown


class Counts(NamedTuple):
    """The counts of a rule or a guard up to the last recorded step.

    Attributes:
        name: its name in the metrics.
        updates: the updates that it saw.
        acted: those that the rule clipped or the guard skipped; `None` if it does not count them.
        norms: the recorded norms of a rule, of shape (steps,).
        thresholds: its recorded thresholds, of the same shape.
    """

    name: str
    updates: int
    acted: int | None
    norms: np.ndarray
    thresholds: np.ndarray


class Course(NamedTuple):
    """The course of a run; that of a single step has no rules, guards and loss.

    Attributes:
        steps: the numbers of the recorded steps.
        norms: the global norm of the gradient in each.
        ratios: the norm of the update over that of the weights in each, or `None`.
        rules: the clipping rules.
        guards: the guards.
        loss: the loss in each step, or `None`.
        chance: the loss of a guess, or `None`.
    """

    steps: np.ndarray
    norms: np.ndarray
    ratios: np.ndarray | None = None
    rules: tuple[Counts, ...] = ()
    guards: tuple[Counts, ...] = ()
    loss: np.ndarray | None = None
    chance: float | None = None

    @property
    def growth(self) -> float:
        """The norm of the last finite steps over that of the first; NaN if unknown."""
        first, last = ends(self.norms)
        return last / first if first > 0 else float("nan")

    def bound(self, end: int) -> float:
        """A bound on the norm from the first steps, of `end` steps, to one significant digit.

        It is the smallest of their norms, or less, if that update was longer than 1e-3 of the
        weights.
        """
        start = max(min(WINDOW, end // 2), 1)
        at = int(np.where(np.isfinite(self.norms), self.norms, np.inf)[:start].argmin())
        ratio = np.nan if self.ratios is None else self.ratios[at]
        bound = self.norms[at] * (USUAL / ratio if ratio > USUAL else 1.0)
        return float(f"{bound:.0e}")


def of_steps(layers: Sequence[Layer], steps: np.ndarray) -> Course:
    """The course of the norms alone."""
    norms = np.hypot.reduce([x.gradient for x in layers], axis=0)
    weights = [x.weight for x in layers if x.weight is not None]
    updates = [x.update for x in layers if x.update is not None]
    if not weights or not updates:
        return Course(steps, norms)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return Course(steps, norms, np.hypot.reduce(updates) / np.hypot.reduce(weights))


def counts(names: Sequence[str], series: Series) -> tuple[tuple[Counts, ...], tuple[Counts, ...]]:
    """The rules and the guards among the names in the metrics.

    A monitor records neither scales nor skipped steps. Projections are no rules that clip.
    """

    def one(name: str, acted: str) -> Counts:
        updates, done = series(f"{name}/count"), series(f"{name}/{acted}")
        return Counts(
            name,
            int(updates.max(initial=0)),
            int(done.max()) if done.size else None,
            series(f"{name}/norm"),
            series(f"{name}/threshold"),
        )

    guards = [name for name in names if series(f"{name}/skipped_count").size]
    rules = [
        name
        for name in names
        if name not in guards
        and not name.rpartition("/")[2].startswith("project_")
        and series(f"{name}/nonfinite_count").size == series(f"{name}/scale").size
    ]
    return (
        tuple(one(name, "clipped_count") for name in rules),
        tuple(one(name, "skipped_count") for name in guards),
    )


def between(values: np.ndarray, digits: str) -> str:
    """The ends in words, which say that they are medians."""
    (first, last), size = ends(values), min(WINDOW, int(np.isfinite(values).sum()) // 2)
    start, end = f"{first:{digits}}", f"{last:{digits}}"
    if size < 2:
        return f"{start} in the first recorded step, {end} in the last"
    return f"median {start} in the first {size} recorded steps, {end} in the last {size}"


def ends(values: np.ndarray) -> tuple[float, float]:
    """The medians of the first and of the last finite values."""
    finite = values[np.isfinite(values)]
    size = min(WINDOW, len(finite) // 2)
    return median(finite[:size]), median(finite[len(finite) - size :])
