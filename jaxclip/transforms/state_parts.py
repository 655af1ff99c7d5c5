"""States taken apart: into the optimizer, and the records of rules, guards and monitors."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxclip._core.state import ClipState, named
from jaxclip._core.types import PyTree
from jaxclip._numerics.scaled_float import accumulator
from jaxclip.transforms.carry import CarryState
from jaxclip.transforms.guard import GuardState
from jaxclip.transforms.hyperball import HyperballState
from jaxclip.transforms.monitor import MonitorState
from jaxclip.transforms.noise import NoiseScaleState
from jaxclip.transforms.per_example import PerExampleState
from jaxclip.transforms.resetting import ResetState
from jaxclip.transforms.stable_adam import AdamMoments

# The field of a wrapper's state that holds the state of the transformation inside.
INSIDE = {
    GuardState: "guarded_state",
    HyperballState: "directed_state",
    CarryState: "rule_state",
    PerExampleState: "rule_state",
    ResetState: "restarted_state",
    optax.ApplyIfFiniteState: "inner_state",
}
# Fields that tell which state a dict was, and fields of version 0.1.0 that have other names now.
_RECORDS = {
    ClipState: (
        {"fraction", "clipped_count", "memory"},
        {"scale": "smallest_scale", "count": "update_count"},
    ),
    GuardState: (
        {"skipped_count", "consecutive_count"},
        {"inner_state": "guarded_state", "count": "update_count"},
    ),
    MonitorState: ({"norms", "nonfinite_count"}, {"count": "update_count"}),
    CarryState: ({"rule_state", "carried"}, {}),
    ResetState: ({"restarted_state", "update_count"}, {}),
    PerExampleState: ({"rule_state", "example_count"}, {}),
    HyperballState: ({"directed_state", "radii"}, {}),
    NoiseScaleState: ({"mean_signal", "mean_noise"}, {}),
    optax.ApplyIfFiniteState: ({"notfinite_count", "inner_state"}, {}),
}
_MEMORIES = (
    ({"position", "filled"}, {"values": "observations"}),
    ({"std", "run"}, {"count": "observed_count"}),
    ({"norms", "values"}, {"values": "losses"}),
)
_STABLE_ADAM = named(ClipState, "scale_by_stable_adam")

_Attribute = jax.tree_util.GetAttrKey

_Key: TypeAlias = tuple[Any, ...]  # name, leaves of its memory, and place


class _Place(NamedTuple):
    """Where a node of a state is.

    Attributes:
        names: the fields and keys above it; not its places in chains.
        path: its key path.
        in_chain: whether a sequence here is the state of a chain.
    """

    names: tuple[Any, ...] = ()
    path: tuple[Any, ...] = ()
    in_chain: bool = True


class Leaf(NamedTuple):
    """A leaf of a state, with its names and path."""

    names: tuple[Any, ...]
    path: tuple[Any, ...]
    value: Any

    @property
    def kind(self) -> tuple[Any, ...]:
        """Names, shape and dtype."""
        return self.names, np.shape(self.value), getattr(self.value, "dtype", type(self.value))

    @property
    def extra(self) -> bool:
        """Whether it belongs to one of several hyperparameters: a new rule may have more."""
        return not {"hyperparams", "hyperparams_states"}.isdisjoint(map(_word, self.names))


class Parts:
    """A state taken apart.

    Leaves and records are in the order of their paths, that of numbers and then of names, which is
    the same for a state and for the dict that it was on disk.

    Attributes:
        optimizer: its leaves.
        records: the leaves of each rule, guard and monitor, by rule and place.
    """

    def __init__(self, state: PyTree, raw: bool, *, stable_adam: bool = False):
        """Takes a state apart.

        Args:
            state: the state.
            raw: whether types are unknown, so that fields and keys are the only names.
            stable_adam: whether to read an Adam of Optax as `scale_by_stable_adam`.
        """
        self.raw = raw
        self.stable_adam = stable_adam
        self.optimizer: list[Leaf] = []
        self.records: dict[_Key, list[list[Leaf]]] = {}
        self._visit(state, _Place(), self.optimizer)

    def _visit(self, node: Any, place: _Place, part: list[Leaf]) -> None:
        if self.stable_adam and is_adam(node):
            node = _STABLE_ADAM(*[None] * 4, _fields(node)["count"], None, None, node)
        kind = _record(node)
        children = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)[0]
        if children and not children[0][0]:
            part.append(Leaf(place.names, place.path, node))
            return
        below = [(*self._below(place, node, key), child) for (key,), child in children]
        lower = [(under, child) for _, under, child in sorted(below, key=lambda x: x[0])]
        if kind is not None:
            self._visit_record(kind, node, place, lower, part)
            return
        for under, child in lower:
            self._visit(child, under, part)

    def _visit_record(
        self,
        kind: type[Any],
        node: Any,
        place: _Place,
        children: list[tuple[_Place, Any]],
        part: list[Leaf],
    ) -> None:
        """Its own leaves become a record, those of a guarded state or of Adam join `part`."""
        own: list[Leaf] = []
        known: set[Any] = set()  # without types, the memory tells rules apart
        for under, child in children:
            field = _word(under.names[-1])
            moments = _moments(child) if field == "memory" else None
            if field == INSIDE.get(kind):
                self._visit(child, under._replace(names=place.names, in_chain=True), part)
            elif moments is not None:
                self._visit(moments, under._replace(names=place.names), part)
                known.add(AdamMoments)
            else:
                self._visit(child, under._replace(names=(field,)), own)
        if self.raw:
            known |= {leaf.names for leaf in own if leaf.names[0] == "memory"}
        rule = kind.__name__ if self.raw else getattr(node, "rule", kind.__name__)
        self.records.setdefault((rule, frozenset(known), place.names), []).append(own)

    def _below(self, place: _Place, node: Any, key: Any) -> tuple[tuple[int, str], _Place]:
        """The key that sorts a child, and its place."""
        name = _renamed(node, key)
        path = (*place.path, key)
        numbered = isinstance(key, jax.tree_util.SequenceKey) or (self.raw and name.isdigit())
        order = (int(name), "") if numbered else (0, name)
        # The array in a wrapper of Flax, which on disk is a dict.
        is_wrapper = name == "value" and (self.raw or isinstance(key, _Attribute))
        if is_wrapper or (numbered and (self.raw or place.in_chain)):
            return order, place._replace(path=path)
        if not isinstance(key, _Attribute):
            return order, place._replace(names=(*place.names, name), path=path)
        named = name if self.raw else (type(node).__name__, name)
        return order, _Place((*place.names, named), path, in_chain="state" in name)


def _record(node: Any) -> type[Any] | None:
    """The type of a rule's, guard's or monitor's state, also where it is a dict."""
    for kind, (marks, _) in _RECORDS.items():
        if isinstance(node, kind) or (isinstance(node, dict) and marks <= node.keys()):
            return kind
    return None


