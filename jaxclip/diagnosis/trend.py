"""The trend of norms over depth, or over the time steps of a backward pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from jaxclip.diagnosis.layers import Layer

LAYERS = 3  # a trend over depth needs at least this many places,
PER_LAYER = 1.5  # a change of the norm per place by more than this factor,
IN_ALL = 100.0  # and a change from the output to the input by more than this factor
IN_TIME = 10.0  # over time, the robust slope must change the norm by more than this factor in all
_MANY = 300  # the slope is that of at most this many places


class Trend:
    """The norms at places in order: in depth from input to output, in time from the first step.

    Each place is represented by the median over the steps in which every place is finite; if there
    is no such step, over the steps in which it is finite itself.

    Attributes:
        slope: the factor by which the norm changes from one place to the one before it, robustly.
            This is the Theil-Sen slope of the logarithm: the median over all pairs of places, which
            one or two odd places do not change much. Places without a positive finite norm are
            left out; NaN if fewer than two remain.
        near: the first positive norm; 0 if there is none.
        far: the last positive norm; 0 if there is none.
        span: the number of places from `near` to `far`, both included.
        factor: the mean factor by which the norm changes from one place to the one before it:
            `near = far * factor**(span - 1)`. NaN for a single place.
        places: the number of places.
        finite: the number of places with a finite norm.
        zeros: the number of places, counted from the first, whose norm is exactly 0.
    """

    def __init__(self, norms: Mapping[int, np.ndarray]):
        """Takes an array of shape (steps,) for each place."""
        rows = [norms[place] for place in sorted(norms)]
        table = np.array(rows, ndmin=2)  # without places, one row without steps
        good = np.isfinite(table).all(axis=0)
        profile = np.array([median(row) for row in (table[:, good] if good.any() else table)])
        finite = profile[np.isfinite(profile)]
        where = np.flatnonzero(np.isfinite(profile) & (profile > 0))
        self.slope = _slope(profile, where)
        self.near, self.far = profile[where[[0, -1]]].tolist() if where.size else (0.0, 0.0)
        self.span = int(where[-1] - where[0]) + 1 if where.size else 0
        steps = self.span - 1
        whole = np.log(self.near) - np.log(self.far) if steps > 0 else np.nan
        self.factor = float(np.exp(whole / max(steps, 1)))
        self.places, self.finite = len(rows), len(finite)
        self.zeros = int(np.sum(np.cumprod(finite == 0)))

    @property
    def level(self) -> bool:
        """Whether the ends agree that the norm changes little."""
        within = 1 / PER_LAYER <= self.factor <= PER_LAYER
        return within or self.level_in_all

    @property
    def level_in_all(self) -> bool:
        """Whether the ends differ by no more than the change in all that a finding needs."""
        return max(self.near, self.far) <= IN_ALL * min(self.near, self.far)

    @property
    def over_depth(self) -> str:
        """The finding, which needs a large change per layer and a large change in all."""
        return self._finding(PER_LAYER)

    @property
    def over_time(self) -> str:
        """The finding over time, where each step changes little: it needs a large change in all."""
        return self._finding(IN_TIME ** (1 / max(self.places - 1, 1)))

    def _finding(self, least: float) -> str:
        if self.finite < LAYERS:
            return "none"
        if self.slope > least and self.near > IN_ALL * self.far:
            return "exploding"
        fades = self.slope < 1 / least and self.far > IN_ALL * self.near
        return "vanishing" if fades else "none"


def of_layers(layers: Sequence[Layer]) -> Trend:
    """The trend of the norms of all layers at a place together."""
    return Trend(_joined((x.place, x.gradient) for x in layers))


def of_biases(layers: Sequence[Layer]) -> Trend:
    """The trend of the norms of the biases alone."""
    return Trend(_joined((x.place, x.bias) for x in layers))


def median(values: np.ndarray) -> float:
    """The median of the finite values; NaN if there are none."""
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if finite.size else float("nan")


def _joined(pairs: Iterable[tuple[int | None, np.ndarray | None]]) -> dict[int, np.ndarray]:
    """The 2-norms of the norms of each place."""
    found: dict[int, np.ndarray] = {}
    for place, norms in pairs:
        if place is not None and norms is not None:
            found[place] = np.hypot(found[place], norms) if place in found else norms
    return found


def _slope(profile: np.ndarray, where: np.ndarray) -> float:
    chosen = np.linspace(0, max(len(where) - 1, 0), min(len(where), _MANY)).round().astype(int)
    where = where[chosen]
    logs, (i, j) = np.log(profile[where]), np.triu_indices(len(where), 1)
    return float(np.exp(-median((logs[j] - logs[i]) / (where[j] - where[i]))))
