"""Groups leaves into layers and orders the layers from input to output."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxclip._validate import short

Table = Mapping[str, np.ndarray]  # norms of shape (steps,), by the name of their leaf

_NORMALIZATION = ("scale", "gamma", "beta", "mean", "var", "offset")
_BIASES = ("b", "bias")


class Layer(NamedTuple):
    """One layer: the 2-norms over its leaves, one number per step.

    Attributes:
        name: the keys of its leaves without the last, joined by `/`.
        gradient: norms of the gradient; float64 array of shape (steps,).
        weight: norms of the parameters, of the same shape, or `None`.
        update: norms of the update, of the same shape, or `None`.
        bias: norms of the gradient of its biases alone; `None` if it has no biases, or if the
            network has normalization layers, which may cancel the effect of a bias.
        deep: whether it counts for the trend over depth.
    """

    name: str
    gradient: np.ndarray
    weight: np.ndarray | None = None
    update: np.ndarray | None = None
    bias: np.ndarray | None = None
    deep: bool = True

    @property
    def ratio(self) -> np.ndarray | None:
        """Update over weight, of shape (steps,); NaN where the weight is 0; `None` if unknown."""
        if self.weight is None or self.update is None:
            return None
        weight = np.where(self.weight == 0, np.nan, self.weight)
        with np.errstate(invalid="ignore", over="ignore"):
            return self.update / weight


def from_leaves(
    tables: Mapping[str, Table], ranks: Mapping[str, int], order: Sequence[str] | None
) -> tuple[Layer, ...]:
    """Returns the layers from input to output, then those that `order` leaves out.

    The tables are those of the fields `gradient`, `weight` and `update` of `Layer`, as far as they
    are known; ranks are those of leaves, as far as they are known.
    """
    groups: dict[str, list[str]] = {}
    for leaf in natural(list(tables["gradient"])):
        groups.setdefault(leaf.rpartition("/")[0] or leaf or ".", []).append(leaf)
    roles = {leaf: _role(leaf, ranks.get(leaf)) for leaf in tables["gradient"]}
    normalized = "normalization" in roles.values()
    ordered = _ordered(list(groups), order)
    deep = [name for name in ordered if any(roles[leaf] == "weight" for leaf in groups[name])]

    def layer(name: str) -> Layer:
        norms = {field: _norm(table, groups[name]) for field, table in tables.items()}
        biases = [leaf for leaf in groups[name] if roles[leaf] == "bias" and not normalized]
        bias = _norm(tables["gradient"], biases) if biases else None
        return Layer(name, **norms, bias=bias, deep=name in (deep or ordered))

    return tuple(layer(name) for name in dict.fromkeys([*ordered, *groups]))


def natural(names: Sequence[str]) -> list[str]:
    """Sorts siblings that differ in a number by that number; keeps the order of all others."""
    places: dict[tuple[str, ...], int] = {}

    def key(name: str) -> list[tuple[int, list[int]]]:
        parts = name.split("/")
        stems = [(*parts[:i], re.sub(r"\d+", "#", part)) for i, part in enumerate(parts)]
        numbers = [[int(n) for n in re.findall(r"\d+", part)] for part in parts]
        first = [places.setdefault(stem, len(places)) for stem in stems]
        return list(zip(first, numbers, strict=True))

    return sorted(names, key=key)


def _norm(table: Table, leaves: Sequence[str]) -> np.ndarray:
    return np.hypot.reduce([np.asarray(table[leaf], np.float64) for leaf in leaves], axis=0)


def _role(leaf: str, rank: int | None) -> str:
    """The role of a leaf by its name, else by its rank if that is known."""
    key = leaf.rpartition("/")[2]
    if key in _NORMALIZATION:
        return "normalization"
    if key in _BIASES or key.startswith("bias_"):
        return "bias"
    return "weight" if rank is None or rank >= 2 else "bias"


def _ordered(names: list[str], order: Sequence[str] | None) -> list[str]:
    """The layers that `order` names, by name or prefix, in its order; all if it is `None`."""
    if order is None:
        return names
    if isinstance(order, str) or not all(isinstance(entry, str) for entry in order):
        raise TypeError(f"order={short(order)} must be a sequence of names of layers")
    ordered: list[str] = []
    for entry in order:
        matches = [name for name in names if name == entry or name.startswith(f"{entry}/")]
        if not matches:
            raise ValueError(
                f"order={short(order)}: there is no layer {short(entry)} among {short(names)}"
            )
        ordered += matches
    return list(dict.fromkeys(ordered))
