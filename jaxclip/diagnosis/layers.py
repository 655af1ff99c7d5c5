"""Groups leaves into layers and orders the layers from input to output."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from jaxclip._validate import short
from jaxclip.diagnosis.layer_order import LayerOrder

Table: TypeAlias = Mapping[str, np.ndarray]  # norms of shape (steps,), by the name of their leaf
Order: TypeAlias = LayerOrder | Sequence[str] | None

_NORMALIZATION = ("scale", "gamma", "beta", "mean", "var", "offset")
_BIASES = ("b", "bias")


class Layer(NamedTuple):
    """One layer: the 2-norms over its leaves, one number per step.

    Attributes:
        name: the keys of its leaves without the last, joined by `/`; all keys where leaves that
            differ in the last one stand at several depths.
        gradient: norms of the gradient; float64 array of shape (steps,).
        weight: norms of the parameters, of the same shape, or `None`.
        update: norms of the update, of the same shape, or `None`.
        bias: norms of the gradient of its biases alone; `None` if it has no biases, or if the
            network has normalization layers, which may cancel the effect of a bias.
        deep: whether it has a weight, or no layer has one.
        place: its depth, counted from the input; `None` if it is unknown or the layer has no
            weight. Only layers with a place count for the trend over depth.
    """

    name: str
    gradient: np.ndarray
    weight: np.ndarray | None = None
    update: np.ndarray | None = None
    bias: np.ndarray | None = None
    deep: bool = True
    place: int | None = None

    @property
    def ratio(self) -> np.ndarray | None:
        """Update over weight, of shape (steps,); NaN where the weight is 0; `None` if unknown."""
        if self.weight is None or self.update is None:
            return None
        weight = np.where(self.weight == 0, np.nan, self.weight)
        with np.errstate(invalid="ignore", over="ignore"):
            return self.update / weight


def from_leaves(
    tables: Mapping[str, Table], ranks: Mapping[str, int], order: Order
) -> tuple[Layer, ...]:
    """Returns the layers from input to output as far as the order is known, then the others.

    The tables are those of the fields `gradient`, `weight` and `update` of `Layer`, as far as they
    are known; ranks are those of leaves, as far as they are known.
    """
    leaves = natural(list(tables["gradient"]))
    roles = {leaf: _role(leaf, ranks.get(leaf)) for leaf in leaves}
    normalized = "normalization" in roles.values()
    groups: dict[str, list[str]] = {}
    for leaf in leaves:
        groups.setdefault(leaf.rpartition("/")[0] or leaf or ".", []).append(leaf)
    if isinstance(order, LayerOrder):
        groups = _split(groups, roles, order)
    with_weights = [k for k, own in groups.items() if any(roles[x] == "weight" for x in own)]
    deep = with_weights or list(groups)
    anchors = {name: _anchors(own, roles) for name, own in groups.items()}
    places = _places(anchors, deep, order)

    def layer(name: str) -> Layer:
        norms = {field: _norm(table, groups[name]) for field, table in tables.items()}
        biases = [leaf for leaf in groups[name] if roles[leaf] == "bias" and not normalized]
        bias = _norm(tables["gradient"], biases) if biases else None
        place = places.get(name) if name in deep else None
        return Layer(name, **norms, bias=bias, deep=name in deep, place=place)

    rows = list(groups)
    if order is not None:
        rows.sort(key=lambda name: places.get(name, math.inf))
    return tuple(map(layer, rows))


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
    """The role of a leaf by its name, else by its rank if that is known.

    The gain of a normalization layer in Equinox is called `weight`.
    """
    key = leaf.rpartition("/")[2]
    gain = key == "weight" and (rank == 1 or (rank is None and "norm" in leaf.lower()))
    if gain or key in _NORMALIZATION:
        return "normalization"
    if key in _BIASES or key.startswith("bias_"):
        return "bias"
    return "weight" if rank is None or rank >= 2 else "bias"


def _anchors(leaves: Sequence[str], roles: Mapping[str, str]) -> list[str]:
    """The leaves that give a layer its place: its weights, or all if it has none."""
    return [leaf for leaf in leaves if roles[leaf] == "weight"] or list(leaves)


def _split(
    groups: Mapping[str, list[str]], roles: Mapping[str, str], order: LayerOrder
) -> dict[str, list[str]]:
    """The groups, but leaves alone where the weights of a group stand at several depths."""
    result: dict[str, list[str]] = {}
    for name, own in groups.items():
        one = len({order.place(leaf) for leaf in _anchors(own, roles)}) == 1
        result |= {name: own} if one else {leaf: [leaf] for leaf in own}
    return result


def _places(anchors: Mapping[str, list[str]], deep: Sequence[str], order: Order) -> dict[str, int]:
    """The places of the layers, as far as they are known."""
    if order is None:
        return _numbered(deep)
    if not isinstance(order, LayerOrder):
        return _by_entries(list(anchors), deep, order)
    found = {name: order.place(own[0]) for name, own in anchors.items()}
    places = {name: place for name, place in found.items() if place is not None}
    whole = [leaf for own in anchors.values() for leaf in own if leaf in order.places]
    if order.places and not places and not whole:
        raise ValueError(f"order={short(order)} has none of the layers {short(list(anchors))}")
    return places


def _numbered(names: Sequence[str]) -> dict[str, int]:
    """The numbers of layers, if there is one series of them: `blocks/0/attn`, `blocks/1/mlp`.

    The number is the first that varies. Names without a number have no place. A number outside of
    the series, such as that of `Conv_0` beside `Dense_0` and `Dense_1`, contradicts it: then none
    has.
    """
    numbers = {
        name: [(name[: m.start()], int(m.group())) for m in re.finditer(r"\d+", name)]
        for name in names
    }
    values: dict[str, set[int]] = {}
    for stem, number in itertools.chain(*numbers.values()):
        values.setdefault(stem, set()).add(number)
    places: dict[str, int] = {}
    stems: set[str] = set()
    for name, pairs in numbers.items():
        for stem, number in pairs:
            if len(values[stem]) > 1 and name not in places:
                stems.add(stem)
                places[name] = number
    others = [f"{stem}{n}" for name in names if name not in places for stem, n in numbers[name]]
    if len(stems) != 1 or not all(next(iter(stems)).startswith(other) for other in others):
        return {}
    return places


def _by_entries(names: Sequence[str], deep: Sequence[str], order: Sequence[str]) -> dict[str, int]:
    """The places of the layers that the entries name, by name or prefix, in their order.

    Layers below one entry have one place, unless their numbers are a series.
    """
    if isinstance(order, str) or not all(isinstance(entry, str) for entry in order):
        raise TypeError(
            f"order={short(order)} must be a LayerOrder or a sequence of names of layers"
        )
    found: dict[str, tuple[int, int]] = {}
    for i, entry in enumerate(order):
        matches = [name for name in names if name == entry or name.startswith(f"{entry}/")]
        if not matches:
            raise ValueError(
                f"order={short(order)}: there is no layer {short(entry)} among {short(names)}"
            )
        numbers = _numbered(matches) or _numbered([name for name in matches if name in deep])
        for name in matches:
            found.setdefault(name, (i, numbers.get(name, 0)))
    ranks = {place: i for i, place in enumerate(sorted(set(found.values())))}
    return {name: ranks[place] for name, place in found.items()}
