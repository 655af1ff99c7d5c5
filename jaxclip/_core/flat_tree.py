"""Trees as flat lists of floating leaves: which leaves count, their names, prefix trees over them.

The other modules work on these lists. There is no arithmetic here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxclip import _validate
from jaxclip._numerics.scaled_float import accumulator
from jaxclip._validate import cut, short

_WRAPPED = ("value", "raw_value", "array")


class Flat(NamedTuple):
    """A tree taken apart.

    Attributes:
        arrays: the floating leaves.
        places: their positions among all leaves.
        leaves: all leaves.
        paths: the key paths of all leaves.
        treedef: the structure.
        tree: the tree itself.
    """

    arrays: list[jax.Array]
    places: list[int]
    leaves: list[Any]
    paths: list[Any]
    treedef: Any
    tree: Any

    def path(self, i: int) -> str:
        """The key path of the i-th floating leaf, for errors."""
        return jax.tree_util.keystr(self.paths[self.places[i]]) or "the update"

    @property
    def names(self) -> list[str]:
        """A distinct name for every floating leaf: its keys joined by `/`.

        A wrapper of an array, such as `nnx.Param`, does not change the name: if its array is its
        only leaf, the key of the array is left out.
        """
        paths = list(map(self._unwrapped, self.places))
        names = [jax.tree_util.keystr(path, simple=True, separator="/") for path in paths]
        if len(set(names)) < len(names):
            names = [jax.tree_util.keystr(path) for path in paths]
        return names

    @property
    def biases(self) -> list[bool]:
        """Which floating leaves are biases: called `bias`, or the only leaf of a node so called.

        Such a node is a wrapper, whatever it calls its array; a dict, list or tuple is none.
        """
        return list(map(self._is_bias, self.places))

    def _unwrapped(self, place: int) -> Any:
        """The key path of a leaf, or of the wrapper that it is the array of."""
        path = self.paths[place]
        while path and _is_wrapped(path[-1]) and self._is_alone(place, path[:-1]):
            path = path[:-1]
        return path

    def _is_bias(self, place: int) -> bool:
        path = self.paths[place]
        while path and _name(path[-1]) != "bias":
            if not (_is_of_class(path[-1]) and self._is_alone(place, path[:-1])):
                return False
            path = path[:-1]
        return bool(path)

    def _is_alone(self, place: int, node: Any) -> bool:
        """Whether a leaf is the only one of the node at a key path: its neighbors are not."""
        neighbors = self.paths[max(place - 1, 0) : place] + self.paths[place + 1 : place + 2]
        return all(path[: len(node)] != node for path in neighbors)

    def only(self, chosen: Sequence[bool]) -> Flat:
        """The same tree with some of its floating leaves."""
        arrays = [x for x, c in zip(self.arrays, chosen, strict=True) if c]
        places = [i for i, c in zip(self.places, chosen, strict=True) if c]
        return self._replace(arrays=arrays, places=places)

    def rebuild(self, arrays: Sequence[Any]) -> Any:
        """The tree with other floating leaves."""
        leaves = list(self.leaves)
        for i, array in zip(self.places, arrays, strict=True):
            leaves[i] = array
        return jax.tree.unflatten(self.treedef, leaves)

    def spread(self, prefix: Any, name: str) -> list[Any]:
        """The value of a prefix tree for each floating leaf; `None` is a value."""
        if not isinstance(prefix, (dict, list, tuple)) and jax.tree_util.all_leaves([prefix]):
            return [prefix] * len(self.places)
        boxed = jax.tree.map(_Box, prefix, is_leaf=lambda x: x is None)
        try:
            full = jax.tree.leaves(jax.tree.broadcast(boxed, self.tree))
        except ValueError as error:
            raise ValueError(
                f"{name} is not a prefix of the updates' tree, container for container of the same "
                f"type (a dict, an nnx.State, a module): {cut(error)}"
            ) from error
        return [full[i].value for i in self.places]

    def chosen(self, mask: Any, name: str) -> list[bool]:
        """The floating leaves that a mask selects: a prefix tree of bools, or a function to one."""
        leaves = jax.tree.leaves(mask)  # a module of bools may be callable as well
        asks = callable(mask) and not any(map(_validate.is_bool, leaves))
        values = self.spread(mask(self.tree) if asks else mask, name)
        for value in values:
            if not _validate.is_bool(value):
                raise TypeError(
                    f"{name} has the leaf {short(value)}; it must hold True and False only"
                )
        return [bool(value) for value in values]


class _Box:
    """A leaf that holds anything, `None` too."""

    def __init__(self, value: Any):
        self.value = value


def flatten(tree: Any) -> Flat:
    """Takes a tree apart."""
    with_paths, treedef = jax.tree_util.tree_flatten_with_path(tree)
    flat = Flat([], [], [], [], treedef, tree)
    for path, leaf in with_paths:
        if is_inexact(leaf):
            # A shape with a dtype is a leaf for `init`.
            array: Any = leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jnp.asarray(leaf)
            flat.arrays.append(array)
            flat.places.append(len(flat.leaves))
        flat.leaves.append(leaf)
        flat.paths.append(path)
    return flat


def is_inexact(x: Any) -> bool:
    """Whether a leaf is measured and scaled: real or complex floating point.

    Integers, booleans, `float0` tangents and random keys are passed through.
    """
    dtype = getattr(x, "dtype", None)
    if dtype is None:
        if not isinstance(x, (bool, int, float, complex)):
            return False
        dtype = jnp.result_type(x)
    return jnp.issubdtype(dtype, jnp.inexact)


def is_integer(x: Any) -> bool:
    """Whether a leaf holds integers, booleans excluded."""
    if isinstance(x, bool) or not (hasattr(x, "dtype") or isinstance(x, int)):
        return False
    return jnp.issubdtype(jnp.result_type(x), jnp.integer)


def alike(tree: Any, like: Flat, names: tuple[str, str] = ("params", "updates")) -> Flat:
    """Another tree taken apart in the same places, if structure and shapes agree.

    Args:
        tree: parameters for their updates, or updates for their parameters.
        like: the tree that says which leaves count.
        names: the names of both in errors.
    """
    own = flatten(tree)
    if own.treedef != like.treedef:
        found = difference(own.tree, like.tree, names)
        raise ValueError(f"params and updates differ in structure: {found}")
    arrays = [_measurable(own, i, x, names) for i, x in zip(like.places, like.arrays, strict=True)]
    own = own._replace(arrays=arrays, places=like.places)
    for i, (x, y) in enumerate(zip(own.arrays, like.arrays, strict=True)):
        if x.shape != y.shape:
            shapes = f"{x.shape} of {names[0]} and {y.shape} of {names[1]} at {own.path(i)}"
            raise ValueError(f"params and updates differ in shape: {shapes}")
    return own


def difference(one: Any, other: Any, names: tuple[str, str], path: Any = ()) -> str:
    """The first place where two trees differ in structure, for errors; `""` if there is none."""
    (mine, form), (theirs, other_form) = map(_children, (one, other))
    if form == other_form:
        pairs = zip(mine.items(), theirs.values(), strict=True)
        found = (difference(x, y, names, path + key) for (key, x), y in pairs if key)
        return next(filter(None, found), "")
    at = [[cut(jax.tree_util.keystr(path + key)) for key in xs] for xs in (mine, theirs)]
    rest = [[key for key in at[i] if key not in at[1 - i]] for i in (0, 1)]
    only = [f"only {name} has {keys[0]}" for name, keys in zip(names, rest, strict=True) if keys]
    kinds = " and ".join(
        f"{name} has a {type(x).__name__}" for name, x in zip(names, (one, other), strict=True)
    )
    where = jax.tree_util.keystr(path) or "the root"
    return " and ".join(only) or f"{kinds} at {cut(where)}"


def _children(node: Any) -> tuple[dict[Any, Any], Any]:
    """The children of a node by their key paths, and its structure; a leaf is its own child."""
    pairs, form = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)
    return dict(pairs), form


def _measurable(own: Flat, place: int, like: jax.Array, names: tuple[str, str]) -> jax.Array:
    """The leaf beside a floating one, integers as floats: quantized weights have norms as well."""
    leaf = own.leaves[place]
    if is_inexact(leaf):
        return jnp.asarray(leaf)
    if is_integer(leaf):
        return jnp.asarray(leaf).astype(accumulator(like))
    dtype = getattr(leaf, "dtype", type(leaf).__name__)
    raise ValueError(
        f"params and updates differ in dtype: {names[0]} has {dtype} and {names[1]} {like.dtype} "
        f"at {cut(jax.tree_util.keystr(own.paths[place])) or 'the root'}"
    )


def at_step(tree: Any, count: jax.Array) -> Any:
    """A tree of numbers and schedules, with the schedules' values at `count`."""
    limits = _validate.is_one_limit
    return jax.tree.map(lambda x: x(count) if callable(x) else x, tree, is_leaf=limits)


def _name(key: Any) -> str:
    return jax.tree_util.keystr((key,), simple=True)


def _is_of_class(key: Any) -> bool:
    """Whether a key is an attribute, or a number in a class that has no keys for JAX."""
    return isinstance(key, (jax.tree_util.GetAttrKey, jax.tree_util.FlattenedIndexKey))


def _is_wrapped(key: Any) -> bool:
    """Whether a key is that of the array in a wrapper.

    `nnx.Param` and `nn.Partitioned` call it `value`, and Haliax's `NamedArray` calls it `array`.
    """
    return _is_of_class(key) and (_name(key).isdigit() or _name(key) in _WRAPPED)
