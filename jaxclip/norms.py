r"""Norms of trees, exact in every dtype.

A norm is taken at a scope: of the whole tree (`global_norm`), of each leaf (`leaf_norms`, `rms`,
`average_norm`) or of each unit of a leaf (`unit_norms`). What all of them guarantee:

| input | norm |
|---|---|
| float16, bfloat16, float32 | accumulated and returned in float32 |
| float64 | accumulated and returned in float64 |
| finite elements whose squares overflow or underflow | as if computed in float64 |
| subnormal elements | may count as 0, since XLA flushes them |
| NaN or inf | NaN or inf |
| complex | of the magnitudes |
| integer, boolean, `float0` leaves, `None`, no elements | contribute nothing; alone, 0 |
| derivative where the norm is 0 | 0 |

Thresholds and scaling do not belong here.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp

from jaxclip import _validate as _checks
from jaxclip._core import flat_tree as _trees
from jaxclip._numerics import collectives as _mesh
from jaxclip._numerics import group_norm as _group_norm
from jaxclip._numerics.group_norm import Kind
from jaxclip._numerics.scaled_float import Norm

__all__ = ["average_norm", "global_norm", "leaf_norms", "rms", "unit_norms"]


def global_norm(tree: Any, ord: Any = _checks.TWO, *, axis_name: Any = None) -> jax.Array:
    r"""The norm of all leaves of a tree together, as one vector.

    $$\|g\|_p = \Big(\sum_i |g_i|^p\Big)^{1/p}$$

    Args:
        tree: any pytree of arrays.
        ord: p >= 1 or inf; `"rms"` or `"average"` divide the 2-norm by the root of the number of
            elements, or by their number.
        axis_name: mesh axes over which the leaves are sharded; `None` finds them by itself where
            the tracing context knows them, `()` never reduces.

    Returns:
        A float32 scalar, float64 if a leaf is float64.

    Raises:
        ValueError: if `ord` is below 1, or `axis_name` names an axis a leaf is replicated over.

    Example:
        >>> import jax.numpy as jnp, jaxclip
        >>> print(jaxclip.norms.global_norm({"w": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])}))
        5.0
        >>> print(jaxclip.norms.global_norm(jnp.array([1e20, 0.0])))  # its square overflows
        1e+20
    """
    flat = _trees.flatten(tree)
    return measure(flat, "global", ord, None, _checks.mesh_axes(axis_name))[0].number


def leaf_norms(tree: Any, ord: Any = _checks.TWO, *, axis_name: Any = None) -> Any:
    """The norm of each leaf.

    Args:
        tree: any pytree of arrays.
        ord: as for `global_norm`.
        axis_name: as for `global_norm`.

    Returns:
        A tree of the same structure with a float32 (float64) scalar per leaf.

    Raises:
        ValueError: as for `global_norm`.

    Example:
        >>> import jax.numpy as jnp, jaxclip
        >>> norms = jaxclip.norms.leaf_norms({"w": jnp.array([3.0, 4.0]), "b": jnp.ones(4)})
        >>> print(norms["w"], norms["b"])
        5.0 2.0
    """
    flat = _trees.flatten(tree)
    found = measure(flat, "leaf", ord, None, _checks.mesh_axes(axis_name))
    return _as_tree(flat, found, lambda x: jnp.zeros((), jnp.float32))


def unit_norms(
    tree: Any, axis: Any = None, ord: Any = _checks.TWO, *, axis_name: Any = None
) -> Any:
    """The norm of each unit of each leaf: of each slice along the axes that are reduced.

    Args:
        tree: any pytree of arrays.
        axis: the axes to reduce, an int or several, negative ones counted from the end. Axes that a
            leaf does not have are left out; a leaf that has none of them is one unit. `None`
            reduces all axes but the last, which is one output channel of a JAX kernel laid out
            (in, out) or (H, W, in, out); a vector is then one unit. A function `(name, leaf) ->
            axes` chooses for each leaf.
        ord: as for `global_norm`.
        axis_name: as for `global_norm`, but `None` cannot know which array axis is sharded: inside
            `shard_map` name the mesh axes over which a unit is spread, or `()`.

    Returns:
        A tree of the same structure; each leaf keeps its rank, with reduced axes of size 1.

    Raises:
        ValueError: as for `global_norm`, and where the mesh axes of a unit cannot be known.

    Example:
        >>> import jax.numpy as jnp, jaxclip
        >>> kernel = jnp.array([[3.0, 1.0], [4.0, 0.0]])
        >>> print(jaxclip.norms.unit_norms(kernel, axis=0))
        [[5. 1.]]
    """
    flat = _trees.flatten(tree)
    found = measure(flat, "unit", ord, _checks.axes(axis), _checks.mesh_axes(axis_name))
    return _as_tree(flat, found, lambda x: jnp.zeros((1,) * jnp.ndim(x), jnp.float32))


def rms(x: Any, *, axis_name: Any = None) -> jax.Array:
    r"""The root mean square of one array, $\sqrt{\frac1N\sum_i |x_i|^2}$.

    Args:
        x: an array.
        axis_name: as for `global_norm`.

    Returns:
        A float32 (float64) scalar; 0 for an empty array.

    Example:
        >>> import jax.numpy as jnp, jaxclip
        >>> print(jaxclip.norms.rms(jnp.array([1.0, 7.0])))
        5.0
    """
    return global_norm(x, "rms", axis_name=axis_name)


def average_norm(x: Any, *, axis_name: Any = None) -> jax.Array:
    r"""TensorFlow's average norm of one array, $\|x\|_2 / N$: not the root mean square.

    Args:
        x: an array of N elements, those on other devices included.
        axis_name: as for `global_norm`.

    Returns:
        A float32 (float64) scalar; 0 for an empty array.

    Example:
        >>> import jax.numpy as jnp, jaxclip
        >>> print(jaxclip.norms.average_norm(jnp.array([3.0, 4.0])))
        2.5
    """
    return global_norm(x, "average", axis_name=axis_name)


def measure(
    flat: _trees.Flat,
    scope: str,
    ord: Any,
    axis: Any,
    axis_name: _mesh.Axes | None,
    which: list[bool] | None = None,
) -> list[Norm]:
    """The norms at a scope: one in all at `global`, else one per floating leaf.

    The engine's measuring instrument. `which` selects leaves; `axis` and `axis_name` are checked.
    """
    order = _checks.norm_order(ord)
    power = float("inf") if scope == "element" else 2.0 if isinstance(order, str) else order
    arrays = flat.arrays
    reduced = _trees.reduced_axes(flat, scope, axis)
    mesh = [_mesh_axes(flat, i, x, scope, reduced[i], axis_name) for i, x in enumerate(arrays)]
    if scope == "global":
        chosen = [i for i in range(len(arrays)) if which is None or which[i]]
        elements = sum(arrays[i].size * _mesh.shards(mesh[i]) for i in chosen)
        every, names = (None,) * len(chosen), tuple(mesh[i] for i in chosen)
        kind = Kind(power, every, names)
        return _norms([[arrays[i] for i in chosen]], [kind], order, [elements])
    kinds, counts = [], []
    for x, own, names in zip(arrays, reduced, mesh, strict=True):
        axes = None if scope == "leaf" else own
        elements = math.prod(x.shape if axes is None else (x.shape[a] for a in axes))
        kinds.append(Kind(power, (axes,), (names,)))
        counts.append(elements * _mesh.shards(names))
    return _norms([[x] for x in arrays], kinds, order, counts)


def shared_global_norm(
    flat: _trees.Flat, axis_name: _mesh.Axes | None
) -> tuple[Norm, AbstractContextManager[None]]:
    """The 2-norm of all leaves, and a context in which it is not measured again."""
    arrays = flat.arrays
    mesh = tuple(_mesh.sharded_axes(x, axis_name, flat.at(i)) for i, x in enumerate(arrays))
    kind = Kind(2.0, (None,) * len(arrays), mesh)
    found = _group_norm.norm(arrays, kind)
    return found, _group_norm.known(arrays, kind, found)


def together(numbers: list[jax.Array], power: float) -> jax.Array:
    """The norm of all groups from those of each, also where devices have groups of their own."""
    if len(numbers) == 1 and numbers[0].ndim == 0:
        return numbers[0]
    kind = Kind(power, (None,) * len(numbers), tuple(map(_mesh.varying_axes, numbers)))
    return _group_norm.norm(numbers, kind).number


def _norms(
    groups: list[list[jax.Array]], kinds: list[Kind], order: float | str, counts: list[int]
) -> list[Norm]:
    """The norms; their mean inside the root for `rms`, their mean outside the root for `average`.

    `counts` are the elements of each group, on all devices.
    """
    counts = [max(count, 1) for count in counts]
    if order == "rms":
        kinds = [k._replace(elements=count) for k, count in zip(kinds, counts, strict=True)]
    found = _group_norm.norms(groups, kinds)
    if order == "average":
        found = [n.divided_by(count) for n, count in zip(found, counts, strict=True)]
    return found


def _mesh_axes(
    flat: _trees.Flat, i: int, x: Any, scope: str, reduced: tuple[int, ...], axis_name: Any
) -> _mesh.Axes:
    """The mesh axes that one leaf's norm is reduced over."""
    names = _mesh.sharded_axes(x, axis_name, flat.at(i))
    if scope == "element":
        return ()
    whole = scope != "unit" or len(reduced) == x.ndim
    if names and axis_name is None and not whole:
        raise ValueError(
            f"axis_name=None: the leaf {flat.at(i)} is sharded over the mesh axes {names}, but "
            "whether that divides its units cannot be known. Pass axis_name= with the mesh axes "
            "over which one unit is spread, or axis_name=() if every unit is whole"
        )
    return names


def _as_tree(flat: _trees.Flat, found: list[Norm], other: Any) -> Any:
    leaves = [other(x) for x in flat.leaves]
    for i, norm in zip(flat.where, found, strict=True):
        leaves[i] = norm.number
    return jax.tree.unflatten(flat.treedef, leaves)
