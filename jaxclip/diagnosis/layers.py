"""Layers in order from input to output, and how a number changes from one to the next.

NumPy on numbers that are known: nothing here is traced, measures an array or judges. What a trend
means is said in `_findings`.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Table = Mapping[str, np.ndarray]  # norms of leaves, by name, of shape (steps,)

_SCALES = ("scale", "gamma", "beta", "mean", "var", "offset")
_BIASES = ("b", "bias")


class Layer(NamedTuple):
    """One layer: the norms of its leaves together, one for each step.

    Attributes:
        name: the keys of its leaves without the last, joined by `/`.
        gradient: norms of the gradient; float64 array of shape (steps,).
        weight: norms of the parameters, likewise, or `None`.
        update: norms of the update, likewise, or `None`.
        bias: norms of the gradient of its biases alone, likewise; `None` if it has none, or if a
            layer normalises, which may take the effect of a bias away.
        deep: whether it counts for the trend over depth.
    """

    name: str
    gradient: np.ndarray
    weight: np.ndarray | None
    update: np.ndarray | None
    bias: np.ndarray | None
    deep: bool

    @property
    def ratio(self) -> np.ndarray | None:
        """Update over weight, of shape (steps,); NaN where the weight is 0; `None` if unknown."""
        if self.weight is None or self.update is None:
            return None
        weight = np.where(self.weight == 0, np.nan, self.weight)
        with np.errstate(invalid="ignore", over="ignore"):
            return self.update / weight


def layers(
    gradients: Table,
    weights: Table | None,
    updates: Table | None,
    ranks: Mapping[str, int],
    order: Sequence[str] | None,
) -> tuple[Layer, ...]:
    """The layers of a network from input to output, then those that `order` leaves out."""
    groups: dict[str, list[str]] = {}
    for leaf in natural(list(gradients)):
        groups.setdefault(_layer(leaf), []).append(leaf)
    roles = {leaf: _role(leaf, ranks.get(leaf)) for leaf in gradients}
    plain = "scale" not in roles.values()
    chosen = _ordered(list(groups), order)
    heavy = [name for name in chosen if any(roles[leaf] == "weight" for leaf in groups[name])]

    def layer(name: str) -> Layer:
        own = groups[name]
        biases = [leaf for leaf in own if plain and roles[leaf] == "bias"]
        return Layer(
            name,
            _together(gradients, own),
            None if weights is None else _together(weights, own),
            None if updates is None else _together(updates, own),
            _together(gradients, biases) if biases else None,
            name in (heavy or chosen),
        )

    return tuple(layer(name) for name in dict.fromkeys([*chosen, *groups]))


def natural(names: Sequence[str]) -> list[str]:
    """Names in the tree's order, but siblings that differ in a number by that number."""
    first: dict[Any, int] = {}

    def key(name: str) -> list[Any]:
        parts = name.split("/")
        stems = [re.sub(r"\d+", "#", part) for part in parts]
        found = []
        for i, part in enumerate(parts):
            place = first.setdefault((*parts[:i], stems[i]), len(first))
            found.append((place, [int(n) for n in re.findall(r"\d+", part)]))
        return found

    return sorted(names, key=key)


def typical(values: np.ndarray) -> float:
    """The median of what is finite; NaN if nothing is."""
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if finite.size else float("nan")


def factor(profile: np.ndarray) -> float:
    """By what the values change from one layer to the one before it, towards the input.

    Theil and Sen's slope of the logarithm: the median over all pairs of layers, so that an odd
    layer or two do not decide. Layers without a positive finite value are left out; NaN where fewer
    than two remain.
    """
    where = np.flatnonzero(np.isfinite(profile) & (profile > 0))
    logs = np.log(profile[where])
    pairs = itertools.combinations(range(len(where)), 2)
    slopes = [(logs[j] - logs[i]) / (where[j] - where[i]) for i, j in pairs]
    return float(np.exp(-np.median(slopes))) if slopes else float("nan")


def whole(rows: Sequence[Layer]) -> np.ndarray:
    """The norm of the gradient of all layers together; shape (steps,)."""
    return np.hypot.reduce([row.gradient for row in rows], axis=0)


def _together(table: Table, leaves: list[str]) -> np.ndarray:
    return np.hypot.reduce([np.asarray(table[leaf], np.float64) for leaf in leaves], axis=0)


def _layer(leaf: str) -> str:
    return leaf.rpartition("/")[0] or leaf or "."


def _role(leaf: str, rank: int | None) -> str:
    """What a leaf is: by its name where that tells, else by its rank if that is known."""
    key = leaf.rpartition("/")[2]
    if key in _SCALES:
        return "scale"
    if key in _BIASES or key.startswith("bias_"):
        return "bias"
    return "weight" if rank is None or rank >= 2 else "bias"


def _ordered(names: list[str], order: Sequence[str] | None) -> list[str]:
    """The layers that `order` names, by name or prefix, in its order; all of them without it."""
    if order is None:
        return names
    if isinstance(order, str) or not all(isinstance(entry, str) for entry in order):
        raise TypeError(f"order={order!r} must be a sequence of names of layers")
    found = []
    for entry in order:
        own = [name for name in names if name == entry or name.startswith(f"{entry}/")]
        if not own:
            raise ValueError(f"order={order!r}: there is no layer {entry!r} among {names}")
        found += own
    return list(dict.fromkeys(found))
