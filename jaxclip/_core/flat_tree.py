"""Trees: which leaves count, how prefix trees spread over them, what a leaf is called.

Everything above works on flat lists of leaves; this is where a tree becomes one and becomes a tree
again. No arithmetic here.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxclip import _validate as _checks

_SCALARS = (bool, int, float, complex)


def is_inexact(x: Any) -> bool:
    """Whether a leaf is measured and scaled: real or complex floating point.

    Integers, booleans, `float0` tangents and random keys are passed through.
    """
    dtype = getattr(x, "dtype", None)
    if dtype is None:
        if not isinstance(x, _SCALARS):
            return False
        dtype = jnp.result_type(x)
    return jnp.issubdtype(dtype, jnp.inexact)


def is_integer(x: Any) -> bool:
    """Whether a leaf holds whole numbers; booleans are none."""
    if isinstance(x, bool) or not (hasattr(x, "dtype") or isinstance(x, int)):
        return False
    return jnp.issubdtype(jnp.result_type(x), jnp.integer)


class Flat(NamedTuple):
    """A tree taken apart. `where` are the positions of the floating leaves among all leaves."""

    leaves: list[Any]
    where: list[int]
    keys: list[Any]
    treedef: Any
    tree: Any

    @property
    def arrays(self) -> list[jax.Array]:
        """The floating leaves."""
        return [_array(self.leaves[i]) for i in self.where]

    def at(self, i: int) -> str:
        """The key path of the i-th floating leaf, for messages."""
        return jax.tree_util.keystr(self.keys[self.where[i]]) or "the update"

    @property
    def names(self) -> list[str]:
        """A distinct readable name for every floating leaf: its keys joined by `/`.

        Flax NNX wraps parameters in objects whose array is called `value`; that last step is left
        out, so that a name is the same with and without the wrapper.
        """
        paths = [_without_value(self.keys[i]) for i in self.where]
        names = [jax.tree_util.keystr(path, simple=True, separator="/") for path in paths]
        if len(set(names)) < len(names):
            names = [jax.tree_util.keystr(path) for path in paths]
        return names

    @property
    def last_keys(self) -> list[str]:
        """The last key of every floating leaf, such as `kernel`; `""` for a bare array."""
        paths = [_without_value(self.keys[i])[-1:] for i in self.where]
        return [jax.tree_util.keystr(path, simple=True) for path in paths]

    def only(self, chosen: list[bool]) -> Flat:
        """The same tree with some of the floating leaves only."""
        return self._replace(where=[i for i, c in zip(self.where, chosen, strict=True) if c])

    def rebuild(self, arrays: list[jax.Array]) -> Any:
        """The same tree with other floating leaves."""
        leaves = list(self.leaves)
        for i, array in zip(self.where, arrays, strict=True):
            leaves[i] = array
        return jax.tree.unflatten(self.treedef, leaves)

    def replaced(self, arrays: list[jax.Array]) -> Flat:
        """The same leaves of the same tree with other values."""
        return flatten(self.rebuild(arrays))._replace(where=self.where)

    def spread(self, prefix: Any, name: str) -> list[Any]:
        """One value of the prefix tree `prefix` for each floating leaf; `None` is a value."""
        if not isinstance(prefix, (dict, list, tuple)) and jax.tree_util.all_leaves([prefix]):
            return [prefix] * len(self.where)
        boxed = jax.tree.map(_Box, prefix, is_leaf=lambda x: x is None)
        try:
            full = jax.tree.leaves(jax.tree.broadcast(boxed, self.tree))
        except ValueError as error:
            raise ValueError(
                f"{name} is not a prefix of the updates' tree, container for container of the same "
                f"type (a dict, an nnx.State, a module): {error}"
            ) from error
        return [full[i].value for i in self.where]


def _array(x: Any) -> Any:
    """`x` as an array; what has a shape and a dtype only is left as it is, for `init`."""
    return x if isinstance(x, jax.ShapeDtypeStruct) else jnp.asarray(x)


class _Box:
    """Makes a leaf of anything, `None` included."""

    def __init__(self, value: Any):
        self.value = value


def flatten(tree: Any) -> Flat:
    """Takes a tree apart."""
    with_paths, treedef = jax.tree_util.tree_flatten_with_path(tree)
    leaves = [leaf for _, leaf in with_paths]
    where = [i for i, leaf in enumerate(leaves) if is_inexact(leaf)]
    return Flat(leaves, where, [path for path, _ in with_paths], treedef, tree)


def params_like(params: Any, updates: Flat) -> Flat:
    """The parameters taken apart, if their tree is that of the updates."""
    own = flatten(params)
    if own.treedef != updates.treedef:
        paths = [{jax.tree_util.keystr(key) for key in flat.keys} for flat in (own, updates)]
        only = " and ".join(
            f"{name} alone have {sorted(mine - theirs)[0]}"
            for name, mine, theirs in (("params", *paths), ("updates", *paths[::-1]))
            if mine - theirs
        )
        raise ValueError(
            "params and updates differ in structure: "
            + (only or f"{own.treedef} against {updates.treedef}")
        )
    return own


def check_shapes(params: Flat, updates: Flat) -> None:
    """Raises where a parameter and its update differ in shape."""
    for i, (w, u) in enumerate(zip(params.arrays, updates.arrays, strict=True)):
        if w.shape != u.shape:
            shapes = f"{w.shape} against {u.shape} at {params.at(i)}"
            raise ValueError(f"params and updates differ in shape: {shapes}")


def at(tree: Any, count: jax.Array) -> Any:
    """A tree of values and schedules, with the schedules' values at `count`."""
    values = _checks.is_value
    return jax.tree.map(lambda x: x(count) if callable(x) else x, tree, is_leaf=values)


def _without_value(path: Any) -> Any:
    attribute = jax.tree_util.GetAttrKey("value")
    return path[:-1] if path and path[-1] == attribute else path


def reduced_axes(flat: Flat, scope: str, axis: Any) -> list[tuple[int, ...]]:
    """The axes over which each floating leaf's norm is taken.

    Args:
        flat: a tree taken apart.
        scope: only at `unit` is there a choice.
        axis: a tuple; `None`; or a function `(name, leaf) -> axes`, of the leaf's name as
            `Flat.names` has it.
    """
    arrays = flat.arrays
    if scope != "unit" or not callable(axis):
        return [_reduced_axes(x.ndim, scope, axis) for x in arrays]
    axes = [_checks.axes(axis(*leaf)) for leaf in zip(flat.names, arrays, strict=True)]
    return [_reduced_axes(x.ndim, scope, own) for x, own in zip(arrays, axes, strict=True)]


def _reduced_axes(ndim: int, scope: str, axis: tuple[int, ...] | None) -> tuple[int, ...]:
    """The axes over which one leaf's norm is taken.

    `axis=None` at the scope `unit` means one output channel of a JAX kernel, laid out (in, out) or
    (H, W, in, out): all axes but the last. A vector is one unit.
    """
    if scope == "element":
        return ()
    if scope != "unit":
        return tuple(range(ndim))
    if axis is None:
        return tuple(range(ndim - 1)) if ndim > 1 else tuple(range(ndim))
    own = {a + ndim if a < 0 else a for a in axis if -ndim <= a < ndim}
    return tuple(sorted(own)) or tuple(range(ndim))