def _moments(node: Any) -> AdamMoments | None:
    """Adam's moments as they are now, also from the memory of version 0.1.0, an Adam of Optax."""
    if is_adam(node):
        return AdamMoments(_fields(node)["mu"], jax.tree.map(_root, _fields(node)["nu"]))
    return node if _fields(node).keys() == set(AdamMoments._fields) else None


def is_adam(node: Any) -> bool:
    """Whether it is the state of `optax.scale_by_adam`, or the dict that it was on disk."""
    kind = optax.ScaleByAdamState
    return isinstance(node, kind) or (isinstance(node, dict) and node.keys() == {*kind._fields})


def _root(v: Any) -> jax.Array:
    v = jnp.asarray(v)
    return jnp.sqrt(v.astype(accumulator(v)))


def _fields(node: Any) -> dict[str, Any]:
    """The fields of a state, or of the dict that it was on disk."""
    return node if isinstance(node, dict) else getattr(node, "_asdict", dict)()


def _renamed(node: Any, key: Any) -> str:
    """The name in a key, that of a field of version 0.1.0 as it is now."""
    name = jax.tree_util.keystr((key,), simple=True)
    for marks, names in (*_RECORDS.values(), *_MEMORIES):
        if isinstance(node, dict) and marks <= node.keys():
            return names.get(name, name)
    return name


def _word(name: Any) -> str:
    return name[-1] if isinstance(name, tuple) else name
